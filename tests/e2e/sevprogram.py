# SPDX-License-Identifier: Apache-2.0
"""The stand-in for a VMM: a C program under ``libhcalld-sev.so`` that does what a test says.

Its ioctls are a real program's: numbers, structures and pointers, of which the kernel's headers and
``payloads/sev_abi.py`` say the same. It needs no /dev/kvm: the library makes one up for it.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import select
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from construct import Struct
from tests.e2e.patience import patience

from hcalld.guest.sevhost import PLATFORM_VARIABLE, SOCKET_VARIABLE
from hcalld.guestowner.client import CommandRefused
from hcallproto.abi.families import sev
from hcallproto.abi.spec import Hcall
from hcallproto.payloads import sev_abi

FAKE_KVM_VARIABLE: Final = "HCALLD_SEV_FAKE_KVM"
DEBUG_VARIABLE: Final = "HCALLD_SEV_DEBUG"
TIMEOUT_VARIABLE: Final = "HCALLD_SEV_TIMEOUT_MS"

KVM_CREATE_VM: Final = 0xAE01
KVM_CHECK_EXTENSION: Final = 0xAE03
KVM_CREATE_VCPU: Final = 0xAE41
KVM_GET_DEVICE_ATTR: Final = 0x4018_AEE2
KVM_HAS_DEVICE_ATTR: Final = 0x4018_AEE3
KVM_MEMORY_ENCRYPT_OP: Final = 0xC008_AEBA
KVM_MEMORY_ENCRYPT_REG_REGION: Final = 0x8010_AEBB
KVM_MEMORY_ENCRYPT_UNREG_REGION: Final = 0x8010_AEBC
SEV_ISSUE_CMD: Final = 0xC010_5300
"""Whole numbers of ioctls (uapi/linux/kvm.h, psp-sev.h); a test holds them to the headers."""

REQUESTS: Final = {
    request & 0xFFFF: request
    for request in (
        KVM_MEMORY_ENCRYPT_OP,
        KVM_MEMORY_ENCRYPT_REG_REGION,
        KVM_MEMORY_ENCRYPT_UNREG_REGION,
        SEV_ISSUE_CMD,
    )
}

VM_DEFAULT: Final = 0
VM_SEV: Final = 2
VM_SEV_ES: Final = 3

READ_WRITE: Final = 3
READ_ONLY: Final = 1
PAGE: Final = 4096

ERROR_BEFORE: Final = 0x5A5A5A5A
"""What ``error`` holds before a command: the kernel leaves it, unless firmware has answered."""


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """What came of an ioctl.

    Attributes:
        value: What it gave, -1 if it failed.
        errno: 0, or why.
        error: ``error`` of the argument afterwards.
        fields: The structure's fields afterwards.
    """

    value: int
    errno: int
    error: int = 0
    fields: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def status(self) -> int:
        """As r3 of the REPLY: a firmware status, or below 0 an errno."""
        if not self.errno:
            return 0
        if self.errno == errno.EIO and self.error != ERROR_BEFORE:
            return self.error
        return -self.errno


class ProgramEnded(Exception):
    """It has ended, and should not have."""


class SevProgram:
    """A program that makes the ioctls of SEV.

    Args:
        program: ``sev-client`` of ``ioctl_shim``.
        library: ``libhcalld-sev.so`` of there.
        socket: The daemon's.
        log: Where its stderr goes.
        platform: The name of the platform.
        wrapper: Words before the program's, such as a debugger's.
        environ: More variables.
    """

    def __init__(
        self,
        program: Path,
        library: Path,
        socket: Path | None,
        log: Path,
        *,
        platform: str | None = None,
        wrapper: tuple[str, ...] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        variables = {FAKE_KVM_VARIABLE: "1", "LD_PRELOAD": str(library), **(environ or {})}
        if socket is not None:
            variables[SOCKET_VARIABLE] = str(socket)
        if platform is not None:
            variables[PLATFORM_VARIABLE] = platform
        self.log = log
        self._next = 0
        self._room: tuple[int, int] = (0, 0)
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [*wrapper, os.fspath(program)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, **variables},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def child_pid(self) -> int:
        """The process that it has forked, which answers in its place until it exits."""
        (pid,) = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text("ascii").split()
        return int(pid)

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()
        self._process.wait()

    def end(self, seconds: float = 20) -> int:
        """Lets it end; gives its exit status."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(patience(seconds))

    def messages(self) -> str:
        """What it has said on stderr."""
        return self.log.read_text("utf-8")

    # -- lines ------------------------------------------------------------------------------

    def send(self, *words: object) -> None:
        """Tells it something, and does not wait."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(str(word) for word in words).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self, seconds: float = 60) -> tuple[int, int]:
        """Waits for its answer: (value, errno).

        Raises:
            ProgramEnded: It has ended instead.
        """
        text = self.line(seconds)
        kind, _, rest = text.partition(" ")
        if kind == "errno":
            return -1, int(rest)
        assert kind == "ok", text
        assert "errno" not in rest, text
        return int(rest, 0), 0

    def line(self, seconds: float = 60) -> str:
        """Waits for its next line."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], patience(seconds))[0]:
            raise TimeoutError(f"the program has not answered within {patience(seconds):.0f} s")
        text = self._process.stdout.readline().decode().strip()
        if not text:
            raise ProgramEnded(f"status {self._process.wait()}: {self.messages()}")
        return text

    def ask(self, *words: object) -> tuple[int, int]:
        """Tells it something: (value, errno)."""
        self.send(*words)
        return self.answer()

    def do(self, *words: object) -> int:
        """Tells it something that must go well."""
        value, error = self.ask(*words)
        assert not error, f"{words[0]}: {errno.errorcode[error]}"
        return value

    # -- memory -----------------------------------------------------------------------------

    def map(self, size: int, protection: int = READ_WRITE) -> int:
        """Makes memory of its own pages."""
        return self.do("map", size, protection)

    def put(self, data: bytes, *, alignment: int = 16) -> int:
        """Makes memory with these bytes; gives its address."""
        size = -(-max(len(data), 1) // alignment) * alignment
        start, end = self._room
        start = -(-start // alignment) * alignment
        if start + size > end:
            whole = max(size, 64 * PAGE)
            start = self.map(whole)
            end = start + whole
        self._room = (start + size, end)
        self.set(start, data)
        return start

    def set(self, address: int, data: bytes) -> None:
        """Writes to its memory."""
        if data:
            self.do("put", address, data.hex())

    def get(self, address: int, size: int) -> bytes:
        """Reads its memory."""
        self.send("get", address, size)
        kind, _, rest = self.line().partition(" ")
        assert kind == "ok"
        return bytes.fromhex(rest)

    # -- ioctls -----------------------------------------------------------------------------

    def open(self, path: str, flags: int = os.O_RDWR, *, function: str = "open") -> int:
        """Opens a file."""
        return self.do("open", function, path, flags)

    def ioctl(self, fd: int, request: int, argument: int = 0) -> Result:
        """Makes any ioctl."""
        return Result(*self.ask("ioctl", fd, request, argument))

    def create_vm(self, vm_type: int = VM_DEFAULT) -> int:
        """Makes a VM; gives its descriptor."""
        kvm = self.open("/dev/kvm")
        vm = self.do("ioctl", kvm, KVM_CREATE_VM, vm_type)
        self.do("close", kvm)
        return vm

    def structure(self, hcall: Hcall, **fields: int) -> int:
        """Makes a command's structure, with garbage in its pads; 0 if it has none."""
        if hcall.structure is None:
            return 0
        data = bytearray(b"\xa5" * hcall.structure.sizeof())
        for name, (offset, size) in field_places(hcall.structure).items():
            data[offset : offset + size] = fields.pop(name, 0).to_bytes(size, "little")
        assert not fields, f"{hcall.name} has no {', '.join(fields)}"
        return self.put(bytes(data))

    def argument(self, hcall: Hcall, data: int, sev_fd: int = 0) -> int:
        """Makes an ioctl's argument."""
        number = hcall.number & 0xFFFF
        if hcall.number >> sev.COMMAND_SHIFT == sev.Ioctl.SEV_ISSUE_CMD:
            values = {"cmd": number, "data": data, "error": ERROR_BEFORE}
            return self.put(sev_abi.SEV_ISSUE_CMD.build(values))
        values = {"id": number, "data": data, "error": ERROR_BEFORE, "sev_fd": sev_fd}
        return self.put(sev_abi.KVM_SEV_CMD.build(values))

    def issue(
        self, fd: int, hcall: Hcall, *, data: int | None = None, sev_fd: int = 0, **fields: int
    ) -> Result:
        """Issues a command.

        Args:
            fd: The VM's, or that of /dev/sev.
            hcall: Which.
            data: Where the structure is, in place of one with ``fields``.
            sev_fd: For a VM's.
            fields: Of the structure; others are 0.
        """
        request = REQUESTS[hcall.number >> sev.COMMAND_SHIFT]
        if data is None:
            data = self.structure(hcall, **fields)
        if request in (KVM_MEMORY_ENCRYPT_REG_REGION, KVM_MEMORY_ENCRYPT_UNREG_REGION):
            return self.ioctl(fd, request, data)
        argument = self.argument(hcall, data, sev_fd)
        return self.result(self.ask("ioctl", fd, request, argument), hcall, argument, data)

    def result(self, answer: tuple[int, int], hcall: Hcall, argument: int, data: int) -> Result:
        """Reads what a command has left in memory."""
        is_platform = hcall.number >> sev.COMMAND_SHIFT == sev.Ioctl.SEV_ISSUE_CMD
        layout = sev_abi.SEV_ISSUE_CMD if is_platform else sev_abi.KVM_SEV_CMD
        error = layout.parse(self.get(argument, layout.sizeof())).error
        fields: dict[str, int] = {}
        if hcall.structure is not None and data:
            raw = self.get(data, hcall.structure.sizeof())
            for name, (offset, size) in field_places(hcall.structure).items():
                fields[name] = int.from_bytes(raw[offset : offset + size], "little")
        return Result(*answer, error, fields)

    def command(self, fd: int, hcall: Hcall, **fields: int) -> Mapping[str, int]:
        """Issues a command that must go well; gives the fields.

        Raises:
            CommandRefused: It does not.
        """
        result = self.issue(fd, hcall, **fields)
        if result.status:
            raise CommandRefused(hcall, result.status, result.fields)
        return result.fields


def field_places(structure: Struct) -> dict[str, tuple[int, int]]:
    """Offset and size of each field, by name."""
    places: dict[str, tuple[int, int]] = {}
    offset = 0
    for part in structure.subcons:
        if part.name:
            places[part.name] = offset, part.sizeof()
        offset += part.sizeof()
    return places
