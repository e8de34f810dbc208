# SPDX-License-Identifier: Apache-2.0
"""A guest's state: what is announced for it, and its models over its store."""

from __future__ import annotations

import pytest
from tests.unit.hcalld.runtime import ledger
from tests.unit.hcalld.runtime.daemon import Faults, FaultyStore
from tests.unit.hcalld.runtime.ledger import Ledger

from hcalld.config import Emulation, Profile
from hcalld.core.errors import ConfigError, StoreError
from hcalld.core.records import RecordedReply, Run
from hcalld.domain.attribute_records import Orders, flatten, put_in_force
from hcalld.domain.attributes import PartitionAttributes
from hcalld.runtime.partition import INLINE_LIMIT, MAX_REPLIES, Partition, entry_key
from hcalld.stores.memory import MemoryState
from hcallproto.abi.families import pks
from hcallproto.abi.spec import Level
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

RUN = Run(bytes(16), 0)
NEXT_RUN = Run(bytes(16), 1)
OTHER_RUN = Run(b"other".ljust(16), 0)
"""Of a machine that is powered on after the first."""
SC1 = frozenset({Level.SC1})


def make(
    emulation: Emulation | None = None,
    *,
    attributes: PartitionAttributes | None = None,
    orders: Orders | None = None,
    faults: Faults | None = None,
    state: MemoryState | None = None,
) -> Partition:
    profile = Profile(
        partition="p",
        source="test",
        orders=dict(orders or {}) if attributes is None else flatten(attributes),
        emulation=emulation or Emulation(),
    )
    faults, state = faults or Faults(), state or MemoryState()
    return Partition(profile, lambda: FaultyStore(state, faults))


def model(partition: Partition) -> Ledger:
    found = partition.model("ledger")
    assert isinstance(found, Ledger)
    return found


def announced(partition: Partition, *, shared_ram: bool = False) -> dict[int, f.CallSpec]:
    entries = partition.entries(shared_ram=shared_ram, levels=SC1)
    return {spec.number: spec for spec in partition.announcement(entries, levels=SC1).calls}


# -- the keystore as it is announced, by the real table -----------------------------------------


def test_announcement_when_it_is_the_real_one_then_every_served_call_has_its_tables_values():
    specs = announced(make())
    for hcall in pks.FAMILY.calls:
        spec = specs[hcall.number]
        if hcall.decode_only:
            assert spec.disposition is s.Disposition.ANSWER
            continue
        assert spec.disposition is s.Disposition.FORWARD
        assert spec.deadline_ms == hcall.deadline_ms
        assert spec.timeout_status == hcall.timeout_code
        assert spec.lost_status == hcall.lost_code
        assert spec.flags & s.CALL_FLAG_WAIT


def test_announcement_when_a_call_has_buffers_then_the_shim_is_told_where_they_are():
    specs = announced(make())
    in_only = s.Direction.IN
    assert specs[pks.WRITE_OBJECT.number].buffers == (
        f.BufferSpec(4, s.BufferKind.PAGE_BOUNDED, in_only, 0, 16 + 64),
        f.BufferSpec(5, s.BufferKind.SIZED, in_only, 6, 255),
        f.BufferSpec(8, s.BufferKind.SIZED, in_only, 9, 65536),
    )
    assert specs[pks.GET_CONFIG.number].buffers == ()
    assert specs[pks.SET_PASSWORD.number].buffers == (
        f.BufferSpec(6, s.BufferKind.SIZED, in_only, 7, 64),
    )


def test_announcement_when_ram_is_shared_then_large_buffers_do_not_come_with_the_call():
    specs = announced(make(), shared_ram=True)
    assert [b.address_register for b in specs[pks.WRITE_OBJECT.number].buffers] == [4, 5]
    assert all(
        buffer.max_size <= INLINE_LIMIT for spec in specs.values() for buffer in spec.buffers
    )


def test_announcement_when_the_profile_says_so_then_unserved_calls_are_left_to_qemu():
    specs = announced(make(Emulation(unserved="qemu")))
    assert {spec.disposition for spec in specs.values()} == {s.Disposition.FORWARD}
    assert set(specs) == {hcall.number for hcall in pks.FAMILY.calls if not hcall.decode_only}


def test_announcement_when_the_profile_has_a_deadline_then_every_forwarded_call_has_it():
    for spec in announced(make(Emulation(deadline_ms=250))).values():
        if spec.disposition is s.Disposition.FORWARD:
            assert spec.deadline_ms == 250


@pytest.mark.parametrize("secure_boot", [0, 1, 2])
def test_announcement_when_secure_boot_is_set_then_the_device_tree_says_so(secure_boot: int):
    attributes = PartitionAttributes(secure_boot=secure_boot)  # type: ignore[arg-type]
    partition = make(attributes=attributes)
    entries = partition.entries(shared_ram=False, levels=SC1)
    told = partition.announcement(entries, levels=SC1)
    assert told.properties == (("ibm,secure-boot", bytes([0, 0, 0, secure_boot])),)
    assert told.strings == ("hcall-pks",)


# -- the ledger ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("ledger_served")
def test_entries_when_buffers_are_inline_then_their_index_is_the_announcements():
    entries = make().entries(shared_ram=False, levels=SC1)
    assert entries[entry_key(ledger.LARGE.number, 1)].inline == {"buffer": 0}
    assert entries[entry_key(ledger.PUT.number, 1)].inline == {}


@pytest.mark.usefixtures("ledger_served")
def test_entries_when_a_level_is_not_negotiated_then_its_calls_are_not_served():
    handlers = ledger.HANDLERS
    partition = make()
    sc1 = partition.entries(shared_ram=False, levels=SC1)
    assert len(sc1) == sum(hcall.level is Level.SC1 for hcall in handlers.by_call)
    assert partition.entries(shared_ram=False, levels=frozenset()) == {}


@pytest.mark.usefixtures("ledger_served")
def test_announcement_when_a_level_is_not_negotiated_then_its_calls_are_not_announced():
    # An announcement of them would be refused, call by call, in the log of every start.
    assert ledger.ULTRA.number not in announced(make())


@pytest.mark.usefixtures("ledger_served")
def test_announcement_when_anyone_may_call_then_problem_state_is_forwarded_too():
    specs = announced(make())
    assert specs[ledger.NOTE.number].flags & s.CALL_FLAG_PROBLEM_STATE
    assert not specs[ledger.PUT.number].flags & s.CALL_FLAG_PROBLEM_STATE


def test_entry_key_when_levels_differ_then_keys_do():
    keys = {entry_key(number, level) for number in (0, 4, 0x41C) for level in (1, 2)}
    assert len(keys) == 6


@pytest.mark.usefixtures("ledger_served")
def test_begin_when_the_run_is_the_same_then_all_is_there_and_if_not_only_what_persists():
    state = MemoryState()
    partition = make(state=state)
    partition.begin(RUN)
    ledger_model = model(partition)
    ledger_model.put(1, b"persists")
    ledger_model.put(1 << 32, b"does not")
    reply = RecordedReply(0, 1, b"reply")
    partition.commit(partition.take_changes(), reply)
    partition.begin(RUN)
    assert set(model(partition).entries) == {1, 1 << 32}
    assert partition.replies == {0: reply}
    partition.begin(NEXT_RUN)
    assert set(model(partition).entries) == {1}
    assert partition.replies == {}


@pytest.mark.usefixtures("ledger_served")
def test_begin_when_the_store_cannot_be_opened_then_that_is_raised():
    state = MemoryState(is_open=True)
    with pytest.raises(StoreError, match="in use"):
        make(state=state).begin(RUN)


def secure_boot_of(partition: Partition) -> int:
    """What the guest is told."""
    entries = partition.entries(shared_ram=False, levels=SC1)
    properties = dict(partition.announcement(entries, levels=SC1).properties)
    return int.from_bytes(properties["ibm,secure-boot"], "big")


@pytest.mark.usefixtures("ledger_served")
async def test_begin_when_the_machine_is_another_then_the_profile_is_carried_out():
    state = MemoryState()
    for run, level in ((RUN, 1), (OTHER_RUN, 2)):
        partition = make(orders={"secure_boot": level}, state=state)
        partition.begin(run)
        assert partition.carried.done == {"secure_boot": level}
        assert partition.attributes.secure_boot == level
        assert model(partition).attributes == partition.attributes
        assert secure_boot_of(partition) == level
        await partition.close()


@pytest.mark.usefixtures("ledger_served")
@pytest.mark.parametrize("run", [RUN, NEXT_RUN])
async def test_begin_when_the_machine_is_the_same_then_a_changed_profile_waits(run: Run):
    """The daemon was restarted; the guest goes on, or was reset meanwhile."""
    state = MemoryState()
    partition = make(orders={"secure_boot": 1}, state=state)
    partition.begin(RUN)
    await partition.close()

    partition = make(orders={"secure_boot": 2, "keystore_kbytes": 4}, state=state)
    partition.begin(run)
    partition.begin(Run(RUN.instance, 7))

    assert partition.carried.waiting == {"secure_boot": 2, "keystore_kbytes": 4}
    assert partition.attributes == PartitionAttributes(secure_boot=1)
    assert model(partition).attributes == partition.attributes
    assert secure_boot_of(partition) == 1


@pytest.mark.usefixtures("ledger_served")
async def test_begin_when_the_profile_is_refused_then_nothing_changes_and_no_run_ends():
    state = MemoryState()
    partition = make(state=state)
    partition.begin(RUN)
    model(partition).put(1 << 32, b"until the reset")
    partition.commit(partition.take_changes(), RecordedReply(0, 1, b"reply"))
    await partition.close()
    before = dict(state.records), state.run, state.generation

    for _ in range(2):
        partition = make(orders={"keystore_kbytes": 8}, state=state)
        with pytest.raises(ConfigError, match="cannot be reduced from 64 to 8"):
            partition.begin(OTHER_RUN)
        await partition.close()

    assert (dict(state.records), state.run, state.generation) == before
    partition = make(orders={"keystore_kbytes": 8}, state=state)
    partition.begin(RUN)
    assert set(model(partition).entries) == {1 << 32}
    assert partition.replies[0].frame == b"reply"


@pytest.mark.usefixtures("ledger_served")
async def test_begin_when_orders_cannot_be_stored_then_they_are_carried_out_the_next_time():
    state = MemoryState()
    partition = make(orders={"secure_boot": 2}, state=state, faults=Faults(commit="no space"))
    with pytest.raises(StoreError, match="no space"):
        partition.begin(RUN)
    await partition.close()
    assert state.records == {}

    partition = make(orders={"secure_boot": 2}, state=state)
    partition.begin(RUN)

    assert partition.carried.done == {"secure_boot": 2}


@pytest.mark.usefixtures("ledger_served")
async def test_model_when_loaded_again_then_under_the_attributes_that_a_call_has_changed():
    partition = make(orders={"keystore_signed_updates": 1})
    partition.begin(RUN)
    changed = PartitionAttributes(keystore_signed_updates=0)
    partition.commit([put_in_force(changed)], RecordedReply(0, 1, b""))
    await partition.flush()

    partition.rest()

    assert model(partition).attributes == changed
    assert partition.attributes == changed


@pytest.mark.usefixtures("ledger_served")
def test_commit_when_it_fails_then_models_are_built_anew():
    faults = Faults()
    partition = make(faults=faults)
    partition.begin(RUN)
    before = model(partition)
    before.put(1, b"lost")
    faults.commit = "no space"
    with pytest.raises(StoreError, match="no space"):
        partition.commit(partition.take_changes(), RecordedReply(0, 1, b""))
    assert not partition.holds("ledger", before)
    assert model(partition).entries == {}
    assert partition.replies == {}
    assert partition.holds("ledger", model(partition))


@pytest.mark.usefixtures("ledger_served")
def test_commit_when_a_peer_invents_vcpus_then_their_replies_are_bounded():
    partition = make()
    partition.begin(RUN)
    for vcpu in range(MAX_REPLIES):
        model(partition).put(1, b"kept")
        partition.commit(partition.take_changes(), RecordedReply(vcpu, 1, b""))
    model(partition).put(1, b"lost")
    with pytest.raises(StoreError, match="expected at most 4096 vCPUs"):
        partition.commit(partition.take_changes(), RecordedReply(MAX_REPLIES, 1, b""))
    assert model(partition).entries == {1: b"kept"}
    model(partition).put(1, b"known")
    partition.commit(partition.take_changes(), RecordedReply(0, 2, b""))
    partition.begin(NEXT_RUN)
    assert partition.replies == {}


@pytest.mark.usefixtures("ledger_served")
def test_take_changes_when_taken_then_they_are_gone():
    partition = make()
    partition.begin(RUN)
    model(partition).put(1, b"one")
    assert len(partition.take_changes()) == 1
    assert partition.take_changes() == []


@pytest.mark.usefixtures("ledger_served")
async def test_rest_when_all_is_flushed_then_memory_is_given_up_and_loaded_again():
    faults = Faults()
    partition = make(faults=faults)
    partition.begin(RUN)
    model(partition).put(1, b"one")
    partition.commit(partition.take_changes(), RecordedReply(0, 1, b""))
    before = model(partition)
    partition.rest()
    assert faults.rests == 0, "a commit is not on disk yet"
    assert partition.holds("ledger", before)
    await partition.flush()
    partition.rest()
    assert faults.rests == 1
    assert not partition.holds("ledger", before)
    assert model(partition).entries == {1: b"one"}


@pytest.mark.usefixtures("ledger_served")
async def test_flush_when_nothing_is_open_then_nothing_happens():
    partition = make()
    assert not partition.is_dirty
    await partition.flush()
    partition.rest()
    await partition.close()


@pytest.mark.usefixtures("ledger_served")
async def test_flush_when_it_failed_then_the_next_one_tries_again():
    faults = Faults(flush="the disk is gone")
    partition = make(faults=faults)
    partition.begin(RUN)
    with pytest.raises(StoreError):
        await partition.flush()
    assert partition.is_dirty
    faults.flush = ""
    await partition.flush()
    assert not partition.is_dirty


@pytest.mark.usefixtures("ledger_served")
async def test_close_when_called_twice_then_the_store_is_closed_once():
    faults = Faults()
    partition = make(faults=faults)
    partition.begin(RUN)
    await partition.close()
    await partition.close()
    assert faults.closes == 1
