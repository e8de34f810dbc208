# SPDX-License-Identifier: Apache-2.0
"""What is logged, for a test to look at."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from hcalld.core.log import LOGGER, VALUES
from hcalld.observe.log import restored


class _Kept(logging.Handler):
    """Keeps events instead of writing them."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        entry = {
            "event": record.getMessage(),
            "log_level": record.levelname.lower(),
            **getattr(record, VALUES, {}),
        }
        if record.exc_info:
            entry["exc_info"] = record.exc_info
        self.entries.append(entry)


@contextlib.contextmanager
def capture_logs() -> Iterator[list[dict[str, Any]]]:
    """Keep all events meanwhile, whatever their level, and write none.

    Yields:
        Their values by name, beside ``event``, ``log_level`` and, of a bug, ``exc_info``.
    """
    kept = _Kept()
    with restored():
        LOGGER.handlers = [kept]
        LOGGER.propagate = False
        LOGGER.setLevel(logging.DEBUG)
        yield kept.entries
