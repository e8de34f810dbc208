# SPDX-License-Identifier: Apache-2.0
"""A store that forgets everything when it is closed: for tests and throw-away guests."""

from __future__ import annotations

from collections.abc import Sequence

from hcalld.core.errors import StoreError
from hcalld.core.records import (
    Change,
    Lifetime,
    Loaded,
    Put,
    Record,
    RecordedReply,
    Run,
)


class MemoryStore:
    """Records in dictionaries; see ``hcalld.stores.base.Store``."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, bytes], Record] = {}
        self._replies: dict[int, RecordedReply] = {}
        self._run: Run | None = None
        self._generation = 0
        self._flushed = 0
        self._is_closed = False

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreError("the store is closed; open the partition again")

    def load(self) -> Loaded:
        """See Store."""
        self._check_open()
        return Loaded(list(self._records.values()), list(self._replies.values()), self._generation)

    def begin_run(self, run: Run) -> bool:
        """See Store."""
        self._check_open()
        if run == self._run:
            return False
        self._run = run
        self._records = {
            key: record
            for key, record in self._records.items()
            if record.lifetime is not Lifetime.RUN
        }
        self._replies.clear()
        self._generation += 1
        return True

    def commit(self, changes: Sequence[Change], reply: RecordedReply | None) -> None:
        """See Store."""
        self._check_open()
        for change in changes:
            if isinstance(change, Put):
                record = change.record
                self._records[record.namespace, record.key] = record
            else:
                self._records.pop((change.namespace, change.key), None)
        if reply is not None:
            self._replies[reply.vcpu] = reply
        self._generation += 1

    def flush(self) -> None:
        """See Store."""
        self._check_open()
        self._flushed = self._generation

    @property
    def dirty(self) -> bool:
        """See Store."""
        return self._generation != self._flushed

    @property
    def generation(self) -> int:
        """See Store."""
        return self._generation

    def rest(self) -> None:
        """See Store."""

    def close(self) -> None:
        """See Store."""
        self._is_closed = True
        self._records.clear()
        self._replies.clear()
