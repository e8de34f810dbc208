# SPDX-License-Identifier: Apache-2.0
"""Records of the partition: what was written comes back, everything else is refused."""

from __future__ import annotations

import msgspec
import pytest

from hcalld.core.errors import ConfigError, StoreError
from hcalld.core.records import Lifetime, Put, Record
from hcalld.domain import attribute_records as ar
from hcalld.domain.attributes import PartitionAttributes, PksAttributes

INSTANCE = bytes(range(16))
ODD = PartitionAttributes(
    keystore_kbytes=128,
    secure_boot=2,
    pks=PksAttributes(object_overhead=7, supported_policies=("PWSET", "WORLDREADABLE")),
)


def record(key: bytes, value: bytes) -> Record:
    return Record(ar.NAMESPACE, key, value)


def stored(change: object) -> Record:
    assert isinstance(change, Put)
    return change.record


def good() -> list[Record]:
    return [
        stored(ar.put_in_force(ODD)),
        stored(ar.put_profile({"keystore_kbytes": 128, "pks.supported_policies": ("PWSET",)})),
        stored(ar.put_instance(INSTANCE)),
    ]


def test_what_was_written_comes_back():
    held = ar.load(good())

    assert held == ar.Held(
        ODD, {"keystore_kbytes": 128, "pks.supported_policies": ("PWSET",)}, INSTANCE
    )


def test_records_outlive_a_run():
    assert {item.lifetime for item in good()} == {Lifetime.PERSISTENT}


def test_formats_are_the_documented_bytes():
    assert [(item.namespace, item.key) for item in good()] == [
        ("partition", b"attributes"),
        ("partition", b"profile"),
        ("partition", b"instance"),
    ]
    assert good()[0].value.startswith(b'\x01{"keystore_kbytes":128,')
    assert good()[1].value == b'\x01{"keystore_kbytes":128,"pks.supported_policies":["PWSET"]}'
    assert good()[2].value == b"\x01" + INSTANCE


def test_other_namespaces_are_not_looked_at():
    assert ar.load([Record("pks", b"attributes", b"\xff")]) is None
    assert ar.load([]) is None


def test_attributes_alone_have_no_profile_and_no_instance():
    assert ar.load([stored(ar.put_in_force(ODD))]) == ar.Held(ODD, {}, None)


def test_an_attribute_of_a_later_version_has_its_default():
    held = ar.load([record(b"attributes", b'\x01{"keystore_kbytes":8}')])

    assert held is not None
    assert held.attributes == PartitionAttributes(keystore_kbytes=8)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\x00{}",
        b"\x01",
        b"\x01{",
        b"\x01[]",
        b"\x01null",
        b"\x01{}{}",
        b"\x01\xff",
        b'\x01{"keystore_kbytes":1}',
        b'\x01{"keystore_kbytes":"64"}',
        b'\x01{"keystore_size":64}',
        b'\x01{"pks":{"max_label_size":1}}',
        b'\x01{"pks":{"supported_policies":["ALL"]}}',
    ],
)
def test_malformed_attributes_are_refused(value: bytes):
    with pytest.raises(StoreError, match="'attributes' is malformed"):
        ar.load([record(b"attributes", value)])


@pytest.mark.parametrize("value", [b"", b"\x00{}", b"\x01", b"\x01[]", b'\x01{"a":1.5}'])
def test_a_malformed_profile_is_refused(value: bytes):
    with pytest.raises(StoreError, match="'profile' is malformed"):
        ar.load([good()[0], record(b"profile", value)])


@pytest.mark.parametrize("value", [b"", b"\x00" + INSTANCE, b"\x01", b"\x01" + INSTANCE + b"x"])
def test_a_malformed_instance_is_refused(value: bytes):
    with pytest.raises(StoreError, match="'instance' is malformed"):
        ar.load([good()[0], record(b"instance", value)])


@pytest.mark.parametrize("key", [b"attributes", b"profile", b"instance"])
def test_a_newer_format_says_so(key: bytes):
    with pytest.raises(StoreError, match=r"format 2, this version knows up to 1.*newer hcalld"):
        ar.load([record(key, b"\x02whatever")])


def test_an_unknown_record_is_a_newer_versions():
    with pytest.raises(StoreError, match=r"'quota'.*newer hcalld"):
        ar.load([*good(), record(b"quota", b"\x01")])


def test_a_profile_without_attributes_is_malformed():
    with pytest.raises(StoreError, match="no record b'attributes'"):
        ar.load(good()[1:])


# -- dotted names -------------------------------------------------------------------------


def test_every_attribute_has_a_dotted_name():
    names = set(PartitionAttributes.__struct_fields__) - {"pks"}
    names |= {f"pks.{name}" for name in PksAttributes.__struct_fields__}

    assert set(ar.flatten(ODD)) == names
    assert ar.flatten(ODD)["pks.object_overhead"] == 7


def test_orders_set_what_they_name_and_nothing_else():
    changed = ar.with_orders(ODD, {"secure_boot": 0, "pks.max_label_size": 300})

    assert changed == msgspec.structs.replace(
        ODD, secure_boot=0, pks=msgspec.structs.replace(ODD.pks, max_label_size=300)
    )
    assert ar.with_orders(ODD, {}) == ODD
    assert ar.with_orders(PartitionAttributes(), ar.flatten(ODD)) == ODD


@pytest.mark.parametrize("name", ["pks", "pks.", "pks.secure_boot", "object_overhead", ""])
def test_an_order_for_an_unknown_attribute_is_refused(name: str):
    with pytest.raises(ConfigError, match=r"no attribute.*keystore_kbytes"):
        ar.with_orders(ODD, {name: 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("keystore_kbytes", 3),
        ("secure_boot", 3),
        ("secure_boot", None),
        ("pks.max_label_size", 254),
        ("pks.supported_policies", ("NONE",)),
    ],
)
def test_an_order_with_a_wrong_value_is_refused_by_name(
    name: str, value: int | tuple[str, ...] | None
):
    with pytest.raises(ConfigError, match=name.rpartition(".")[2]):
        ar.with_orders(ODD, {name: value})


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("secure_boot", 3, "expected 0, 1, 2"),
        ("keystore_kbytes", 129, "expected 0 to 128"),
        ("keystore_kbytes", 3, "expected 0 (off) or 4 to 128"),
        ("pks.max_password_size", 31, "expected 32 to 4080"),
        ("pks.busy_hint_ms", 2, "expected 0, 1, 10, 100,"),
    ],
)
def test_an_order_with_a_wrong_value_says_what_was_expected(name: str, value: int, told: str):
    with pytest.raises(ConfigError) as raised:
        ar.with_orders(ODD, {name: value})
    assert told in str(raised.value)
