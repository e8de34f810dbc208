# SPDX-License-Identifier: Apache-2.0
"""The keystore's calls, as a guest sees them."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from hcalld.core.call import Call
from hcalld.core.effects import Effect, Entropy, Flush, ReadBuffer
from hcalld.core.errors import HcallError, StoreError
from hcalld.core.guestmem import RamMap
from hcalld.core.records import Lifetime, Put, Record
from hcalld.domain.attributes import PartitionAttributes, PksAttributes
from hcalld.domain.keystore import Keystore
from hcalld.domain.keystore_records import encode_object, object_key
from hcalld.domain.labels import SED_LABEL, sed_object
from hcalld.families.pks.handlers import (
    h_pks_confirm_object_flushed,
    h_pks_gen_password,
    h_pks_write_object,
)
from hcalld.stores.memory import MemoryStore
from hcalld.testing import run_pure
from hcalld.testing.pks import (
    AUTH_GPA,
    DATA_GPA,
    OUT_GPA,
    PASSWORD_GPA,
    PksMachine,
    build_auth,
    label,
)
from hcallproto.abi.families import pks
from hcallproto.abi.returns import H
from hcallproto.payloads.pks import CONFIG, Consumer, Policy

LABEL = label("object")
RAM = RamMap([(0, 1 << 20)])


@pytest.fixture
def machine() -> PksMachine:
    return PksMachine()


def seeded(policy: int, data: bytes = b"data", **attributes: int) -> PksMachine:
    """A machine whose keystore holds one object that was there before."""
    store = MemoryStore()
    record = Record("pks", object_key(3, LABEL), encode_object(policy, data))
    store.commit([Put(record)], None)
    return PksMachine(PartitionAttributes(**attributes), store=store)  # type: ignore[arg-type]


# -- GET_CONFIG -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 44, 45, 512, 520, 4096])
def test_get_config_fills_the_buffer_and_zeroes_the_rest(machine: PksMachine, size: int):
    machine.guest.write(OUT_GPA, b"\xff" * 8192)
    outcome = machine.hcall(pks.GET_CONFIG, OUT_GPA, size)
    expected = machine.keystore.config().ljust(size, b"\0")[:size]

    assert outcome.code is H.SUCCESS
    assert machine.guest.read(OUT_GPA, size + 1) == expected + b"\xff"


def test_get_config_tells_what_the_attributes_say():
    attributes = PartitionAttributes(
        keystore_kbytes=32,
        pks=PksAttributes(object_overhead=7, max_password_size=48, max_object_size=4096),
    )
    machine = PksMachine(attributes)
    machine.hcall(pks.GET_CONFIG, OUT_GPA, 520)
    config = CONFIG.parse(machine.guest.read(OUT_GPA, 44))

    assert (config.version, config.totalsize, config.usedspace) == (3, 32768, 0)
    assert (config.objoverhead, config.maxpwsize, config.maxobjsize) == (7, 48, 4096)
    assert config.supportedpolicies == attributes.pks.policies


def test_get_config_changes_nothing(machine: PksMachine):
    generation = machine.store.generation
    machine.hcall(pks.GET_CONFIG, OUT_GPA, 520)

    assert machine.trail == []
    assert machine.store.generation == generation


# -- passwords ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 33, 64])
def test_gen_password_writes_as_many_random_bytes_as_asked(machine: PksMachine, size: int):
    machine.guest.write(PASSWORD_GPA, bytes(128))
    outcome = machine.gen_password(size=size)

    assert outcome.code is H.SUCCESS
    assert machine.trail == [Entropy(size)]
    assert len(machine.password) == size
    assert any(machine.password)
    assert machine.guest.read(PASSWORD_GPA + size, 128 - size) == bytes(128 - size)
    machine.keystore.authorize(Consumer.OS, machine.password)


def test_gen_password_a_second_time_is_in_use_and_writes_nothing(machine: PksMachine):
    machine.gen_password()
    memory = machine.guest.snapshot()

    assert machine.gen_password().code is H.IN_USE
    assert machine.guest.snapshot() == memory
    machine.keystore.authorize(Consumer.OS, machine.password)


def test_gen_password_works_again_after_a_reset(machine: PksMachine):
    machine.gen_password()
    first = machine.password
    for _ in range(3):
        machine.reset()
        assert machine.gen_password().code is H.SUCCESS
        assert machine.password != first


def test_two_cpus_that_both_saw_no_password_get_one_password(machine: PksMachine):
    plan_args = {"consumer": 3, "reserved": 0, "password": PASSWORD_GPA, "password_size": 32}
    keystore = machine.keystore
    calls = [Call(pks.GEN_PASSWORD, plan_args, vcpu, RAM) for vcpu in (0, 1)]
    first, second = (h_pks_gen_password(call, keystore) for call in calls)
    assert first.send(None) == Entropy(32)
    assert second.send(None) == Entropy(32)

    with pytest.raises(StopIteration):
        first.send(b"1" * 32)
    with pytest.raises(HcallError) as raised:
        second.send(b"2" * 32)
    assert raised.value.code is H.IN_USE
    keystore.authorize(Consumer.OS, b"1" * 32)


def test_set_password_takes_the_callers(machine: PksMachine):
    machine.guest.write(PASSWORD_GPA, b"s" * 40)

    assert machine.hcall(pks.SET_PASSWORD, 2, 0, PASSWORD_GPA, 40).code is H.SUCCESS
    assert machine.hcall(pks.SET_PASSWORD, 2, 0, PASSWORD_GPA, 40).code is H.IN_USE
    assert machine.hcall(pks.GEN_PASSWORD, 2, 0, PASSWORD_GPA, 40).code is H.IN_USE
    machine.keystore.authorize(Consumer.BOOTLOADER, b"s" * 40)


def test_a_password_outlives_the_daemon_but_not_the_reset(machine: PksMachine):
    machine.gen_password()
    machine.write(LABEL, b"data")
    machine.reload()

    assert machine.gen_password().code is H.IN_USE
    assert machine.read(LABEL).code is H.SUCCESS
    machine.reset()
    machine.reload()
    assert machine.gen_password().code is H.SUCCESS


# -- WRITE, READ, REMOVE ----------------------------------------------------------------------


def test_what_was_written_is_read(machine: PksMachine):
    machine.gen_password()

    assert machine.write(LABEL, b"some data", Policy.WORLDREADABLE).code is H.SUCCESS
    outcome = machine.read(LABEL)
    assert outcome.code is H.SUCCESS
    assert outcome.registers == ((4, 9), (5, Policy.WORLDREADABLE))
    assert machine.guest.read(OUT_GPA, 9) == b"some data"


def test_a_write_reads_each_buffer_once_and_in_order(machine: PksMachine):
    machine.write(LABEL, b"data")

    assert machine.trail == [ReadBuffer("auth"), ReadBuffer("label"), ReadBuffer("data")]


def test_used_space_counts_overhead_label_and_data(machine: PksMachine):
    machine.write(LABEL, b"x" * 100)

    assert machine.used_space() == 32 + len(LABEL) + 100
    machine.write(label("other"), b"y")
    assert machine.used_space() == 32 + len(LABEL) + 100 + 32 + len(label("other")) + 1
    machine.remove(LABEL)
    machine.remove(label("other"))
    assert machine.used_space() == 0


def test_write_does_not_overwrite(machine: PksMachine):
    machine.write(LABEL, b"old")

    assert machine.write(LABEL, b"new").code is H.RESOURCE
    machine.read(LABEL)
    assert machine.guest.read(OUT_GPA, 3) == b"old"


def test_write_without_room_is_no_mem_and_leaves_the_space_alone():
    machine = PksMachine(PartitionAttributes(keystore_kbytes=4))
    room = 4096 - 32 - len(LABEL)

    assert machine.write(LABEL, bytes(room + 1)).code is H.NO_MEM
    assert machine.used_space() == 0
    assert machine.write(LABEL, bytes(room)).code is H.SUCCESS
    assert machine.used_space() == 4096


def test_the_largest_object_goes_in_and_out():
    machine = PksMachine(PartitionAttributes(keystore_kbytes=128))
    data = bytes(range(256)) * 256

    assert machine.write(LABEL, data).code is H.SUCCESS
    assert machine.read(LABEL, 65536).registers == ((4, 65536), (5, 0))
    assert machine.guest.read(OUT_GPA, 65536) == data


@pytest.mark.parametrize("size", [0, 1, 8])
def test_a_buffer_too_small_is_too_big_with_the_size(machine: PksMachine, size: int):
    machine.write(LABEL, b"some data")
    memory = machine.guest.snapshot()
    machine.guest.write(OUT_GPA, b"")
    outcome = machine.read(LABEL, size)

    assert (outcome.code, outcome.registers) == (H.TOO_BIG, ((4, 9),))
    assert machine.guest.snapshot()[0][OUT_GPA:] == memory[0][OUT_GPA:]


def test_read_and_remove_of_nothing_are_not_found(machine: PksMachine):
    assert machine.read(LABEL).code is H.NOT_FOUND
    assert machine.remove(LABEL).code is H.NOT_FOUND


def test_a_wrapping_key_is_not_read_but_its_policy_is_told():
    machine = seeded(Policy.WRAPPINGKEY, bytes(32))
    outcome = machine.read(LABEL)

    assert (outcome.code, outcome.registers) == (H.AUTHORITY, ((5, Policy.WRAPPINGKEY),))
    assert outcome.writes == ()


def test_a_wrapping_key_that_is_also_world_readable_stays_closed():
    machine = seeded(Policy.WRAPPINGKEY | Policy.WORLDREADABLE, bytes(32))

    assert machine.read(LABEL, password=b"wrong").code is H.AUTHORITY


def test_after_kexec_without_hand_over_only_world_readable_objects_are_left(machine: PksMachine):
    machine.gen_password()
    machine.write(label("open"), b"open", Policy.WORLDREADABLE)
    machine.write(label("closed"), b"closed")
    machine.password = b""  # the second kernel never learnt it

    assert machine.gen_password().code is H.IN_USE
    assert machine.read(label("open")).code is H.SUCCESS
    assert machine.read(label("closed")).code is H.AUTHORITY
    assert machine.read(label("absent")).code is H.AUTHORITY
    assert machine.write(label("new"), b"new").code is H.AUTHORITY
    assert machine.remove(label("open")).code is H.AUTHORITY
    assert machine.confirm(label("open")).code is H.AUTHORITY


def test_linux_reads_a_seeded_sed_key():
    store = MemoryStore()
    record = Record(
        "pks",
        object_key(3, SED_LABEL),
        encode_object(Policy.WORLDREADABLE, sed_object(b"k" * 23)),
    )
    store.commit([Put(record)], None)
    machine = PksMachine(store=store)

    assert machine.read(SED_LABEL, 64).registers == ((4, 64), (5, Policy.WORLDREADABLE))
    assert machine.guest.read(OUT_GPA + 24, 4) == struct.pack(">I", 23)


@pytest.mark.parametrize("policy", [Policy.IMMUTABLE, Policy.SIGNEDUPDATE, Policy.HVPROVISIONED])
def test_some_objects_are_not_removed(policy: Policy):
    machine = seeded(policy)

    assert machine.remove(LABEL).code is H.AUTHORITY
    assert machine.read(LABEL).code is H.SUCCESS


def test_a_transient_object_goes_with_the_reset(machine: PksMachine):
    machine.write(LABEL, b"data", Policy.TRANSIENT)
    machine.write(label("kept"), b"data")
    used = 32 + len(label("kept")) + 4
    machine.reload()
    assert machine.read(LABEL).code is H.SUCCESS
    machine.reset()

    assert machine.read(LABEL).code is H.NOT_FOUND
    assert machine.used_space() == used
    machine.reload()
    assert machine.used_space() == used


def test_consumers_do_not_see_each_others_objects(machine: PksMachine):
    machine.write(LABEL, b"os")
    machine.write(LABEL, b"firmware", consumer=Consumer.FIRMWARE)

    machine.read(LABEL)
    assert machine.guest.read(OUT_GPA, 2) == b"os"
    machine.read(LABEL, consumer=Consumer.FIRMWARE)
    assert machine.guest.read(OUT_GPA, 8) == b"firmware"
    assert machine.read(LABEL, consumer=Consumer.BOOTLOADER).code is H.NOT_FOUND
    machine.remove(LABEL)
    assert machine.read(LABEL, consumer=Consumer.FIRMWARE).code is H.SUCCESS


def test_overlapping_buffers_are_read_before_anything_is_written(machine: PksMachine):
    machine.write(LABEL, b"d" * 64)
    auth = machine.put_auth()
    gpa, size = machine.put_label(LABEL)
    outcome = machine.hcall(pks.READ_OBJECT, auth, gpa, size, gpa, 64)

    assert outcome.code is H.SUCCESS
    assert machine.guest.read(gpa, 64) == b"d" * 64


# -- order of checks ------------------------------------------------------------------------


def test_the_password_is_judged_before_existence_policy_and_room():
    machine = seeded(Policy.IMMUTABLE, keystore_kbytes=4)
    machine.gen_password()
    machine.password = b""

    assert machine.write(LABEL, b"x").code is H.AUTHORITY  # not H_RESOURCE
    assert machine.write(label("other"), bytes(5000)).code is H.AUTHORITY  # not H_NO_MEM
    assert machine.remove(label("other")).code is H.AUTHORITY  # not H_NOT_FOUND


def test_existence_is_judged_before_room():
    machine = seeded(0, keystore_kbytes=4)

    assert machine.write(LABEL, bytes(5000)).code is H.RESOURCE


def test_memory_is_judged_in_argument_order(machine: PksMachine):
    """A bad structure comes before a bad label, that before a policy for others."""
    machine.put_label(b"short label that is not one")
    machine.guest.write(AUTH_GPA, build_auth(version=9))
    arguments = (AUTH_GPA, 0x2000, 27, Policy.HVPROVISIONED, DATA_GPA, 1)
    assert machine.hcall(pks.WRITE_OBJECT, *arguments).code is H.PARAMETER
    machine.put_auth()
    assert machine.hcall(pks.WRITE_OBJECT, *arguments).code is H.P2
    machine.put_label(LABEL)
    assert machine.hcall(pks.WRITE_OBJECT, *arguments).code is H.P4


# -- CONFIRM --------------------------------------------------------------------------------


def test_confirm_flushes_and_says_so(machine: PksMachine):
    machine.write(LABEL, b"data")
    assert machine.store.dirty
    outcome = machine.confirm(LABEL)

    assert (outcome.code, outcome.registers) == (H.SUCCESS, ((4, 1),))
    assert machine.flush_count == 1
    assert not machine.store.dirty


def test_confirm_of_a_removed_object_is_not_found_and_flushed(machine: PksMachine):
    machine.write(LABEL, b"data")
    machine.remove(LABEL)
    outcome = machine.confirm(LABEL)

    assert (outcome.code, outcome.registers) == (H.NOT_FOUND, ((4, 1),))
    assert not machine.store.dirty


def test_confirm_of_a_transient_object_is_flushed(machine: PksMachine):
    machine.write(LABEL, b"data", Policy.TRANSIENT)

    assert machine.confirm(LABEL).registers == ((4, 1),)


def test_confirm_does_not_look_at_the_policy():
    assert seeded(Policy.PWSET | Policy.OSSECBOOTENFORCE).confirm(LABEL).code is H.SUCCESS


def test_confirm_refused_defines_r4_and_does_not_flush(machine: PksMachine):
    machine.gen_password()
    outcome = machine.confirm(LABEL, password=b"wrong")

    assert (outcome.code, outcome.registers) == (H.AUTHORITY, ((4, 0),))
    assert machine.flush_count == 0


def test_confirm_that_cannot_flush_is_aborted_and_not_flushed():
    keystore = Keystore(PartitionAttributes())
    call = Call(
        pks.CONFIRM_OBJECT_FLUSHED, {"auth": 0, "label": 0, "label_size": len(LABEL)}, 0, RAM
    )
    script: list[tuple[Effect[Any], Any]] = [
        (ReadBuffer("auth"), build_auth()),
        (ReadBuffer("label"), LABEL),
        (Flush(), StoreError("the disk is gone")),
    ]

    with pytest.raises(HcallError, match="the disk is gone") as raised:
        run_pure(h_pks_confirm_object_flushed(call, keystore), script)
    assert (raised.value.code, raised.value.registers) == (H.ABORTED, ())


# -- guests that change memory under the call -------------------------------------------------


def test_a_call_works_on_the_bytes_it_read_first():
    """Each buffer is read once; what the guest makes of it later does not count."""
    keystore = Keystore(PartitionAttributes())
    data = bytearray(b"first")
    call = Call(
        pks.WRITE_OBJECT,
        {
            "auth": 0,
            "label": 0,
            "label_size": len(LABEL),
            "policy": 0,
            "data": 0,
            "data_size": 5,
        },
        0,
        RAM,
    )
    script = [
        (ReadBuffer("auth"), build_auth()),
        (ReadBuffer("label"), LABEL),
        (ReadBuffer("data"), bytes(data)),
    ]
    assert run_pure(h_pks_write_object(call, keystore), script).code is H.SUCCESS
    data[:] = b"later"

    (change,) = keystore.take_changes()
    assert isinstance(change, Put)
    assert change.record == Record(
        "pks", object_key(3, LABEL), encode_object(0, b"first"), Lifetime.PERSISTENT
    )
