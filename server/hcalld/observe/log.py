# SPDX-License-Identifier: Apache-2.0
"""The structured log: one event name and key-value pairs a line, on stderr."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog

from hcallproto.payloads.quoting import printable

LogFormat = Literal["text", "json"]


def configure(log_format: LogFormat, level: str) -> None:
    """Set up structlog for the process.

    Args:
        log_format: ``text`` for people, ``json`` for collectors.
        level: ``debug``, ``info``, ``warning`` or ``error``.
    """
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _printable_values,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    if log_format == "json":
        processors.append(structlog.processors.JSONRenderer())
    else:
        processors.append(
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        )
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _printable_values(
    _logger: object, _method: str, entry: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Peers choose names and texts; they must not steer a terminal, nor forge a line."""
    for key, value in entry.items():
        if isinstance(value, str):
            entry[key] = printable(value)
    return entry
