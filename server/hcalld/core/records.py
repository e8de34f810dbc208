# SPDX-License-Identifier: Apache-2.0
"""State as records: what models load, change and hand to a store.

A model is built from the records of its namespace and says what it changed as a list of
``Change``. The session commits the changes together with the call's reply; a store knows
nothing of their meaning. Nobody changes one; records and changes are not frozen all the
same, for that costs a call that makes some a microsecond each.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence


class Lifetime(enum.IntEnum):
    """How long a record lives."""

    PERSISTENT = 0
    RUN = 1
    """Until the machine's next system reset or power-off: passwords, tokens, TRANSIENT."""


@dataclasses.dataclass(unsafe_hash=True, slots=True)
class Record:
    """One stored value."""

    namespace: str
    key: bytes
    value: bytes = dataclasses.field(repr=False)
    lifetime: Lifetime = Lifetime.PERSISTENT


@dataclasses.dataclass(unsafe_hash=True, slots=True)
class Put:
    """Create or replace a record."""

    record: Record


@dataclasses.dataclass(unsafe_hash=True, slots=True)
class Delete:
    """Remove a record; it need not exist."""

    namespace: str
    key: bytes


Change = Put | Delete


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """One run of a machine, from a reset to the next: (instance id, reset count)."""

    instance: bytes
    reset: int


@dataclasses.dataclass(frozen=True, slots=True)
class RecordedReply:
    """The reply of a call that changed something, kept until the vCPU's next one."""

    vcpu: int
    seq: int
    frame: bytes = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded:
    """All that a store holds for a partition."""

    records: Sequence[Record]
    replies: Sequence[RecordedReply]
    generation: int = 0
    """How many commits the store has seen in its life."""

    def of(self, namespace: str) -> list[Record]:
        """The records of one namespace."""
        return [record for record in self.records if record.namespace == namespace]
