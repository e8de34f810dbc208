# SPDX-License-Identifier: Apache-2.0
"""H_PKS_GEN_KEY, WRAP_OBJECT and UNWRAP_OBJECT, as a guest sees them."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.hcalld.families.registers import (
    BLOB_GPA,
    FLAGS,
    GOOD,
    KEY_LABEL,
    KEY_LABEL_GPA,
    LABEL,
    MAX_LABEL,
    MAX_OBJECT,
    PLAIN,
    RAM_SIZE,
    WRAPPED_SIZE,
    make,
    prepared,
    seed,
)

from hcalld.core.effects import Entropy, ReadBuffer
from hcalld.core.outcome import Outcome
from hcalld.domain.attributes import PartitionAttributes, PksAttributes
from hcalld.stores.memory import MemoryStore
from hcalld.testing import FakeGuest
from hcalld.testing.pks import AUTH_GPA, DATA_GPA, LABEL_GPA, OUT_GPA, PksMachine, label
from hcallproto.abi.families import pks
from hcallproto.abi.returns import H
from hcallproto.payloads.pks import Consumer, Policy, WrapFlag

GB4 = 1 << 32


def gen_key(
    machine: PksMachine,
    name: bytes = KEY_LABEL,
    policy: int = Policy.WRAPPINGKEY,
    size: int = 32,
    *,
    consumer: int = Consumer.OS,
) -> Outcome:
    auth = machine.put_auth(consumer)
    out = 0 if policy & Policy.WRAPPINGKEY else OUT_GPA
    return machine.hcall(pks.GEN_KEY, auth, *machine.put_label(name), policy, out, size)


def wrap(
    machine: PksMachine,
    data: bytes = PLAIN,
    flags: int = FLAGS,
    *,
    name: bytes = KEY_LABEL,
    consumer: int = Consumer.OS,
) -> Outcome:
    auth = machine.put_auth(consumer)
    machine.guest.write(DATA_GPA, data)
    sizes = (DATA_GPA, len(data), BLOB_GPA, len(data) + 1024, 0)
    return machine.hcall(pks.WRAP_OBJECT, auth, *machine.put_label(name), flags, *sizes)


def blob_of(machine: PksMachine, data: bytes = PLAIN, flags: int = FLAGS) -> bytes:
    assert wrap(machine, data, flags).code is H.SUCCESS
    return machine.guest.read(BLOB_GPA, len(data) + 1024)


def unwrap(
    machine: PksMachine,
    blob: bytes,
    size: int | None = None,
    *,
    consumer: int = Consumer.OS,
    out: int = OUT_GPA,
) -> Outcome:
    auth = machine.put_auth(consumer)
    machine.guest.write(BLOB_GPA, blob)
    size = max(len(blob) - 1024, 0) if size is None else size
    return machine.hcall(pks.UNWRAP_OBJECT, auth, 0, BLOB_GPA, len(blob), out, size, 0)


def keyed(**attributes: Any) -> PksMachine:
    """A machine with a wrapping key and a password."""
    machine = make(**attributes)
    machine.gen_password()
    assert gen_key(machine).code is H.SUCCESS
    return machine


def with_policy(policy: int, data: bytes = b"k" * 32) -> PksMachine:
    """A machine whose wrapping key was put there by other means."""
    store = MemoryStore()
    seed(store, KEY_LABEL, policy, data)
    machine = PksMachine(store=store)
    machine.gen_password()
    return machine


# -- GEN_KEY ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 31, 32, 33, MAX_OBJECT])
def test_a_key_that_does_not_wrap_is_told_and_can_be_read_again(size: int):
    machine = make()
    outcome = gen_key(machine, LABEL, 0, size)
    key = machine.guest.read(OUT_GPA, size)

    assert (outcome.code, outcome.registers) == (H.SUCCESS, ())
    assert outcome.writes == ((OUT_GPA, key),)
    assert any(key)
    machine.guest.write(OUT_GPA, bytes(size))
    assert machine.read(LABEL).registers == ((4, size), (5, 0))
    assert machine.guest.read(OUT_GPA, size) == key


def test_a_wrapping_key_is_told_to_nobody():
    machine = make()
    memory = machine.guest.snapshot()[0][OUT_GPA:]
    outcome = gen_key(machine)

    assert (outcome.code, outcome.registers, outcome.writes) == (H.SUCCESS, (), ())
    assert machine.guest.snapshot()[0][OUT_GPA:] == memory
    (key,) = (item for item in machine.keystore.objects() if item.label == KEY_LABEL)
    assert len(key.stored.data) == 32
    assert not any(key.stored.data in region for region in machine.guest.snapshot())


@pytest.mark.parametrize("size", [1, 16, 31, 33, 64])
def test_a_wrapping_key_has_32_bytes_and_no_other_number(size: int):
    machine = make()

    assert gen_key(machine, size=size).code is H.P6
    assert machine.trail == []
    assert not machine.keystore.exists(Consumer.OS, KEY_LABEL)


def test_the_second_boot_finds_the_key():
    """Linux takes H_RESOURCE for success, and what it wrapped before still opens."""
    machine = keyed()
    blob = blob_of(machine)
    for again in (machine.reset, machine.power_on):
        again()
        machine.gen_password()
        assert gen_key(machine).code is H.RESOURCE
        assert unwrap(machine, blob).code is H.SUCCESS
        assert machine.guest.read(OUT_GPA, len(PLAIN)) == PLAIN


def test_keys_are_charged_like_objects():
    machine = make()
    used = machine.used_space()
    gen_key(machine)
    assert machine.used_space() == used + 32 + len(KEY_LABEL) + 32
    machine.remove(KEY_LABEL)
    assert machine.used_space() == used


def test_each_key_is_another():
    machine = make()
    keys = set()
    for number in range(8):
        gen_key(machine, label(f"key {number}"), 0)
        keys.add(machine.guest.read(OUT_GPA, 32))

    assert len(keys) == 8


@pytest.mark.parametrize(
    "policy",
    [
        Policy.WRAPPINGKEY | Policy.WORLDREADABLE,
        Policy.WRAPPINGKEY | Policy.WORLDREADABLE | Policy.TRANSIENT,
    ],
)
def test_a_wrapping_key_cannot_be_world_readable(policy: int):
    machine = make()

    assert gen_key(machine, policy=policy).code is H.P4
    assert not machine.keystore.exists(Consumer.OS, KEY_LABEL)


@pytest.mark.parametrize(
    "name", [b"", b"\0", b"a\0b", b"\xff" * 200, b"../../etc/passwd", b"/", b"x" * (MAX_LABEL - 16)]
)
def test_a_wrapping_keys_name_is_any_bytes(name: bytes):
    machine = make()
    machine.gen_password()
    assert gen_key(machine, label(name)).code is H.SUCCESS
    assert wrap(machine, name=label(name)).code is H.SUCCESS
    blob = machine.guest.read(BLOB_GPA, WRAPPED_SIZE)
    assert unwrap(machine, blob).code is H.SUCCESS
    for other in (name + b"\0", name[:-1] + b"\1"):
        if len(other) + 16 <= MAX_LABEL:
            assert wrap(machine, name=label(other)).code is H.NOT_FOUND


def test_a_key_may_be_told_over_its_own_arguments():
    for out in (AUTH_GPA, LABEL_GPA, LABEL_GPA + 10):
        machine = make()
        auth, place = machine.put_auth(), machine.put_label(LABEL)
        assert machine.hcall(pks.GEN_KEY, auth, *place, 0, out, 32).code is H.SUCCESS
        key = machine.guest.read(out, 32)
        assert machine.read(LABEL).code is H.SUCCESS
        assert machine.guest.read(OUT_GPA, 32) == key


@pytest.mark.parametrize("password", ["", "right"])
def test_a_wrapping_key_is_not_read_whoever_asks(password: str):
    machine = keyed()
    machine.guest.write(OUT_GPA, bytes(64))
    right = machine.password
    outcome = machine.read(KEY_LABEL, password=right if password else b"")

    assert outcome.code is H.AUTHORITY
    assert outcome.registers == (((5, Policy.WRAPPINGKEY),) if password else ())
    assert machine.guest.read(OUT_GPA, 64) == bytes(64)


def test_a_wrapping_key_is_not_written_nor_updated():
    machine = keyed()
    machine.guest.write(DATA_GPA, b"mine" * 8)

    assert machine.write(KEY_LABEL, b"mine" * 8).code is H.RESOURCE
    machine.remove(KEY_LABEL)
    assert machine.write(KEY_LABEL, b"mine" * 8, Policy.WRAPPINGKEY).code is H.P4
    assert machine.write(KEY_LABEL, b"mine" * 8).code is H.SUCCESS
    assert wrap(machine).code is H.AUTHORITY  # a key that the guest knows wraps nothing


def test_an_immutable_wrapping_key_wraps_and_stays():
    machine = make()
    machine.gen_password()
    assert gen_key(machine, policy=Policy.WRAPPINGKEY | Policy.IMMUTABLE).code is H.SUCCESS
    blob = blob_of(machine)

    assert machine.remove(KEY_LABEL).code is H.AUTHORITY
    assert unwrap(machine, blob).code is H.SUCCESS


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_transient_wrapping_key_is_gone_after_the_reset(is_restarted: bool):
    machine = make()
    machine.gen_password()
    assert gen_key(machine, policy=Policy.WRAPPINGKEY | Policy.TRANSIENT).code is H.SUCCESS
    blob = blob_of(machine)
    machine.reload()
    assert unwrap(machine, blob).code is H.SUCCESS
    machine.reset()
    if is_restarted:
        machine.reload()
    machine.gen_password()

    assert unwrap(machine, blob).code is H.NOT_FOUND
    assert wrap(machine).code is H.NOT_FOUND
    assert gen_key(machine).code is H.SUCCESS
    assert unwrap(machine, blob).code is H.BAD_DATA  # another key of the same name


# -- WRAP ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 15, 16, 32, 128, 1000, MAX_OBJECT])
def test_what_is_wrapped_has_1024_bytes_more_and_comes_back(size: int):
    machine = keyed()
    data = bytes(i * 31 & 0xFF for i in range(size))
    machine.guest.write(BLOB_GPA, b"\xee" * (size + 1040))
    outcome = wrap(machine, data)
    blob = machine.guest.read(BLOB_GPA, size + 1024)

    assert (outcome.code, outcome.registers) == (H.SUCCESS, ((4, 0), (5, size + 1024)))
    assert machine.guest.read(BLOB_GPA + size + 1024, 16) == b"\xee" * 16
    machine.guest.write(OUT_GPA, b"\xee" * (size + 16))
    outcome = unwrap(machine, blob)
    assert (outcome.code, outcome.registers) == (H.SUCCESS, ((4, 0), (5, size)))
    assert machine.guest.read(OUT_GPA, size + 16) == data + b"\xee" * 16


def test_the_largest_object_is_wrapped():
    machine = PksMachine(PartitionAttributes(keystore_kbytes=128), guest=FakeGuest([(0, 1 << 20)]))
    machine.gen_password()
    gen_key(machine)
    auth, name = machine.put_auth(), machine.put_label(KEY_LABEL)
    data = bytes(range(256)) * 256
    machine.guest.write(0x40000, data)
    big = (0x40000, 65536, 0x60000, 65536 + 1024, 0)
    assert machine.hcall(pks.WRAP_OBJECT, auth, *name, FLAGS, *big).registers[1] == (5, 66560)
    back = (0x60000, 66560, 0x80000, 65536, 0)
    assert machine.hcall(pks.UNWRAP_OBJECT, auth, 0, *back).code is H.SUCCESS
    assert machine.guest.read(0x80000, 65536) == data


def test_wrapping_the_same_twice_gives_two_objects():
    machine = keyed()
    first, second = blob_of(machine), blob_of(machine)

    assert first != second
    for blob in (first, second):
        assert unwrap(machine, blob).code is H.SUCCESS


def test_neither_wrap_nor_unwrap_changes_anything_that_lasts():
    machine = keyed()
    generation, used = machine.store.generation, machine.used_space()
    unwrap(machine, blob_of(machine))

    assert machine.store.generation == generation
    assert machine.used_space() == used


def test_wrap_reads_each_buffer_once_and_in_order():
    machine = keyed()
    wrap(machine)
    assert machine.trail == [
        *(ReadBuffer("auth"), ReadBuffer("label"), ReadBuffer("in")),
        Entropy(32),
    ]
    unwrap(machine, machine.guest.read(BLOB_GPA, WRAPPED_SIZE))
    assert machine.trail == [ReadBuffer("auth"), ReadBuffer("in")]


def test_wrap_without_its_key_is_not_found_and_with_another_object_h_authority():
    machine = keyed()
    machine.write(LABEL, b"x" * 32)

    assert wrap(machine, name=label("absent")).code is H.NOT_FOUND
    assert wrap(machine, name=LABEL).code is H.AUTHORITY
    assert wrap(machine, name=KEY_LABEL + b"\0").code is H.NOT_FOUND
    assert wrap(machine, name=KEY_LABEL[:-1]).code is H.NOT_FOUND


def test_a_key_is_its_consumers():
    machine = keyed()
    firmware = Consumer.FIRMWARE
    assert wrap(machine, consumer=firmware).code is H.NOT_FOUND
    assert gen_key(machine, consumer=firmware).code is H.SUCCESS
    assert wrap(machine, consumer=firmware).code is H.SUCCESS
    theirs = machine.guest.read(BLOB_GPA, WRAPPED_SIZE)

    assert unwrap(machine, theirs).code is H.AUTHORITY
    assert unwrap(machine, blob_of(machine), consumer=firmware).code is H.AUTHORITY


@pytest.mark.parametrize(
    ("policy", "secure_boot", "code"),
    [
        (Policy.OSSECBOOTAUDIT, 0, H.AUTHORITY),
        (Policy.OSSECBOOTAUDIT, 1, H.SUCCESS),
        (Policy.OSSECBOOTENFORCE, 1, H.AUTHORITY),
        (Policy.OSSECBOOTENFORCE, 2, H.SUCCESS),
    ],
)
def test_what_closes_a_wrapping_key_closes_its_use(policy: int, secure_boot: int, code: H):
    machine = make(secure_boot=secure_boot)
    machine.gen_password()
    assert gen_key(machine, policy=Policy.WRAPPINGKEY | policy).code is H.SUCCESS

    assert wrap(machine).code is code


def test_a_pwset_wrapping_key_is_closed_until_there_is_a_password():
    machine = make()
    assert gen_key(machine, policy=Policy.WRAPPINGKEY | Policy.PWSET).code is H.SUCCESS
    assert wrap(machine).code is H.AUTHORITY
    machine.gen_password()
    assert wrap(machine).code is H.SUCCESS


# -- UNWRAP --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0x01, 0x80])
def test_no_byte_of_a_wrapped_object_can_be_changed(mask: int):
    """Through the call: never data, memory untouched, a code that says what is wrong."""
    machine = keyed()
    blob = blob_of(machine, b"short")
    machine.guest.write(OUT_GPA, b"\xee" * 8)
    generation = machine.store.generation
    codes = set()
    for place in range(len(blob)):
        altered = bytearray(blob)
        altered[place] ^= mask
        outcome = unwrap(machine, bytes(altered))
        codes.add(outcome.code)
        assert outcome.writes == ()
        assert outcome.registers == ((4, 0),)
    assert codes == {H.BAD_DATA, H.UNSUPPORTED, H.NOT_FOUND, H.AUTHORITY}
    assert machine.guest.read(OUT_GPA, 8) == b"\xee" * 8
    assert machine.store.generation == generation


@pytest.mark.parametrize("cut", [1, 2, 16, 99])
def test_a_wrapped_object_that_is_cut_is_bad_data(cut: int):
    machine = keyed()

    assert unwrap(machine, blob_of(machine)[:-cut]).code is H.BAD_DATA
    assert unwrap(machine, blob_of(machine) + bytes(cut)).code is H.BAD_DATA


@pytest.mark.parametrize("size", [0, 1, 2, 16, 512, 1008, 1023])
def test_linux_passes_this_for_a_wrapped_key_that_is_too_short(size: int):
    """plpks_unwrap_object(): the length wraps round, and kzalloc(0) is address 0x10."""
    machine = keyed()
    memory = machine.guest.snapshot()
    out_size = (size - 1024) % GB4
    auth = AUTH_GPA
    for source in (BLOB_GPA, 0x10):
        for out in (0x10, OUT_GPA):
            outcome = machine.hcall(pks.UNWRAP_OBJECT, auth, 0, source, size, out, out_size, 0)
            assert outcome.code is H.P4
            assert machine.trail == []
    assert machine.guest.snapshot() == memory


def test_a_blob_of_exactly_1024_bytes_is_bad_data():
    machine = keyed()
    for blob in (bytes(1024), blob_of(machine)[:1024], b"\xff" * 1024):
        assert unwrap(machine, blob, 0).code is H.BAD_DATA


def test_an_output_size_beyond_ram_is_p5_and_a_too_small_one_p6():
    machine = keyed()
    blob = blob_of(machine)
    memory_size = RAM_SIZE - OUT_GPA

    assert unwrap(machine, blob, memory_size).code is H.SUCCESS
    assert unwrap(machine, blob, memory_size + 1).code is H.P5
    assert unwrap(machine, blob, GB4 - 1).code is H.P5
    assert unwrap(machine, blob, len(PLAIN) - 1).code is H.P6
    assert unwrap(machine, blob, 0).code is H.P6


def test_the_wrapped_objects_own_size_is_not_believed():
    """One that says less than it has would tell Linux to copy what nobody wrote."""
    machine = keyed()
    blob = bytearray(blob_of(machine))
    for size in (0, 1, 99, 101, 0xFFFF_FFFF):
        blob[12:16] = size.to_bytes(4, "big")
        assert unwrap(machine, bytes(blob)).code is H.BAD_DATA


@pytest.mark.parametrize("secure_boot", [0, 1, 2])
@pytest.mark.parametrize(
    ("condition", "needed"),
    [(0, 0), (WrapFlag.OSSECBOOTAUDIT, 1), (WrapFlag.OSSECBOOTENFORCE, 2)],
)
def test_the_conditions_are_those_of_the_moment_of_unwrapping(
    condition: int, needed: int, secure_boot: int
):
    """It is wrapped with secure boot off, and opened after a power cycle as it is then."""
    machine = keyed(secure_boot=0)
    blob = blob_of(machine, flags=FLAGS | condition)
    pks_attributes = machine.attributes.pks
    machine.power_on(
        PartitionAttributes(
            keystore_kbytes=8,
            secure_boot=secure_boot,  # type: ignore[arg-type]  # 0 to 2
            pks=pks_attributes,
        )
    )
    machine.gen_password()
    outcome = unwrap(machine, blob)

    assert outcome.code is (H.SUCCESS if secure_boot >= needed else H.AUTHORITY)
    if outcome.code is H.AUTHORITY:
        assert "secure boot" in outcome.why
        assert outcome.writes == ()


@pytest.mark.parametrize("condition", [WrapFlag.OSSECBOOTAUDIT, WrapFlag.OSSECBOOTENFORCE])
def test_the_conditions_cannot_be_cut_out(condition: int):
    machine = keyed()
    blob = bytearray(blob_of(machine, flags=FLAGS | condition))
    blob[16:24] = FLAGS.to_bytes(8, "big")

    assert unwrap(machine, bytes(blob)).code is H.BAD_DATA


def test_without_a_password_nothing_opens():
    machine = keyed()
    blob = blob_of(machine)
    machine.reset()
    machine.password = b""

    outcome = unwrap(machine, blob)
    assert outcome.code is H.AUTHORITY
    assert "password" in outcome.why
    machine.gen_password()
    assert unwrap(machine, blob).code is H.SUCCESS


def test_another_partitions_blob_does_not_open():
    one, two = keyed(), keyed()
    # The test's entropy is the same for all: the second key must be another.
    two.remove(KEY_LABEL)
    gen_key(two)
    blob = blob_of(one)

    assert unwrap(two, blob).code is H.BAD_DATA
    assert unwrap(one, blob).code is H.SUCCESS


def test_a_removed_key_is_not_found_and_made_anew_does_not_open_old_objects():
    machine = keyed()
    blob = blob_of(machine)
    machine.remove(KEY_LABEL)
    assert unwrap(machine, blob).code is H.NOT_FOUND
    gen_key(machine)
    assert unwrap(machine, blob).code is H.BAD_DATA


def test_a_label_that_names_an_object_that_is_no_key_is_h_authority():
    machine = keyed()
    blob = blob_of(machine)
    machine.remove(KEY_LABEL)
    machine.write(KEY_LABEL, b"k" * 32)

    assert unwrap(machine, blob).code is H.AUTHORITY


def test_wrapped_objects_may_be_opened_over_themselves():
    machine = keyed()
    blob = blob_of(machine)
    for out in (BLOB_GPA, BLOB_GPA + 1, BLOB_GPA + 1000, AUTH_GPA):
        assert unwrap(machine, blob, out=out).code is H.SUCCESS
        assert machine.guest.read(out, len(PLAIN)) == PLAIN


def test_data_may_be_wrapped_over_itself_its_label_and_its_authorization():
    for out in (DATA_GPA, DATA_GPA + 50, KEY_LABEL_GPA, AUTH_GPA, LABEL_GPA):
        machine = prepared("H_PKS_UNWRAP_OBJECT")
        values = GOOD["H_PKS_WRAP_OBJECT"] | {"out": out}
        assert machine.hcall(pks.WRAP_OBJECT, *values.values()).code is H.SUCCESS
        blob = machine.guest.read(out, WRAPPED_SIZE)
        assert unwrap(machine, blob).code is H.SUCCESS
        assert machine.guest.read(OUT_GPA, len(PLAIN)) == PLAIN


@pytest.mark.parametrize("size", [1024, 1025, 2000, MAX_OBJECT + 1024])
@pytest.mark.parametrize("fill", [0, 0xFF])
def test_noise_is_bad_data(size: int, fill: int):
    machine = keyed()

    assert unwrap(machine, bytes((fill,)) * size).code is H.BAD_DATA


def test_a_foreign_key_size_wraps_and_opens():
    """A wrapping key that was imported may have any size; it is only derived from."""
    for size in (1, 16, 64):
        machine = with_policy(Policy.WRAPPINGKEY, b"k" * size)
        blob = blob_of(machine)
        assert unwrap(machine, blob).code is H.SUCCESS


def test_a_world_readable_wrapping_key_leaks_nothing():
    machine = with_policy(Policy.WRAPPINGKEY | Policy.WORLDREADABLE)
    machine.guest.write(OUT_GPA, bytes(64))
    for password in (b"", b"wrong" * 8, machine.password):
        outcome = machine.read(KEY_LABEL, password=password)
        assert outcome.code is H.AUTHORITY
        assert outcome.registers == ((5, Policy.WRAPPINGKEY | Policy.WORLDREADABLE),)
    assert machine.guest.read(OUT_GPA, 64) == bytes(64)


def test_an_hypervisors_wrapping_key_is_used_and_not_removed():
    machine = with_policy(Policy.WRAPPINGKEY | Policy.HVPROVISIONED)
    blob = blob_of(machine)

    assert machine.remove(KEY_LABEL).code is H.AUTHORITY
    assert unwrap(machine, blob).code is H.SUCCESS


def test_the_config_tells_of_wrapping():
    machine = PksMachine(PartitionAttributes(pks=PksAttributes(object_overhead=8)))
    config = machine.keystore.config()

    assert config[1] == 0x10
    assert config[36:44] == b"\x80" + bytes(7)
