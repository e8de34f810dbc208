# SPDX-License-Identifier: Apache-2.0
"""Bytes that must not be seen: passwords and keys, which redact themselves.

What a ``Secret`` guards against is the accident (a log line, a traceback, a repr of the
object around it, a pickle), not a debugger: Python cannot wipe memory.
"""

from __future__ import annotations

import hmac
from typing import NoReturn


class Secret:
    """Bytes whose ``repr`` and ``str`` tell nothing, not even the size."""

    __slots__ = ("_value",)

    __hash__ = None  # type: ignore[assignment]  # a dictionary compares in variable time

    def __init__(self, value: bytes) -> None:
        self._value = bytes(value)

    def reveal(self) -> bytes:
        """The bytes; call it where they are used and keep no copy."""
        return self._value

    def matches(self, other: bytes) -> bool:
        """Compare in a time that does not depend on where the first difference is."""
        return hmac.compare_digest(self._value, other)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.matches(other._value)

    def __len__(self) -> int:
        return len(self._value)

    def __repr__(self) -> str:
        return "<secret>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled")
