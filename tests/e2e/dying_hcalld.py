# SPDX-License-Identifier: Apache-2.0
"""hcalld that kills itself at a chosen place of a change: ``HCALLD_DIE=PLACE:N`` for the Nth.

Places: ``before`` the store's commit, ``inside`` its transaction, ``after`` it and before the
reply is sent, ``sent`` when the reply has been sent. What follows is the program as it is.
"""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable
from typing import Any

from hcalld.__main__ import main
from hcalld.runtime.outbox import Outbox
from hcalld.stores.sqlite import SqliteStore

PLACES = ("before", "inside", "after", "sent")


def die() -> None:
    """Ends the process as ``kill -9`` does."""
    os.kill(os.getpid(), signal.SIGKILL)


class _Countdown:
    """Counts commits of calls; at the chosen one the place is armed."""

    def __init__(self, place: str, number: int) -> None:
        self.place = place
        self.left = number

    def is_at(self, place: str) -> bool:
        return self.left <= 0 and self.place == place


def install(place: str, number: int) -> None:
    """Arms the place."""
    countdown = _Countdown(place, number)
    commit: Callable[..., None] = SqliteStore.commit
    transaction: Callable[..., Any] = SqliteStore._transaction
    flush: Callable[..., Any] = Outbox.send_now

    def dying_commit(self: SqliteStore, *arguments: Any) -> None:
        countdown.left -= 1
        if countdown.is_at("before"):
            die()
        commit(self, *arguments)
        if countdown.is_at("after"):
            die()

    class DyingConnection:
        """Passes everything on; dies instead of the COMMIT."""

        def __init__(self, db: sqlite3.Connection) -> None:
            self._db = db

        def execute(self, sql: str, *arguments: Any) -> Any:
            if sql == "COMMIT" and countdown.is_at("inside"):
                die()
            return self._db.execute(sql, *arguments)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._db, name)

    def dying_transaction(self: SqliteStore, db: Any) -> Any:
        return transaction(self, DyingConnection(db))

    def dying_send(self: Outbox) -> Any:
        done = flush(self)
        if done and countdown.is_at("sent"):
            die()
        return done

    # Before any is made, so that all have them.
    setattr(SqliteStore, "commit", dying_commit)  # noqa: B010
    setattr(SqliteStore, "_transaction", dying_transaction)  # noqa: B010
    setattr(Outbox, "send_now", dying_send)  # noqa: B010


if __name__ == "__main__":
    where = os.environ.get("HCALLD_DIE")
    if where is not None:
        place_name, _, count = where.partition(":")
        install(place_name, int(count))
    main()
