# SPDX-License-Identifier: Apache-2.0
"""Guests that become secure: a TPM with a key, a blob, and what goes with them."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click.testing
from tests.e2e.console import LINUX_FAILURES
from tests.e2e.daemon import Daemon
from tests.e2e.lab import PARTITION, Lab, LinuxKernel, Userland
from tests.e2e.machine import ByteOrder, Machine
from tests.esm import private_pem, public_pem
from tests.provision import initramfs

from hcalld.cli import cli

PROFILE = """\
[tpm]
backend = "swtpm"

[pef]
enabled = true
"""
SVM = "/sys/devices/system/cpu/svm"
"""What the CPU that reads it is in."""

SAID_UNDER_VOF: Final = ("-trace", "vof_write")
"""Options of QEMU: what prom_init says goes to QEMU's log, for VOF shows it to nobody."""

BEHIND_TCES = "iommu_platform=on,disable-legacy=on"
"""Properties of a virtio device that sees what is shared and nothing else."""


def disk(number: int, path: Path) -> list[str]:
    """QEMU's options for ``/dev/vda`` and so on."""
    return [
        "-drive",
        f"if=none,id=d{number},format=raw,file={path}",
        "-device",
        f"virtio-blk-pci,id=disk{number},drive=d{number},{BEHIND_TCES}",
    ]


def svm_of_each(cpus: int) -> str:
    """A script that prints it for each CPU."""
    return f"""\
for cpu in $(seq 0 {cpus - 1}); do
    echo "svm $cpu $(taskset -c $cpu cat {SVM})"
done
"""


def shared_calls(trace: Sequence[str]) -> list[int]:
    """How many pages each UV_SHARE_PAGE of a trace was about."""
    lines = [line for line in trace if " UV_SHARE_PAGE(" in line]
    assert all(" = U_SUCCESS " in line for line in lines)
    return [int(found[1]) for line in lines if (found := re.search(r"count=(\d+)", line))]


def pages_with_content(path: Path) -> int:
    """How many pages of 4 KiB in a file are not zeros."""
    zeros = bytes(4096)
    with path.open("rb") as file:
        return sum(page != zeros for page in iter(lambda: file.read(4096), b""))


def said_early(machine: Machine) -> str:
    """What prom_init said: on SLOF's console, or with :data:`SAID_UNDER_VOF` in QEMU's log."""
    pieces = re.compile(r'^vof_write ih=\w+ \[\d+\] "(.*?)"$', re.MULTILINE | re.DOTALL)
    return machine.console.text + "".join(pieces.findall(machine.messages()))


def must(*words: str | Path) -> str:
    """Carries out a command of hcalld that succeeds, without a process; gives its output."""
    done = click.testing.CliRunner().invoke(cli, list(map(str, words)), prog_name="hcalld")
    assert done.exit_code == 0, (words, done.output, done.exception)
    return done.stdout


def provision(state_dir: Path, pubkey: Path) -> None:
    """Gives the TPM of a daemon's partition a wrapping key."""
    words = ("--state-dir", state_dir, "-p", PARTITION, "--pubkey", pubkey)
    must("esm", "provision-tpm", *words)


PUBKEY: Final = "machine.pem"


@functools.cache
def provisioned() -> dict[Path, bytes]:
    """The files of a state directory whose partition's TPM has a key, and of its public half."""
    with tempfile.TemporaryDirectory(prefix="hcalld-", dir="/tmp") as name:
        folder = Path(name)
        provision(folder / "state", folder / PUBKEY)
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder): path.read_bytes() for path in files}


def machine_with_key(state_dir: Path, pubkey: Path) -> None:
    """Makes a machine of which others, with another state directory, are copies."""
    state_dir.mkdir(mode=0o700)
    for name, content in provisioned().items():
        path = pubkey if name.name == PUBKEY else state_dir / name.relative_to("state")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o600)


class SecureLab:
    """A daemon whose guests may be secure, and blobs for them.

    Args:
        lab: What starts things.
        profile: More of the guests' profile; TOML that begins within ``[pef]``.
        options: More options of the daemon.
        is_started: The daemon is started, once its TPM has a key.
    """

    def __init__(
        self, lab: Lab, profile: str = "page_shift = 12\n", *options: str, is_started: bool = True
    ) -> None:
        lab.require("swtpm")
        self.lab = lab
        self.folder = lab.artifacts
        profiles = self.folder / "profiles"
        profiles.mkdir()
        (profiles / "default.toml").write_text(PROFILE + profile, "utf-8")
        self.daemon: Daemon = lab.daemon("--profile-dir", str(profiles), *options, is_started=False)
        self.pubkey = self.folder / PUBKEY
        machine_with_key(self.daemon.state_dir, self.pubkey)
        (self.folder / "owner.pem").write_bytes(public_pem(1))
        (self.folder / "owner.key").write_bytes(private_pem(1))
        if is_started:
            self.daemon.start()

    def initrd(self, script: str, *, files: Mapping[str, bytes], userland: Userland) -> Path:
        """A guest's initrd, without a blob."""
        path = self.folder / "initrd"
        contents = {"/run.sh": script.encode(), **files}
        path.write_bytes(self.lab.require(userland).read_bytes() + initramfs.overlay(contents))
        return path

    def blob(
        self,
        kernel: Path,
        initrd: Path,
        cmdline: str,
        *,
        recipient: Path | None = None,
        attached: Mapping[str, bytes] | None = None,
    ) -> Path:
        """Makes a blob with ``hcalld esm``, and puts it before the initrd; gives the whole."""
        words: list[str | Path] = ["--kernel", kernel, "--initrd", initrd, "--cmdline", cmdline]
        words += ["--owner", self.folder / "owner.pem", "--recipient", recipient or self.pubkey]
        for name, content in (attached or {}).items():
            path = self.folder / f"attached-{name}"
            path.write_bytes(content)
            words += ["--attach", f"{name}={path}"]
        blob, whole = self.folder / "blob", self.folder / "initrd.esm"
        must("esm", "make", *words, "--force", "-o", blob)
        must("esm", "add", blob, initrd, "--force", "-o", whole)
        return whole

    def linux(
        self,
        script: str,
        *,
        append: str = "swiotlb=force",
        kernel: LinuxKernel = "own",
        files: Mapping[str, bytes] | None = None,
        userland: Userland = "initramfs",
        attached: Mapping[str, bytes] | None = None,
        recipient: Path | None = None,
        **options: Any,
    ) -> Machine:
        """Boots Linux with a blob that is made for it."""
        cmdline = f"console=hvc0 svm=1 {append}".strip()
        vmlinux = self.lab.require(f"kernel-{kernel}")
        initrd = self.initrd(script, files=files or {}, userland=userland)
        whole = self.blob(vmlinux, initrd, cmdline, recipient=recipient, attached=attached)
        return self.start(vmlinux, whole, cmdline, **options)

    def stub(
        self,
        words: str,
        *,
        byte_order: ByteOrder = "le",
        attached: Mapping[str, bytes] | None = None,
        **options: Any,
    ) -> Machine:
        """Boots the guest stub with a blob that is made for it; ``esm=1`` uses it."""
        kernel = self.lab.require("stub") / f"stub-{byte_order}.elf"
        initrd = self.folder / "initrd"
        initrd.write_bytes(b"initrd of the stub".ljust(512, b"."))
        whole = self.blob(kernel, initrd, words, attached=attached)
        options = {"smp": 2, **options}
        return self.lab.stub(words, self.daemon, byte_order=byte_order, initrd=whole, **options)

    def start(
        self,
        vmlinux: Path,
        initrd: Path,
        cmdline: str,
        *,
        failures: Sequence[str] = LINUX_FAILURES,
        **options: Any,
    ) -> Machine:
        """Boots Linux as it is given."""
        return self.lab.linux_of(
            vmlinux, initrd, cmdline, self.daemon, failures=failures, **options
        )
