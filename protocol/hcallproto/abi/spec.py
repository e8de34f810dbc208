# SPDX-License-Identifier: Apache-2.0
"""The vocabulary in which a call is declared once, for everything that derives from it.

A ``Family`` holds ``Hcall`` values; an ``Hcall`` its arguments, buffers, outputs and
codes. They are plain frozen data: dispatch, argument checks, the announcement to the
shim, the guest stub's header, the document tables, the trace line and the test
parameters all read the same value. ``registry.py`` checks that it is consistent.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping
from typing import Final

from construct import Struct

from hcallproto.abi.registers import U32_MAX, U64_MAX
from hcallproto.abi.returns import (
    PARAMETER_CODES,
    ULTRA_PARAMETER_CODES,
    Code,
    H,
    SevCode,
    U,
)
from hcallproto.wire.schema import LEVEL_COMMAND, LEVEL_SHIM

__all__ = [
    "Arg",
    "ArgKind",
    "Bound",
    "Buffer",
    "BufferShape",
    "Caller",
    "CodeWhen",
    "Condition",
    "Direction",
    "Family",
    "Hcall",
    "LEVEL_CODES",
    "Level",
    "LevelCodes",
    "Limit",
    "Milestone",
    "Names",
    "Output",
    "Query",
]


class Level(enum.IntEnum):
    """How a call is made."""

    SC1 = 1
    """``sc 1``: a hypercall."""
    SC2 = 2
    """``sc 2``: an ultracall."""
    COMMAND = LEVEL_COMMAND
    """An ``ioctl`` of SEV's with a command number and a structure, whose fields stand for
    registers. (3 is the shim's own: docs/wire.rst.)"""


@dataclasses.dataclass(frozen=True, slots=True)
class LevelCodes:
    """The codes of a level that no single call chooses."""

    codes: type[Code]
    """What r3 is read with."""
    function: Code
    """There is no such call."""
    broken: Code
    """The daemon has a bug."""
    kind: str
    """What such a call is called."""


LEVEL_CODES: Final[Mapping[int, LevelCodes]] = {
    Level.SC1: LevelCodes(H, H.FUNCTION, H.HARDWARE, "hcall"),
    Level.SC2: LevelCodes(U, U.FUNCTION, H.HARDWARE, "ultracall"),
    # Those of the shim's own have the ultravisor's.
    LEVEL_SHIM: LevelCodes(U, U.FUNCTION, H.HARDWARE, "shim call"),
    Level.COMMAND: LevelCodes(SevCode, SevCode.EINVAL, SevCode.HWERROR_PLATFORM, "command"),
}
"""By level of a CALL."""


def level_codes(level: int) -> LevelCodes:
    """Of any level: what the ISA does not define is called and answered as ``sc 1``."""
    return LEVEL_CODES.get(level, LEVEL_CODES[Level.SC1])


class Caller(enum.Enum):
    """Who may make a call, by MSR(S, HV, PR); all others get a permission code."""

    KERNEL = "partition kernel"
    """HV = 0, PR = 0; secure or not."""
    SECURE_KERNEL = "kernel of a secure VM"
    """S = 1, HV = 0, PR = 0."""
    ULTRAVISOR = "ultravisor, in the name of a VM"
    """S = 1, HV = 1; the hypervisor sees the VM's MSR with S set."""
    HYPERVISOR = "hypervisor"
    """HV = 1, PR = 0."""
    ANY = "anyone, problem state included"


class Limit(enum.Enum):
    """Bounds that belong to the partition and not to the ABI; resolved for each guest."""

    MAX_PASSWORD_SIZE = "max_password_size"
    MAX_LABEL_SIZE = "max_label_size"
    MAX_OBJECT_SIZE = "max_object_size"
    MAX_WRAPPED_SIZE = "max_wrapped_size"
    SUPPORTED_POLICIES = "supported_policies"


Bound = int | Limit


class ArgKind(enum.Enum):
    """What an argument register holds; decides how it is checked and printed."""

    ADDRESS = "address"
    """Real address of a buffer in guest RAM."""
    SIZE = "size"
    """Bytes of a buffer; between ``minimum`` and ``maximum``."""
    VALUE = "value"
    """A number between ``minimum`` and ``maximum``, printed in decimal."""
    FLAGS = "flags"
    """A bit set; only bits of ``maximum`` (a mask) may be set."""
    ZERO = "zero"
    """Reserved: must be 0."""
    TOKEN = "token"
    """Opaque continue token, checked by the handler."""
    OPAQUE = "opaque"
    """Any 64-bit value, checked by the handler, printed in hexadecimal."""
    TEXT = "text"
    """Eight bytes of text, the first one most significant. Neighbours continue it."""


class Direction(enum.Enum):
    """Which way a buffer's bytes go, seen from the guest."""

    IN = "in"
    OUT = "out"


class BufferShape(enum.Enum):
    """How large a buffer is."""

    SIZED = "sized"
    """An argument holds the size."""
    FIXED = "fixed"
    """Always ``max_size`` bytes."""
    PAGE_BOUNDED = "page-bounded"
    """No length register: at most ``max_size`` bytes, not past the 4 KiB page."""


Names = type[enum.IntEnum] | type[enum.IntFlag]
"""Spells a value: an ``IntEnum`` for numbers, an ``IntFlag`` for bit sets."""


@dataclasses.dataclass(frozen=True, slots=True)
class Condition:
    """An earlier argument, under a mask, has a value."""

    name: str
    value: int
    mask: int = U64_MAX


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Arg:
    """One argument register."""

    name: str
    register: int
    kind: ArgKind
    doc: str
    minimum: int = 0
    maximum: Bound = U64_MAX
    code: Code | None = None
    """Code for an invalid value; by default the one of the argument's position."""
    names: Names | None = None
    """The spelling of its values."""
    only_when: Condition | None = None
    """Otherwise this argument is not looked at."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Buffer:
    """A buffer in guest memory, named like its address argument."""

    address: str
    direction: Direction
    shape: BufferShape
    max_size: Bound
    header_size: int = 0
    """Bytes beside ``max_size`` when that is a limit (a PAGE_BOUNDED structure's head)."""
    size: str | None = None
    """The argument that holds the size (SIZED only)."""
    alignment: int = 1
    page_bounded: bool = False
    """A SIZED buffer that must not cross a 4 KiB page."""
    secret: bool = False
    """Its bytes must not reach a log, trace or plain capture."""
    open_size: int = 0
    """Leading bytes of a secret buffer that are not: the head of a structure."""
    prefetch: bool = True
    """The shim sends an IN buffer with the call."""
    describe: Callable[[bytes], str] | None = None
    """Renders the bytes for people, without what is secret in them. Never raises."""
    layout: Struct | None = None
    """The fields of a structure that it begins with."""
    fresh: bool = False
    """What is beyond ``open_size`` is random, or another program's: no two runs have the same.
    An IN buffer is made of what its own run has told."""
    rewritten: bool = False
    """An IN buffer that may be written too."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A register that carries a result beside r3."""

    name: str
    register: int
    kind: ArgKind
    doc: str
    secret: bool = False
    names: Names | None = None
    """The spelling of its values."""
    also_with: tuple[Code, ...] = ()
    """Codes beside success with which it is defined."""
    otherwise: int | None = None
    """What the register holds with every other code; None: what it held before."""
    fresh: bool = False
    """No two runs have the same."""


@dataclasses.dataclass(frozen=True, slots=True)
class CodeWhen:
    """A code that a call may return, and when."""

    code: Code
    when: str


@dataclasses.dataclass(frozen=True, slots=True)
class Milestone:
    """What the log says, for those who run guests, when a call has succeeded."""

    event: str
    tells: tuple[str, ...] = ()
    """The arguments and outputs that stand behind it; of a buffer, where it is."""


@dataclasses.dataclass(frozen=True, slots=True)
class Query:
    """When a call only asks for lengths."""

    asks: tuple[str, ...]
    """Any of these arguments is 0."""
    lengths: tuple[tuple[str, int], ...]
    """The arguments that it asks for, and the least value that each must have."""
    code: Code
    """With which they come back."""

    def is_asked(self, arguments: Mapping[str, int]) -> bool:
        """Whether a call with these arguments only asks; they are by name."""
        return 0 in [arguments[name] for name in self.asks]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Hcall:
    """One call."""

    name: str
    number: int
    level: Level
    doc: str
    source: str
    args: tuple[Arg, ...] = ()
    buffers: tuple[Buffer, ...] = ()
    outputs: tuple[Output, ...] = ()
    codes: tuple[CodeWhen, ...] = ()
    decode_only: bool = False
    """No handler exists yet: known to traces and tables, not served."""
    deadline_ms: int = 10_000
    timeout_code: Code = H.ABORTED
    """What the guest is told when the deadline passes."""
    lost_code: Code = H.ABORTED
    """What the guest is told when the daemon is gone and is not waited for."""
    foreign_code: Code | None = None
    """What tells the guest that what it has brought was made for other keys."""
    waits_for_daemon: bool = True
    effect_may_remain: bool = False
    """After a timeout, the change that the guest was not told about may be there."""
    caller: Caller = Caller.KERNEL
    result: str = ""
    """What r3 holds when it is neither a code of ``codes`` nor negative; "" for nothing."""
    sets_context: bool = False
    """A success may change NIP and MSR: the caller goes on elsewhere."""
    of_secure_vm: bool = False
    """Forwarded with MSR[S] = 1 only; a normal VM's is QEMU's."""
    structure: Struct | None = None
    """Of a command: the structure whose fields r4 and those after it stand for, in order;
    without one r4 stands for the pointer to what would be the structure."""
    milestone: Milestone | None = None
    """None: its success is nothing to tell of."""
    query: Query | None = None
    """None: it cannot be asked for lengths."""

    @property
    def from_problem_state(self) -> bool:
        """Calls with MSR[PR] = 1 are forwarded too."""
        return self.caller is Caller.ANY

    def arg(self, name: str) -> Arg:
        """The argument called ``name``.

        Raises:
            KeyError: there is none.
        """
        for arg in self.args:
            if arg.name == name:
                return arg
        raise KeyError(f"{self.name} has no argument {name!r}")

    def arg_code(self, arg: Arg) -> Code:
        """The code for an invalid ``arg``: its own, or H_PARAMETER, H_P2... by position.

        Ultracalls have no code by position beyond U_P5 (-59 is U_BAD_MODE): there it is
        U_PARAMETER, which the firmware's header explains as "invalid, out-of-range or
        conflicting". Commands have errno: a bad pointer is -EFAULT, a bad value -EINVAL.
        """
        if arg.code is not None:
            return arg.code
        if self.level is Level.COMMAND:
            return SevCode.EFAULT if arg.kind is ArgKind.ADDRESS else SevCode.EINVAL
        codes = ULTRA_PARAMETER_CODES if self.level is Level.SC2 else PARAMETER_CODES
        position = self.args.index(arg)
        return codes[position] if position < len(codes) else codes[0]

    @property
    def refusal_registers(self) -> tuple[tuple[int, int], ...]:
        """(register, value) of the outputs that a refusal defines too."""
        return tuple(
            (output.register, output.otherwise)
            for output in self.outputs
            if output.otherwise is not None
        )

    @property
    def return_codes(self) -> type[Code]:
        """The set of codes that r3 is read with."""
        return LEVEL_CODES[self.level].codes


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Calls that belong together, as one specification groups them."""

    name: str
    title: str
    source: str
    calls: tuple[Hcall, ...]
    hypertas: tuple[str, ...] = ()
    """Strings in ``/rtas/ibm,hypertas-functions`` that announce the family."""
    constants: tuple[tuple[str, int], ...] = ()
    """Named numbers that a caller needs beside calls and codes (for the C header); bits of
    an ``IntFlag`` are spelled in hexadecimal."""

    @property
    def decode_only(self) -> bool:
        """True when no call of the family is served."""
        return all(call.decode_only for call in self.calls)


def address(name: str, register: int, doc: str) -> Arg:
    """An ADDRESS argument."""
    return Arg(name=name, register=register, kind=ArgKind.ADDRESS, doc=doc)


def size(name: str, register: int, doc: str, *, minimum: int = 0, maximum: Bound = U32_MAX) -> Arg:
    """A SIZE argument."""
    return Arg(
        name=name, register=register, kind=ArgKind.SIZE, doc=doc, minimum=minimum, maximum=maximum
    )


def flags(name: str, register: int, doc: str, *, bits: Bound, names: Names | None = None) -> Arg:
    """A FLAGS argument; ``bits`` are the ones that may be set."""
    return Arg(name=name, register=register, kind=ArgKind.FLAGS, doc=doc, maximum=bits, names=names)


def value(
    name: str,
    register: int,
    doc: str,
    *,
    minimum: int = 0,
    maximum: Bound = U64_MAX,
    names: Names | None = None,
) -> Arg:
    """A VALUE argument; with ``names`` the bounds are those of the names."""
    if names is not None:
        minimum, maximum = min(names), max(names)
    return Arg(
        name=name,
        register=register,
        kind=ArgKind.VALUE,
        doc=doc,
        minimum=minimum,
        maximum=maximum,
        names=names,
    )


def opaque(name: str, register: int, doc: str) -> Arg:
    """An OPAQUE argument."""
    return Arg(name=name, register=register, kind=ArgKind.OPAQUE, doc=doc)
