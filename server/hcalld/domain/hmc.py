# SPDX-License-Identifier: Apache-2.0
"""What an HMC lets an operator change of a partition, and what it refuses, with the reason.

Attributes change only while the partition is off. A change may name several; it is
judged as a whole, as if its parts were carried out in whichever order is possible: who
switches secure boot off and dynamic keys too may say both at once.

The rules are a table. Those that an HMC is known for: the keystore does not shrink, it
is switched off only while it is empty (HSCL0DC8), and dynamic keys and the keystore
stay while secure boot needs them. The others keep what is stored within what the
attributes allow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Final

from hcalld.core.errors import ConfigError
from hcalld.core.records import Lifetime, Record
from hcalld.domain.attribute_records import Orders, with_orders
from hcalld.domain.attributes import PartitionAttributes
from hcalld.domain.keystore import SB_VERSION
from hcalld.domain.keystore_records import (
    NAMESPACE,
    OBJECT_TAG,
    decode_object,
    object_key,
    split_object_key,
)
from hcallproto.payloads.pks import Consumer

SB_VERSION_DATA: Final = b"\x01"
"""The one version that Linux's certificate loader accepts beside static keys."""
SB_VERSION_KEY: Final = object_key(Consumer.FIRMWARE, SB_VERSION)
"""Linux takes a partition with this object for one of dynamic keys (plpks-secvar.c)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Contents:
    """What the keystore of a partition that is off holds: size of data by record key."""

    sizes: dict[bytes, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, records: Iterable[Record]) -> Contents:
        """The contents of a store, without what ends with the run.

        Raises:
            StoreError: a record is malformed or of a newer version.
        """
        return cls(
            {
                record.key: len(decode_object(record)[1])
                for record in records
                if record.namespace == NAMESPACE
                and record.key[:1] == OBJECT_TAG
                and record.lifetime is Lifetime.PERSISTENT
            }
        )

    @property
    def labels(self) -> list[bytes]:
        """All labels."""
        return [split_object_key(key)[1] for key in self.sizes]

    def used_space(self, object_overhead: int) -> int:
        """Bytes charged for all objects."""
        labels = sum(map(len, self.labels))
        return len(self.sizes) * object_overhead + labels + sum(self.sizes.values())

    def with_keys(self, *, dynamic: bool) -> Contents:
        """The contents once firmware's own object tells of dynamic keys, or does not."""
        sizes = {key: size for key, size in self.sizes.items() if key != SB_VERSION_KEY}
        return Contents(sizes | {SB_VERSION_KEY: len(SB_VERSION_DATA)} if dynamic else sizes)


@dataclasses.dataclass(frozen=True, slots=True)
class Situation:
    """A change that is asked for."""

    current: PartitionAttributes | None
    """None: the partition is new."""
    wanted: PartitionAttributes
    contents: Contents
    """What the keystore will hold."""

    @property
    def stays_secure(self) -> bool:
        """True if secure boot is on before and after."""
        return bool(self.current and self.current.secure_boot and self.wanted.secure_boot)

    @property
    def drops_dynamic_keys(self) -> bool:
        """True if dynamic keys are to be switched off."""
        return bool(
            self.current
            and self.current.linux_dynamic_key_secure_boot
            and not self.wanted.linux_dynamic_key_secure_boot
        )

    @property
    def used_space(self) -> int:
        """Bytes charged for all objects under the wanted attributes."""
        return self.contents.used_space(self.wanted.pks.object_overhead)


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """What is refused, and why."""

    name: str
    is_broken: Callable[[Situation], bool]
    reason: Callable[[Situation], str]


def _switches_off(change: Situation) -> bool:
    was_on = bool(change.current and change.current.keystore_kbytes)
    return was_on and not change.wanted.keystore_kbytes


def _shrinks(change: Situation) -> bool:
    size = change.wanted.keystore_kbytes
    return bool(change.current and 0 < size < change.current.keystore_kbytes)


def _old_size(change: Situation) -> int:
    return change.current.keystore_kbytes if change.current else 0


def _longest_label(change: Situation) -> int:
    return max(map(len, change.contents.labels), default=0)


def _largest_object(change: Situation) -> int:
    return max(change.contents.sizes.values(), default=0)


RULES: Final = (
    Rule(
        "keystore off under secure boot",
        lambda c: (
            _switches_off(c)
            and c.stays_secure
            and bool(c.current and c.current.linux_dynamic_key_secure_boot)
        ),
        lambda c: (
            f"keystore_kbytes cannot be set to 0 while secure_boot is {c.wanted.secure_boot}: the "
            "partition's secure boot takes its keys from the keystore; set secure_boot to 0 first"
        ),
    ),
    Rule(
        "dynamic keys off under secure boot",
        lambda c: c.drops_dynamic_keys and c.stays_secure,
        lambda c: (
            "linux_dynamic_key_secure_boot cannot be set to 0 while secure_boot is "
            f"{c.wanted.secure_boot}; set secure_boot to 0 first"
        ),
    ),
    Rule(
        "dynamic keys without keystore",
        lambda c: bool(c.wanted.linux_dynamic_key_secure_boot and not c.wanted.keystore_kbytes),
        lambda c: (
            "linux_dynamic_key_secure_boot is 1, which needs a keystore, but keystore_kbytes is "
            "0; set keystore_kbytes, or linux_dynamic_key_secure_boot to 0"
        ),
    ),
    Rule(
        "latch without keystore",
        lambda c: bool(
            c.wanted.keystore_signed_updates_without_verification and not c.wanted.keystore_kbytes
        ),
        lambda c: (
            "keystore_signed_updates_without_verification is 1, which needs a keystore, but "
            "keystore_kbytes is 0; set keystore_kbytes, or the former to 0"
        ),
    ),
    Rule(
        "latch without signed updates",
        lambda c: bool(
            c.wanted.keystore_signed_updates_without_verification
            and not c.wanted.keystore_signed_updates
        ),
        lambda c: (
            "keystore_signed_updates_without_verification is 1, but keystore_signed_updates is "
            "0; set keystore_signed_updates to 1, or the former to 0"
        ),
    ),
    Rule(
        "keystore off with objects",
        lambda c: not c.wanted.keystore_kbytes and bool(c.contents.sizes),
        lambda c: (
            f"keystore_kbytes is 0, but the keystore holds {len(c.contents.sizes)} objects; "
            "remove them (hcalld state remove) or set keystore_kbytes"
        ),
    ),
    Rule(
        "keystore shrinks",
        _shrinks,
        lambda c: (
            f"keystore_kbytes cannot be reduced from {_old_size(c)} to "
            f"{c.wanted.keystore_kbytes}; set it to at least {_old_size(c)}, or, while the "
            "keystore is empty, to 0 and then to the smaller size"
        ),
    ),
    Rule(
        "labels too long",
        lambda c: _longest_label(c) > c.wanted.pks.max_label_size,
        lambda c: (
            f"pks.max_label_size is {c.wanted.pks.max_label_size}, but the keystore holds an "
            f"object with a label of {_longest_label(c)} bytes; remove it, or set it to at "
            "least that"
        ),
    ),
    Rule(
        "objects too large",
        lambda c: _largest_object(c) > c.wanted.pks.max_object_size,
        lambda c: (
            f"pks.max_object_size is {c.wanted.pks.max_object_size}, but the keystore holds an "
            f"object of {_largest_object(c)} bytes; remove it, or set it to at least that"
        ),
    ),
    Rule(
        "no room",
        lambda c: bool(c.wanted.keystore_kbytes) and c.used_space > c.wanted.total_size,
        lambda c: (
            f"keystore_kbytes is {c.wanted.keystore_kbytes}, but with pks.object_overhead "
            f"{c.wanted.pks.object_overhead} the {len(c.contents.sizes)} objects take "
            f"{c.used_space} bytes; set keystore_kbytes to at least {-(-c.used_space // 1024)}, "
            "or remove objects"
        ),
    ),
)
"""In this order: the first that is broken is the one that is told."""


def change(
    current: PartitionAttributes | None, orders: Orders, contents: Contents
) -> PartitionAttributes:
    """Judge a change of a partition that is off.

    Args:
        current: the attributes in force; None for a new partition.
        orders: what is to be set.
        contents: what the keystore holds now.

    Raises:
        ConfigError: refused, with the reason; or a name or value is wrong.
    """
    wanted = with_orders(current or PartitionAttributes(), orders)
    situation = Situation(current, wanted, contents_after(current, wanted, contents))
    for rule in RULES:
        if rule.is_broken(situation):
            raise ConfigError(rule.reason(situation))
    return wanted


def contents_after(
    current: PartitionAttributes | None, wanted: PartitionAttributes, contents: Contents
) -> Contents:
    """What the keystore holds once firmware has put or dropped SB_VERSION.

    A partition that never had dynamic keys keeps an SB_VERSION that somebody else seeded.
    """
    if wanted.linux_dynamic_key_secure_boot:
        return contents.with_keys(dynamic=True)
    if current is not None and current.linux_dynamic_key_secure_boot:
        return contents.with_keys(dynamic=False)
    return contents
