# SPDX-License-Identifier: Apache-2.0
"""Debian's QEMU as a client of the daemon's SEV: guests under KVM, and their owner's tools.

Nothing of QEMU is changed. ``libhcalld-sev.so`` is preloaded and carries its SEV commands to the
daemon; the guest runs in KVM with its memory as it is.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from qemu.qmp import ExecInterruptedError
from tests.e2e.console import LINUX_FAILURES
from tests.e2e.daemon import run_hcalld
from tests.e2e.machine import Machine
from tests.e2e.patience import patience

from hcalld.guest.machine import escape
from hcalld.guest.sevhost import sev_arguments

__all__ = [
    "CPU",
    "GOOD",
    "LINUX_FAILURES",
    "Launched",
    "Owner",
    "Session",
    "SevGuest",
    "Transcript",
    "inject",
    "made_up_kernel",
    "physical",
    "read_launched",
    "run_to_end",
    "secret_lines",
]

CPU: Final = "EPYC"
"""What sev-snp-measure's ``--vcpu-type`` calls it too."""

CPU_MODEL: Final = (23, 1, 2)
"""Family, model, stepping of that: QEMU target/i386/cpu.c."""

GOOD: Final = 1
"""QEMU's exit status when the firmware found nothing malformed: isa-debug-exit gives 2n + 1."""

VALIDATOR: Final = "virt-qemu-sev-validate"


@dataclasses.dataclass(frozen=True, slots=True)
class Session:
    """What an owner made for one launch on one platform.

    Attributes:
        policy: The guest's.
        dh_cert: For QEMU's ``dh-cert-file``.
        session: For its ``session-file``.
        tik: Transport integrity key, raw.
        tek: Transport encryption key, raw.
    """

    policy: int
    dh_cert: Path
    session: Path
    tik: Path
    tek: Path


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SevGuest:
    """A QEMU under KVM.

    Attributes:
        session: None: the guest has no owner who could validate it.
        is_sev: False: without SEV, to compare.
        is_paused: QEMU waits before the first instruction, as it must for a secret.
        can_end: The firmware ends QEMU; else it halts.
    """

    qemu: Path
    firmware: Path
    policy: int = 1
    session: Session | None = None
    is_sev: bool = True
    kernel: Path | None = None
    initrd: Path | None = None
    append: str | None = None
    kernel_hashes: bool = False
    smp: int = 1
    memory_mib: int = 32
    is_paused: bool = True
    can_end: bool = True
    failures: Sequence[str] = ()
    extra: Sequence[str] = ()

    def arguments(self) -> list[str]:
        """QEMU's command line, the monitor and the console left out."""
        words = ["-accel", "kvm", "-machine", "q35", "-cpu", f"{CPU},check=off"]
        words += ["-m", f"{self.memory_mib}M", "-smp", str(self.smp)]
        words += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        firmware = escape(str(self.firmware))
        words += ["-drive", f"if=pflash,format=raw,readonly=on,file={firmware}"]
        if self.is_sev:
            words += sev_arguments(
                policy=self.policy if self.session is None else self.session.policy,
                dh_cert=None if self.session is None else self.session.dh_cert,
                session=None if self.session is None else self.session.session,
                kernel_hashes=self.kernel_hashes,
            )
        for option, value in (
            ("-kernel", self.kernel),
            ("-initrd", self.initrd),
            ("-append", self.append),
        ):
            if value is not None:
                words += [option, str(value)]
        if self.is_paused:
            words += ["-S"]
        if self.can_end:
            words += ["-device", "isa-debug-exit"]
        return [*words, *self.extra]


@dataclasses.dataclass(frozen=True, slots=True)
class Launched:
    """What QEMU says of a guest whose launch is measured.

    Attributes:
        facts: The answer of query-sev.
        measurement: 48 bytes: measurement and nonce.
    """

    facts: dict[str, Any]
    measurement: bytes

    @property
    def measurement_text(self) -> str:
        """In base64, as QEMU and the validator have it."""
        return base64.b64encode(self.measurement).decode()


def read_launched(machine: Machine) -> Launched:
    """Asks QEMU for what an owner needs to validate."""
    facts = dict(machine.qmp.execute("query-sev"))
    text = machine.qmp.execute("query-sev-launch-measure")["data"]
    return Launched(facts, base64.b64decode(text))


def secret_lines(machine: Machine) -> list[str]:
    """What the firmware said of the secret table."""
    found = [line.partition("secret: ") for line in machine.console.text.splitlines()]
    return [text for head, mark, text in found if mark and not head]


def inject(machine: Machine, header: str, payload: str, gpa: int | None = None) -> None:
    """Gives QEMU a secret, header and payload in base64.

    Args:
        machine: Where its guest waits.
        header: Of the packet.
        payload: Of the packet.
        gpa: Where in guest memory it goes; without, to the firmware's secret area.

    Raises:
        ExecuteError: The platform refuses it, or QEMU does.
    """
    where = {} if gpa is None else {"gpa": gpa}
    machine.qmp.execute("sev-inject-launch-secret", packet_header=header, secret=payload, **where)


def run_to_end(machine: Machine) -> int:
    """Lets a guest run that ends QEMU; gives the exit status."""
    # It may end before QEMU has answered.
    with contextlib.suppress(ExecInterruptedError):
        machine.qmp.execute("cont")
    return machine.wait()


def physical(machine: Machine, address: int, size: int, folder: Path) -> bytes:
    """Reads a guest's memory through QEMU's monitor."""
    path = folder / f"memory-{address:x}"
    machine.qmp.execute("pmemsave", val=address, size=size, filename=str(path))
    data = path.read_bytes()
    path.unlink()
    return data


def made_up_kernel(path: Path, content: bytes) -> Path:
    """Writes something that QEMU takes for a bzImage (Linux Documentation/arch/x86/boot.rst).

    The firmware of these tests boots none; QEMU hashes it and hands it over.
    """
    setup = bytearray(2 * 512)
    setup[0x1F1] = 1  # setup_sects: one beside the boot sector
    struct.pack_into("<H", setup, 0x1FE, 0xAA55)
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, 0x020C)  # protocol 2.12
    setup[0x211] = 1  # LOADED_HIGH
    struct.pack_into("<I", setup, 0x22C, 0x7FFFFFFF)  # initrd_addr_max
    path.write_bytes(bytes(setup) + content)
    return path


class Transcript:
    """What happened in a launch, for people to read; no test depends on it.

    Args:
        path: The file, written anew if there is anything to tell.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.unlink(missing_ok=True)

    def add(self, title: str, text: object) -> None:
        """Adds a part."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"== {title}\n{text!s}".rstrip() + "\n")


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """How a validator ended.

    Attributes:
        status: 0: the guest is what its owner wants; virt-qemu-sev-validate has 1 for another
            measurement.
    """

    status: int
    output: str


class Owner:
    """A guest's owner, who has the command line and libvirt's validator.

    Args:
        folder: For what it makes.
        socket_path: The daemon's.
        root: Whom it trusts to vouch for platforms.
        validator: virt-qemu-sev-validate.
    """

    def __init__(self, folder: Path, socket_path: Path, root: Path, validator: Path) -> None:
        self.folder = folder
        self.certificates = folder / "platform.cert"
        self._at = ("--socket", str(socket_path))
        self._trusting = ("--root", str(root))
        self._validator = validator
        self._made = 0

    def session(self, policy: int = 1) -> Session:
        """Makes a session for a launch on the daemon's platform, after verifying who it is."""
        self._made += 1
        name = f"owner{self._made}"
        self.ask_platform("export", "--force", str(self.certificates))
        self.hcalld(
            *("session", "--name", name, "--directory", str(self.folder), *self._trusting),
            *(str(self.certificates), hex(policy)),
        )
        files = ("godh.b64", "session.b64", "tik.bin", "tek.bin")
        return Session(policy, *(self.folder / f"{name}_{file}" for file in files))

    def verify(self, command: str, *words: str) -> str:
        """Runs a command of ``hcalld sev`` that verifies the platform's certificates."""
        return self.hcalld(command, *words, "--sev", str(self.certificates), *self._trusting)

    def ask_platform(self, command: str, *words: str) -> str:
        """Runs a command of ``hcalld sev`` that talks to the daemon."""
        return self.hcalld(command, *self._at, *words)

    def hcalld(self, *words: str) -> str:
        """Runs a command of ``hcalld sev`` that must succeed; gives what it prints."""
        done = run_hcalld("sev", *words)
        assert done.returncode == 0, f"hcalld sev {words}: {done.stdout}{done.stderr}"
        return done.stdout

    def hcalld_secret(
        self, launched: Launched, guest: SevGuest, entry: tuple[str, bytes]
    ) -> tuple[str, str]:
        """Has the command line make a secret for a launch that it finds good.

        Args:
            launched: What QEMU said.
            guest: What was started.
            entry: GUID or name, and what is secret.

        Returns:
            Header and payload in base64.
        """
        assert guest.session is not None
        guid, data = entry
        path, header, payload = (self.folder / f"own.{name}" for name in ("bin", "head", "body"))
        path.write_bytes(data)
        facts = launched.facts
        said = self.hcalld(
            *("secret", launched.measurement_text, f"{guid}:{path}"),
            *("--firmware", str(guest.firmware), "--policy", hex(facts["policy"])),
            *("--api-major", str(facts["api-major"]), "--api-minor", str(facts["api-minor"])),
            *("--build-id", str(facts["build-id"])),
            *("--tik", str(guest.session.tik), "--tek", str(guest.session.tek)),
            *("--header", str(header), "--payload", str(payload)),
        )
        # What it prints is the command for QEMU's monitor, with the same in it.
        arguments = json.loads(said)["arguments"]
        pair = header.read_text().strip(), payload.read_text().strip()
        assert pair == (arguments["packet-header"], arguments["secret"])
        return pair

    def validate(
        self,
        launched: Launched,
        guest: SevGuest,
        *more: str,
        **changed: object,
    ) -> Verdict:
        """Has libvirt's validator judge a launch.

        Args:
            launched: What QEMU said.
            guest: What was started.
            more: More options, such as of secrets.
            changed: Options that have another value, such as ``policy=3``, or none.
        """
        assert guest.session is not None
        options: dict[str, object] = {
            "measurement": launched.measurement_text,
            "api-major": launched.facts["api-major"],
            "api-minor": launched.facts["api-minor"],
            "build-id": launched.facts["build-id"],
            "policy": launched.facts["policy"],
            "firmware": guest.firmware,
            "tik": guest.session.tik,
            "tek": guest.session.tek,
        }
        if guest.kernel_hashes:
            options |= {"kernel": guest.kernel, "initrd": guest.initrd, "cmdline": guest.append}
        if guest.session.policy & 4:
            # By these it makes the processors' states.
            names = ("num-cpus", "cpu-family", "cpu-model", "cpu-stepping")
            options |= dict(zip(names, (guest.smp, *CPU_MODEL), strict=True))
        options |= {name.replace("_", "-"): value for name, value in changed.items()}
        words = [
            word
            for name, value in options.items()
            if value is not None
            for word in (f"--{name}", str(value))
        ]
        # Its first line asks env for a python3, which need not be Debian's.
        done = subprocess.run(
            ["/usr/bin/python3", self._validator, *words, *more],
            capture_output=True,
            text=True,
            timeout=patience(60),
            check=False,
        )
        return Verdict(done.returncode, done.stdout + done.stderr)

    def secret(
        self, launched: Launched, guest: SevGuest, *entries: tuple[str, bytes], name: str = "secret"
    ) -> tuple[str, str, Verdict]:
        """Has libvirt's validator make a secret for a launch that it finds good.

        Args:
            launched: What QEMU said.
            guest: What was started.
            entries: GUIDs or names, and what is secret.
            name: Of the files.

        Returns:
            Header and payload in base64, and what the validator said.
        """
        header, payload = self.folder / f"{name}.header", self.folder / f"{name}.payload"
        more = ["--secret-header", str(header), "--secret-payload", str(payload)]
        for number, (guid, data) in enumerate(entries):
            path = self.folder / f"{name}.{number}"
            path.write_bytes(data)
            more += ["--inject-secret", f"{guid}:{path}"]
        verdict = self.validate(launched, guest, *more)
        assert verdict.status == 0, verdict.output
        return header.read_text(), payload.read_text(), verdict
