# SPDX-License-Identifier: Apache-2.0
"""Asks a daemon for its numbers again and again, and another one when that has ended."""

from __future__ import annotations

import pathlib
from types import TracebackType
from typing import Self

from hcalld.control.client import ControlClient, ControlFailure
from hcalld.control.messages import ShowStats, Stats
from hcalld.core.errors import HcalldError

ANSWER_SECONDS = 10


class Watch:
    """The numbers of the daemon behind a control socket.

    Attributes:
        now: the last ones; None: there were none yet.
        before: those before them, of the same daemon; None: there are none.
        problem: why ``now`` is old, if it is.

    Args:
        path: of the socket.

    Raises:
        HcalldError: no daemon is there.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.now: Stats | None = None
        self.before: Stats | None = None
        self.problem = ""
        self._path = path
        self._client: ControlClient | None = ControlClient(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def stats(self) -> Stats:
        """The numbers.

        Raises:
            HcalldError: the daemon does not tell them.
        """
        if self._client is None:
            # Another daemon, or the same one: what was before is not to be compared.
            self._client = ControlClient(self._path)
            self.now = None
        return self._client.ask(ShowStats(), seconds=ANSWER_SECONDS)

    def refresh(self) -> None:
        """Get new numbers, or say why there are none, and connect anew the next time."""
        before = self.now
        try:
            now = self.stats()
        except HcalldError as error:
            if not isinstance(error, ControlFailure):
                self._close()
            self.now = before
            self.before = None
            self.problem = f"the daemon is gone; trying again: {error}"
            return
        self.before, self.now, self.problem = self.now, now, ""

    def _close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
