# SPDX-License-Identifier: Apache-2.0
"""Orders are carried out once, at a power-on, wholly or not at all."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import pytest

from hcalld.core.errors import ConfigError, StoreError
from hcalld.core.records import Change, Delete, Lifetime, Put, Record
from hcalld.domain import attribute_orders as orders_module
from hcalld.domain import attributes as attributes_module
from hcalld.domain import hmc
from hcalld.domain.attribute_orders import Carried, connect, order
from hcalld.domain.attribute_records import Orders, load, put_in_force
from hcalld.domain.attributes import PartitionAttributes
from hcalld.domain.keystore_records import NAMESPACE, decode_object, encode_object, object_key
from hcallproto.payloads.pks import Consumer, Policy

LATCH = "keystore_signed_updates_without_verification"
DYNAMIC = "linux_dynamic_key_secure_boot"
FIRST, SECOND = b"1" * 16, b"2" * 16


@pytest.fixture(autouse=True)
def _all_calls_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders are about the attributes, whatever this version serves."""

    class Call:
        decode_only = False

    class Table:
        SIGNED_UPDATE = GEN_KEY = WRAP_OBJECT = UNWRAP_OBJECT = Call

    monkeypatch.setattr(attributes_module, "pks", Table)


class Shelf:
    """A store's records, and nothing else of it."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, bytes], Record] = {}

    def commit(self, changes: Iterable[Change]) -> None:
        for change in changes:
            if isinstance(change, Put):
                self.records[change.record.namespace, change.record.key] = change.record
            else:
                del self.records[change.namespace, change.key]

    def connect(self, profile: Orders, instance: bytes) -> Carried:
        carried = connect(list(self.records.values()), profile, instance)
        self.commit(carried.changes)
        return carried

    def order(self, orders: Orders) -> Carried:
        carried = order(list(self.records.values()), orders)
        self.commit(carried.changes)
        return carried

    def in_force(self) -> PartitionAttributes:
        held = load(self.records.values())
        assert held is not None
        return held.attributes

    @property
    def sb_version(self) -> Record | None:
        return self.records.get((NAMESPACE, hmc.SB_VERSION_KEY))


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def test_connect_when_the_partition_is_new_then_defaults_and_profile_are_in_force(shelf: Shelf):
    carried = shelf.connect({"keystore_kbytes": 8}, FIRST)

    assert carried.attributes == shelf.in_force() == PartitionAttributes(keystore_kbytes=8)
    assert (carried.done, carried.waiting) == ({"keystore_kbytes": 8}, {})
    held = load(shelf.records.values())
    assert held is not None
    assert (held.profile, held.instance) == ({"keystore_kbytes": 8}, FIRST)


def test_connect_when_there_is_no_profile_then_defaults_are_in_force(shelf: Shelf):
    shelf.connect({}, FIRST)

    assert shelf.in_force() == PartitionAttributes()


def test_connect_when_the_guest_used_the_latch_then_an_unchanged_profile_does_not_rearm_it(
    shelf: Shelf,
):
    profile = {LATCH: 1}
    shelf.connect(profile, FIRST)
    used = msgspec.structs.replace(shelf.in_force(), keystore_signed_updates_without_verification=0)
    shelf.commit([put_in_force(used)])

    carried = shelf.connect(profile, SECOND)

    assert carried.attributes == shelf.in_force() == used
    assert carried.done == {}


def test_connect_when_a_key_was_taken_away_and_comes_back_then_it_is_an_order_again(
    shelf: Shelf,
):
    shelf.connect({LATCH: 1}, FIRST)
    shelf.order({LATCH: 0})
    shelf.connect({}, SECOND)
    assert shelf.in_force().keystore_signed_updates_without_verification == 0

    shelf.connect({LATCH: 1}, FIRST)

    assert shelf.in_force().keystore_signed_updates_without_verification == 1


def test_connect_when_a_key_is_taken_away_then_the_attribute_stays(shelf: Shelf):
    shelf.connect({"keystore_kbytes": 128, "secure_boot": 2}, FIRST)
    shelf.connect({"secure_boot": 2}, SECOND)

    assert shelf.in_force() == PartitionAttributes(keystore_kbytes=128, secure_boot=2)


def test_connect_when_one_key_changes_then_only_that_one_is_carried_out(shelf: Shelf):
    shelf.connect({"secure_boot": 2, "keystore_kbytes": 64}, FIRST)
    shelf.order({"secure_boot": 1})

    carried = shelf.connect({"secure_boot": 2, "keystore_kbytes": 128}, SECOND)

    assert carried.done == {"keystore_kbytes": 128}
    assert shelf.in_force() == PartitionAttributes(keystore_kbytes=128, secure_boot=1)


def test_connect_when_the_machine_has_been_on_then_a_changed_profile_waits(shelf: Shelf):
    shelf.connect({"secure_boot": 0}, FIRST)

    carried = shelf.connect({"secure_boot": 2}, FIRST)

    assert (carried.changes, carried.done) == ((), {})
    assert carried.waiting == {"secure_boot": 2}
    assert carried.attributes.secure_boot == shelf.in_force().secure_boot == 0
    assert shelf.connect({"secure_boot": 2}, SECOND).done == {"secure_boot": 2}
    assert shelf.in_force().secure_boot == 2


def test_connect_when_nothing_changed_then_only_the_instance_is_recorded(shelf: Shelf):
    shelf.connect({"secure_boot": 1}, FIRST)

    carried = connect(list(shelf.records.values()), {"secure_boot": 1}, SECOND)

    assert len(carried.changes) == 1
    assert isinstance(carried.changes[0], Put)
    assert carried.changes[0].record.key == b"instance"


def test_connect_when_an_order_is_refused_then_nothing_changes(shelf: Shelf):
    shelf.connect({}, FIRST)
    before = dict(shelf.records)

    for _ in range(2):
        with pytest.raises(ConfigError, match="cannot be reduced from 64 to 8"):
            shelf.connect({"keystore_kbytes": 8, "secure_boot": 2}, SECOND)

    assert shelf.records == before
    assert shelf.connect({"secure_boot": 2}, SECOND).attributes.secure_boot == 2


def test_connect_when_objects_were_seeded_first_then_they_must_fit(shelf: Shelf):
    key = object_key(Consumer.OS, b"label")
    shelf.commit([Put(Record(NAMESPACE, key, encode_object(0, bytes(5000))))])

    with pytest.raises(ConfigError, match="at least 5"):
        shelf.connect({"keystore_kbytes": 4}, FIRST)
    assert shelf.connect({"keystore_kbytes": 5}, FIRST).attributes.keystore_kbytes == 5


def test_order_when_the_partition_is_new_then_it_begins_with_defaults(shelf: Shelf):
    shelf.order({"secure_boot": 1})

    held = load(shelf.records.values())
    assert held is not None
    assert (held.attributes, held.profile, held.instance) == (
        PartitionAttributes(secure_boot=1),
        {},
        None,
    )


def test_order_when_nothing_changes_then_nothing_is_written(shelf: Shelf):
    shelf.order({"secure_boot": 1})

    assert shelf.order({"secure_boot": 1}).changes == []


def test_order_when_it_wins_then_until_the_profile_changes(shelf: Shelf):
    shelf.connect({"secure_boot": 2}, FIRST)
    shelf.order({"secure_boot": 0})
    shelf.connect({"secure_boot": 2}, SECOND)
    assert shelf.in_force().secure_boot == 0

    shelf.connect({"secure_boot": 1}, FIRST)

    assert shelf.in_force().secure_boot == 1


def test_order_when_the_store_is_malformed_then_it_is_said(shelf: Shelf):
    shelf.records["partition", b"attributes"] = Record("partition", b"attributes", b"\x01[]")

    with pytest.raises(StoreError, match="malformed"):
        shelf.order({"secure_boot": 1})


# -- SB_VERSION ---------------------------------------------------------------------------


def test_dynamic_keys_when_switched_on_then_firmware_tells_version_1(shelf: Shelf):
    shelf.order({DYNAMIC: 1})

    assert shelf.sb_version is not None
    assert shelf.sb_version.key == b"o\x01SB_VERSION"
    assert shelf.sb_version.lifetime is Lifetime.PERSISTENT
    assert decode_object(shelf.sb_version) == (
        Policy.WORLDREADABLE | Policy.HVPROVISIONED,
        b"\x01",
    )
    assert orders_module.SB_VERSION_POLICY == 0x0800_0008


def test_dynamic_keys_when_switched_off_then_firmware_tells_nothing(shelf: Shelf):
    shelf.order({DYNAMIC: 1})

    carried = shelf.order({DYNAMIC: 0})

    assert shelf.sb_version is None
    assert Delete(NAMESPACE, hmc.SB_VERSION_KEY) in carried.changes


def test_dynamic_keys_when_they_stay_on_then_a_missing_object_comes_back(shelf: Shelf):
    shelf.connect({DYNAMIC: 1}, FIRST)
    del shelf.records[NAMESPACE, hmc.SB_VERSION_KEY]

    shelf.connect({DYNAMIC: 1}, SECOND)

    assert shelf.sb_version is not None


def test_dynamic_keys_when_wiped_by_the_guest_then_an_unchanged_profile_leaves_them_off(
    shelf: Shelf,
):
    shelf.connect({DYNAMIC: 1}, FIRST)
    assert shelf.sb_version is not None
    wiped = msgspec.structs.replace(shelf.in_force(), linux_dynamic_key_secure_boot=0)
    record = Record(NAMESPACE, hmc.SB_VERSION_KEY, shelf.sb_version.value, Lifetime.RUN)
    shelf.commit([put_in_force(wiped), Put(record)])

    carried = shelf.connect({DYNAMIC: 1}, SECOND)

    assert carried.attributes == wiped
    assert shelf.sb_version.lifetime is Lifetime.RUN


def test_dynamic_keys_when_ordered_after_a_wipe_then_the_object_outlives_the_run_again(
    shelf: Shelf,
):
    value = encode_object(orders_module.SB_VERSION_POLICY, b"\x01")
    shelf.commit([Put(Record(NAMESPACE, hmc.SB_VERSION_KEY, value, Lifetime.RUN))])

    shelf.order({DYNAMIC: 1})

    assert shelf.sb_version is not None
    assert shelf.sb_version.lifetime is Lifetime.PERSISTENT


def test_static_keys_when_somebody_seeded_the_object_then_it_stays(shelf: Shelf):
    value = encode_object(Policy.WORLDREADABLE, b"\x01")
    shelf.commit([Put(Record(NAMESPACE, hmc.SB_VERSION_KEY, value))])

    shelf.connect({"secure_boot": 2}, FIRST)

    assert shelf.sb_version is not None
    assert shelf.sb_version.value == value
