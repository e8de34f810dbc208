# SPDX-License-Identifier: Apache-2.0
"""The structured log: one event name and key-value pairs a line, on stderr."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

from hcalld.core.log import LOGGER, VALUES
from hcallproto.payloads.quoting import printable

LogFormat = Literal["text", "json"]

_EVENT_WIDTH: Final = 30
_LEVEL_WIDTH: Final = 9
_QUOTED: Final = frozenset(" \t=\"'")
"""A value with one of these would not be one word."""

_COLOURS: Final = {"debug": 32, "info": 32, "warning": 33, "error": 31}
"""ANSI's, of levels."""
_BOLD: Final = 1
_DIM: Final = 2
_CYAN: Final = 36


def configure(log_format: LogFormat, level: str) -> None:
    """Set up the log for the process.

    Args:
        log_format: ``text`` for people, ``json`` for collectors.
        level: ``debug``, ``info``, ``warning`` or ``error``.
    """
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(_Json())
    else:
        handler.setFormatter(_Text(is_coloured=sys.stderr.isatty()))
    LOGGER.handlers = [handler]
    LOGGER.propagate = False
    LOGGER.setLevel(level.upper())


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Put the log's set-up back at the end."""
    handlers, propagate, level = LOGGER.handlers, LOGGER.propagate, LOGGER.level
    try:
        yield
    finally:
        LOGGER.handlers, LOGGER.propagate = handlers, propagate
        LOGGER.setLevel(level)


class _Json(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            **_values_of(record),
            "event": printable(record.getMessage()),
            "level": record.levelname.lower(),
            "timestamp": _time_of(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=repr)


class _Text(logging.Formatter):
    """Time, level, event and values, for people; behind them a traceback.

    Args:
        is_coloured: it is for a terminal.
    """

    def __init__(self, *, is_coloured: bool) -> None:
        super().__init__()
        self._is_coloured = is_coloured

    def format(self, record: logging.LogRecord) -> str:
        level = record.levelname.lower()
        head = [
            self._paint(_time_of(record), _DIM),
            f"[{self._paint(level.ljust(_LEVEL_WIDTH), _COLOURS[level])}]",
        ]
        event = printable(record.getMessage())
        values = sorted(_values_of(record).items())
        pairs = [f"{self._paint(key, _CYAN)}={_text_of(value)}" for key, value in values]
        line = " ".join(
            [*head, self._paint(event.ljust(_EVENT_WIDTH) if pairs else event, _BOLD), *pairs]
        )
        if record.exc_info:
            return f"{line}\n{self.formatException(record.exc_info)}"
        return line

    def _paint(self, text: str, colour: int) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._is_coloured else text


def _time_of(record: logging.LogRecord) -> str:
    when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return when.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def _values_of(record: logging.LogRecord) -> Mapping[str, Any]:
    """An event's values. Peers choose names; they must not steer a terminal, nor forge a line."""
    values: Mapping[str, Any] = getattr(record, VALUES, {})
    return {
        key: printable(value) if isinstance(value, str) else value for key, value in values.items()
    }


def _text_of(value: Any) -> str:
    if isinstance(value, str) and not _QUOTED.intersection(value):
        return value
    return repr(value)
