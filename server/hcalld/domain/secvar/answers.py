# SPDX-License-Identifier: Apache-2.0
"""What becomes of a signed update: what it does and by what right, or why it is refused.

Apart from ``authvar.py``, which judges: that needs X.509 and CMS, and few guests update variables.
"""

from __future__ import annotations

import dataclasses
import enum


class Reason(enum.Enum):
    """Which part of a call a refusal is about; which code that is, is the handler's."""

    NAME = "name"
    NAME_SIZE = "size of the name"
    FLAGS = "flags"
    CONTENT = "content of the update"
    SIZE = "size of the update"
    AUTHORITY = "authority"


class UpdateRefused(Exception):
    """A signed update is refused, and nothing is changed; the text says why."""

    def __init__(self, reason: Reason, why: str) -> None:
        super().__init__(reason, why)
        self.reason = reason
        self.why = why

    def __str__(self) -> str:
        return f"{self.reason.value}: {self.why}"


class Authority(enum.Enum):
    """By what right an update was accepted."""

    PK = "signed by PK"
    KEK = "signed by KEK"
    LATCH = "without verification"


@dataclasses.dataclass(frozen=True, slots=True)
class Store:
    """The variable's object is made, or gets new data."""

    data: bytes

    @property
    def size(self) -> int:
        """Bytes of the object; may be more than a keystore takes."""
        return len(self.data)


@dataclasses.dataclass(frozen=True, slots=True)
class Remove:
    """The variable's object is removed; there need be none."""


@dataclasses.dataclass(frozen=True, slots=True)
class Wipe:
    """Every signed variable is removed, and the partition is back to static keys."""


Change = Store | Remove | Wipe


@dataclasses.dataclass(frozen=True, slots=True)
class Accepted:
    """What an update does, and by what right."""

    change: Change
    authority: Authority

    @property
    def used_latch(self) -> bool:
        """True if ``without_verification`` was used up."""
        return self.authority is Authority.LATCH
