# SPDX-License-Identifier: Apache-2.0
"""The keystore's rules: passwords, policies, space, records."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from hcalld.core.errors import ConfigError, HcallError, StoreError
from hcalld.core.records import Delete, Lifetime, Put, Record
from hcalld.domain.attribute_records import put_in_force
from hcalld.domain.attributes import PartitionAttributes, PksAttributes
from hcalld.domain.keystore import SB_VERSION, Keystore
from hcalld.domain.keystore_records import (
    NAMESPACE,
    encode_object,
    encode_password,
    object_key,
)
from hcalld.domain.labels import os_label
from hcalld.domain.secvar.answers import Accepted, Authority, Remove, Store, Wipe
from hcallproto.abi.returns import H
from hcallproto.payloads.pks import Consumer, Policy

OS = Consumer.OS
PASSWORD = b"p" * 32


def make(*records: Record, secure_boot: int = 0, kbytes: int = 4) -> Keystore:
    return Keystore(
        PartitionAttributes(
            keystore_kbytes=kbytes,
            secure_boot=secure_boot,  # type: ignore[arg-type]  # 0 to 2
            pks=PksAttributes(object_overhead=10),
        ),
        records,
    )


def stored(label: bytes, policy: int = 0, data: bytes = b"data", consumer: int = 3) -> Record:
    lifetime = Lifetime.RUN if policy & Policy.TRANSIENT else Lifetime.PERSISTENT
    return Record("pks", object_key(consumer, label), encode_object(policy, data), lifetime)


def refusal(action: Callable[[], object]) -> H:
    with pytest.raises(HcallError) as raised:
        action()
    assert raised.value.why
    assert isinstance(raised.value.code, H)
    return raised.value.code


# -- passwords -----------------------------------------------------------------------------


def test_before_a_password_is_set_only_the_empty_one_is_right():
    keystore = make()
    keystore.authorize(OS, b"")

    assert refusal(lambda: keystore.authorize(OS, b"x")) is H.AUTHORITY


@pytest.mark.parametrize(
    "wrong", [b"", b"p", b"p" * 31, b"p" * 33, b"p" * 31 + b"q", b"q" + b"p" * 31, b"P" * 32]
)
def test_after_a_password_is_set_only_it_is_right(wrong: bytes):
    keystore = make()
    keystore.set_password(OS, PASSWORD)
    keystore.authorize(OS, PASSWORD)

    assert refusal(lambda: keystore.authorize(OS, wrong)) is H.AUTHORITY


def test_a_password_is_set_once_in_a_run():
    keystore = make()
    keystore.set_password(OS, PASSWORD)
    keystore.take_changes()

    assert refusal(lambda: keystore.set_password(OS, b"other" * 8)) is H.IN_USE
    assert keystore.take_changes() == []
    keystore.authorize(OS, PASSWORD)


def test_each_consumer_has_its_own_password():
    keystore = make()
    keystore.set_password(OS, PASSWORD)

    assert [keystore.has_password(consumer) for consumer in Consumer] == [False, False, True]
    keystore.authorize(Consumer.FIRMWARE, b"")
    assert refusal(lambda: keystore.authorize(Consumer.FIRMWARE, PASSWORD)) is H.AUTHORITY


def test_a_password_is_a_run_record_and_comes_back_from_it():
    keystore = make()
    keystore.set_password(OS, PASSWORD)
    (change,) = keystore.take_changes()

    assert change == Put(Record("pks", b"p\x03", encode_password(PASSWORD), Lifetime.RUN))
    make(change.record).authorize(OS, PASSWORD)


def test_no_repr_or_reason_shows_a_password_or_data():
    keystore = make()
    keystore.set_password(OS, PASSWORD)
    keystore.create(OS, b"label", 0, b"hunter2")
    shown = repr(keystore.__dict__) + repr(keystore.take_changes()) + repr(list(keystore.objects()))

    assert "pppp" not in shown
    assert "hunter2" not in shown


# -- creating and space --------------------------------------------------------------------


def test_create_records_the_object_and_charges_it():
    keystore = make()
    keystore.create(OS, b"label", 0, b"data")

    assert keystore.take_changes() == [Put(stored(b"label"))]
    assert keystore.take_changes() == []
    assert keystore.used_space == 10 + 5 + 4
    assert keystore.exists(OS, b"label")


def test_a_transient_object_is_a_run_record():
    keystore = make()
    keystore.create(OS, b"label", Policy.TRANSIENT, b"data")
    (change,) = keystore.take_changes()

    assert isinstance(change, Put)
    assert change.record.lifetime is Lifetime.RUN


def test_an_existing_label_is_not_overwritten():
    keystore = make(stored(b"label"))

    assert refusal(lambda: keystore.create(OS, b"label", 0, b"new")) is H.RESOURCE
    assert keystore.read(OS, b"label", b"").data == b"data"
    assert keystore.take_changes() == []


@pytest.mark.parametrize("other", [b"labe", b"labelx", b"label\0", b"Label"])
def test_labels_are_compared_whole(other: bytes):
    keystore = make(stored(b"label"))

    keystore.create(OS, other, 0, b"x")
    keystore.create(Consumer.FIRMWARE, b"label", 0, b"x")
    assert keystore.read(OS, b"label", b"").data == b"data"


def test_an_object_fits_to_the_last_byte():
    room = 4096 - 10 - 5
    keystore = make()

    assert refusal(lambda: keystore.create(OS, b"label", 0, bytes(room + 1))) is H.NO_MEM
    assert keystore.used_space == 0
    assert keystore.take_changes() == []
    keystore.create(OS, b"label", 0, bytes(room))
    assert keystore.used_space == 4096
    assert refusal(lambda: keystore.create(OS, b"l", 0, b"x")) is H.NO_MEM


def test_remove_gives_the_space_back():
    keystore = make(stored(b"label"))
    keystore.remove(OS, b"label")

    assert keystore.used_space == 0
    assert keystore.take_changes() == [Delete("pks", object_key(3, b"label"))]
    assert refusal(lambda: keystore.remove(OS, b"label")) is H.NOT_FOUND


def test_config_carries_the_live_used_space_and_nothing_else_changes():
    keystore = make()
    before = keystore.config()
    keystore.create(OS, b"label", 0, b"data")
    after = keystore.config()

    assert struct.unpack_from(">I", after, 16) == (19,)
    assert before[:16] + before[20:] == after[:16] + after[20:]
    keystore.remove(OS, b"label")
    assert keystore.config() == before


# -- policies --------------------------------------------------------------------------------


def test_anyone_reads_a_world_readable_object():
    keystore = make(stored(b"open", Policy.WORLDREADABLE), stored(b"closed"))
    keystore.set_password(OS, PASSWORD)

    assert keystore.read(OS, b"open", b"").data == b"data"
    assert keystore.read(OS, b"open", b"wrong").data == b"data"
    assert refusal(lambda: keystore.read(OS, b"closed", b"")) is H.AUTHORITY


def test_a_wrong_password_does_not_learn_what_exists():
    keystore = make()
    keystore.set_password(OS, PASSWORD)

    assert refusal(lambda: keystore.read(OS, b"absent", b"wrong")) is H.AUTHORITY
    assert refusal(lambda: keystore.read(OS, b"absent", PASSWORD)) is H.NOT_FOUND


@pytest.mark.parametrize("policy", [Policy.PWSET, Policy.PWSET | Policy.WORLDREADABLE])
def test_a_pwset_object_is_closed_until_its_consumer_has_a_password(policy: Policy):
    keystore = make(stored(b"label", policy))

    assert refusal(lambda: keystore.read(OS, b"label", b"")) is H.AUTHORITY
    assert refusal(lambda: keystore.remove(OS, b"label")) is H.AUTHORITY
    keystore.set_password(Consumer.FIRMWARE, PASSWORD)
    assert refusal(lambda: keystore.read(OS, b"label", b"")) is H.AUTHORITY
    keystore.set_password(OS, PASSWORD)
    assert keystore.read(OS, b"label", PASSWORD).data == b"data"
    if policy & Policy.WORLDREADABLE:
        assert keystore.read(OS, b"label", b"").data == b"data"


@pytest.mark.parametrize(
    ("policy", "needed"),
    [
        (Policy.OSSECBOOTAUDIT, 1),
        (Policy.OSSECBOOTENFORCE, 2),
        (Policy.OSSECBOOTAUDIT | Policy.OSSECBOOTENFORCE, 2),
        (Policy.OSSECBOOTAUDIT | Policy.WORLDREADABLE, 1),
    ],
)
@pytest.mark.parametrize("secure_boot", [0, 1, 2])
def test_secure_boot_policies_look_at_the_partitions_state(
    policy: Policy, needed: int, secure_boot: int
):
    keystore = make(stored(b"label", policy), secure_boot=secure_boot)

    if secure_boot >= needed:
        assert keystore.read(OS, b"label", b"").data == b"data"
        keystore.remove(OS, b"label")
    else:
        assert refusal(lambda: keystore.read(OS, b"label", b"")) is H.AUTHORITY
        assert refusal(lambda: keystore.remove(OS, b"label")) is H.AUTHORITY
        assert keystore.exists(OS, b"label")


@pytest.mark.parametrize("policy", [Policy.IMMUTABLE, Policy.SIGNEDUPDATE, Policy.HVPROVISIONED])
def test_some_objects_cannot_be_removed(policy: Policy):
    keystore = make(stored(b"label", policy))

    assert refusal(lambda: keystore.remove(OS, b"label")) is H.AUTHORITY
    assert keystore.exists(OS, b"label")
    assert keystore.read(OS, b"label", b"").data == b"data"
    assert keystore.take_changes() == []


@pytest.mark.parametrize("policy", [Policy.WRAPPINGKEY, Policy.WORLDREADABLE])
def test_other_objects_can_be_removed(policy: Policy):
    keystore = make(stored(b"label", policy))
    keystore.remove(OS, b"label")

    assert not keystore.exists(OS, b"label")


def test_the_hypervisor_discards_what_nobody_can_remove():
    keystore = make(stored(b"label", Policy.IMMUTABLE))
    keystore.discard(OS, b"label")

    assert keystore.used_space == 0
    assert keystore.take_changes() == [Delete("pks", object_key(3, b"label"))]
    assert refusal(lambda: keystore.discard(OS, b"label")) is H.NOT_FOUND


# -- runs and records ------------------------------------------------------------------------


def test_objects_are_listed_by_consumer_and_label():
    keystore = make(stored(b"b"), stored(b"a"), stored(b"z", consumer=1))

    assert [(item.consumer, item.label) for item in keystore.objects()] == [
        (Consumer.FIRMWARE, b"z"),
        (OS, b"a"),
        (OS, b"b"),
    ]


def test_records_of_other_namespaces_are_not_looked_at():
    assert list(make(Record("tpm", b"whatever", b"")).objects()) == []


def test_a_password_that_outlives_the_run_is_refused():
    """An import may bring one: whoever made the file would know every run's password."""
    with pytest.raises(StoreError, match="outlives the run"):
        make(Record("pks", b"p\x03", encode_password(PASSWORD)))


def test_an_unknown_kind_of_record_is_a_newer_versions():
    with pytest.raises(StoreError, match="newer hcalld"):
        make(Record("pks", b"l", b"\x01"))


def test_a_keystore_that_became_too_small_says_how_large_it_must_be():
    record = stored(b"label", data=bytes(5000))

    with pytest.raises(ConfigError, match="set it to at least 5"):
        make(record)
    make(record, kbytes=5)


def test_a_keystore_that_holds_objects_is_not_switched_off():
    with pytest.raises(ConfigError, match="keystore_kbytes is 0, but the keystore holds 1 objects"):
        make(stored(b"label"), kbytes=0)


def test_an_empty_keystore_may_be_switched_off():
    assert not make(kbytes=0).is_enabled
    assert make().is_enabled


# -- wrapping keys -----------------------------------------------------------------------------


def test_a_wrapping_key_is_given_as_a_secret_and_other_objects_are_not():
    keystore = make(stored(b"key", Policy.WRAPPINGKEY, b"k" * 32), stored(b"plain"))

    assert keystore.wrapping_key(OS, b"key").reveal() == b"k" * 32
    assert "k" * 8 not in repr(keystore.wrapping_key(OS, b"key"))
    assert refusal(lambda: keystore.wrapping_key(OS, b"plain")) is H.AUTHORITY
    assert refusal(lambda: keystore.wrapping_key(OS, b"absent")) is H.NOT_FOUND
    assert refusal(lambda: keystore.wrapping_key(Consumer.FIRMWARE, b"key")) is H.NOT_FOUND
    assert keystore.take_changes() == []


@pytest.mark.parametrize("secure_boot", [0, 1, 2])
@pytest.mark.parametrize("flags", [0, 1 << 62, 1 << 61, 1 << 62 | 1 << 61])
@pytest.mark.parametrize("needs_password", [False, True])
@pytest.mark.parametrize("has_password", [False, True])
def test_conditions_of_unwrapping(
    flags: int, secure_boot: int, needs_password: bool, has_password: bool
):
    keystore = make(secure_boot=secure_boot)
    if has_password:
        keystore.set_password(OS, PASSWORD)
    needed = 2 if flags & 1 << 61 else 1 if flags & 1 << 62 else 0
    flags |= needs_password << 60 | 1
    if secure_boot < needed or (needs_password and not has_password):
        assert refusal(lambda: keystore.check_unwrap(OS, flags)) is H.AUTHORITY
    else:
        keystore.check_unwrap(OS, flags)


# -- signed variables --------------------------------------------------------------------------

DB = os_label(b"", b"d\0b\0")
SIGNED = int(Policy.SIGNEDUPDATE)


def store_of(data: bytes, authority: Authority = Authority.PK) -> Accepted:
    return Accepted(Store(data), authority)


def test_a_variable_is_a_signed_object_of_the_os():
    variable = os_label(b"", b"d\0b\0")
    assert make(stored(variable, SIGNED)).variable(b"d\0b\0") == b"data"
    assert make(stored(variable, 0)).variable(b"d\0b\0") is None
    assert make(stored(variable, SIGNED, consumer=1)).variable(b"d\0b\0") is None
    assert make(stored(b"d\0b\0", SIGNED)).variable(b"d\0b\0") is None


def test_an_update_replaces_and_charges_the_difference():
    keystore = make(stored(DB, SIGNED, b"x" * 100))
    used = keystore.used_space
    keystore.update(OS, DB, SIGNED, store_of(b"y" * 90))

    assert keystore.used_space == used - 10
    assert keystore.take_changes() == [Put(stored(DB, SIGNED, b"y" * 90))]
    keystore.update(OS, DB, SIGNED, Accepted(Remove(), Authority.PK))
    assert keystore.used_space == 0
    assert keystore.take_changes() == [Delete("pks", object_key(3, DB))]
    keystore.update(OS, DB, SIGNED, Accepted(Remove(), Authority.PK))
    assert keystore.take_changes() == []


def test_a_variable_is_never_larger_than_linux_can_read():
    keystore = make(kbytes=128)

    assert refusal(lambda: keystore.update(OS, DB, SIGNED, store_of(bytes(65536)))) is H.NO_MEM
    keystore.update(OS, DB, SIGNED, store_of(bytes(65535)))


def test_an_update_that_does_not_fit_changes_nothing():
    keystore = make(stored(DB, SIGNED, b"x" * 100))
    before = keystore.config()
    room = 4096 - 10 - len(DB)

    for size in (room + 1, 65537):
        too_much = store_of(bytes(size), Authority.LATCH)
        assert refusal(lambda much=too_much: keystore.update(OS, DB, SIGNED, much)) is H.NO_MEM  # type: ignore[misc]
    assert keystore.config() == before
    assert keystore.take_changes() == []
    keystore.update(OS, DB, SIGNED, store_of(bytes(room)))
    assert keystore.used_space == 4096


def latched() -> Keystore:
    return Keystore(
        PartitionAttributes(
            keystore_signed_updates_without_verification=1, linux_dynamic_key_secure_boot=1
        ),
        [stored(DB, SIGNED), stored(b"plain"), stored(SB_VERSION, 8, b"\x01", consumer=1)],
    )


def test_the_latch_is_used_up_with_the_update_that_used_it():
    keystore = latched()
    keystore.update(OS, DB, SIGNED, store_of(b"new", Authority.KEK))
    assert keystore.has_latch
    keystore.take_changes()
    keystore.update(OS, DB, SIGNED, store_of(b"newer", Authority.LATCH))

    assert not keystore.has_latch
    changes = keystore.take_changes()
    assert changes == [Put(stored(DB, SIGNED, b"newer")), put_in_force(keystore.attributes)]


def test_the_wipe_takes_signed_variables_and_the_mode_with_the_reset():
    keystore = latched()
    keystore.update(OS, DB, SIGNED, Accepted(Wipe(), Authority.LATCH))
    records = [change.record for change in keystore.take_changes() if isinstance(change, Put)]

    assert [item.label for item in keystore.objects()] == [SB_VERSION, b"plain"]
    mode = next(record for record in records if record.namespace == "pks")
    assert (mode.key, mode.lifetime) == (object_key(1, SB_VERSION), Lifetime.RUN)
    assert not keystore.attributes.linux_dynamic_key_secure_boot
    assert not keystore.has_latch


def test_what_a_signed_update_may_change():
    keystore = make(stored(DB, SIGNED), stored(b"closed", SIGNED | Policy.PWSET))
    keystore.check_signed_update(OS, DB, SIGNED)
    keystore.check_signed_update(OS, b"absent", SIGNED | Policy.WORLDREADABLE)

    assert refusal(lambda: keystore.check_signed_update(OS, DB, SIGNED | 0x0800_0000)) is H.P4
    closed = SIGNED | Policy.PWSET
    assert refusal(lambda: keystore.check_signed_update(OS, b"closed", closed)) is H.AUTHORITY
    off = Keystore(PartitionAttributes(keystore_signed_updates=0))
    assert refusal(lambda: off.check_signed_update(OS, DB, SIGNED)) is H.AUTHORITY


@pytest.mark.parametrize("kbytes", [0, 4])
def test_what_ends_with_the_run_need_not_fit(kbytes: int):
    """An operator can have made the keystore smaller while the daemon, not the guest, was off."""
    value = encode_object(int(Policy.TRANSIENT), bytes(5000))
    record = Record(NAMESPACE, object_key(Consumer.OS, b"label"), value, Lifetime.RUN)
    assert Keystore(PartitionAttributes(keystore_kbytes=kbytes), [record]).used_space > 4096
    kept = Record(NAMESPACE, record.key, encode_object(0, bytes(5000)))
    with pytest.raises(ConfigError, match="keystore_kbytes is"):
        Keystore(PartitionAttributes(keystore_kbytes=kbytes), [kept])
