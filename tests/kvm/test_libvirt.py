# SPDX-License-Identifier: Apache-2.0
"""Launches by Debian's libvirt: it finds SEV, starts domains, and has their secrets injected."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import Require
from tests.e2e.daemon import Daemon, run_hcalld
from tests.e2e.lab import Lab
from tests.e2e.sevqemu import (
    CPU,
    CPU_MODEL,
    VALIDATOR,
    Owner,
    SevGuest,
    Transcript,
    Verdict,
    made_up_kernel,
)
from tests.kvm.test_launch import CMDLINE, GUID
from tests.kvm.virsh import URI, Virsh, ending, give, own, user_id
from tests.sev_platform import VECTORS

from hcalld.config import UNNAMED_PLATFORM
from hcalld.guest.sevhost import cbitpos

pytestmark = [pytest.mark.kvm, pytest.mark.timeout(300)]

MISMATCH = 1
"""virt-qemu-sev-validate's status for another measurement."""

VERSION = ("--api-major", "1", "--api-minor", "55", "--build-id", "21")


class LibvirtLab:
    """A user with libvirt, an emulator in his path, and a daemon that is not started.

    Args:
        lab: Starts the daemon.
        require: Gives the path of a tool.
    """

    def __init__(self, lab: Lab, require: Require) -> None:
        self._validator = require(VALIDATOR)
        # The user must be let in, and find the library, wherever this tree is.
        home = lab.socket_dir
        home.chmod(0o711)
        programs = home / "bin"
        programs.mkdir()
        give(home, programs)
        self.virsh = Virsh(require("virsh"), home, programs)
        self.firmware = own(require("sev-firmware"), home)
        root = VECTORS / "root-2048.pem"
        profile = lab.artifacts / "profiles" / f"{UNNAMED_PLATFORM}.toml"
        profile.parent.mkdir()
        profile.write_text(f'[sev]\nroot = "{root}"\n')
        self.daemon: Daemon = lab.daemon(
            *("--profile-dir", str(profile.parent), "--socket-mode", "0666"),
            *(word for user in {0, user_id()} for word in ("--allow-uid", str(user))),
            is_started=False,
        )
        self.owner = Owner(home, self.daemon.socket, root, self._validator)
        name = f"{lab.artifacts.name.removeprefix('kvm-')}.txt"
        self.transcript = Transcript(lab.artifacts.parent / "sev-transcripts" / name)
        library = own(require("sev-library"), home)
        emulator = str(programs / require("qemu-system-x86_64").name)
        self.transcript.add(
            "hcalld sev emulator",
            self.owner.ask_platform("emulator", "--library", str(library), emulator),
        )

    def guest(self, policy: int, **values: object) -> SevGuest:
        """Describes a domain whose owner made a session for it."""
        session = self.owner.session(policy)
        give(session.tik, session.tek)
        qemu = Path("qemu-system-x86_64")
        return SevGuest(qemu=qemu, firmware=self.firmware, session=session, **values)  # type: ignore[arg-type]

    def validate(self, name: str, guest: SevGuest, *words: str | Path) -> Verdict:
        """Has libvirt's validator ask libvirt about a domain, and judge."""
        assert guest.session is not None
        done = self.virsh.run(
            *("/usr/bin/python3", self._validator, "--connect", URI, "--domain", name),
            *("--insecure", "--tik", guest.session.tik, "--tek", guest.session.tek, *words),
        )
        return Verdict(done.returncode, done.stdout + done.stderr)


@pytest.fixture
def libvirt(lab: Lab, require: Require) -> Iterator[LibvirtLab]:
    with ending(lab.socket_dir):
        yield LibvirtLab(lab, require)


def test_domain_when_its_owner_is_convinced_then_it_runs_with_the_secret(libvirt: LibvirtLab):
    virsh, note = libvirt.virsh, libvirt.transcript.add
    # libvirt keeps what it is told, so it is not told that there is no SEV.
    assert "hcalld: no socket" in virsh.refused("nodesevinfo")
    libvirt.daemon.start()

    node = virsh.facts("nodesevinfo")
    note("virsh nodesevinfo", node)
    guest = libvirt.guest(policy=1)
    whole = base64.b64decode(node["pdh"]) + base64.b64decode(node["cert-chain"])
    assert whole == libvirt.owner.certificates.read_bytes()
    assert base64.b64decode(node["cpu0-id"]).hex() == libvirt.owner.ask_platform("id").strip()
    assert node["cbitpos"] == str(cbitpos())
    found = ET.fromstring(virsh.ask("domcapabilities", "--virttype", "kvm"))
    sev = found.find("features/sev")
    assert sev is not None
    assert sev.attrib == {"supported": "yes"}
    assert sev.findtext("cbitpos") == node["cbitpos"]

    # Another's session, to begin with.
    assert guest.session is not None
    other = dataclasses.replace(guest.session, session=libvirt.guest(policy=1).session.session)  # type: ignore[union-attr]
    why = virsh.create("stranger", dataclasses.replace(guest, session=other))
    note("virsh create, with another's session", why)
    assert "sev_launch_start: LAUNCH_START ret=1" in why
    assert virsh.ask("list", "--all", "--name").split() == []

    assert virsh.create("vm", guest) == ""
    launched = virsh.facts("domlaunchsecinfo", "vm")
    note("virsh domlaunchsecinfo", launched)
    assert (launched["sev-policy"], launched["sev-api-minor"]) == ("1", "55")
    assert len(base64.b64decode(launched["sev-measurement"])) == 48

    other_firmware = virsh.home / "other.bin"
    image = bytearray(guest.firmware.read_bytes())
    image[64] ^= 1
    other_firmware.write_bytes(image)
    for words in (("--policy", "3"), ("--firmware", other_firmware), ("--build-id", "20")):
        verdict = libvirt.validate("vm", guest, *words)
        assert verdict.status == MISMATCH, f"{words}: {verdict.output}"
        assert "Measurement does not match" in verdict.output

    secret = virsh.home / "secret"
    secret.write_bytes(b"open sesame")
    give(secret)
    verdict = libvirt.validate("vm", guest, "--inject-secret", f"luks-key:{secret}")
    note("virt-qemu-sev-validate", verdict.output)
    assert (verdict.status, "Injected 1 secrets" in verdict.output) == (0, True), verdict.output
    # It has resumed the domain too.
    said = virsh.read_to_end("vm")
    note("serial port", said)
    assert f"secret: {GUID} 11 bytes, text: open sesame\n" in said
    assert "cpuid: no SEV\n" in said
    virsh.ask("destroy", "vm")
    assert "guest gone" in libvirt.daemon.log_text()


def test_domain_when_it_is_es_and_boots_a_kernel_then_all_of_it_is_measured(libvirt: LibvirtLab):
    virsh, note = libvirt.virsh, libvirt.transcript.add
    libvirt.daemon.start()
    initrd = virsh.home / "initrd"
    initrd.write_bytes(b"an initrd " * 100)
    kernel = made_up_kernel(virsh.home / "kernel", b"a kernel " * 1000)
    guest = libvirt.guest(
        policy=7, smp=2, kernel=kernel, initrd=initrd, append=CMDLINE, kernel_hashes=True
    )
    assert virsh.create("vm", guest) == ""

    # The validator would take the host's processor, which is another.
    names = ("--cpu-family", "--cpu-model", "--cpu-stepping")
    cpu = [word for pair in zip(names, map(str, CPU_MODEL), strict=True) for word in pair]
    wanted = ["--firmware", str(guest.firmware), *cpu]
    assert libvirt.validate("vm", guest, *wanted).output == "OK: Looks good to me\n"
    for words in (("--num-cpus", "1"), ("--kernel", initrd), ("--policy", "5")):
        verdict = libvirt.validate("vm", guest, *wanted, *words)
        assert verdict.status == MISMATCH, f"{words}: {verdict.output}"

    # The same by hand.
    launched = virsh.facts("domlaunchsecinfo", "vm")["sev-measurement"]
    header, payload = (virsh.home / name for name in ("header.b64", "payload.b64"))
    secret = virsh.home / "secret"
    secret.write_bytes(b"sealed")
    assert guest.session is not None
    done = run_hcalld(
        *("sev", "secret", "--firmware", str(guest.firmware), "--policy", "7", *VERSION),
        *("--kernel", str(kernel), "--initrd", str(initrd), "--append", CMDLINE),
        *("--vcpus", "2", "--vcpu-type", CPU),
        *("--tik", str(guest.session.tik), "--tek", str(guest.session.tek)),
        *("--header", str(header), "--payload", str(payload), launched, f"luks-key:{secret}"),
    )
    assert done.returncode == 0, done.stderr
    give(header, payload)
    tampered = virsh.home / "tampered.b64"
    tampered.write_text(flipped(payload.read_text()))
    give(tampered)
    state = ("domsetlaunchsecstate", "vm", "--secrethdr", header, "--secret")
    why = virsh.refused(*state, tampered)
    note("virsh domsetlaunchsecstate, with a secret that was changed", why)
    assert "fw_error=11 'Bad measurement'" in why
    assert virsh.ask("domstate", "vm").strip() == "paused"
    virsh.ask(*state, payload)
    virsh.ask("resume", "vm")
    said = virsh.read_to_end("vm")
    note("serial port", said)
    assert f"secret: {GUID} 6 bytes, text: sealed\n" in said
    assert f"hashes: kernel {hashlib.sha256(kernel.read_bytes()).hexdigest()}\n" in said


def flipped(text: str) -> str:
    """Base64 of something with one bit changed."""
    data = bytearray(base64.b64decode(text))
    data[0] ^= 1
    return base64.b64encode(data).decode()
