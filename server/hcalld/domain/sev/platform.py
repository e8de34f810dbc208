# SPDX-License-Identifier: Apache-2.0
"""The secure processor that all VMs of a host share.

What a command makes of it is worked out by the command, from ``pack``'s bytes (``view.py``), and
arrives as a change (``changes.py``): here is only what is kept. Keys and certificates outlive the
daemon, as records of a store, which encrypts them. Guests do not: hardware loses them with its
power.

A ``Platform`` is there while clients are; the next one gives handles from 1 on again. Whether it is
initialized outlives the last client, as the driver does, but not the daemon: who makes the next
``Platform`` sets that (``hcalld.runtime.sev``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Final, assert_never

from hcalld.core.errors import ConfigError, StoreError
from hcalld.core.records import Change as Stored
from hcalld.core.records import Put, Record
from hcalld.crypto.sev.roots import Root
from hcalld.domain.sev.changes import (
    FactoryReset,
    GuestOpened,
    IdentityChanged,
    Initialized,
    unpack_change,
)
from hcalld.domain.sev.identity import CREATION_ENTROPY, Identity, pack_identity, unpack_identity
from hcalld.domain.sev.settings import Memory, SevSettings
from hcalld.domain.sev.view import GuestEntry, PlatformView, pack_view
from hcallproto.payloads.sev import PlatformState

NAMESPACE: Final = "sev"
IDENTITY_KEY: Final = b"i"
VALUE_VERSION: Final = b"\1"


@dataclasses.dataclass(frozen=True, slots=True)
class _Held:
    entry: GuestEntry
    owner: object


class Platform:
    """A platform.

    Args:
        settings: what it is like.
        packed_identity: its keys and certificates.
    """

    def __init__(self, settings: SevSettings, packed_identity: bytes) -> None:
        self.settings = settings
        self._identity = packed_identity
        self._unpacked = unpack_identity(packed_identity)
        """Held so that what commands unpack of ``pack``'s bytes is this one, with its keys."""
        self.is_initialized = settings.init_on_probe
        """The driver has initialized it, and nothing has shut it down since."""
        self._guests: dict[int, _Held] = {}
        self._next_handle = 1
        self._packed: bytes | None = None
        self._before: tuple[bytes, Identity, bool, dict[int, _Held], int] | None = None
        self._changes: list[Stored] = []

    # -- its keys ---------------------------------------------------------------------------

    @classmethod
    def build(
        cls,
        records: Iterable[Record],
        settings: SevSettings,
        entropy: Callable[[int], bytes],
        root: Root | None = None,
    ) -> Platform:
        """A platform from its store's records; those of other namespaces are ignored.

        Args:
            records: all of a store's. Without the platform's keys they are made, as in a
                factory, and are among ``take_changes``.
            settings: what it is like.
            entropy: random bytes, for new keys.
            root: what signs a new CEK, and what keys that there are must be of; by default
                each platform has one of its own.

        Raises:
            StoreError: a record is malformed or of a newer version.
            ConfigError: the settings are impossible, or the keys are of another root.
        """
        problems = settings.problems()
        if problems:
            raise ConfigError(f"SEV platform: {'; '.join(problems)}")
        packed = b""
        for record in records:
            if record.namespace == NAMESPACE:
                packed = _decode(record)
        if packed:
            platform = cls(settings, packed)
            if root is not None and platform.identity.ark != root.ark.build():
                raise ConfigError(
                    "the SEV platform was made with another root than the profile names: name "
                    "that one, or remove the platform for one with new keys"
                )
            return platform
        identity = Identity.create(
            entropy(CREATION_ENTROPY), root or Root.generate(), settings.version.api
        )
        platform = cls(settings, pack_identity(identity))
        platform._keep(pack_identity(identity))
        return platform

    @property
    def identity(self) -> Identity:
        """Its keys and certificates."""
        return self._unpacked

    # -- what commands see, and change ------------------------------------------------------

    @property
    def state(self) -> PlatformState:
        """As PLATFORM_STATUS tells it."""
        if self._guests:
            return PlatformState.WORKING
        return PlatformState.INIT if self.is_initialized else PlatformState.UNINIT

    @property
    def guests(self) -> tuple[GuestEntry, ...]:
        """Those that there are."""
        return tuple(held.entry for held in self._guests.values())

    def pack(self) -> bytes:
        """What ReadPlatform answers."""
        if self._packed is None:
            settings = self.settings
            self._packed = pack_view(
                PlatformView(
                    state=self.state,
                    version=settings.version,
                    es=settings.es,
                    encrypted=settings.memory is Memory.ENCRYPTED,
                    strict_mainline=settings.strict_mainline,
                    asids=settings.asids,
                    next_handle=self._next_handle,
                    guests=self.guests,
                    packed_identity=self._identity,
                )
            )
        return self._packed

    def apply(self, packed: bytes, owner: object) -> None:
        """Carry a change out.

        Args:
            packed: the change.
            owner: who makes it; what belongs to it ends with ``release``.

        Raises:
            ValueError: it does not fit: a bug of ours.
        """
        change = unpack_change(packed)
        self._before = (
            self._identity,
            self._unpacked,
            self.is_initialized,
            dict(self._guests),
            self._next_handle,
        )
        match change:
            case Initialized():
                self.is_initialized = True
            case GuestOpened(handle, policy, asid, vek):
                self._open(GuestEntry(handle, policy, asid, vek), owner)
            case IdentityChanged(packed_identity):
                self._keep(packed_identity)
            case FactoryReset(packed_identity):
                if self._guests:
                    raise ValueError("FACTORY_RESET while guests exist")
                self._keep(packed_identity)
                self.is_initialized = False
            case _:
                assert_never(change)
        self._packed = None

    def undo(self) -> None:
        """Undo the last ``apply``: what it changed could not be committed."""
        assert self._before is not None, "one change is undone once, before it is settled"
        (
            self._identity,
            self._unpacked,
            self.is_initialized,
            self._guests,
            self._next_handle,
        ) = self._before
        self._before = self._packed = None
        self._changes = []

    def settle(self) -> None:
        """The last ``apply`` is committed: what was before is needed no more, and forgotten."""
        self._before = None

    def _open(self, entry: GuestEntry, owner: object) -> None:
        if not self.is_initialized:
            raise ValueError("a guest of a platform that is not initialized")
        if not 0 < entry.handle < 1 << 32 or entry.handle in self._guests:
            raise ValueError(f"a guest with handle {entry.handle}, which cannot be given")
        for held in self._guests.values():
            if held.owner == owner:
                raise ValueError("a second guest of one VM")
            if held.entry.asid == entry.asid:
                raise ValueError(f"ASID {entry.asid} is in use")
        self._guests[entry.handle] = _Held(entry, owner)
        self._next_handle = max(self._next_handle, entry.handle) + 1

    def release(self, owner: object) -> None:
        """A connection has ended: its guest is deactivated and decommissioned."""
        gone = [handle for handle, held in self._guests.items() if held.owner == owner]
        for handle in gone:
            del self._guests[handle]
        if gone:
            self._packed = None

    # -- what a store keeps -----------------------------------------------------------------

    def _keep(self, packed_identity: bytes) -> None:
        self._unpacked = unpack_identity(packed_identity)
        self._identity = packed_identity
        self._packed = None
        value = VALUE_VERSION + packed_identity
        self._changes.append(Put(Record(NAMESPACE, IDENTITY_KEY, value)))

    def take_changes(self) -> list[Stored]:
        """What is to be committed; empties the list."""
        changes, self._changes = self._changes, []
        return changes


def _decode(record: Record) -> bytes:
    """The packed identity of its record.

    Raises:
        StoreError: malformed, or written by a newer version.
    """
    version, packed = record.value[:1], record.value[1:]
    if version > VALUE_VERSION:
        raise StoreError(
            f"the SEV platform's keys have format {version[0]}, this version knows "
            f"{VALUE_VERSION[0]}: a newer hcalld wrote them, use that one"
        )
    if record.key != IDENTITY_KEY or version != VALUE_VERSION:
        raise StoreError(
            "the SEV platform's record is malformed: restore the state directory from a backup, "
            "or report a bug"
        )
    unpack_identity(packed)
    return packed
