# SPDX-License-Identifier: Apache-2.0
"""What a shim is told in answer to its HELLO: which features come into force, and which calls."""

from __future__ import annotations

import dataclasses
from typing import Final

from hcalld.core.errors import ConfigError
from hcalld.core.log import Log
from hcalld.families.registry import Kind
from hcalld.runtime.partition import Entry, Partition
from hcallproto.abi.spec import Level
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

SECURE_FEATURES: Final = s.Feature.SC2 | s.Feature.PAGE_STATES
"""What a guest needs of its QEMU to become a secure VM."""

SERVED_FEATURES: Final = s.Feature.SHARED_RAM | SECURE_FEATURES
"""Of a machine's."""

_MACHINE_LEVELS: Final = {
    False: frozenset({Level.SC1}),
    True: frozenset({Level.SC1, Level.SC2}),
}
_COMMAND_LEVELS: Final = frozenset({Level.COMMAND})


class VersionMismatch(ConfigError):
    """The shim and this daemon have no version of the protocol in common."""


@dataclasses.dataclass(frozen=True, slots=True)
class Negotiated:
    """What holds on a connection."""

    welcome: f.Welcome
    entries: dict[int, Entry]
    """The calls that are served, those included that are not announced."""

    @property
    def has_shared_ram(self) -> bool:
        """The daemon reads the guest's memory by descriptors."""
        return s.Feature.SHARED_RAM in self.welcome.features

    @property
    def is_pef(self) -> bool:
        """The guest can become a secure VM."""
        return bool(self.welcome.features & SECURE_FEATURES)


def check_version(hello: f.Hello) -> None:
    """See whether the shim speaks our version of the protocol.

    Raises:
        VersionMismatch: it does not.
    """
    if not hello.version_min <= s.VERSION <= hello.version_max:
        raise VersionMismatch(
            f"this hcalld speaks protocol version {s.VERSION}, the shim "
            f"{hello.version_min} to {hello.version_max}; use a matching pair"
        )


def negotiate(
    hello: f.Hello, partition: Partition, log: Log, *, passes_descriptors: bool
) -> Negotiated:
    """Decide what holds.

    Args:
        hello: what the shim offers.
        partition: what is served to it.
        log: a log that knows whose connection this is.
        passes_descriptors: the transport does.
    """
    if partition.kind is Kind.CLIENT:
        features, levels = s.Feature.COMMANDS, _COMMAND_LEVELS
    else:
        features = _machine_features(hello, partition, log, passes_descriptors=passes_descriptors)
        levels = _MACHINE_LEVELS[bool(features & SECURE_FEATURES)]
    entries = partition.entries(shared_ram=s.Feature.SHARED_RAM in features, levels=levels)
    announcement = partition.announcement(entries, levels=levels)
    max_frame_size = min(hello.max_frame_size, s.DEFAULT_MAX_FRAME)
    welcome = f.Welcome(s.VERSION, max_frame_size, features, announcement, hello.reset)
    found = Negotiated(welcome, entries)
    if found.is_pef:
        entries |= partition.shim_entries()
    return found


def _machine_features(
    hello: f.Hello, partition: Partition, log: Log, *, passes_descriptors: bool
) -> s.Feature:
    """Those of a machine that come into force."""
    features = hello.features & SERVED_FEATURES
    if not passes_descriptors:
        features &= ~s.Feature.SHARED_RAM
    if partition.may_be_secure and features & SECURE_FEATURES == SECURE_FEATURES:
        return features
    if partition.may_be_secure:
        log.warning(
            "no secure mode",
            reason="the guest's QEMU offers none: its CPU has no MSR[S] (use -cpu power9 "
            "or newer), or it was built with an older series",
        )
    return features & ~SECURE_FEATURES
