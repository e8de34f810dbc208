# SPDX-License-Identifier: Apache-2.0
"""When stores are flushed: in rounds, each for all partitions that wait at its start.

One round runs at a time, in a thread. Who asks for a flush while one runs is served by
the next one, together with everybody else who came meanwhile, so the disk is asked as
often as it can answer and not as often as guests ask.

On a fast disk that alone makes small rounds: few callers come during one sync. So a
round is not begun before those that are about to come have come. How many that may be is
seen from the last round: those whom it served and those who waited at its end are
different callers. The next round waits until as many have come, and no longer than
callers keep coming (GAP_SECONDS), and than GATHER_SECONDS in all. A caller that was alone
in the last round, a guest with one vCPU above all, does not wait at all. PostgreSQL's
commit_delay and commit_siblings are the same idea.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from hcalld.core.errors import StoreError
from hcalld.stores.base import FlushStores, Store

GAP_SECONDS = 0.001
"""A round is begun when nobody has come for so long."""
GATHER_SECONDS = 0.01
"""A round is begun at the latest after so long."""


def flush_each(stores: Sequence[Store]) -> list[StoreError | None]:
    """Flush stores one by one; see FlushStores."""
    failures: list[StoreError | None] = []
    for store in stores:
        try:
            store.flush()
        except StoreError as error:
            failures.append(error)
        else:
            failures.append(None)
    return failures


class _Caller:
    """Somebody who waits until a store is flushed."""

    __slots__ = ("failure", "is_served", "store", "woken")

    def __init__(self, store: Store) -> None:
        self.store = store
        self.is_served = False
        self.failure: StoreError | None = None
        self.woken = trio.Event()


class FlushRounds:
    """Flushes stores, of one state directory, in rounds.

    The callers themselves run the rounds: one of those that wait leads, and hands over
    when it is served or cancelled.

    Args:
        flush_stores: flushes stores together; runs in a thread.
    """

    def __init__(self, flush_stores: FlushStores = flush_each) -> None:
        self._flush_stores = flush_stores
        self._waiting: list[_Caller] = []
        self._leader: _Caller | None = None
        self._expected = 1
        """How many callers the next round may hope for."""
        self._arrival = trio.Event()
        self._running: list[Store] = []
        self._ended = trio.Event()

    async def flush(self, store: Store) -> None:
        """Wait until all commits so far of a store are on stable storage.

        Raises:
            StoreError: they may not be.
        """
        caller = _Caller(store)
        self._waiting.append(caller)
        self._arrival.set()
        try:
            while not caller.is_served:
                if self._leader is None:
                    self._leader = caller
                    await self._lead()
                else:
                    await caller.woken.wait()
                    caller.woken = trio.Event()
        finally:
            if not caller.is_served:
                self._waiting.remove(caller)
            if self._leader is caller:
                self._leader = None
            if self._leader is None and self._waiting:
                self._waiting[0].woken.set()
        if caller.failure is not None:
            # One exception object must not be raised in several tasks.
            raise StoreError(str(caller.failure)) from caller.failure

    async def until_unused(self, store: Store) -> None:
        """Wait until no round that runs has the store."""
        while any(store is other for other in self._running):
            await self._ended.wait()

    async def _lead(self) -> None:
        await self._gather()
        callers = list(self._waiting)
        stores: dict[int, Store] = {id(caller.store): caller.store for caller in callers}
        dirty = [store for store in stores.values() if store.dirty]
        failures: dict[int, StoreError | None] = {}
        if dirty:
            self._running, self._ended = dirty, trio.Event()
            try:
                with trio.CancelScope(shield=True):
                    results = await self._flush(dirty)
            finally:
                self._running = []
                self._ended.set()
            failures = {id(store): result for store, result in zip(dirty, results, strict=True)}
        for caller in callers:
            caller.failure = failures.get(id(caller.store))
            caller.is_served = True
            caller.woken.set()
        served = set(map(id, callers))
        self._waiting = [caller for caller in self._waiting if id(caller) not in served]
        self._expected = len(callers) + len(self._waiting)

    async def _flush(self, stores: list[Store]) -> Sequence[StoreError | None]:
        return await trio.to_thread.run_sync(self._flush_stores, stores)

    async def _gather(self) -> None:
        """Let those come that are about to."""
        # Calls that arrived together have tasks that run now, and come at once.
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(GATHER_SECONDS):
            while len(self._waiting) < self._expected:
                self._arrival = trio.Event()
                with trio.move_on_after(GAP_SECONDS) as gap:
                    await self._arrival.wait()
                if gap.cancelled_caught:
                    return
