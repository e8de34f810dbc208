# SPDX-License-Identifier: Apache-2.0
"""What an HMC refuses, and that it refuses no more than that."""

from __future__ import annotations

from typing import Any

import pytest

from hcalld.core.errors import ConfigError, StoreError
from hcalld.core.records import Lifetime, Record
from hcalld.domain import attributes as attributes_module
from hcalld.domain import hmc
from hcalld.domain.attribute_records import Orders, flatten, with_orders
from hcalld.domain.attributes import PartitionAttributes
from hcalld.domain.hmc import Contents, change
from hcalld.domain.keystore_records import NAMESPACE, encode_object, object_key, password_key
from hcallproto.payloads.pks import Consumer

EMPTY = Contents()
SB_VERSION = Contents({hmc.SB_VERSION_KEY: 1})


@pytest.fixture(autouse=True)
def _all_calls_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules are about the attributes, whatever this version serves."""

    class Call:
        decode_only = False

    class Table:
        SIGNED_UPDATE = GEN_KEY = WRAP_OBJECT = UNWRAP_OBJECT = Call

    monkeypatch.setattr(attributes_module, "pks", Table)


def holding(*sizes: int, label_size: int = 20) -> Contents:
    """A keystore with objects of these sizes."""
    return Contents(
        {
            object_key(Consumer.OS, bytes([index]) * label_size): size
            for index, size in enumerate(sizes)
        }
    )


def partition(**names: Any) -> PartitionAttributes:
    """Attributes in force; ``pks_x`` is ``pks.x``."""
    return with_orders(PartitionAttributes(), dotted(names))


def dotted(names: dict[str, Any]) -> Orders:
    return {name.replace("pks_", "pks."): value for name, value in names.items()}


DYNAMIC: dict[str, Any] = {"linux_dynamic_key_secure_boot": 1}
SECURE: dict[str, Any] = {"linux_dynamic_key_secure_boot": 1, "secure_boot": 2}
LATCH = "keystore_signed_updates_without_verification"

REFUSED: list[tuple[str, dict[str, Any] | None, dict[str, Any], Contents, str]] = [
    ("keystore off under secure boot", SECURE, {"keystore_kbytes": 0}, SB_VERSION, "first"),
    (
        "keystore off under secure boot",
        SECURE,
        {"keystore_kbytes": 0, "linux_dynamic_key_secure_boot": 0, "secure_boot": 1},
        SB_VERSION,
        "while secure_boot is 1",
    ),
    (
        "dynamic keys off under secure boot",
        SECURE,
        {"linux_dynamic_key_secure_boot": 0},
        SB_VERSION,
        "while secure_boot is 2; set secure_boot to 0 first",
    ),
    (
        "dynamic keys off under secure boot",
        SECURE | {"secure_boot": 1},
        {"linux_dynamic_key_secure_boot": 0},
        SB_VERSION,
        "while secure_boot is 1",
    ),
    (
        "dynamic keys without keystore",
        {"keystore_kbytes": 0},
        DYNAMIC,
        EMPTY,
        "needs a keystore",
    ),
    ("dynamic keys without keystore", DYNAMIC, {"keystore_kbytes": 0}, SB_VERSION, "needs a"),
    ("dynamic keys without keystore", None, DYNAMIC | {"keystore_kbytes": 0}, EMPTY, "needs a"),
    ("latch without keystore", {"keystore_kbytes": 0}, {LATCH: 1}, EMPTY, "needs a keystore"),
    ("latch without keystore", {LATCH: 1}, {"keystore_kbytes": 0}, EMPTY, "needs a keystore"),
    (
        "latch without signed updates",
        {"keystore_signed_updates": 0},
        {LATCH: 1},
        EMPTY,
        "keystore_signed_updates is 0",
    ),
    (
        "latch without signed updates",
        {LATCH: 1},
        {"keystore_signed_updates": 0},
        EMPTY,
        "keystore_signed_updates is 0",
    ),
    ("keystore off with objects", {}, {"keystore_kbytes": 0}, holding(5), "holds 1 objects"),
    ("keystore off with objects", None, {"keystore_kbytes": 0}, holding(5, 6), "holds 2 objects"),
    (
        "keystore off with objects",
        DYNAMIC,
        {"keystore_kbytes": 0, "linux_dynamic_key_secure_boot": 0},
        Contents(holding(5).sizes | SB_VERSION.sizes),
        "holds 1 objects",
    ),
    ("keystore shrinks", {}, {"keystore_kbytes": 63}, EMPTY, "reduced from 64 to 63"),
    ("keystore shrinks", {}, {"keystore_kbytes": 4}, holding(5), "to 0 and then"),
    (
        "labels too long",
        {"pks_max_label_size": 400},
        {"pks_max_label_size": 299},
        holding(1, label_size=300),
        "label of 300 bytes",
    ),
    (
        "objects too large",
        {},
        {"pks_max_object_size": 1999},
        holding(5, 2000),
        "object of 2000 bytes",
    ),
    (
        "no room",
        {"keystore_kbytes": 4},
        {"pks_object_overhead": 1024},
        holding(1024, 1000),
        "take 4112 bytes; set keystore_kbytes to at least 5",
    ),
    ("no room", None, {"keystore_kbytes": 4}, holding(4096 - 32 - 19), "at least 5"),
    ("no room", {"keystore_kbytes": 4}, DYNAMIC, holding(4096 - 32 - 20), "the 2 objects"),
]


@pytest.mark.parametrize(
    ("name", "current", "orders", "contents", "told"),
    REFUSED,
    ids=[f"{case[0]}-{index}" for index, case in enumerate(REFUSED)],
)
def test_change_when_a_rule_is_broken_then_it_is_refused_with_the_reason(
    name: str,
    current: dict[str, Any] | None,
    orders: dict[str, Any],
    contents: Contents,
    told: str,
):
    with pytest.raises(ConfigError) as raised:
        change(None if current is None else partition(**current), dotted(orders), contents)

    now = None if current is None else partition(**current)
    wanted = with_orders(now or PartitionAttributes(), dotted(orders))
    after = hmc.contents_after(now, wanted, contents)
    broken = next(rule for rule in hmc.RULES if rule.is_broken(hmc.Situation(now, wanted, after)))
    assert broken.name == name
    assert told in str(raised.value)


def test_every_rule_is_tested():
    assert {rule.name for rule in hmc.RULES} == {case[0] for case in REFUSED}
    assert len({rule.name for rule in hmc.RULES}) == len(hmc.RULES)


ALLOWED: list[tuple[dict[str, Any] | None, dict[str, Any], Contents]] = [
    ({}, {}, holding(5)),
    ({}, {"keystore_kbytes": 64}, holding(5)),
    ({}, {"keystore_kbytes": 65}, holding(5)),
    ({}, {"keystore_kbytes": 128}, EMPTY),
    ({}, {"keystore_kbytes": 0}, EMPTY),
    ({"keystore_kbytes": 0}, {"keystore_kbytes": 4}, EMPTY),
    (None, {"keystore_kbytes": 4}, EMPTY),
    (None, {"keystore_kbytes": 4}, holding(4096 - 32 - 20)),
    (None, {"keystore_kbytes": 0}, EMPTY),
    (SECURE, {"secure_boot": 0}, SB_VERSION),
    (SECURE, {"secure_boot": 1}, SB_VERSION),
    (SECURE, {"secure_boot": 0, "linux_dynamic_key_secure_boot": 0}, SB_VERSION),
    (
        SECURE,
        {"secure_boot": 0, "linux_dynamic_key_secure_boot": 0, "keystore_kbytes": 0},
        SB_VERSION,
    ),
    (DYNAMIC, {"linux_dynamic_key_secure_boot": 0}, SB_VERSION),
    (DYNAMIC, {"linux_dynamic_key_secure_boot": 0, "secure_boot": 2}, SB_VERSION),
    ({"secure_boot": 2}, DYNAMIC, EMPTY),
    ({"secure_boot": 2}, {"keystore_kbytes": 0}, EMPTY),
    ({"keystore_kbytes": 0}, DYNAMIC | {"keystore_kbytes": 4}, EMPTY),
    ({"keystore_kbytes": 4}, DYNAMIC, holding(4096 - 32 - 20 - 32 - 11)),
    ({}, {LATCH: 1}, EMPTY),
    ({LATCH: 1}, {LATCH: 0, "keystore_kbytes": 0}, EMPTY),
    ({LATCH: 1}, {LATCH: 0, "keystore_signed_updates": 0}, EMPTY),
    ({"keystore_signed_updates": 0}, {LATCH: 1, "keystore_signed_updates": 1}, EMPTY),
    ({"pks_max_label_size": 400}, {"pks_max_label_size": 300}, holding(1, label_size=300)),
    ({}, {"pks_max_object_size": 2000}, holding(5, 2000)),
    ({"keystore_kbytes": 4}, {"pks_object_overhead": 1008}, holding(1024, 1000)),
    ({"keystore_kbytes": 0}, {"pks_object_overhead": 1024}, EMPTY),
    ({}, {"pks_supported_policies": None}, holding(5)),
    ({}, {"pks_max_password_size": 32}, holding(5)),
]


@pytest.mark.parametrize(("current", "orders", "contents"), ALLOWED)
def test_change_when_no_rule_is_broken_then_the_attributes_are_as_ordered(
    current: dict[str, Any] | None, orders: dict[str, Any], contents: Contents
):
    now = None if current is None else partition(**current)

    changed = change(now, dotted(orders), contents)

    assert flatten(changed) == flatten(now or PartitionAttributes()) | dict(dotted(orders))


@pytest.mark.parametrize("orders", [{"keystore_kbytes": 3}, {"secure_boot": 3}, {"size": 1}])
def test_change_when_a_value_is_impossible_then_it_is_refused_by_name(orders: Orders):
    with pytest.raises(ConfigError, match=next(iter(orders))):
        change(PartitionAttributes(), orders, EMPTY)


def test_reasons_name_what_to_do():
    for _, current, orders, contents, _ in REFUSED:
        with pytest.raises(ConfigError, match=r"\bset\b"):
            change(None if current is None else partition(**current), dotted(orders), contents)


# -- what the keystore holds ----------------------------------------------------------------


def stored(key: bytes, size: int, lifetime: Lifetime = Lifetime.PERSISTENT) -> Record:
    return Record(NAMESPACE, key, encode_object(0, b"d" * size), lifetime)


def test_contents_are_the_objects_that_outlive_the_run():
    kept = object_key(Consumer.OS, b"kept")
    records = [
        stored(kept, 10),
        stored(object_key(Consumer.OS, b"gone"), 10, Lifetime.RUN),
        Record(NAMESPACE, password_key(3), b"\x01\0\0\0pw", Lifetime.RUN),
        Record("partition", kept, b"whatever"),
    ]

    assert Contents.of(records).sizes == {kept: 10}
    assert Contents.of(records).used_space(32) == 32 + 4 + 10


def test_contents_of_a_malformed_object_are_refused():
    with pytest.raises(StoreError, match="malformed"):
        Contents.of([Record(NAMESPACE, object_key(3, b"x"), b"\x01")])


def test_firmware_tells_of_dynamic_keys():
    dynamic, static = partition(**DYNAMIC), PartitionAttributes()

    assert hmc.contents_after(static, dynamic, EMPTY) == SB_VERSION
    assert hmc.contents_after(dynamic, dynamic, EMPTY) == SB_VERSION
    assert hmc.contents_after(None, dynamic, holding(5)).sizes == (
        holding(5).sizes | SB_VERSION.sizes
    )
    assert hmc.contents_after(dynamic, static, SB_VERSION) == EMPTY
    assert hmc.contents_after(static, static, SB_VERSION) == SB_VERSION
