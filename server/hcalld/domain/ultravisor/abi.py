# SPDX-License-Identifier: Apache-2.0
"""What lies between hypervisor and ultravisor: calls by number, and normal memory.

A ``Turn`` is what one event of a guest sets off in both halves, up to the reply. It
carries the calls between them, so that each half can be driven alone and what crosses is
seen; it collects what is to become of guest memory, which is the reply's to carry out.

Nothing in a turn waits: it is carried out whole, or stopped by ``ContentNeeded`` before
it has changed anything. So no call sees another one's half-done work, and one that is
cancelled leaves none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol, overload

from hcalld.domain.runs import Spans
from hcallproto.abi.families import uv
from hcallproto.abi.registry import find
from hcallproto.abi.returns import Code, H, U, status_name
from hcallproto.abi.spec import Level

PAGE_SHIFT: Final = uv.PAGE_ORDER
PAGE_SIZE: Final = 1 << PAGE_SHIFT
"""The page of both halves, whatever the guest's is."""
SECURE_MEMORY: Final = 1 << 48
"""The bit of a real address that says: secure memory (IBM bit 15)."""
VM_SHIFT: Final = 44
"""Bits of a VM's real addresses: 16 TiB."""
KEY_SIZE: Final = 32
SALT_SIZE: Final = 4
ENTROPY_SIZE: Final = KEY_SIZE + SALT_SIZE
"""Random bytes that come with the content of a page, to encrypt it with."""
MAX_CROSSINGS_TOLD: Final = 32
"""Calls between the halves that a trace shows of one turn; the rest is counted."""
FIRST_CROSSINGS_TOLD: Final = 24
"""So many of them are the first ones, the others the last."""


class Returned(NamedTuple):
    """What a call gives: r3, and (register, value) pairs."""

    status: Code
    outputs: tuple[tuple[int, int], ...] = ()


DONE: Final = Returned(U.SUCCESS)
"""An ultracall that gives nothing else."""


class PageContent(NamedTuple):
    """What is in a page that is to be paged out, and random bytes for that."""

    data: bytes
    entropy: bytes

    def __repr__(self) -> str:
        return "PageContent(...)"


class ContentNeeded(Exception):
    """Pages have to be read before this turn can be carried out; it has changed nothing."""

    def __init__(self, lpid: int, gpas: tuple[int, ...]) -> None:
        super().__init__(f"content of {len(gpas)} pages of VM {lpid}")
        self.lpid = lpid
        self.gpas = gpas


class Ultravisor(Protocol):
    """The ultravisor as a hypervisor sees it."""

    def ultracall(self, turn: Turn, number: int, args: Sequence[int]) -> Returned:
        """Carry out a call that a hypervisor makes."""


class Hypervisor(Protocol):
    """The hypervisor as an ultravisor sees it."""

    def hypercall(self, turn: Turn, number: int, args: Sequence[int]) -> Returned:
        """Carry out a call that the ultravisor makes in the VM's name."""


class NormalMemory(Protocol):
    """Memory that is not secure, by real address: the hypervisor's own, and its VMs'."""

    def guest_page(self, lra: int) -> tuple[int, int] | None:
        """(lpid, gpa) of a VM's page that this is; None for other memory."""

    def load(self, lra: int) -> bytes | None:
        """The page at ``lra``, which is no VM's; None if there is none."""

    def store(self, lra: int, data: bytes) -> bool:
        """Overwrite the page at ``lra``; False if there is none."""


class Restores(Protocol):
    """Can give pages back a state that they had."""

    def restore(self, low: int, high: int, state: int) -> None:
        """Give the pages of a range of addresses a state back."""


@dataclasses.dataclass(slots=True)
class _Crossing:
    level: int
    number: int
    args: tuple[int, ...]
    status: Code | None = None


class Turn:
    """One event of a guest, and all that it sets off.

    Args:
        lpid: the VM that it is about.
        ultravisor: takes ultracalls.
        hypervisor: takes hypercalls.
        contents: of pages that may be paged out, by guest real address.
    """

    __slots__ = (
        "_count",
        "_crossings",
        "_hypervisor",
        "_said",
        "_ultravisor",
        "contents",
        "doom",
        "journal",
        "lpid",
        "reason",
        "touched",
        "writes",
        "zeros",
    )

    def __init__(
        self,
        lpid: int,
        ultravisor: Ultravisor,
        hypervisor: Hypervisor,
        contents: Mapping[int, PageContent] | None = None,
    ) -> None:
        self.lpid = lpid
        self.contents: Mapping[int, PageContent] = contents or {}
        self.writes: dict[int, bytes] = {}
        """Guest real address to page; carried out before ``zeros``."""
        self.zeros = Spans()
        """Guest real addresses to be zeroed."""
        self.touched = Spans()
        """Guest real addresses whose pages may have changed their states."""
        self.doom = ""
        """Why the guest must be taken down."""
        self.reason = ""
        """Why the last call that the ultravisor refused was refused."""
        self.journal: list[tuple[Restores, int, int, int]] = []
        """What pages were before, in the order of the changes."""
        self._ultravisor = ultravisor
        self._hypervisor = hypervisor
        self._crossings: list[_Crossing] = []
        self._count = 0
        self._said: list[str] = []

    def ultracall(self, number: int, *args: int) -> Returned:
        """The hypervisor makes an ultracall."""
        crossing = self._begin(Level.SC2, number, args)
        returned = self._ultravisor.ultracall(self, number, args)
        crossing.status = returned.status
        return returned

    def hypercall(self, number: int, *args: int) -> Returned:
        """The ultravisor makes a hypercall in the VM's name."""
        crossing = self._begin(Level.SC1, number, args)
        returned = self._hypervisor.hypercall(self, number, args)
        crossing.status = returned.status
        return returned

    def _begin(self, level: int, number: int, args: tuple[int, ...]) -> _Crossing:
        crossing = _Crossing(level, number, args)
        self._count += 1
        self._crossings.append(crossing)
        if len(self._crossings) > MAX_CROSSINGS_TOLD:
            del self._crossings[FIRST_CROSSINGS_TOLD]
        return crossing

    @property
    def crossing_count(self) -> int:
        """How many calls went between the halves."""
        return self._count

    def say(self, text: str) -> None:
        """Add a remark for the trace; it holds no secret."""
        if len(self._said) < MAX_CROSSINGS_TOLD:
            self._said.append(text)

    def kill(self, why: str) -> None:
        """The guest must not go on; the first reason is told."""
        self.doom = self.doom or why

    def undo(self) -> None:
        """Nobody will carry out what is to become of memory: make pages what they were."""
        for owner, low, high, state in reversed(self.journal):
            owner.restore(low, high, state)
        self.journal.clear()

    def notes(self) -> Sequence[str]:
        """What went between the halves, in the order of the calls, and what was said."""
        return Notes(self)

    def tell(self) -> tuple[str, ...]:
        """``notes``, in words."""
        told = [_tell(crossing) for crossing in self._crossings]
        if self._count > MAX_CROSSINGS_TOLD:
            untold = self._count - MAX_CROSSINGS_TOLD
            told.insert(FIRST_CROSSINGS_TOLD, f"... {untold} calls between the halves ...")
        return (*told, *self._said)

    def content(self, gpa: int) -> PageContent | None:
        """What is in a page now, with what this turn has done to it; None: not known."""
        found = self.contents.get(gpa)
        if found is None:
            return None
        if not self.zeros and not self.writes:
            return found
        data = bytearray(self.writes.get(gpa, found.data))
        for low, high in self.zeros.within(gpa, gpa + PAGE_SIZE):
            data[low - gpa : high - gpa] = bytes(high - low)
        return PageContent(bytes(data), found.entropy)

    def pending_writes(self) -> tuple[tuple[int, bytes], ...]:
        """The writes that are not zeroed again."""
        return tuple(
            (gpa, data)
            for gpa, data in sorted(self.writes.items())
            if not self.zeros.holds(gpa, gpa + len(data))
        )


class Notes(Sequence[str]):
    """A turn's notes, put into words when somebody reads them: seldom."""

    __slots__ = ("_told", "_turn")

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._told: tuple[str, ...] | None = None

    def _tell(self) -> tuple[str, ...]:
        if self._told is None:
            self._told = self._turn.tell()
        return self._told

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        return self._tell()[index]

    def __len__(self) -> int:
        return len(self._tell())

    def __repr__(self) -> str:
        return repr(self._tell())


def _tell(crossing: _Crossing) -> str:
    hcall = find(crossing.number, crossing.level)
    codes: type[H | U] = U if crossing.level == Level.SC2 else H
    arrow = "HV>UV" if crossing.level == Level.SC2 else "UV>HV"
    name = hcall.name if hcall is not None else f"0x{crossing.number:x}"
    names = [arg.name for arg in hcall.args] if hcall is not None else []
    args = [
        f"{names[index]}=0x{value:x}" if index < len(names) else f"0x{value:x}"
        for index, value in enumerate(crossing.args)
    ]
    status = "-" if crossing.status is None else status_name(crossing.status, codes)
    return f"{arrow} {name}({', '.join(args)}) = {status}"


def page_of(gpa: int) -> int:
    """The first byte of the page of both halves that ``gpa`` is in."""
    return gpa & ~(PAGE_SIZE - 1)


def pages_of(low: int, high: int) -> Iterable[int]:
    """The pages of both halves that a range of addresses touches."""
    return range(page_of(low), high, PAGE_SIZE)
