# SPDX-License-Identifier: Apache-2.0
"""Stores that live as long as the process: for tests and throw-away guests."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hcalld.core.errors import StoreError
from hcalld.core.records import Change, Lifetime, Loaded, Put, Record, RecordedReply, Run
from hcalld.stores.base import Store


@dataclasses.dataclass(slots=True)
class MemoryState:
    """What one partition holds, open or not."""

    records: dict[tuple[str, bytes], Record] = dataclasses.field(default_factory=dict)
    replies: dict[int, RecordedReply] = dataclasses.field(default_factory=dict)
    run: Run | None = None
    generation: int = 0
    flushed: int = 0
    is_open: bool = False


class MemoryStore:
    """Records in dictionaries; see ``hcalld.stores.base.Store``."""

    def __init__(self, state: MemoryState | None = None, partition: str = "in memory") -> None:
        """Open it.

        Raises:
            StoreError: it is open already.
        """
        self._state = state or MemoryState()
        if self._state.is_open:
            raise StoreError(
                f"partition {partition} is in use by another connection; shut its guest down first"
            )
        self._state.is_open = True
        self._is_closed = False

    def _use(self) -> MemoryState:
        if self._is_closed:
            raise StoreError("the store is closed; open the partition again")
        return self._state

    def load(self) -> Loaded:
        """See Store."""
        state = self._use()
        return Loaded(list(state.records.values()), list(state.replies.values()), state.generation)

    def begin_run(self, run: Run) -> bool:
        """See Store."""
        state = self._use()
        if run == state.run:
            return False
        state.run = run
        state.records = {
            key: record
            for key, record in state.records.items()
            if record.lifetime is not Lifetime.RUN
        }
        state.replies.clear()
        state.generation += 1
        return True

    def commit(self, changes: Sequence[Change], reply: RecordedReply | None) -> None:
        """See Store."""
        state = self._use()
        for change in changes:
            if isinstance(change, Put):
                record = change.record
                state.records[record.namespace, record.key] = record
            else:
                state.records.pop((change.namespace, change.key), None)
        if reply is not None:
            state.replies[reply.vcpu] = reply
        state.generation += 1

    def flush(self) -> None:
        """See Store."""
        state = self._use()
        state.flushed = state.generation

    @property
    def dirty(self) -> bool:
        """See Store."""
        return self._state.generation != self._state.flushed

    @property
    def generation(self) -> int:
        """See Store."""
        return self._state.generation

    def rest(self) -> None:
        """See Store."""

    def close(self) -> None:
        """See Store. What it holds stays in its state."""
        if not self._is_closed:
            self._is_closed = True
            self._state.is_open = False


class MemoryDirectory:
    """All partitions' stores, as ``hcalld.stores.directory.StateDirectory`` has them."""

    def __init__(self) -> None:
        self._states: dict[str, MemoryState] = {}

    def open(self, partition: str) -> MemoryStore:
        """Open a partition's store; it is made if there is none.

        Raises:
            StoreError: it is open already.
        """
        return MemoryStore(self._states.setdefault(partition, MemoryState()), partition)

    def flush_stores(self, stores: Sequence[Store]) -> Sequence[StoreError | None]:
        """See FlushStores."""
        for store in stores:
            store.flush()
        return [None] * len(stores)

    def close(self) -> None:
        """See StateDirectory. The states stay."""
