# SPDX-License-Identifier: Apache-2.0
"""The contract of a store: one partition's records, opened by one owner at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from hcalld.core.errors import StoreError
from hcalld.core.records import Change, Loaded, RecordedReply, Run


class Store(Protocol):
    """One partition's records.

    All methods are synchronous. ``commit`` does not wait for the disk: what it wrote
    survives the daemon's death, and after ``flush`` the machine's too. ``flush`` may run
    in another thread while the owner commits; everything else belongs to one thread.

    After a StoreError from ``commit`` the model may be ahead of the store: throw it away
    and build it anew from ``load``.
    """

    def load(self) -> Loaded:
        """Everything in the store.

        Raises:
            StoreError: unreadable, damaged, or written by a newer version.
        """

    def begin_run(self, run: Run) -> bool:
        """Enter a run: unless it is the current one, drop RUN records and replies.

        Returns:
            True if the run is new; ``load`` then has no RUN records and no replies.

        Raises:
            StoreError: nothing was changed.
        """

    def commit(self, changes: Sequence[Change], reply: RecordedReply | None) -> None:
        """Apply the changes and keep the reply, in one transaction: all or nothing.

        A reply replaces the one of the same vCPU.

        Raises:
            StoreError: nothing was changed.
        """

    def flush(self) -> None:
        """Return when all commits so far are on stable storage. Blocks; run in a thread.

        Raises:
            StoreError: they may not be, and never will be known to be: the store refuses
                everything from now on.
        """

    @property
    def dirty(self) -> bool:
        """True if there are commits that ``flush`` has not covered."""

    @property
    def generation(self) -> int:
        """How many commits the store has seen in its life; grows with each."""

    def rest(self) -> None:
        """Give up memory and files until the next use; the ownership stays."""

    def close(self) -> None:
        """Release the files and the ownership. May be called twice."""


FlushStores = Callable[[Sequence[Store]], Sequence[StoreError | None]]
"""Flushes stores of one directory together, as ``Store.flush`` does each; runs in a thread.

Gives for each store None, or what its ``flush`` would have raised.
"""
