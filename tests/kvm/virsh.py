# SPDX-License-Identifier: Apache-2.0
"""Debian's libvirt as a client of the daemon's SEV: its session daemon, in a home of its own.

Nothing of libvirt is changed or configured: ``virsh`` starts its daemon, which finds the program
that ``hcalld sev emulator`` has written where it looks for QEMU.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

from tests.e2e.patience import patience, wait_until
from tests.e2e.sevqemu import CPU, SevGuest
from tests.provision import kvm

URI: Final = "qemu:///session"

NOBODY: Final = 65534


def user_id() -> int:
    """Whom libvirt runs as: root's is the system's, whatever is asked for."""
    return os.geteuid() or NOBODY


def as_user(*options: str) -> tuple[str, ...]:
    """The words before a command that make it that user's, who may use ``/dev/kvm``.

    Args:
        options: More of setpriv's.
    """
    if user_id() == os.geteuid():
        return ()
    group = Path(kvm.DEVICE).stat().st_gid
    return ("setpriv", f"--reuid={NOBODY}", f"--regid={group}", "--clear-groups", *options)


def give(*paths: Path) -> None:
    """Makes files that user's."""
    for path in paths:
        os.chown(path, user_id(), -1)


def own(path: Path, home: Path) -> Path:
    """That user's copy of a file."""
    copy = home / path.name
    shutil.copy(path, copy)
    give(copy)
    return copy


@contextlib.contextmanager
def ending(home: Path) -> Iterator[None]:
    """Ends at the end what has this home: libvirt's daemons, which stay, and their QEMUs."""
    try:
        yield
    finally:
        for sent in (signal.SIGTERM, signal.SIGKILL):
            for pid in _running(home):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sent)
            with contextlib.suppress(TimeoutError):
                wait_until(lambda: not _running(home), f"the end of what is in {home}", 10)
        assert not _running(home)


def _running(home: Path) -> list[int]:
    """The processes whose ``HOME`` it is; what has ended already has no variables."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        # Others', and those that end meanwhile.
        with contextlib.suppress(OSError):
            if f"HOME={home}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


class Virsh:
    """A user's ``virsh``, and the libvirt that it starts.

    Args:
        virsh: The program.
        home: The user's, with a short path; what libvirt reads must be below it.
        programs: A directory with all that libvirt finds in ``PATH``: what it takes for QEMU.
    """

    def __init__(self, virsh: Path, home: Path, programs: Path) -> None:
        self._virsh = virsh
        self.home = home
        own = ("XDG_", "LIBVIRT_", "HCALLD_")
        mine = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        # libvirt asks each QEMU that it finds, which takes seconds of the processor's.
        self._environ = {**mine, "PATH": str(programs), "HOME": str(home)}

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Runs any command as the user."""
        program, *arguments = map(str, (*as_user(), *words))
        return subprocess.run(
            [shutil.which(program) or program, *arguments],
            cwd=self.home,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=patience(120),
            check=False,
        )

    def ask(self, *words: str | Path) -> str:
        """Gives what a command of virsh prints."""
        done = self.run(self._virsh, "--connect", URI, "--quiet", *words)
        assert done.returncode == 0, f"virsh {words}: {done.stdout}{done.stderr}"
        return done.stdout

    def refused(self, *words: str | Path) -> str:
        """Gives why a command of virsh cannot be done."""
        done = self.run(self._virsh, "--connect", URI, "--quiet", *words)
        assert done.returncode != 0, f"virsh {words}: {done.stdout}"
        return done.stderr

    def facts(self, *words: str) -> dict[str, str]:
        """What a command prints as names and values."""
        lines = (line.partition(":") for line in self.ask(*words).splitlines())
        return {name.strip(): value.strip() for name, mark, value in lines if mark}

    def create(self, name: str, guest: SevGuest) -> str:
        """Starts a domain, which waits; gives why not, or nothing."""
        path = self.home / f"{name}.xml"
        path.write_text(domain_xml(name, guest, self.serial_log(name)))
        give(path)
        done = self.run(self._virsh, "--connect", URI, "--quiet", "create", "--paused", path)
        return done.stderr if done.returncode else ""

    def serial_log(self, name: str) -> Path:
        """What a domain says on its serial port."""
        return self.home / f"{name}.log"

    def read_to_end(self, name: str) -> str:
        """Waits until a domain's firmware is done; gives what it said."""
        log = self.serial_log(name)
        wait_until(lambda: "firmware: done\n" in log.read_text(), f"the end of {name}", 60)
        return log.read_text()


def domain_xml(name: str, guest: SevGuest, serial_log: Path) -> str:
    """A domain with SEV, and with little else: libvirt, formatdomain, Launch Security."""
    session = guest.session
    assert session is not None
    boot: Sequence[tuple[str, object]] = (
        ("kernel", guest.kernel),
        ("initrd", guest.initrd),
        ("cmdline", guest.append),
    )
    lines = [f"<{key}>{escape(str(value))}</{key}>" for key, value in boot if value is not None]
    hashes = " kernelHashes='yes'" if guest.kernel_hashes else ""
    return f"""
<domain type='kvm'>
  <name>{name}</name>
  <memory unit='MiB'>{guest.memory_mib}</memory>
  <vcpu>{guest.smp}</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <loader readonly='yes' stateless='yes' type='pflash'>{guest.firmware}</loader>
    {"".join(lines)}
  </os>
  <features><acpi/></features>
  <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>{CPU}</model></cpu>
  <launchSecurity type='sev'{hashes}>
    <policy>{session.policy:#x}</policy>
    <dhCert>{session.dh_cert.read_text().strip()}</dhCert>
    <session>{session.session.read_text().strip()}</session>
  </launchSecurity>
  <devices>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <serial type='file'><source path='{serial_log}'/></serial>
  </devices>
</domain>
"""
