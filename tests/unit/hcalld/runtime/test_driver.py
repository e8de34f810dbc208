# SPDX-License-Identifier: Apache-2.0
"""Each effect, performed at once where that is possible and by waiting where it is not."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import trio
from tests.unit.hcalld.runtime import ledger
from tests.unit.hcalld.runtime.daemon import Faults, FaultyStore

from hcalld.config import Profile
from hcalld.core.call import Call
from hcalld.core.effects import (
    Effect,
    Entropy,
    Flush,
    GuestMemoryError,
    Note,
    Now,
    ReadBuffer,
    ReadGuest,
    WriteGuest,
    ZeroGuest,
)
from hcalld.core.errors import HcallError, StoreError
from hcalld.core.outcome import Outcome
from hcalld.core.pages import PageRange
from hcalld.core.records import Run
from hcalld.runtime import driver
from hcalld.runtime.driver import Execution
from hcalld.runtime.guestram import SharedRam
from hcalld.runtime.partition import Entry, Partition, entry_key
from hcalld.runtime.world import RealWorld
from hcalld.stores.memory import MemoryState
from hcallproto.abi.returns import H
from hcallproto.abi.spec import Hcall, Level
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

RAM_SIZE = 0x10000
Answers = list[Any]
Body = Callable[[Call, Answers], Coroutine[Effect[Any], Any, Outcome]]

pytestmark = pytest.mark.usefixtures("ledger_served")


class FakeWire:
    """Guest memory as the shim would give it."""

    def __init__(self) -> None:
        self.memory = bytearray(range(256)) * (RAM_SIZE // 256)
        self.asked: list[tuple[str, int, int]] = []
        self.error = ""

    async def read(self, call: f.Call, segments: tuple[tuple[int, int], ...]) -> list[bytes]:
        await trio.lowlevel.checkpoint()
        self.asked += [("read", gpa, size) for gpa, size in segments]
        if self.error:
            raise GuestMemoryError(*segments[0], self.error)
        return [bytes(self.memory[gpa : gpa + size]) for gpa, size in segments]

    def read_ahead(self, call: f.Call, segments: tuple[tuple[int, int], ...]) -> None:
        self.asked += [("ahead", gpa, size) for gpa, size in segments]

    async def write(self, call: f.Call, segments: tuple[f.WriteSegment, ...]) -> None:
        await trio.lowlevel.checkpoint()
        for gpa, size, data in segments:
            self.asked.append(("zero" if data is None else "write", gpa, size))
            if self.error:
                raise GuestMemoryError(gpa, size, self.error)
            self.memory[gpa : gpa + size] = bytes(size) if data is None else data

    async def set_pages(self, call: f.Call, ranges: tuple[PageRange, ...]) -> None:
        await trio.lowlevel.checkpoint()
        self.asked += [(state.name or "", gpa, size) for gpa, size, state in ranges]
        if self.error:
            raise GuestMemoryError(*ranges[0][:2], self.error)


@dataclasses.dataclass
class Bench:
    """Everything that a call needs, to run one handler of a test's."""

    wire: FakeWire = dataclasses.field(default_factory=FakeWire)
    faults: Faults = dataclasses.field(default_factory=Faults)
    ram: SharedRam = dataclasses.field(
        default_factory=lambda: SharedRam([f.RamRegion(0, RAM_SIZE)])
    )
    shared_ram: bool = False
    answers: Answers = dataclasses.field(default_factory=list)
    partition: Partition = dataclasses.field(init=False)

    def execution(
        self,
        body: Body,
        hcall: Hcall = ledger.PUT,
        *arguments: int,
        segments: tuple[f.Segment, ...] = (),
    ) -> Execution:
        """A call of ``hcall`` whose handler is ``body``."""
        state = MemoryState()
        profile = Profile(partition="p", source="test")
        partition = Partition(profile, lambda: FaultyStore(state, self.faults))
        self.partition = partition
        partition.begin(Run(bytes(16), 0))
        entries = partition.entries(shared_ram=self.shared_ram, levels=frozenset({Level.SC1}))
        known = entries[entry_key(hcall.number, hcall.level)]

        def handler(call: Call, _: Any) -> Coroutine[Effect[Any], Any, Outcome]:
            return body(call, self.answers)

        entry = Entry(
            known.hcall, known.plan, handler, known.family, known.gate, None, known.inline
        )
        registers = {3: hcall.number, **{4 + n: value for n, value in enumerate(arguments)}}
        frame = f.Call(
            0,
            0,
            1,
            False,
            1,
            tuple(registers.get(n, 0) for n in s.REGISTERS),
            0,
            0,
            0,
            0,
            segments,
        )
        names = {arg.name: registers.get(arg.register, 0) for arg in hcall.args}
        call = Call(hcall, names, 0, self.ram.map)
        model = partition.model("ledger")
        return Execution(frame, entry, call, model, self.ram, self.wire, RealWorld(partition))


def asks(*effects: Effect[Any]) -> Body:
    """A handler that keeps the answer of each effect."""

    async def body(call: Call, answers: Answers) -> Outcome:
        for effect in effects:
            try:
                answers.append(await effect)
            except (GuestMemoryError, StoreError, HcallError) as error:
                answers.append(error)
        return Outcome(H.SUCCESS)

    return body


def shared(data: bytes, size: int = RAM_SIZE) -> SharedRam:
    fd = os.memfd_create("ram")
    os.write(fd, data)
    return SharedRam([f.RamRegion(0, size, 0, 0)], [fd])


# -- what needs no waiting -------------------------------------------------------------------


def test_start_when_the_handler_asks_for_nothing_then_it_is_done():
    assert Bench().execution(asks()).start() == Outcome(H.SUCCESS)


def test_entropy_when_asked_then_so_many_bytes_that_differ():
    bench = Bench()
    assert bench.execution(asks(Entropy(32), Entropy(32), Entropy(0))).start() is not None
    first, second, empty = bench.answers
    assert len(first) == len(second) == 32
    assert first != second
    assert empty == b""


def test_now_when_asked_then_nanoseconds_since_the_epoch():
    bench = Bench()
    before = time.time_ns()
    bench.execution(asks(Now())).start()
    assert before <= bench.answers[0] <= time.time_ns()


def test_note_when_left_then_it_is_kept_for_those_who_watch():
    execution = Bench().execution(asks(Note("one"), Note("two")))
    execution.start()
    assert execution.notes == ["one", "two"]


def test_read_buffer_when_it_came_with_the_call_then_its_bytes():
    bench = Bench()
    segment = f.Segment(0, 0x40, s.SegmentStatus.OK, b"four")
    execution = bench.execution(
        asks(ReadBuffer("buffer")), ledger.SIZED, 1, 0x40, 4, segments=(segment,)
    )
    assert execution.start() is not None
    assert bench.answers == [b"four"]


@pytest.mark.parametrize(
    ("hcall", "sent", "is_taken"),
    [
        (ledger.SIZED, 3, False),
        (ledger.SIZED, 5, False),
        (ledger.SIZED, 0, False),
        (ledger.FIXED, ledger.FIXED_SIZE, True),
        (ledger.FIXED, ledger.FIXED_SIZE - 1, False),
        (ledger.FIXED, ledger.FIXED_SIZE + 1, False),
        (ledger.PAGE_BOUNDED, ledger.PAGE_BOUNDED_SIZE, True),
        (ledger.PAGE_BOUNDED, ledger.PAGE_BOUNDED_SIZE + 1, False),
    ],
)
def test_read_buffer_when_the_shim_sent_another_size_then_the_arguments_code(
    hcall: Hcall, sent: int, is_taken: bool
):
    # Whoever took the guest's QEMU over must not get past the table's bounds.
    bench = Bench()
    segment = f.Segment(0, 0x40, s.SegmentStatus.OK, bytes(sent))
    execution = bench.execution(asks(ReadBuffer("buffer")), hcall, 1, 0x40, 4, segments=(segment,))
    assert execution.start() is not None
    (answer,) = bench.answers
    if is_taken:
        assert answer == bytes(sent)
    else:
        assert isinstance(answer, HcallError)
        assert answer.code is H.P2
        assert f"{sent} bytes" in answer.why


def test_read_buffer_when_a_second_buffers_segment_comes_first_then_the_right_one_is_taken():
    bench = Bench()
    wrong = f.Segment(3, 0x80, s.SegmentStatus.OK, b"nope")
    right = f.Segment(0, 0x40, s.SegmentStatus.OK, b"four")
    bench.execution(
        asks(ReadBuffer("buffer")), ledger.SIZED, 1, 0x40, 4, segments=(wrong, right)
    ).start()
    assert bench.answers == [b"four"]


def test_read_buffer_when_ram_is_shared_then_a_large_one_is_read_from_there():
    bench = Bench(ram=shared(bytes(0x100) + b"x" * 0x8000), shared_ram=True)
    execution = bench.execution(asks(ReadBuffer("buffer")), ledger.LARGE, 1, 0x100, 0x8000)
    assert execution.entry.inline == {}
    assert execution.start() is not None
    assert bench.answers == [b"x" * 0x8000]
    bench.ram.close()


def test_read_guest_when_ram_is_shared_then_it_is_read_from_there():
    bench = Bench(ram=shared(b"somewhere in RAM"), shared_ram=True)
    assert bench.execution(asks(ReadGuest(10, 6))).start() is not None
    assert bench.answers == [b"in RAM"]
    bench.ram.close()


@pytest.mark.parametrize("effect", [ReadGuest(RAM_SIZE - 1, 2), ReadGuest(1 << 60, 1)])
def test_read_guest_when_it_is_no_ram_then_the_handler_is_told_at_once(effect: ReadGuest):
    bench = Bench()
    assert bench.execution(asks(effect)).start() is not None
    (error,) = bench.answers
    assert isinstance(error, GuestMemoryError)
    assert (error.gpa, error.size) == (effect.gpa, effect.size)
    assert bench.wire.asked == []


def test_flush_when_all_is_on_disk_then_nothing_is_waited_for():
    bench = Bench(faults=Faults(is_never_dirty=True))
    assert bench.execution(asks(Flush())).start() is not None
    assert bench.faults.flushes == 0


def test_start_when_the_handler_refuses_then_that_is_raised():
    async def body(call: Call, answers: Answers) -> Outcome:
        raise call.refuse("value", "no")

    with pytest.raises(HcallError) as raised:
        Bench().execution(body).start()
    assert raised.value.code is H.P2


# -- what has to wait ------------------------------------------------------------------------


async def test_read_guest_when_ram_is_not_shared_then_the_shim_is_asked():
    bench = Bench()
    execution = bench.execution(asks(ReadGuest(0x101, 3)))
    assert execution.start() is None
    assert await execution.finish() == Outcome(H.SUCCESS)
    assert bench.answers == [b"\1\2\3"]
    assert bench.wire.asked == [("read", 0x101, 3)]


async def test_read_guest_when_the_peer_has_shrunk_its_file_then_the_shim_is_asked():
    bench = Bench(ram=shared(b"short"), shared_ram=True)
    execution = bench.execution(asks(ReadGuest(3, 4)))
    assert execution.start() is None
    await execution.finish()
    assert bench.answers == [b"\3\4\5\6"]
    bench.ram.close()


async def test_read_guest_when_the_shim_refuses_then_the_handler_is_told():
    bench = Bench()
    bench.wire.error = "the shim says NOT_RAM"
    execution = bench.execution(asks(ReadGuest(0, 8), Note("and goes on")))
    assert execution.start() is None
    await execution.finish()
    assert isinstance(bench.answers[0], GuestMemoryError)
    assert execution.notes == ["and goes on"]


async def test_read_guest_when_another_follows_then_it_is_asked_for_before_the_handler_goes_on():
    bench = Bench()
    seen: list[list[tuple[str, int, int]]] = []

    async def body(call: Call, answers: Answers) -> Outcome:
        for gpa, then in ((1, (2, 1)), (2, None)):
            answers.append(await ReadGuest(gpa, 1, then))
            seen.append(list(bench.wire.asked))
        return Outcome(H.SUCCESS)

    execution = bench.execution(body)
    assert execution.start() is None
    await execution.finish()
    assert seen[0] == [("read", 1, 1), ("ahead", 2, 1)]
    assert seen[1] == [*seen[0], ("read", 2, 1)]
    assert bench.answers == [b"\x01", b"\x02"]


@pytest.mark.parametrize("then", [(RAM_SIZE, 1), (RAM_SIZE - 1, 2)])
async def test_read_guest_when_what_follows_is_no_ram_then_it_is_not_asked_for(
    then: tuple[int, int],
):
    bench = Bench()
    execution = bench.execution(asks(ReadGuest(1, 1, then), ReadGuest(*then)))
    assert execution.start() is None
    await execution.finish()
    assert bench.wire.asked == [("read", 1, 1)]
    assert isinstance(bench.answers[1], GuestMemoryError)


async def test_read_guest_when_what_follows_is_shared_then_it_is_not_asked_for():
    bench = Bench(ram=shared(bytes(64)), shared_ram=True)
    effects = (WriteGuest(0, b"x"), ReadGuest(1, 1, (2, 1)), ReadGuest(2, 1))
    execution = bench.execution(asks(*effects))
    assert execution.start() is None
    await execution.finish()
    assert bench.wire.asked == [("write", 0, 1)]
    bench.ram.close()


async def test_read_buffer_when_it_did_not_come_then_the_shim_is_asked():
    bench = Bench()
    execution = bench.execution(asks(ReadBuffer("buffer")), ledger.FIXED, 1, 0x200)
    assert execution.start() is None
    await execution.finish()
    assert bench.wire.asked == [("read", 0x200, ledger.FIXED_SIZE)]
    assert bench.answers == [bytes(range(ledger.FIXED_SIZE))]


async def test_read_buffer_when_the_shim_refuses_then_the_arguments_code():
    bench = Bench()
    bench.wire.error = "gone"
    execution = bench.execution(asks(ReadBuffer("buffer")), ledger.FIXED, 1, 0x200)
    assert execution.start() is None
    await execution.finish()
    (error,) = bench.answers
    assert isinstance(error, HcallError)
    assert error.code is H.P2


async def test_write_guest_when_asked_then_the_shim_writes():
    bench = Bench()
    execution = bench.execution(asks(WriteGuest(0x10, b"data"), ZeroGuest(0x14, 4)))
    assert execution.start() is None
    await execution.finish()
    assert bench.wire.asked == [("write", 0x10, 4), ("zero", 0x14, 4)]
    assert bench.wire.memory[0xF:0x19] == b"\x0fdata\0\0\0\0\x18"


async def test_write_guest_when_ram_is_shared_then_the_shim_writes_all_the_same():
    bench = Bench(ram=shared(bytes(64)), shared_ram=True)
    execution = bench.execution(asks(WriteGuest(0x10, b"data"), ReadGuest(0x10, 4)))
    assert execution.start() is None
    await execution.finish()
    assert bench.wire.asked == [("write", 0x10, 4)]
    assert bench.answers[1] == bytes(4), "nothing was written behind the translator's back"
    bench.ram.close()


@pytest.mark.parametrize(
    "effect", [WriteGuest(RAM_SIZE - 1, b"ab"), ZeroGuest(RAM_SIZE, 1), ZeroGuest(0, RAM_SIZE + 1)]
)
async def test_write_guest_when_it_is_no_ram_then_the_shim_is_not_asked(effect: Effect[None]):
    bench = Bench()
    execution = bench.execution(asks(effect))
    assert execution.start() is None
    await execution.finish()
    assert isinstance(bench.answers[0], GuestMemoryError)
    assert bench.wire.asked == []


async def test_write_guest_when_the_shim_refuses_then_the_handler_is_told():
    bench = Bench()
    bench.wire.error = "NO_CALL"
    execution = bench.execution(asks(WriteGuest(0, b"a"), ZeroGuest(0, 1)))
    assert execution.start() is None
    await execution.finish()
    assert all(isinstance(answer, GuestMemoryError) for answer in bench.answers)


async def test_flush_when_something_is_not_on_disk_then_it_is_afterwards():
    bench = Bench()
    execution = bench.execution(asks(Flush(), Flush()))
    assert execution.start() is None
    await execution.finish()
    assert bench.faults.flushes == 1
    assert not bench.partition.is_dirty


async def test_flush_when_it_fails_then_the_handler_is_told():
    bench = Bench(faults=Faults(flush="the disk is gone"))
    execution = bench.execution(asks(Flush()))
    assert execution.start() is None
    await execution.finish()
    assert isinstance(bench.answers[0], StoreError)


async def test_finish_when_the_handler_does_not_catch_then_it_is_raised():
    async def body(call: Call, answers: Answers) -> Outcome:
        await Flush()
        raise AssertionError("not reached")

    execution = Bench(faults=Faults(flush="the disk is gone")).execution(body)
    assert execution.start() is None
    with pytest.raises(StoreError, match="the disk is gone"):
        await execution.finish()


async def test_finish_when_effects_are_mixed_then_they_come_in_order():
    bench = Bench()
    execution = bench.execution(
        asks(Note("a"), ReadGuest(1, 1), Note("b"), Entropy(1), ReadGuest(2, 1), Note("c"))
    )
    assert execution.start() is None
    assert execution.notes == ["a"]
    await execution.finish()
    assert execution.notes == ["a", "b", "c"]
    assert bench.wire.asked == [("read", 1, 1), ("read", 2, 1)]


async def test_finish_when_nothing_has_to_be_waited_for_then_others_get_their_turn(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(driver, "SLICE_NS", -1)
    steps: list[str] = []

    async def body(call: Call, answers: Answers) -> Outcome:
        await WriteGuest(0, b"x")
        for _ in range(8):
            await ReadGuest(0, 1)
            steps.append("handler")
        return Outcome(H.SUCCESS)

    async def other() -> None:
        while True:
            steps.append("other")
            await trio.lowlevel.checkpoint()

    execution = Bench(ram=shared(bytes(RAM_SIZE)), shared_ram=True).execution(body)
    assert execution.start() is None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await execution.finish()
        nursery.cancel_scope.cancel()
    # In each round of the loop both have a turn, in any order.
    assert "handler handler handler" not in " ".join(steps)


async def test_finish_when_it_is_cancelled_then_the_handler_is_closed_and_does_not_go_on():
    ended: list[str] = []

    async def body(call: Call, answers: Answers) -> Outcome:
        try:
            await ReadGuest(0, 1)
            ended.append("went on")
        finally:
            ended.append("closed")
        return Outcome(H.SUCCESS)

    execution = Bench().execution(body)
    assert execution.start() is None
    with trio.CancelScope() as scope:
        scope.cancel()
        await execution.finish()
    assert ended == ["closed"]


async def test_finish_when_an_effect_is_unknown_then_it_is_our_bug():
    @dataclasses.dataclass(frozen=True, slots=True)
    class Unheard(Effect[None]):
        """Nobody performs it."""

    execution = Bench().execution(asks(Unheard()))
    assert execution.start() is None
    with pytest.raises(TypeError, match="no driver for effect"):
        await execution.finish()
