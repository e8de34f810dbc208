# SPDX-License-Identifier: Apache-2.0
"""A partition's attributes as records: those in force, and the orders they came from.

All in namespace ``partition``, beside the objects that the attributes govern, so that a
call that changes both (a signed update that uses up the latch) does so in one
transaction::

    attributes   the attributes in force
    profile      what the profile said when it was last applied, by dotted name
    instance     the QEMU instance for which it was applied: one power-on

A value is one byte, the version of its format, and then JSON, or for ``instance`` the
id's 16 bytes. What a newer hcalld wrote is refused, and so is what is malformed. An
attribute that is missing, because an older version did not know it, has its default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from hcalld.core.errors import ConfigError, StoreError
from hcalld.core.records import Change, Put, Record
from hcalld.domain.attributes import PartitionAttributes, PksAttributes

NAMESPACE: Final = "partition"
VALUE_VERSION: Final = 1
INSTANCE_SIZE: Final = 16
"""The instance id of the wire's Hello."""

ATTRIBUTES_KEY: Final = b"attributes"
PROFILE_KEY: Final = b"profile"
INSTANCE_KEY: Final = b"instance"

Value = int | tuple[str, ...] | None
"""What an attribute can be."""
Orders = Mapping[str, Value]
"""Attributes that somebody sets, by dotted name (``pks.object_overhead``)."""

_PKS_PREFIX: Final = "pks."
_HEAD: Final = bytes((VALUE_VERSION,))


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """What a store holds of a partition's attributes."""

    attributes: PartitionAttributes
    """Those in force."""
    profile: Orders = dataclasses.field(default_factory=dict)
    """The profile's orders as last carried out; empty if none was."""
    instance: bytes | None = None
    """The QEMU instance that was powered on last."""


# -- dotted names -------------------------------------------------------------------------


def flatten(attributes: PartitionAttributes) -> dict[str, Value]:
    """All attributes by dotted name."""
    top = msgspec.structs.asdict(attributes)
    table = msgspec.structs.asdict(top.pop("pks"))
    return top | {_PKS_PREFIX + name: value for name, value in table.items()}


def with_orders(attributes: PartitionAttributes, orders: Orders) -> PartitionAttributes:
    """The attributes with some of them set anew.

    Raises:
        ConfigError: an unknown name, or a value that is none of this attribute's.
    """
    merged = flatten(attributes)
    for name in orders:
        if name not in merged:
            raise ConfigError(f"no attribute {name!r}; attributes are: {', '.join(merged)}")
    merged |= orders
    table = {
        name.removeprefix(_PKS_PREFIX): merged.pop(name)
        for name in list(merged)
        if name.startswith(_PKS_PREFIX)
    }
    try:
        return msgspec.convert(merged | {"pks": table}, PartitionAttributes)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{error}{_expected(str(error))}") from None


def _expected(text: str) -> str:
    """What the attribute that an error names by its path can be, to be added to the text."""
    import msgspec.inspect as inspect  # for errors only

    for kind, path in ((PartitionAttributes, "$."), (PksAttributes, f"$.{_PKS_PREFIX}")):
        found = inspect.type_info(kind)
        assert isinstance(found, inspect.StructType)
        for field in found.fields:
            if f"`{path}{field.name}`" not in text:
                continue
            if isinstance(field.type, inspect.LiteralType):
                return f"; expected {', '.join(map(str, field.type.values))}"
            if isinstance(field.type, inspect.IntType):
                return f"; expected {field.type.ge} to {field.type.le}"
    return ""


# -- records ------------------------------------------------------------------------------


def load(records: Iterable[Record]) -> Held | None:
    """What a store's records say; None if no attributes were ever put in force.

    Raises:
        StoreError: a record is malformed or of a newer version.
    """
    values = {record.key: _content(record) for record in records if record.namespace == NAMESPACE}
    if not values:
        return None
    unknown = values.keys() - {ATTRIBUTES_KEY, PROFILE_KEY, INSTANCE_KEY}
    if unknown:
        raise StoreError(
            f"partition record {min(unknown)!r} is of unknown kind: it was written by a newer "
            "hcalld, use that one"
        )
    if ATTRIBUTES_KEY not in values:
        raise _malformed(min(values), f"there is no record {ATTRIBUTES_KEY!r} beside it")
    instance = values.get(INSTANCE_KEY)
    if instance is not None and len(instance) != INSTANCE_SIZE:
        raise _malformed(INSTANCE_KEY, f"{len(instance)} bytes, expected {INSTANCE_SIZE}")
    return Held(
        attributes=_decode(ATTRIBUTES_KEY, values[ATTRIBUTES_KEY], PartitionAttributes),
        profile=_decode(PROFILE_KEY, values.get(PROFILE_KEY, b"{}"), dict[str, Value]),
        instance=instance,
    )


def put_in_force(attributes: PartitionAttributes) -> Change:
    """The change that makes these the attributes in force."""
    return _put(ATTRIBUTES_KEY, msgspec.json.encode(attributes))


def put_profile(orders: Orders) -> Change:
    """The change that records a profile as carried out."""
    return _put(PROFILE_KEY, msgspec.json.encode(dict(orders)))


def put_instance(instance: bytes) -> Change:
    """The change that records a power-on as the one that has happened."""
    return _put(INSTANCE_KEY, instance)


def _put(key: bytes, content: bytes) -> Change:
    return Put(Record(NAMESPACE, key, _HEAD + content))


def _content(record: Record) -> bytes:
    value = record.value
    if value and value[0] > VALUE_VERSION:
        raise StoreError(
            f"partition record {record.key!r} has format {value[0]}, this version knows up to "
            f"{VALUE_VERSION}: it was written by a newer hcalld, use that one"
        )
    if value[:1] != _HEAD:
        raise _malformed(record.key, "bad head")
    return value[1:]


def _decode(key: bytes, content: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _malformed(key, str(error)) from None


def _malformed(key: bytes, why: str) -> StoreError:
    return StoreError(
        f"partition record {key[:64]!r} is malformed ({why}): restore the partition's store "
        "from a backup, or report a bug"
    )
