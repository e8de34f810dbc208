# SPDX-License-Identifier: Apache-2.0
"""H_PKS_SIGNED_UPDATE, as a guest sees it; the rules of updates are test_authvar.py's."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from tests import signing
from tests.signing import certificates, digests, moment, stored
from tests.unit.hcalld.families.registers import (
    MAX_OBJECT,
    SIGNED,
    UPDATE_GPA,
    VARIABLE_GPA,
    make,
    seed,
    variable_label,
)

from hcalld.core.effects import ReadBuffer
from hcalld.core.outcome import Outcome
from hcalld.domain.attributes import PartitionAttributes, PksAttributes
from hcalld.domain.labels import os_label
from hcalld.stores.memory import MemoryStore
from hcalld.testing.pks import PksMachine, label
from hcallproto.abi.families import pks
from hcallproto.abi.returns import H
from hcallproto.payloads.pks import Consumer, Policy

PUBLIC = SIGNED | Policy.WORLDREADABLE
POLICY = dict.fromkeys(("PK", "KEK", "moduledb", "trustedcadb"), SIGNED)
SB_VERSION = b"SB_VERSION"


def send(
    machine: PksMachine,
    name: str,
    message: bytes,
    *,
    is_append: bool = False,
    policy: int | None = None,
    at: int = UPDATE_GPA,
    raw_label: bytes | None = None,
    consumer: int = Consumer.OS,
    password: bytes | None = None,
    flags: int | None = None,
) -> Outcome:
    """The call as Linux makes it."""
    policy = POLICY.get(name, PUBLIC) if policy is None else policy
    auth = machine.put_auth(consumer, password)
    wanted = variable_label(name) if raw_label is None else raw_label
    machine.guest.write(VARIABLE_GPA, wanted)
    machine.guest.write(at, message)
    flags = int(is_append) if flags is None else flags
    return machine.hcall(
        pks.SIGNED_UPDATE, auth, VARIABLE_GPA, len(wanted), policy, flags, at, len(message), 0
    )


def signed(
    machine: PksMachine,
    name: str,
    data: bytes,
    second: int,
    by: str = "PK",
    *,
    is_append: bool = False,
    **values: Any,
) -> Outcome:
    """An update made and sent."""
    message = signing.update(name, data, by, moment(second), is_append=is_append)
    return send(machine, name, message, is_append=is_append, **values)


def content(machine: PksMachine, name: str) -> bytes | None:
    """What READ gives of a variable; None if it is not there."""
    outcome = machine.read(variable_label(name))
    if outcome.code is H.NOT_FOUND:
        return None
    assert outcome.code is H.SUCCESS
    return outcome.writes[0][1]


def latched(machine: PksMachine) -> bool:
    return bool(machine.keystore.attributes.keystore_signed_updates_without_verification)


LATCH: dict[str, Any] = {"keystore_signed_updates_without_verification": 1}


# -- what an update does ----------------------------------------------------------------------


def test_an_update_creates_replaces_and_deletes():
    machine = make()
    machine.gen_password()
    empty = machine.used_space()
    cost = 32 + len(variable_label("db"))

    assert signed(machine, "db", digests(1), 200).registers == ((4, 0),)
    assert content(machine, "db") == stored(moment(200), digests(1))
    assert machine.used_space() == empty + cost + 8 + len(digests(1))
    assert signed(machine, "db", digests(2, 3), 201).code is H.SUCCESS
    assert content(machine, "db") == stored(moment(201), digests(2, 3))
    assert machine.used_space() == empty + cost + 8 + len(digests(2, 3))
    assert signed(machine, "db", b"", 202).code is H.SUCCESS
    assert content(machine, "db") is None
    assert machine.used_space() == empty
    assert machine.confirm(variable_label("db")).registers == ((4, 1),)


def test_a_kek_may_empty_a_variable_but_not_delete_it():
    machine = make()
    signed(machine, "db", digests(1), 200, "KEK")
    assert signed(machine, "db", b"", 201, "KEK").code is H.SUCCESS

    assert content(machine, "db") == stored(moment(201), b"")
    assert signed(machine, "db", digests(1), 200, "KEK").code is H.AUTHORITY


def test_an_append_adds_what_is_new():
    machine = make()
    signed(machine, "dbx", digests(1), 200)
    assert signed(machine, "dbx", digests(1, 2), 150, is_append=True).code is H.SUCCESS

    assert content(machine, "dbx") == stored(moment(200), digests(1, 2))


def test_append_and_replace_are_signed_apart():
    machine = make()
    signed(machine, "dbx", digests(1), 200)
    replace = signing.update("dbx", digests(2), "PK", moment(201))
    append = signing.update("dbx", digests(2), "PK", moment(201), is_append=True)

    assert send(machine, "dbx", replace, is_append=True).code is H.AUTHORITY
    assert send(machine, "dbx", append, is_append=False).code is H.AUTHORITY
    assert content(machine, "dbx") == stored(moment(200), digests(1))


def test_an_update_is_for_one_name():
    machine = make()
    message = signing.update("db", digests(1), "PK", moment(200))
    for name in ("dbx", "grubdb", "moduledb", "other"):
        assert send(machine, name, message).code is H.AUTHORITY
        assert content(machine, name) is None


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_replay_is_refused(is_restarted: bool):
    machine = make()
    messages = [signing.update("db", digests(n), "PK", moment(200 + n)) for n in range(4)]
    for message in messages:
        assert send(machine, "db", message).code is H.SUCCESS
    before = content(machine, "db")
    if is_restarted:
        machine.reset()
        machine.reload()
    for message in messages:
        assert send(machine, "db", message).code is H.AUTHORITY
    assert content(machine, "db") == before


def test_two_updates_of_one_second_collide():
    machine = make()
    signed(machine, "db", digests(1), 200)

    assert signed(machine, "db", digests(2), 200).code is H.AUTHORITY
    assert signed(machine, "db", digests(2), 199).code is H.AUTHORITY
    assert signed(machine, "db", digests(2), 201).code is H.SUCCESS


def test_updates_outlive_daemon_reset_and_power():
    machine = make()
    signed(machine, "db", digests(1), 200)
    for again in (machine.reload, machine.reset, machine.power_on):
        again()
        assert content(machine, "db") == stored(moment(200), digests(1))


@pytest.mark.parametrize(
    ("name", "by", "code"),
    [
        ("KEK", "KEK", H.AUTHORITY),
        ("PK", "KEK", H.AUTHORITY),
        ("db", "KEK", H.SUCCESS),
        ("moduledb", "KEK", H.SUCCESS),
        ("anything", "KEK", H.SUCCESS),
        ("db", "stranger", H.AUTHORITY),
        ("PK", "PK", H.SUCCESS),
    ],
)
def test_who_may_sign(name: str, by: str, code: H):
    data = digests(1) if name == "db" else certificates("PK")

    assert signed(make(), name, data, 200, by).code is code


def test_a_removed_pk_is_no_more_believed():
    """After a change of PK the old one signs nothing."""
    machine = make()
    assert signed(machine, "PK", certificates("new"), 200).code is H.SUCCESS
    assert signed(machine, "db", digests(1), 201).code is H.AUTHORITY
    assert signed(machine, "db", digests(1), 201, "new").code is H.SUCCESS
    assert signed(machine, "db", digests(2), 202, "KEK").code is H.SUCCESS


def test_an_unsigned_object_called_pk_is_no_pk():
    """The guest can write one, and gains nothing but a name in its own way."""
    machine = PksMachine()
    assert (
        machine.write(variable_label("PK"), stored(moment(1), certificates("PK"))).code is H.SUCCESS
    )

    assert signed(machine, "db", digests(1), 200).code is H.AUTHORITY
    assert signed(machine, "PK", certificates("PK"), 200).code is H.P4
    assert machine.keystore.variable("PK".encode("utf-16-le")) is None


def test_with_no_pk_nothing_is_taken():
    machine = PksMachine()
    for name, data in (("db", digests(1)), ("KEK", certificates("KEK")), ("other", b"x")):
        assert signed(machine, name, data, 200).code is H.AUTHORITY
    assert machine.used_space() == 0


# -- policies ---------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [SIGNED, PUBLIC | Policy.PWSET, PUBLIC | Policy.TRANSIENT])
def test_another_policy_than_the_objects_is_p4(policy: int):
    machine = make()
    machine.gen_password()
    signed(machine, "db", digests(1), 200)
    before = content(machine, "db")

    assert signed(machine, "db", digests(2), 201, policy=policy).code is H.P4
    assert signed(machine, "db", b"", 202, policy=policy).code is H.P4
    assert content(machine, "db") == before


@pytest.mark.parametrize("password", [b"", b"w" * 32])
def test_a_wrong_password_is_h_authority(password: bytes):
    machine = make()
    machine.gen_password()

    assert signed(machine, "db", digests(1), 200, password=password).code is H.AUTHORITY
    assert content(machine, "db") is None


@pytest.mark.parametrize("name", ["PK", "db", "anything"])
def test_signed_updates_that_are_off_are_h_authority(name: str):
    machine = make(keystore_signed_updates=0)
    data = certificates("PK") if name == "PK" else digests(1)
    before = list(machine.keystore.objects())
    outcome = signed(machine, name, data, 200)

    assert outcome.code is H.AUTHORITY
    assert "keystore_signed_updates" in outcome.why
    assert list(machine.keystore.objects()) == before
    assert machine.keystore.config()[28:36] == bytes(8)


def test_a_signed_variable_is_changed_by_nothing_else():
    machine = make()
    signed(machine, "db", digests(1), 200)
    name = variable_label("db")

    assert machine.write(name, b"mine").code is H.RESOURCE
    assert machine.write(name, b"mine", SIGNED).code is H.P4
    assert machine.remove(name).code is H.AUTHORITY
    auth = machine.put_auth()
    key = machine.hcall(pks.GEN_KEY, auth, *machine.put_label(name), 0, 0x20000, 32)
    assert key.code is H.RESOURCE
    assert content(machine, "db") == stored(moment(200), digests(1))


def test_a_world_readable_variable_is_read_without_a_password_and_others_are_not():
    machine = make()
    machine.gen_password()
    signed(machine, "db", digests(1), 200)
    signed(machine, "moduledb", certificates("PK"), 200)

    assert machine.read(variable_label("db"), password=b"").code is H.SUCCESS
    for name in ("PK", "KEK", "moduledb"):
        assert machine.read(variable_label(name), password=b"").code is H.AUTHORITY


def test_an_immutable_variable_is_made_once():
    machine = make()
    policy = PUBLIC | Policy.IMMUTABLE
    assert signed(machine, "other", b"x", 200, policy=policy).code is H.SUCCESS

    assert signed(machine, "other", b"y", 201, policy=policy).code is H.AUTHORITY
    assert signed(machine, "other", b"", 202, policy=policy).code is H.AUTHORITY
    assert content(machine, "other") == stored(moment(200), b"x")


def test_a_transient_variable_goes_with_the_reset_and_its_time_with_it():
    machine = make()
    policy = PUBLIC | Policy.TRANSIENT
    assert signed(machine, "other", b"x", 200, policy=policy).code is H.SUCCESS
    machine.reload()
    assert signed(machine, "other", b"xy", 201, policy=policy).code is H.SUCCESS
    used = machine.used_space()
    machine.reset()

    assert content(machine, "other") is None
    assert machine.used_space() == used - 32 - len(variable_label("other")) - 10
    assert signed(machine, "other", b"x", 200, policy=policy).code is H.SUCCESS


# -- the latch --------------------------------------------------------------------------------


def test_under_the_latch_pk_needs_no_signature_and_no_later_time_once():
    machine = make(**LATCH)
    assert signed(machine, "PK", certificates("new"), 1, "stranger").code is H.SUCCESS
    assert content(machine, "PK") == stored(moment(1), certificates("new"))
    assert not latched(machine)
    machine.reload()
    assert not latched(machine)

    assert signed(machine, "PK", certificates("PK"), 300, "stranger").code is H.AUTHORITY
    assert signed(machine, "PK", certificates("PK"), 300, "new").code is H.SUCCESS


def test_the_latch_stays_used_after_reset_and_power_until_it_is_ordered_again():
    machine = make(**LATCH)
    signed(machine, "PK", certificates("new"), 1, "stranger")
    for again in (machine.reset, machine.power_on):
        again()
        assert not latched(machine)
    limits = machine.attributes.pks
    off = PartitionAttributes(keystore_kbytes=8, pks=limits)
    machine.power_on(off)
    machine.power_on(
        PartitionAttributes(
            keystore_kbytes=8, pks=limits, keystore_signed_updates_without_verification=1
        )
    )
    assert latched(machine)
    assert signed(machine, "PK", certificates("newer"), 0, "stranger").code is H.SUCCESS


@pytest.mark.parametrize(
    ("name", "data", "second", "code"),
    [
        ("PK", b"", 300, H.P6),
        ("PK", digests(1), 300, H.P6),
        ("PK", certificates("PK", "new"), 300, H.P6),
        ("PK", certificates("PK")[:-1], 300, H.P6),
        ("KEK", certificates("new"), 300, H.AUTHORITY),
        ("db", digests(1), 300, H.AUTHORITY),
        ("anything", signing.WIPE, 300, H.AUTHORITY),
        ("KEK", signing.WIPE, 300, H.AUTHORITY),
    ],
)
def test_a_refused_update_leaves_the_latch(name: str, data: bytes, second: int, code: H):
    machine = make(**LATCH)
    before = list(machine.keystore.objects())

    assert signed(machine, name, data, second, "stranger").code is code
    assert latched(machine)
    assert list(machine.keystore.objects()) == before


def test_other_variables_do_not_use_up_the_latch():
    machine = make(**LATCH)
    assert signed(machine, "db", digests(1), 200).code is H.SUCCESS
    assert signed(machine, "KEK", certificates("new"), 200).code is H.SUCCESS
    assert latched(machine)


def test_an_update_of_pk_without_room_leaves_the_latch():
    machine = make(**LATCH, keystore_kbytes=4)
    fill = label("filler")
    assert (
        machine.write(fill, bytes(4096 - machine.used_space() - 32 - len(fill))).code is H.SUCCESS
    )
    longer = certificates("a signer whose name is longer than that of PK")

    assert signed(machine, "PK", longer, 200, "stranger").code is H.NO_MEM
    assert latched(machine)
    assert signed(machine, "PK", certificates("PK"), 200, "stranger").code is H.SUCCESS
    assert not latched(machine)


# -- the wipe ---------------------------------------------------------------------------------


def wiped(**attributes: Any) -> PksMachine:
    machine = make(linux_dynamic_key_secure_boot=1, **attributes)
    return machine


def test_the_wipe_deletes_every_signed_variable_and_nothing_else():
    machine = wiped(**LATCH)
    machine.gen_password()
    machine.write(label("mine"), b"kept")
    signed(machine, "db", digests(1), 200)
    signed(machine, "other", b"x", 200, policy=PUBLIC | Policy.IMMUTABLE)
    signed(machine, "passing", b"x", 200, policy=PUBLIC | Policy.TRANSIENT)
    assert signed(machine, "PK", signing.WIPE, 0, "stranger").code is H.SUCCESS

    left = [item for item in machine.keystore.objects() if item.stored.policy & SIGNED]
    assert left == []
    assert machine.read(label("mine")).code is H.SUCCESS
    assert not latched(machine)
    assert machine.keystore.attributes.linux_dynamic_key_secure_boot == 0
    objects = list(machine.keystore.objects())
    assert machine.used_space() == sum(32 + len(o.label) + len(o.stored.data) for o in objects)
    machine.reload()
    assert list(machine.keystore.objects()) == objects
    assert machine.keystore.attributes.linux_dynamic_key_secure_boot == 0


@pytest.mark.parametrize("is_restarted", [False, True])
def test_the_wipe_lets_the_running_kernel_keep_its_mode_until_the_reset(is_restarted: bool):
    store = MemoryStore()
    seed(store, variable_label("PK"), SIGNED, stored(moment(1), certificates("PK")))
    policy = Policy.WORLDREADABLE | Policy.HVPROVISIONED
    seed(store, SB_VERSION, policy, b"\x01", consumer=1)
    attributes = PartitionAttributes(
        linux_dynamic_key_secure_boot=1, keystore_signed_updates_without_verification=1
    )
    machine = PksMachine(attributes, store=store)
    assert signed(machine, "PK", signing.WIPE, 0, "stranger").code is H.SUCCESS
    outcome = machine.read(SB_VERSION, consumer=Consumer.FIRMWARE)
    assert (outcome.code, outcome.registers) == (H.SUCCESS, ((4, 1), (5, policy)))
    if is_restarted:
        machine.reload()
        assert machine.read(SB_VERSION, consumer=Consumer.FIRMWARE).code is H.SUCCESS
    machine.reset()

    assert machine.read(SB_VERSION, consumer=Consumer.FIRMWARE).code is H.NOT_FOUND
    machine.reload()
    assert machine.read(SB_VERSION, consumer=Consumer.FIRMWARE).code is H.NOT_FOUND
    assert machine.used_space() == 0


def test_the_wipe_counts_only_under_the_latch():
    machine = wiped()
    before = list(machine.keystore.objects())

    assert signed(machine, "PK", signing.WIPE, 300, "PK").code is H.P6
    assert list(machine.keystore.objects()) == before
    assert machine.keystore.attributes.linux_dynamic_key_secure_boot == 1


def test_after_the_wipe_nothing_is_taken_until_the_latch_is_set_again():
    machine = wiped(**LATCH)
    signed(machine, "PK", signing.WIPE, 0, "stranger")

    assert signed(machine, "PK", certificates("PK"), 300).code is H.AUTHORITY
    assert signed(machine, "db", digests(1), 300).code is H.AUTHORITY


@pytest.mark.parametrize(
    "text",
    [signing.WIPE[:-1], signing.WIPE + b"\n", signing.WIPE[1:], signing.WIPE.replace(b"Y", b"y")],
)
def test_what_is_nearly_the_wipe_message_wipes_nothing(text: bytes):
    machine = wiped(**LATCH)
    before = list(machine.keystore.objects())

    assert signed(machine, "PK", text, 300, "stranger").code is H.P6
    assert list(machine.keystore.objects()) == before
    assert latched(machine)


# -- labels, sizes, room ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (os_label(b"", b""), H.P3),
        (os_label(b"", b"d\0b"), H.P3),
        (os_label(b"", b"d\0\0\0b\0"), H.P2),
        (os_label(b"", b"\0\0"), H.P2),
        (os_label(b"", b"d\0b\0\0\0"), H.P2),
        (os_label(b"sed-opal", b"d\0b\0"), H.P2),
        (os_label(b"", b"d\0b\0", os=4), H.P2),
        (os_label(b"", b"d\0b\0", os=0), H.P2),
    ],
)
def test_labels_that_are_no_variables(raw: bytes, code: H):
    machine = make()
    message = signing.update("db", digests(1), "PK", moment(200))

    assert send(machine, "db", message, raw_label=raw).code is code


@pytest.mark.parametrize("name", [b"\0d", b"\xff\xff", b"/\0.\0.\0", b"\x00\xd8", b"a\1" * 100])
def test_any_other_utf16_is_a_name(name: bytes):
    machine = make()
    text = name.decode("utf-16-le", "surrogatepass")
    raw = os_label(b"", name)
    if text.encode("utf-16-le", "replace") == name:
        message = signing.update(text, b"data", "PK", moment(200))
        assert send(machine, text, message, raw_label=raw).code is H.SUCCESS
    else:
        message = signing.update("db", b"data", "PK", moment(200))
        assert send(machine, "db", message, raw_label=raw).code is H.AUTHORITY


@pytest.mark.parametrize("consumer", [Consumer.FIRMWARE, Consumer.BOOTLOADER])
def test_signed_variables_are_the_oss(consumer: Consumer):
    machine = make()
    message = signing.update("db", digests(1), "PK", moment(200))

    assert send(machine, "db", message, consumer=consumer).code is H.PARAMETER


def test_room_is_judged_on_the_difference():
    machine = make(keystore_kbytes=4)
    signed(machine, "dbx", digests(*range(8)), 200)
    fill = label("filler")
    room = 4096 - machine.used_space() - 32 - len(fill)
    assert machine.write(fill, bytes(room)).code is H.SUCCESS
    assert machine.used_space() == 4096

    assert signed(machine, "dbx", digests(*range(10, 18)), 201).code is H.SUCCESS
    before = content(machine, "dbx")
    assert signed(machine, "dbx", digests(*range(9)), 202).code is H.NO_MEM
    assert signed(machine, "dbx", digests(99), 202, is_append=True).code is H.NO_MEM
    assert signed(machine, "db", digests(1), 202).code is H.NO_MEM
    assert content(machine, "dbx") == before
    assert machine.used_space() == 4096
    assert signed(machine, "dbx", digests(1), 203).code is H.SUCCESS
    assert machine.used_space() == 4096 - 7 * 48
    assert signed(machine, "dbx", b"", 204).code is H.SUCCESS


def test_a_variable_that_would_exceed_the_greatest_object_is_no_mem():
    machine = make(keystore_kbytes=64)
    assert signed(machine, "dbx", digests(*range(12)), 200).code is H.SUCCESS
    outcome, first = None, 12
    while outcome is None or outcome.code is H.SUCCESS:
        before = content(machine, "dbx")
        more = digests(*range(first, first + 12))
        outcome = signed(machine, "dbx", more, 200, is_append=True)
        first += 12

    assert outcome.code is H.NO_MEM
    assert f"at most {MAX_OBJECT}" in outcome.why
    assert content(machine, "dbx") == before


def test_an_update_has_65535_bytes_at_most():
    machine = PksMachine(PartitionAttributes(pks=PksAttributes(object_overhead=0)))
    message = signing.update("db", digests(1), "PK", moment(200)).ljust(65536, b"\0")

    assert send(machine, "db", message).code is H.P7
    assert send(machine, "db", message[:-1]).code is not H.P7


def test_an_update_may_lie_anywhere_and_cross_a_page():
    for at in (UPDATE_GPA + 1, UPDATE_GPA + 0xFF8, UPDATE_GPA + 0xFFF):
        machine = make()
        message = signing.update("db", digests(1), "PK", moment(200))
        assert send(machine, "db", message, at=at).code is H.SUCCESS


# -- malformed --------------------------------------------------------------------------------

MESSAGE = signing.update("db", digests(1), "PK", moment(200))


@pytest.mark.parametrize("size", [40, 41, 100, len(MESSAGE) - len(digests(1)) - 1])
def test_an_update_that_is_cut_in_its_pkcs7_is_p7(size: int):
    """WIN_CERTIFICATE claims more than there is."""
    assert send(make(), "db", MESSAGE[:size]).code is H.P7


@pytest.mark.parametrize("cut", range(1, len(digests(1)), 9))
def test_an_update_whose_data_are_cut_is_not_what_was_signed(cut: int):
    assert send(make(), "db", MESSAGE[:-cut]).code is H.AUTHORITY


@pytest.mark.parametrize("length", [0, 23, 24, 0xFFFF_FFFF, len(MESSAGE) - 15])
def test_lengths_of_the_certificate(length: int):
    message = bytearray(MESSAGE)
    struct.pack_into("<I", message, 16, length)

    assert send(make(), "db", bytes(message)).code in (H.P6, H.P7)


@pytest.mark.parametrize("place", [7, 8, 11, 12, 13, 14, 15])
def test_fields_of_the_time_that_must_be_zero(place: int):
    message = bytearray(MESSAGE)
    message[place] = 1

    assert send(make(), "db", bytes(message)).code is H.P6


def test_no_byte_of_an_update_can_be_changed():
    """But those of the PKCS#7 that nobody looks at: names, serial numbers, certificates."""
    machine = make()
    taken = []
    for place in range(len(MESSAGE)):
        message = bytearray(MESSAGE)
        message[place] ^= 0x01
        outcome = send(machine, "db", bytes(message))
        if outcome.code is H.SUCCESS:
            taken.append(place)
            assert content(machine, "db") == stored(moment(200), digests(1))
            assert signed(machine, "db", b"", 300 + place).code is H.SUCCESS
        else:
            assert outcome.code in (H.P6, H.P7, H.AUTHORITY)
            assert content(machine, "db") is None
    size = int.from_bytes(MESSAGE[16:20], "little")
    assert all(40 <= place < 16 + size for place in taken)


def test_each_buffer_is_read_once_and_in_order():
    machine = make()
    signed(machine, "db", digests(1), 200)

    assert machine.trail == [ReadBuffer("auth"), ReadBuffer("label"), ReadBuffer("in")]


def test_one_update_is_one_commit():
    machine = wiped(**LATCH)
    signed(machine, "db", digests(1), 200)
    generation = machine.store.generation
    signed(machine, "PK", signing.WIPE, 0, "stranger")

    assert machine.store.generation == generation + 1
