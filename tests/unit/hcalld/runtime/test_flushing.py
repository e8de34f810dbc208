# SPDX-License-Identifier: Apache-2.0
"""Rounds of flushes: who is served by which, and how long anybody waits for others."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import trio
import trio.testing

from hcalld.core.errors import StoreError
from hcalld.core.records import Put, Record
from hcalld.runtime.flushing import GAP_SECONDS, GATHER_SECONDS, FlushRounds
from hcalld.stores.base import Store
from hcalld.stores.memory import MemoryStore


class Disk:
    """Flushes stores when it is told to, and keeps the rounds."""

    def __init__(self) -> None:
        self.rounds: list[list[Store]] = []
        self.failing: list[Store] = []
        self.bug: Exception | None = None
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def flush(self, stores: Sequence[Store]) -> list[StoreError | None]:
        """See FlushStores."""
        self.rounds.append(list(stores))
        assert self.may_go_on.wait(20)
        if self.bug is not None:
            raise self.bug
        failures: list[StoreError | None] = []
        for store in stores:
            if store in self.failing:
                failures.append(StoreError("the disk is gone"))
            else:
                store.flush()
                failures.append(None)
        return failures


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def rounds(disk: Disk) -> FlushRounds:
    return FlushRounds(disk.flush)


def dirty() -> MemoryStore:
    store = MemoryStore()
    change(store)
    return store


def change(store: MemoryStore) -> None:
    store.commit([Put(Record("pks", b"key", b"value"))], None)


def sets(rounds: Sequence[Sequence[Store]]) -> list[set[int]]:
    """Rounds without their order, which trio does not promise."""
    return [set(map(id, stores)) for stores in rounds]


async def test_flush_when_alone_then_it_is_a_round_of_its_own(disk: Disk, rounds: FlushRounds):
    store = dirty()
    await rounds.flush(store)
    assert disk.rounds == [[store]]
    assert not store.dirty


async def test_flush_when_callers_come_together_then_one_round_serves_them(
    disk: Disk, rounds: FlushRounds
):
    stores = [dirty() for _ in range(4)]
    async with trio.open_nursery() as nursery:
        for store in stores * 8:
            nursery.start_soon(rounds.flush, store)
    assert sets(disk.rounds) == sets([stores])


async def test_flush_when_a_round_runs_then_the_next_serves_all_who_came_meanwhile(
    disk: Disk, rounds: FlushRounds
):
    first, second, third = dirty(), dirty(), dirty()
    disk.may_go_on.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rounds.flush, first)
        await trio.testing.wait_all_tasks_blocked(0.01)
        for store in (second, third, first):
            nursery.start_soon(rounds.flush, store)
        await trio.testing.wait_all_tasks_blocked(0.01)
        change(first)
        assert disk.rounds == [[first]]
        disk.may_go_on.set()
    # What was committed after the first round had begun is not taken for flushed by it.
    assert disk.rounds[0] == [first]
    flushed = {id(store) for stores in disk.rounds[1:] for store in stores}
    assert {id(second), id(third)} <= flushed
    assert len(disk.rounds) == 2


async def test_flush_when_a_store_fails_then_its_callers_and_no_others_are_told(
    disk: Disk, rounds: FlushRounds
):
    good, bad = dirty(), dirty()
    disk.failing.append(bad)
    errors: list[StoreError] = []

    async def flush_bad() -> None:
        try:
            await rounds.flush(bad)
        except StoreError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(flush_bad)
            nursery.start_soon(rounds.flush, good)
    assert [str(error) for error in errors] == ["the disk is gone"] * 3
    assert len(set(map(id, errors))) == 3, "one exception must not be raised in several tasks"


async def test_flush_when_nothing_is_dirty_any_more_then_the_disk_is_not_asked(
    disk: Disk, rounds: FlushRounds
):
    store = dirty()
    store.flush()
    await rounds.flush(store)
    assert disk.rounds == []


async def test_flush_when_the_leader_is_cancelled_then_another_leads(
    disk: Disk, rounds: FlushRounds
):
    stores = [dirty() for _ in range(3)]
    rounds._expected = 100
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def leader() -> None:
            with scope:
                await rounds.flush(stores[0])

        nursery.start_soon(leader)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(rounds.flush, stores[1])
        nursery.start_soon(rounds.flush, stores[2])
        scope.cancel()
    assert scope.cancelled_caught
    assert sets(disk.rounds) == sets([stores[1:]])
    assert stores[0].dirty


async def test_flush_when_a_waiting_caller_is_cancelled_then_the_round_goes_on(
    disk: Disk, rounds: FlushRounds
):
    first, second = dirty(), dirty()
    disk.may_go_on.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rounds.flush, first)
        await trio.testing.wait_all_tasks_blocked(0.01)
        with trio.move_on_after(0.01):
            await rounds.flush(second)
        disk.may_go_on.set()
    assert disk.rounds == [[first]]
    await rounds.flush(second)
    assert disk.rounds == [[first], [second]]


async def test_flush_when_cancelled_in_a_round_then_the_round_ends_first(
    disk: Disk, rounds: FlushRounds
):
    store = dirty()
    disk.may_go_on.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rounds.flush, store)
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
        disk.may_go_on.set()
    assert not store.dirty


async def test_flush_when_the_disk_has_a_bug_then_nobody_waits_for_ever(
    disk: Disk, rounds: FlushRounds
):
    store = dirty()
    disk.bug = ZeroDivisionError()
    with pytest.RaisesGroup(ZeroDivisionError, ZeroDivisionError):
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(raises_bug, rounds, store, nursery)
    disk.bug = None
    await rounds.flush(store)
    assert not store.dirty


async def raises_bug(rounds: FlushRounds, store: Store, nursery: trio.Nursery) -> None:
    with trio.CancelScope(shield=True):
        await rounds.flush(store)


async def test_until_unused_when_a_round_has_the_store_then_its_end_is_waited_for(
    disk: Disk, rounds: FlushRounds
):
    store, other = dirty(), dirty()
    await rounds.until_unused(store)
    disk.may_go_on.clear()
    is_unused = trio.Event()

    async def wait() -> None:
        await rounds.until_unused(store)
        is_unused.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(rounds.flush, store)
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.start_soon(wait)
        await rounds.until_unused(other)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not is_unused.is_set()
        disk.may_go_on.set()
    assert is_unused.is_set()


# -- gathering: the clock is the test's ------------------------------------------------------


class Immediate(FlushRounds):
    """Flushes without a thread, for a clock that jumps does not wait for one."""

    def __init__(self, seconds: float = 0) -> None:
        super().__init__()
        self._seconds = seconds
        self.sizes: list[int] = []
        self.times: list[float] = []

    async def _flush(self, dirty: list[Store]) -> Sequence[StoreError | None]:
        self.sizes.append(len(dirty))
        self.times.append(trio.current_time())
        await trio.sleep(self._seconds)
        for store in dirty:
            store.flush()
        return [None] * len(dirty)


async def test_gather_when_the_caller_was_alone_then_it_does_not_wait(
    autojump_clock: trio.testing.MockClock,
):
    rounds = Immediate()
    start = trio.current_time()
    for _ in range(100):
        await rounds.flush(dirty())
    assert trio.current_time() == start


async def test_gather_when_callers_come_one_by_one_then_the_rounds_grow(
    autojump_clock: trio.testing.MockClock,
):
    rounds = Immediate(0.0002)

    async def caller(delay: float) -> None:
        for _ in range(40):
            await trio.sleep(delay)
            await rounds.flush(dirty())

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(caller, 0.0005 + number * 0.0001)
    assert max(rounds.sizes) == 8
    assert len(rounds.sizes) < 40 * 8 / 4


async def test_gather_when_others_do_not_come_then_a_gap_is_all_that_is_waited_once(
    autojump_clock: trio.testing.MockClock,
):
    rounds = Immediate()
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(rounds.flush, dirty())
    start = trio.current_time()
    await rounds.flush(dirty())
    assert rounds.times[-1] - start == pytest.approx(GAP_SECONDS)
    start = trio.current_time()
    await rounds.flush(dirty())
    assert rounds.times[-1] == start


async def test_gather_when_callers_keep_coming_then_it_ends_all_the_same(
    autojump_clock: trio.testing.MockClock,
):
    rounds = Immediate()
    rounds._expected = 1_000_000
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(rounds.flush, dirty())
            await trio.sleep(GAP_SECONDS / 2)
            if rounds.times:
                break
    assert rounds.times[0] - start == pytest.approx(GATHER_SECONDS, rel=0.1)
