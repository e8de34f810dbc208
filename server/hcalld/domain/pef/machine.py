# SPDX-License-Identifier: Apache-2.0
"""One guest with both halves: what its handlers, its resets and its operator call.

Everything that changes a model is one synchronous turn (``ultravisor.abi``). What has to
wait comes before: pages that are to go out are first taken from the guest (no vCPU can
touch them), then read. If one is wanted back meanwhile, it is given back and what was
read of it is void.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from hcalld.core.effects import Entropy, GuestMemoryError, ReadGuest, WriteGuest, ZeroGuest
from hcalld.core.errors import HcallError
from hcalld.core.outcome import Outcome
from hcalld.core.pages import PageBits, PageRange, SetPages
from hcalld.core.records import Change, Record
from hcalld.domain.attributes import PartitionAttributes
from hcalld.domain.hypervisor.half import HypervisorHalf, HypervisorSettings
from hcalld.domain.hypervisor.memory import HypervisorMemory
from hcalld.domain.pef.key import key_of
from hcalld.domain.pef.verify import Key, Verify, verify
from hcalld.domain.runs import Spans
from hcalld.domain.ultravisor import sharing
from hcalld.domain.ultravisor.abi import (
    ENTROPY_SIZE,
    PAGE_SHIFT,
    PAGE_SIZE,
    ContentNeeded,
    PageContent,
    Returned,
    Turn,
    page_of,
)
from hcalld.domain.ultravisor.files import file_name, pack_chunk
from hcalld.domain.ultravisor.ultravisor import UltravisorModel
from hcalld.domain.ultravisor.vm_states import VmEvent, VmState
from hcallproto.abi.families import svm
from hcallproto.abi.returns import Code, H, U

GUEST_LPID: Final = 1
"""A pseries guest's LPIDR is 0 under TCG: who it is is the connection's to say."""
PAGE_SHIFTS: Final = (12, 16)
DEFAULT_PAGE_SHIFT: Final = 16

MAX_SEGMENTS: Final = 64
"""Memory segments, and ranges of pages, that one reply can have (docs/wire.rst, Bounds)."""
MAX_WRITES: Final = 8
"""Pages of 64 KiB that one reply can write: its greatest size is 1 MiB at least."""
MAX_ZERO_SIZE: Final = 1 << 30
"""Bytes that one segment zeroes: its size has 32 bits."""
PAGE_OUT_BATCH: Final = 8
TRIES: Final = 16
"""How often pages are taken again that a vCPU wants back before they were dealt with."""


@dataclasses.dataclass(frozen=True, slots=True)
class PefSettings:
    """What an operator decides."""

    page_shift: int | None = None
    """log2 of the guest kernel's page, 12 or 16; None: what QEMU hints, or 16."""
    hypervisor: HypervisorSettings = dataclasses.field(default_factory=HypervisorSettings)

    def __post_init__(self) -> None:
        if self.page_shift is not None and self.page_shift not in PAGE_SHIFTS:
            raise ValueError(f"page shift {self.page_shift}, expected 12 or 16")


@dataclasses.dataclass(slots=True)
class Claim:
    """A page that was taken from the guest for a while, and what was read of it."""

    content: PageContent | None = None


class PefMachine:
    """The model behind UV_* and H_SVM_* (``core.handlers.Model``).

    Raises:
        StoreError: a record is malformed or of a newer version.
    """

    def __init__(self, settings: PefSettings | None = None, stored: Iterable[Record] = ()) -> None:
        stored = list(stored)
        self.settings = settings or PefSettings()
        self.memory = HypervisorMemory(GUEST_LPID)
        self.ultravisor = UltravisorModel(self.memory, stored)
        self.hypervisor = HypervisorHalf(GUEST_LPID, self.memory, self.settings.hypervisor, stored)
        self.page_shift = self.settings.page_shift or DEFAULT_PAGE_SHIFT
        self.key: Key = key_of(stored)
        """Gives the key of the guest's blob."""
        self.verify: Verify = verify
        self.gone = Spans()
        """RAM that was unplugged; it may be there again before ``attend`` hears of it."""
        self.wanted_out: dict[int, None] = {}
        """Pages that an operator wants out, in the order they were named."""
        self.ordered_out = 0
        """How many of them have gone out."""
        self._claims: dict[int, Claim] = {}
        """Pages taken from the guest, to be read or zeroed."""
        self.is_plugging = False
        """Memory that is new is being zeroed."""

    @classmethod
    def build(cls, attributes: PartitionAttributes, stored: Iterable[Record]) -> PefMachine:
        """A partition's model; no attribute is about it yet."""
        return cls(PefSettings(), stored)

    def configure(self, settings: PefSettings) -> None:
        """What an operator decides now, for a VM that may be secure already."""
        self.settings = settings
        self.hypervisor.settings = settings.hypervisor
        self.page_shift = settings.page_shift or DEFAULT_PAGE_SHIFT

    def hint(self, page_shift: int) -> None:
        """QEMU says which pages the guest may have; what an operator said goes first."""
        if self.settings.page_shift is None and page_shift in PAGE_SHIFTS:
            self.page_shift = page_shift

    def take_changes(self) -> list[Change]:
        """See Model.

        While a VM is being made secure, other calls are answered and their changes are
        committed. The hypervisor may believe already that the VM is secure: that waits until
        both halves do, or a daemon that dies now would be left with one that does.
        """
        changes = self.ultravisor.take_changes()
        if self.state is not VmState.ACTIVE:
            changes += self.hypervisor.take_changes()
        return changes

    def held(self) -> str:
        """See Served."""
        if self.gone:
            return "memory had been unplugged and not dealt with"
        is_moving = self.is_plugging or self.wanted_out
        return "memory was being plugged in or paged out" if is_moving else ""

    @property
    def state(self) -> VmState:
        """What the guest is."""
        return self.ultravisor.state_of(GUEST_LPID)

    @property
    def is_secure(self) -> bool:
        """True if the guest is a secure VM."""
        return self.state is VmState.SECURE

    # -- turns ------------------------------------------------------------------------------

    def turn(self, contents: dict[int, PageContent] | None = None) -> Turn:
        """Begin a turn."""
        return Turn(GUEST_LPID, self.ultravisor, self.hypervisor, contents)

    async def carry_out(
        self, work: Callable[[Turn], Code | Returned], *, tells_pages: bool = True
    ) -> Outcome:
        """Carry a turn out, reading first what it needs.

        Args:
            work: gives the code, or raises HcallError; it is called again if it raises
                ContentNeeded.
            tells_pages: the reply can have page states.
        """
        outcome = await self._carry_out(work)
        if outcome.pages and not tells_pages:
            await SetPages(outcome.pages)
            outcome = dataclasses.replace(outcome, pages=())
        return outcome

    async def _carry_out(self, work: Callable[[Turn], Code | Returned]) -> Outcome:
        reads: dict[int, Claim] = {}
        for _ in range(TRIES):
            contents = {
                gpa: read.content
                for gpa, read in reads.items()
                if read.content is not None and self.holds({gpa: read})
            }
            turn = self.turn(contents)
            why = ""
            try:
                returned = work(turn)
            except ContentNeeded as needed:
                try:
                    await self._read(needed.gpas, reads)
                except GuestMemoryError as error:
                    code: Code = U.P3
                    return await self.finish(turn, code, str(error), reads)
                continue
            except HcallError as error:
                returned, why = error.code, error.why
            if isinstance(returned, Returned):
                return await self.finish(turn, returned.status, why, reads, returned.outputs)
            return await self.finish(turn, returned, why, reads)
        return await self.finish(self.turn(), U.RETRY, "pages are wanted back all the time", reads)

    def claim(self, gpas: Iterable[int]) -> dict[int, Claim]:
        """Pages are being taken from the guest; the claim is void if it wants one back."""
        claims = {gpa: Claim() for gpa in gpas}
        self._claims |= claims
        return claims

    def holds(self, claims: Mapping[int, Claim]) -> bool:
        """True if all of these claims still hold."""
        return all(self._claims.get(gpa) is claim for gpa, claim in claims.items())

    async def _read(self, gpas: Sequence[int], reads: dict[int, Claim]) -> None:
        reads |= self.claim(gpas)
        await SetPages(tuple(PageRange(gpa, PAGE_SIZE, PageBits.OUT) for gpa in gpas))
        entropy = await Entropy(ENTROPY_SIZE * len(gpas))
        for index, gpa in enumerate(gpas):
            data = await ReadGuest(gpa, PAGE_SIZE)
            salt = entropy[index * ENTROPY_SIZE : (index + 1) * ENTROPY_SIZE]
            reads[gpa].content = PageContent(data, salt)

    async def finish(
        self,
        turn: Turn,
        code: Code,
        why: str = "",
        reads: Iterable[int] = (),
        registers: tuple[tuple[int, int], ...] = (),
    ) -> Outcome:
        """End a turn: what is to become of memory, as far as possible with the reply."""
        for gpa in reads:
            turn.touched.add(gpa, gpa + PAGE_SIZE)
        for gpa in [gpa for gpa in self._claims if turn.touched.touches(gpa, gpa + PAGE_SIZE)]:
            del self._claims[gpa]
        writes = turn.pending_writes()
        zeros = tuple(pieces(turn.zeros.ranges()))
        pages = self._bits(turn)
        if len(writes) > MAX_WRITES or len(writes) + len(zeros) > MAX_SEGMENTS:
            try:
                for gpa, data in writes:
                    await WriteGuest(gpa, data)
                for gpa, size in zeros:
                    await ZeroGuest(gpa, size)
            except BaseException:
                turn.undo()
                raise
            writes = zeros = ()
        if len(pages) > MAX_SEGMENTS:
            try:
                for first in range(0, len(pages) - MAX_SEGMENTS, MAX_SEGMENTS):
                    await SetPages(pages[first : first + MAX_SEGMENTS])
            except BaseException:
                turn.undo()
                raise
            pages = pages[-MAX_SEGMENTS:]
        return Outcome(
            code,
            registers,
            writes,
            why or (turn.reason if code else ""),
            zeros=zeros,
            pages=pages,
            notes=turn.notes(),
            terminate=turn.doom,
        )

    def _bits(self, turn: Turn) -> tuple[PageRange, ...]:
        """What QEMU is told of the pages that may have changed: of RAM, so of slots only."""
        vm = self.ultravisor.vms.get(GUEST_LPID)
        told: list[PageRange] = []
        for low, high in turn.touched.ranges():
            if vm is None:
                told.append(PageRange(low, high - low, PageBits.NONE))
            else:
                told += vm.bits(low, high)
        # What is out was told before it was read; a reply cannot page out (docs/wire.rst).
        return tuple(one for one in told if one.state is not PageBits.OUT)

    # -- calls ------------------------------------------------------------------------------

    async def by_hypervisor(self, number: int, args: Sequence[int]) -> Outcome:
        """An ultracall that a hypervisor makes which is not our half."""
        return await self.carry_out(lambda turn: turn.ultracall(number, *args))

    async def by_guest(self, number: int, args: Sequence[int]) -> Outcome:
        """A hypercall of the ultravisor's that a secure VM makes itself.

        KVM cannot tell it from the ultravisor's. A reply to a hypercall has no page states,
        so a page that is out stays so until it is touched: that it is in, as the VM is told,
        it cannot see otherwise.
        """
        if number == svm.PAGE_IN.number and self._is_out(page_of(args[0])):
            gpa, flags, order = args
            if order == PAGE_SHIFT and not flags:
                return Outcome(H.SUCCESS, notes=(f"0x{gpa:x} comes in when it is touched",))
            code = H.P3 if order != PAGE_SHIFT else H.PARAMETER
            return Outcome(code, why="the page is out: it cannot be shared")

        def work(turn: Turn) -> Returned:
            if number == svm.INIT_ABORT.number and self.state is VmState.ACTIVE:
                # Another vCPU's UV_ESM ends as if the ultravisor gave it up.
                self.ultravisor.vm(GUEST_LPID).happen(VmEvent.ABORT)
            return turn.hypercall(number, *args)

        return await self.carry_out(work, tells_pages=False)

    def _is_out(self, page: int) -> bool:
        vm = self.ultravisor.vms.get(GUEST_LPID)
        return vm is not None and vm.kept(page) is not None

    def read_file(self, offset: int, name_registers: Sequence[int], pidr: int) -> Outcome:
        """UV_ESMB_GET_FILE.

        Raises:
            HcallError: U_PARAMETER.
        """
        vm = self.ultravisor.vms.get(GUEST_LPID)
        if vm is None or vm.state is not VmState.SECURE:
            raise HcallError(U.PARAMETER, "the VM is not secure")
        name = file_name(name_registers)
        before = vm.files.readers.get(name)
        try:
            piece = vm.files.read(name, offset, pidr)
        finally:
            if vm.files.readers.get(name) != before:
                vm.reader_changed(name)
        registers = tuple(enumerate(pack_chunk(piece), start=4))
        return Outcome(U.SUCCESS, registers, result=len(piece))

    # -- QEMU, the operator, resets -----------------------------------------------------------

    async def touch(self, gpa: int) -> Outcome:
        """A vCPU touched a page that is paged out: it may try again when this is answered.

        A page of a VM that is no longer, or never was, secure is simply given back. While
        the VM is being made secure nothing of it runs: U_RETRY.
        """
        if self.state is VmState.ACTIVE:
            return Outcome(U.RETRY, why="the VM is being made secure")

        def work(turn: Turn) -> U:
            vm = self.ultravisor.vms.get(GUEST_LPID)
            if vm is None:
                turn.touched.add(page_of(gpa), page_of(gpa) + PAGE_SIZE)
                return U.SUCCESS
            if self._is_out(page_of(gpa)) and not self._make_room(turn, 1):
                turn.say("HV: the VM has more pages in secure memory than it may")
            if not sharing.touch(self.ultravisor, turn, gpa):
                raise HcallError(U.P3, f"page 0x{page_of(gpa):x} cannot be brought in")
            return U.SUCCESS

        return await self.carry_out(work)

    def _make_room(self, turn: Turn, wanted: int) -> bool:
        """Page out what is over the limit; False if not all of it went."""
        excess = self.hypervisor.excess(wanted)
        if not excess:
            return True
        hand = self.hypervisor.hand
        # What another call is taking from the guest: both would begin anew, again and again.
        spared = self._claims.keys() - turn.contents.keys()
        gpas = self.hypervisor.victims(min(excess, PAGE_OUT_BATCH), spared)
        return self._page_out(turn, gpas, hand) and not self.hypervisor.excess(wanted)

    def _page_out(self, turn: Turn, gpas: Sequence[int], hand: int | None = None) -> bool:
        vm = self.ultravisor.vms.get(GUEST_LPID)
        if vm is None:
            return False
        missing = tuple(gpa for gpa in gpas if gpa not in turn.contents and self._may_go(gpa))
        if missing:
            if hand is not None:
                self.hypervisor.hand = hand
            raise ContentNeeded(GUEST_LPID, missing)
        codes = [
            self.hypervisor.hypercall(turn, svm.PAGE_OUT.number, (gpa, 0, PAGE_SHIFT))
            for gpa in gpas
        ]
        return all(returned.status is H.SUCCESS for returned in codes)

    def _may_go(self, gpa: int) -> bool:
        vm = self.ultravisor.vms[GUEST_LPID]
        return (
            vm.state is VmState.SECURE
            and vm.slots.hold(gpa, gpa + PAGE_SIZE)
            and vm.is_all_secure(gpa)
        )

    async def page_out(self, gpas: Sequence[int]) -> Outcome:
        """An operator wants pages out; PAGE_OUT_BATCH at most at a time."""
        pages = tuple(dict.fromkeys(page_of(gpa) for gpa in gpas[:PAGE_OUT_BATCH]))

        def work(turn: Turn) -> U:
            before = len(self.hypervisor.out)
            is_done = self._page_out(turn, pages)
            self.ordered_out += len(self.hypervisor.out) - before
            return U.SUCCESS if is_done else U.PARAMETER

        return await self.carry_out(work)

    async def trim(self) -> Outcome:
        """Page out a batch of what is over the limit; U_BUSY if there is more."""

        def work(turn: Turn) -> U:
            return U.SUCCESS if self._make_room(turn, 0) else U.BUSY

        return await self.carry_out(work)

    def expel(self, code: Code) -> Outcome:
        """A vCPU runs outside of secure state, so the guest is not what was checked.

        QEMU sees to it that this cannot be, but for what is beyond it: a UV_ESM whose
        deadline passed while its answer was on the way.
        """
        turn = self.turn()
        vm = self.ultravisor.vms[GUEST_LPID]
        self.ultravisor.breach(turn, vm, "a vCPU of the secure VM runs with MSR[S] = 0")
        return Outcome(code, why=turn.doom, notes=turn.notes(), terminate=turn.doom)

    async def svm_off(self) -> Outcome:
        """The hypervisor takes the VM out of secure state, as for a reset."""

        def work(turn: Turn) -> U:
            self.hypervisor.svm_off(turn)
            return U.SUCCESS

        return await self.carry_out(work)


def pieces(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """(gpa, size) pairs of at most MAX_ZERO_SIZE."""
    for low, high in ranges:
        for gpa in range(low, high, MAX_ZERO_SIZE):
            yield gpa, min(MAX_ZERO_SIZE, high - gpa)
