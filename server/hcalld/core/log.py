# SPDX-License-Identifier: Apache-2.0
"""What the daemon's parts log: the name of an event, and values by name.

A front to the standard library's ``logging``, whose messages are text. Who sees what, and how it
is written, is ``observe/log.py``'s.
"""

from __future__ import annotations

import logging
from typing import Any, Final

LOGGER: Final = logging.getLogger("hcalld")

VALUES: Final = "values"
"""The attribute of a ``logging.LogRecord`` that holds an event's values."""


class Log:
    """Logs events.

    Args:
        values: that every event of it has.
    """

    __slots__ = ("_values",)

    def __init__(self, **values: Any) -> None:
        self._values = values

    def bind(self, **values: Any) -> Log:
        """The same with more values."""
        return Log(**{**self._values, **values})

    def debug(self, event: str, **values: Any) -> None:
        """What only a developer wants to know."""
        self._log(logging.DEBUG, event, values)

    def info(self, event: str, **values: Any) -> None:
        """What goes as it should."""
        self._log(logging.INFO, event, values)

    def warning(self, event: str, **values: Any) -> None:
        """What somebody should look at."""
        self._log(logging.WARNING, event, values)

    def error(self, event: str, **values: Any) -> None:
        """What went wrong."""
        self._log(logging.ERROR, event, values)

    def exception(self, event: str, **values: Any) -> None:
        """A bug: the exception that is being handled, with its traceback."""
        self._log(logging.ERROR, event, values, has_exception=True)

    def _log(
        self, level: int, event: str, values: dict[str, Any], *, has_exception: bool = False
    ) -> None:
        if LOGGER.isEnabledFor(level):
            extra = {VALUES: {**self._values, **values}}
            LOGGER.log(level, event, extra=extra, exc_info=has_exception)
