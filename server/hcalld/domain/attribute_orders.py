# SPDX-License-Identifier: Apache-2.0
"""Carrying out orders: what a power-on, or an operator, changes in a partition's store.

A profile's key is an order that is carried out once, at the first power-on with it or
with a new value of it. So what the guest has used up (the latch) or undone (dynamic
keys, by a wipe) stays so until the profile changes, and what an operator set by hand
wins as long. ``hmc.py`` judges; here the changes are made, as records of one
transaction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hcalld.core.records import Change, Delete, Put, Record
from hcalld.domain import hmc
from hcalld.domain.attribute_records import (
    Held,
    Orders,
    load,
    put_in_force,
    put_instance,
    put_profile,
)
from hcalld.domain.attributes import PartitionAttributes
from hcalld.domain.keystore_records import NAMESPACE, encode_object
from hcallproto.payloads.pks import Policy

SB_VERSION_POLICY = Policy.WORLDREADABLE | Policy.HVPROVISIONED
"""The kernel reads it as firmware's consumer, without a password."""


@dataclasses.dataclass(frozen=True, slots=True)
class Carried:
    """Orders that were carried out, or wait for the next power-on."""

    attributes: PartitionAttributes
    """Those in force."""
    changes: Sequence[Change] = ()
    """To be committed together."""
    done: Orders = dataclasses.field(default_factory=dict)
    waiting: Orders = dataclasses.field(default_factory=dict)


def order(records: Sequence[Record], orders: Orders) -> Carried:
    """Set attributes of a partition that is off.

    Raises:
        ConfigError: refused, with the reason.
        StoreError: a record is malformed or of a newer version.
    """
    held = load(records)
    attributes, changes = _carry_out(held, records, orders)
    return Carried(attributes, changes, done=orders)


def connect(records: Sequence[Record], profile: Orders, instance: bytes) -> Carried:
    """A machine connects: power it on with its profile, unless it is on already.

    Args:
        records: all of the partition's.
        profile: what the profile says now.
        instance: the machine's; the same one again is a machine that has been on since.

    Raises:
        ConfigError: the profile orders what is refused, with the reason.
        StoreError: a record is malformed or of a newer version.
    """
    held = load(records)
    before = {} if held is None else held.profile
    new = {name: value for name, value in profile.items() if _is_new(name, value, before)}
    if held is not None and held.instance == instance:
        return Carried(held.attributes, waiting=new)
    attributes, changes = _carry_out(held, records, new)
    changes.append(put_instance(instance))
    if held is None or dict(profile) != dict(before):
        changes.append(put_profile(profile))
    return Carried(attributes, changes, done=new)


def _is_new(name: str, value: object, before: Orders) -> bool:
    return name not in before or before[name] != value


def _carry_out(
    held: Held | None, records: Sequence[Record], orders: Orders
) -> tuple[PartitionAttributes, list[Change]]:
    current = None if held is None else held.attributes
    contents = hmc.Contents.of(records)
    wanted = hmc.change(current, orders, contents)
    changes: list[Change] = []
    if wanted != current:
        changes.append(put_in_force(wanted))
    after = hmc.contents_after(current, wanted, contents).sizes
    key = hmc.SB_VERSION_KEY
    firmware = Record(NAMESPACE, key, encode_object(SB_VERSION_POLICY, hmc.SB_VERSION_DATA))
    if wanted.linux_dynamic_key_secure_boot and firmware not in records:
        # Whatever else is there under its name, the firmware's own takes its place.
        changes.append(Put(firmware))
    elif key in contents.sizes and key not in after:
        changes.append(Delete(NAMESPACE, key))
    return wanted, changes
