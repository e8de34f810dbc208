# SPDX-License-Identifier: Apache-2.0
"""The calls that a hypervisor makes, without a hypervisor of ours."""

from __future__ import annotations

import itertools

import pytest
from tests.unit.hcalld.domain.halves import ALIAS, LPID, OWN, PLAIN, SIZE, Half, Store

from hcalld.core.errors import HcallError, StoreError
from hcalld.core.records import Lifetime, Record
from hcalld.core.secret import Secret
from hcalld.domain.ultravisor.abi import PAGE_SHIFT, PAGE_SIZE, SECURE_MEMORY, ContentNeeded, Turn
from hcalld.domain.ultravisor.page_states import TABLE, Action, PageEvent, PageState
from hcalld.domain.ultravisor.state import MAX_VMS
from hcalld.domain.ultravisor.ultravisor import MAX_LPID, UltravisorModel
from hcalld.domain.ultravisor.vm_states import VmEvent, VmState
from hcallproto.abi.families import uv
from hcallproto.abi.returns import U

GPA = 3 * PAGE_SIZE


def force(half: Half, state: PageState, gpa: int = GPA) -> None:
    """Give a page a state, with what goes with it."""
    if state is PageState.PAGEDOUT:
        assert half.page_out(OWN, gpa) is U.SUCCESS
    else:
        half.vm.set_state(half.turn(), gpa, gpa + PAGE_SIZE, state)


def state_at(half: Half, gpa: int = GPA) -> PageState:
    (state,) = half.vm.states(gpa, gpa + PAGE_SIZE)
    return state


# -- every entry of the page table, by the calls that are its events ---------------------------


@pytest.mark.parametrize("is_secure", [True, False])
@pytest.mark.parametrize("state", PageState, ids=lambda state: state.name)
def test_page_in_in_every_state(state: PageState, is_secure: bool):
    half = Half(is_secure=is_secure)
    force(half, state)
    event = PageEvent.PAGE_IN if is_secure else PageEvent.PAGE_IN_SECURING
    taken = TABLE[state, event]
    source = OWN if state is PageState.PAGEDOUT else ALIAS + GPA
    before = half.snapshot()
    assert half.page_in(source, GPA) is taken.code
    assert state_at(half) is taken.state
    if taken.action is Action.REFUSE:
        assert half.snapshot() == before


@pytest.mark.parametrize("state", PageState, ids=lambda state: state.name)
def test_page_out_in_every_state(state: PageState):
    half = Half()
    force(half, state)
    before = half.snapshot()
    taken = TABLE[state, PageEvent.PAGE_OUT]
    assert half.page_out(OWN + PAGE_SIZE, GPA) is taken.code
    assert state_at(half) is taken.state
    if taken.action is Action.REFUSE:
        assert half.snapshot() == before


@pytest.mark.parametrize("state", PageState, ids=lambda state: state.name)
def test_inval_in_every_state(state: PageState):
    half = Half()
    force(half, state)
    before = half.snapshot()
    taken = TABLE[state, PageEvent.INVAL]
    assert half.inval(GPA) is taken.code
    assert state_at(half) is taken.state
    if taken.action is Action.REFUSE:
        assert half.snapshot() == before


# -- order of the checks -----------------------------------------------------------------------


def test_page_in_checks_in_the_firmwares_order():
    half = Half()
    before = half.snapshot()
    assert half.page_in(0, SIZE, order=12, lpid=9) is U.P5
    assert half.page_in(0, SIZE, lpid=9) is U.P2
    assert half.page_in(SECURE_MEMORY | OWN, SIZE, lpid=9) is U.P2
    assert half.page_in(OWN, SIZE, lpid=9) is U.PARAMETER
    assert half.page_in(OWN, SIZE) is U.P3
    assert half.page_in(OWN, (1 << 64) - 1) is U.P3
    half.vm.happen(VmEvent.BREACH)
    assert half.page_in(OWN, SIZE) is U.STATE
    half.vm.state = VmState.SECURE
    assert half.snapshot() == before


def test_page_out_checks_in_the_firmwares_order():
    half = Half()
    before = half.snapshot()
    assert half.page_out(0, SIZE, order=17, lpid=9) is U.P5
    assert half.page_out(0, SIZE, lpid=9) is U.P2
    assert half.page_out(SECURE_MEMORY, SIZE, lpid=9) is U.P2
    assert half.page_out(OWN, SIZE, lpid=9) is U.PARAMETER
    assert half.page_out(OWN, SIZE) is U.P3
    assert half.page_out(OWN - PAGE_SIZE, GPA) is U.P2
    assert half.snapshot() == before


def test_page_inval_checks_in_the_firmwares_order():
    half = Half()
    assert half.inval(SIZE, order=12, lpid=9) is U.P3
    assert half.inval(SIZE, lpid=9) is U.PARAMETER
    assert half.inval(SIZE) is U.P3
    half.vm.happen(VmEvent.BREACH)
    assert half.inval(SIZE) is U.STATE


@pytest.mark.parametrize("flags", [1, 2, 1 << 63])
def test_flags_are_not_looked_at(flags: int):
    half = Half()
    assert half.ask(uv.PAGE_OUT.number, LPID, OWN, GPA, flags, PAGE_SHIFT) is U.SUCCESS
    assert half.ask(uv.PAGE_IN.number, LPID, OWN, GPA, flags, PAGE_SHIFT) is U.SUCCESS
    assert half.ask(uv.REGISTER_MEM_SLOT.number, LPID, SIZE, PAGE_SIZE, flags, 1) is U.SUCCESS


def test_unknown_numbers():
    half = Half()
    for number in (0xF100, 0xF154, 0xF110, 0xF130, 0xF14C, 0, 1 << 63):
        assert half.ask(number) is U.FUNCTION


# -- paging ------------------------------------------------------------------------------------


def test_a_page_goes_out_and_comes_back():
    half = Half()
    turn = half.turn()
    assert half.ask(uv.PAGE_OUT.number, LPID, OWN, GPA, 0, PAGE_SHIFT, turn=turn) is U.SUCCESS
    assert turn.zeros.ranges() == [(GPA, GPA + PAGE_SIZE)]
    ciphertext = half.memory.pages[OWN]
    assert b"plaintext" not in ciphertext
    assert len(ciphertext) == PAGE_SIZE
    turn = half.turn()
    assert half.ask(uv.PAGE_IN.number, LPID, OWN, GPA, 0, PAGE_SHIFT, turn=turn) is U.SUCCESS
    assert turn.writes == {GPA: PLAIN}
    assert half.vm.out == {}


def test_any_address_in_a_page_means_the_page():
    half = Half()
    assert half.page_out(OWN, GPA + 5) is U.SUCCESS
    assert half.page_in(OWN, GPA + PAGE_SIZE - 1) is U.SUCCESS


def test_without_its_content_nothing_happens():
    half = Half()
    before = half.snapshot()
    turn = Turn(LPID, half.model, half.hypervisor)
    with pytest.raises(ContentNeeded) as raised:
        turn.ultracall(uv.PAGE_OUT.number, LPID, OWN, GPA, 0, PAGE_SHIFT)
    assert raised.value.gpas == (GPA,)
    assert half.snapshot() == before


def test_a_turn_that_has_changed_something_is_not_stopped_for_content():
    half = Half()
    turn = Turn(LPID, half.model, half.hypervisor, {})
    half.vm.set_state(turn, GPA, GPA + PAGE_SIZE, PageState.SHARED)
    before = half.snapshot()
    args = (LPID, OWN, GPA + PAGE_SIZE, 0, PAGE_SHIFT)
    assert half.ask(uv.PAGE_OUT.number, *args, turn=turn) is U.RETRY
    assert half.snapshot() == before


def test_what_a_turn_did_to_a_page_goes_out_with_it():
    half = Half()
    half.page_out(OWN, GPA)
    turn = half.turn()
    turn.ultracall(uv.PAGE_IN.number, LPID, OWN, GPA, 0, PAGE_SHIFT)
    turn.writes[GPA] = b"n" * PAGE_SIZE
    turn.zeros.add(GPA + 4096, GPA + 8192)
    turn.ultracall(uv.PAGE_OUT.number, LPID, OWN, GPA, 0, PAGE_SHIFT)
    assert turn.writes == {}
    again = half.turn()
    again.ultracall(uv.PAGE_IN.number, LPID, OWN, GPA, 0, PAGE_SHIFT)
    expected = b"n" * 4096 + bytes(4096) + b"n" * (PAGE_SIZE - 8192)
    assert again.writes == {GPA: expected}


@pytest.mark.parametrize("how", ["altered", "swapped", "replayed", "missing", "alias", "zeros"])
def test_what_is_not_the_page_is_refused_and_it_stays_out(how: str):
    half = Half()
    other = GPA + PAGE_SIZE
    half.page_out(OWN, GPA)
    old = half.memory.pages[OWN]
    half.page_in(OWN, GPA)
    half.page_out(OWN, GPA)
    half.page_out(OWN + PAGE_SIZE, other)
    good = half.memory.pages[OWN]
    source = OWN
    code = U.P3
    match how:
        case "altered":
            half.memory.pages[OWN] = good[:-1] + bytes((good[-1] ^ 1,))
        case "swapped":
            source = OWN + PAGE_SIZE
        case "replayed":
            half.memory.pages[OWN] = old
        case "missing":
            source, code = OWN - PAGE_SIZE, U.P2
        case "alias":
            source = ALIAS + GPA
        case "zeros":
            half.memory.pages[OWN] = bytes(PAGE_SIZE)
    turn = half.turn()
    breaches = half.vm.breaches
    assert half.ask(uv.PAGE_IN.number, LPID, source, GPA, 0, PAGE_SHIFT, turn=turn) is code
    assert turn.writes == {}
    assert state_at(half) is PageState.PAGEDOUT
    assert half.vm.breaches == breaches + (how != "missing")
    half.memory.pages[OWN] = good
    assert half.page_in(OWN, GPA) is U.SUCCESS


def test_a_page_does_not_come_in_twice():
    half = Half()
    half.page_out(OWN, GPA)
    assert half.page_in(OWN, GPA) is U.SUCCESS
    turn = half.turn()
    assert half.ask(uv.PAGE_IN.number, LPID, OWN, GPA, 0, PAGE_SHIFT, turn=turn) is U.P2
    assert turn.writes == {}


def test_nothing_is_encrypted_into_or_taken_from_a_vms_page():
    half = Half()
    assert half.page_out(ALIAS, GPA) is U.P2
    assert half.page_out(ALIAS + GPA, GPA) is U.P2
    force(half, PageState.SHARED)
    assert half.page_in(OWN, GPA) is U.P2
    assert half.page_in(ALIAS, GPA) is U.P2
    assert half.page_in(ALIAS + GPA, GPA) is U.SUCCESS


def test_while_securing_a_page_of_the_hypervisors_is_copied():
    half = Half(is_secure=False)
    half.memory.pages[OWN] = b"h" * PAGE_SIZE
    turn = half.turn()
    assert half.ask(uv.PAGE_IN.number, LPID, OWN, GPA, 0, PAGE_SHIFT, turn=turn) is U.SUCCESS
    assert turn.writes == {GPA: b"h" * PAGE_SIZE}
    assert half.page_in(ALIAS, GPA) is U.P2
    assert half.page_in(OWN - PAGE_SIZE, GPA) is U.P2


def test_a_page_that_goes_out_while_securing_is_decrypted_when_it_comes_back():
    half = Half(is_secure=False)
    half.page_in(ALIAS + GPA, GPA)
    assert half.page_out(OWN, GPA) is U.SUCCESS
    assert not half.vm.present.holds(GPA, GPA + PAGE_SIZE)
    turn = half.turn()
    assert half.ask(uv.PAGE_IN.number, LPID, OWN, GPA, 0, PAGE_SHIFT, turn=turn) is U.SUCCESS
    assert turn.writes == {GPA: PLAIN}
    assert half.vm.present.holds(GPA, GPA + PAGE_SIZE)


def test_after_an_abort_nothing_comes_out():
    half = Half()
    half.page_out(OWN + PAGE_SIZE, GPA + PAGE_SIZE)
    half.vm.happen(VmEvent.BREACH)
    before = dict(half.memory.pages)
    assert half.page_out(OWN, GPA) is U.SUCCESS
    assert half.memory.pages == before
    assert half.page_in(OWN + PAGE_SIZE, GPA + PAGE_SIZE) is U.STATE
    assert half.ask(uv.REGISTER_MEM_SLOT.number, LPID, SIZE, PAGE_SIZE, 0, 1) is U.PARAMETER


# -- slots and the rest ------------------------------------------------------------------------


def test_slots_are_registered_and_given_up():
    half = Half()
    register, unregister = uv.REGISTER_MEM_SLOT.number, uv.UNREGISTER_MEM_SLOT.number
    turn = half.turn()
    assert half.ask(register, LPID, SIZE, PAGE_SIZE, 0, 1, turn=turn) is U.SUCCESS
    assert turn.zeros.ranges() == [(SIZE, SIZE + PAGE_SIZE)]
    assert half.ask(register, LPID, SIZE, PAGE_SIZE, 0, 1) is U.SUCCESS
    assert half.ask(register, LPID, SIZE, PAGE_SIZE, 0, 2) is U.P3
    assert half.ask(register, 9, SIZE, PAGE_SIZE, 0, 2) is U.PARAMETER
    half.page_out(OWN, SIZE)
    turn = half.turn()
    assert half.ask(unregister, LPID, 1, turn=turn) is U.SUCCESS
    assert turn.zeros.ranges() == [(SIZE, SIZE + PAGE_SIZE)]
    assert half.vm.out == {}
    assert half.ask(unregister, LPID, 1) is U.P2
    assert half.ask(unregister, 9, 1) is U.PARAMETER
    assert half.page_in(OWN, SIZE) is U.P3


def test_a_great_slot_costs_no_more_than_a_small_one():
    half = Half()
    register, unregister = uv.REGISTER_MEM_SLOT.number, uv.UNREGISTER_MEM_SLOT.number
    size = 15 << 40
    assert half.ask(register, LPID, SIZE, size, 0, 1) is U.SUCCESS
    half.vm.take_dirty()
    assert half.ask(unregister, LPID, 1) is U.SUCCESS
    assert len(half.vm.take_dirty()) == 1
    assert half.ask(register, LPID, 1 << 57, PAGE_SIZE, 0, 1) is U.PARAMETER


def test_a_replaced_slot_is_given_up_first():
    half = Half()
    turn = half.turn()
    half.ask(uv.REGISTER_MEM_SLOT.number, LPID, PAGE_SIZE, PAGE_SIZE, 0, 0, turn=turn)
    assert half.vm.slots.ranges() == [(PAGE_SIZE, 2 * PAGE_SIZE)]
    assert turn.zeros.holds(0, SIZE)


def test_terminate_is_always_a_success():
    half = Half()
    half.ask(uv.WRITE_PATE.number, LPID, 1, 2)
    turn = half.turn()
    assert half.ask(uv.SVM_TERMINATE.number, LPID, turn=turn) is U.SUCCESS
    assert turn.zeros.holds(0, SIZE)
    assert half.model.vms == {}
    assert half.model.pates == {LPID: (0, 0)}
    assert half.ask(uv.SVM_TERMINATE.number, LPID) is U.SUCCESS
    assert half.ask(uv.SVM_TERMINATE.number, 9) is U.SUCCESS


def test_a_vm_that_never_was_secure_keeps_its_memory():
    half = Half(is_secure=False)
    half.vm.happen(VmEvent.ABORT)
    turn = half.turn()
    half.ask(uv.SVM_TERMINATE.number, LPID, turn=turn)
    assert not turn.zeros


def test_partition_table():
    half = Half()
    assert half.ask(uv.WRITE_PATE.number, 7, 1, 2) is U.SUCCESS
    assert half.ask(uv.WRITE_PATE.number, LPID, 3, 4) is U.SUCCESS
    assert half.ask(uv.WRITE_PATE.number, MAX_LPID, 3, 4) is U.SUCCESS
    assert half.model.pates == {7: (1, 2), LPID: (0, 4)}


@pytest.mark.parametrize("spr", uv.Spr)
def test_registers(spr: uv.Spr):
    half = Half()
    assert half.ask(uv.RESTRICTED_SPR_WRITE.number, spr, 77) is U.SUCCESS
    returned = half.turn().ultracall(uv.RESTRICTED_SPR_READ.number, spr)
    if spr in (uv.Spr.DAWR, uv.Spr.DAWRX, uv.Spr.CIABR):
        assert returned == (U.SUCCESS, ((5, 77),))
    else:
        assert returned == (U.PARAMETER, ())


def test_other_registers_are_not_the_ultravisors():
    half = Half()
    assert half.ask(uv.RESTRICTED_SPR_WRITE.number, 0xB5, 1) is U.PARAMETER
    assert half.ask(uv.RESTRICTED_SPR_READ.number, 0xB5) is U.PARAMETER
    assert half.model.sprs == {}


def test_what_a_pseries_machine_does_not_have():
    half = Half()
    assert half.ask(uv.READ_SCOM.number, 0, 0) is U.PARAMETER
    assert half.ask(uv.WRITE_SCOM.number, 0, 0, 0) is U.PARAMETER
    assert half.ask(uv.SEND_SBE_COMMAND.number, 0, 0, 0) is U.PARAMETER
    for number in (uv.READ_MEM.number, uv.WRITE_MEM.number):
        assert half.ask(number, 0, 1, 0, 8) is U.PARAMETER
        assert half.ask(number, 8, 1, 0, 0) is U.PARAMETER
        assert half.ask(number, 8, 1, 0, 8) is U.PERMISSION


def test_return_with_a_made_up_cookie_ends_the_vm():
    half = Half()
    turn = half.turn()
    assert half.ask(uv.RETURN.number, *[0] * 12, turn=turn) is U.PERMISSION
    assert "cookie" in turn.doom
    assert half.vm.state is VmState.ABORT


def test_a_vm_is_begun_once_and_vms_are_few():
    half = Half()
    for known in (VmState.SECURE, VmState.ABORT, VmState.ACTIVE):
        half.vm.state = known
        with pytest.raises(HcallError) as raised:
            half.model.begin(LPID, bytes(16))
        assert raised.value.code is U.RETRY
    for lpid in range(100, 100 + MAX_VMS - 1):
        half.model.begin(lpid, bytes(16))
    with pytest.raises(HcallError) as raised:
        half.model.begin(99, bytes(16))
    assert raised.value.code is U.RETRY


# -- records -----------------------------------------------------------------------------------


def filled() -> tuple[Half, Store]:
    half = Half()
    store = Store()
    half.vm.take_files({b"rootd": Secret(b"secret"), b"bad": None})
    half.vm.dirty |= half.vm.all_keys()
    for number, state in enumerate(
        [PageState.SHARED, PageState.SHARED_INV, PageState.PSEUDO_SHARED], start=10
    ):
        force(half, state, number * PAGE_SIZE)
    half.page_out(OWN, GPA)
    half.vm.files.read(b"rootd", 0, 42)
    half.vm.reader_changed(b"rootd")
    half.ask(uv.WRITE_PATE.number, 7, 1, 2)
    half.ask(uv.RESTRICTED_SPR_WRITE.number, uv.Spr.DAWR, 77)
    store.commit(half.model.take_changes())
    return half, store


def test_a_secure_vm_outlives_the_daemon():
    half, store = filled()
    again = Half(records=store.records.values())
    again.memory.pages = half.memory.pages
    assert again.snapshot() == half.snapshot()
    assert again.model.take_changes() == []
    turn = again.turn()
    assert again.ask(uv.PAGE_IN.number, LPID, OWN, GPA, 0, PAGE_SHIFT, turn=turn) is U.SUCCESS
    assert turn.writes == {GPA: PLAIN}
    assert again.vm.files.contents[b"bad"] is None
    with pytest.raises(HcallError, match="another process"):
        again.vm.files.read(b"rootd", 6, 43)
    # A version that was used is not used again.
    assert again.vm.next_version == half.vm.next_version


def test_termination_leaves_no_record_of_the_vm():
    half, store = filled()
    half.ask(uv.SVM_TERMINATE.number, LPID)
    store.commit(half.model.take_changes())
    assert {key[:1] for _, key in store.records} == {b"p", b"x"}


def test_a_vm_that_is_not_secure_yet_has_no_records():
    half = Half(is_secure=False)
    half.page_in(ALIAS + GPA, GPA)
    assert half.model.take_changes() == []
    half.vm.happen(VmEvent.ABORT)
    half.ask(uv.SVM_TERMINATE.number, LPID)
    assert half.model.take_changes() == []


def test_secrets_are_in_no_repr():
    half, _ = filled()
    assert b"secret".hex() not in repr(half.vm.files.contents)
    assert "secret'" not in repr(half.vm.files.contents)
    assert "plaintext" not in repr(half.turn().contents)


def changed(record: Record, **changes: object) -> Record:
    values = {
        "namespace": record.namespace,
        "key": record.key,
        "value": record.value,
        "lifetime": record.lifetime,
    }
    return Record(**(values | changes))  # type: ignore[arg-type]


def test_malformed_records_are_refused():
    half, store = filled()
    good = list(store.records.values())
    for index, record in enumerate(good):
        head = record.key[:1]
        bad = [
            changed(record, value=b""),
            changed(record, value=b"\2" + record.value[1:]),
            changed(record, value=b"\0" + record.value[1:]),
            changed(record, key=record.key[:4]),
            changed(record, lifetime=Lifetime.PERSISTENT),
        ]
        if head != b"f":
            bad.append(changed(record, value=record.value + b"\0"))
            bad.append(changed(record, value=record.value[:-1]))
        if head not in (b"v", b"p"):
            bad.append(changed(record, key=b"?" + record.key[1:]))
        if head in (b"s", b"g", b"o", b"x"):
            bad.append(changed(record, key=record.key[:-1]))
        for one in bad:
            others = good[:index] + good[index + 1 :]
            with pytest.raises(StoreError):
                UltravisorModel(half.memory, [*others, one])


def test_a_record_without_its_vm_is_refused():
    half, store = filled()
    for record in store.records.values():
        if record.key[:1] not in (b"v", b"p", b"x"):
            with pytest.raises(StoreError, match="no VM"):
                UltravisorModel(half.memory, [record])


@pytest.mark.parametrize(
    "runs",
    [
        b"",
        b"\0\0\0\0\2",
        b"\0\0\0\1\0",
        b"\0\0\0\1\6",
        b"\0\0\0\1\x0e",
        b"\x0f\xff\0\2\2",
        b"\0\5\0\1\2\0\5\0\1\2",
    ],
)
def test_impossible_page_states_are_refused(runs: bytes):
    half, store = filled()
    records = [
        changed(record, value=b"\1" + runs) if record.key[:1] == b"g" else record
        for record in store.records.values()
    ]
    with pytest.raises(StoreError):
        UltravisorModel(half.memory, records)


@pytest.mark.parametrize(
    ("start", "size"),
    [
        (1, PAGE_SIZE),
        (0, 0),
        (0, 1 << 62),
        (1 << 57, PAGE_SIZE),
        ((1 << 64) - PAGE_SIZE, PAGE_SIZE),
    ],
)
def test_slots_that_cannot_be_are_refused(start: int, size: int):
    half, store = filled()
    value = b"\1" + start.to_bytes(8, "big") + size.to_bytes(8, "big")
    records = [
        changed(record, value=value) if record.key[:1] == b"s" else record
        for record in store.records.values()
    ]
    with pytest.raises(StoreError, match="slot"):
        UltravisorModel(half.memory, records)


def test_a_page_that_no_vm_can_have_is_refused():
    half, store = filled()
    records = [
        changed(record, key=record.key[:-8] + b"\x01" + bytes(7))
        if record.key[:1] == b"o"
        else record
        for record in store.records.values()
    ]
    with pytest.raises(StoreError, match="page number"):
        UltravisorModel(half.memory, records)


def test_records_of_others_are_ignored():
    assert UltravisorModel(Half().memory, [Record("pks", b"?", b"?")]).vms == {}


def test_a_page_changes_one_record():
    half, store = filled()
    force(half, PageState.SHARED, 20 * PAGE_SIZE)
    changes = half.model.take_changes()
    assert len(changes) == 1
    store.commit(changes)


def test_every_call_of_a_hypervisor_has_a_method():
    from hcalld.domain.ultravisor.ultravisor import CALLS
    from hcallproto.abi.spec import Caller

    expected = {call.number for call in uv.FAMILY.calls if call.caller is Caller.HYPERVISOR}
    assert set(CALLS) == expected


def test_calls_take_what_the_table_declares():
    """A peer gives as many arguments as the table has, whatever their values."""
    half = Half()
    for call in uv.FAMILY.calls:
        for value in (0, 1, (1 << 64) - 1):
            half.turn().ultracall(call.number, *itertools.repeat(value, len(call.args)))


# -- several calls in one turn, and the ends of what is counted --------------------------------


def test_a_page_that_goes_out_and_comes_in_within_a_turn_is_written():
    half = Half()
    turn = half.turn()
    assert half.ask(uv.PAGE_OUT.number, LPID, OWN, GPA, 0, PAGE_SHIFT, turn=turn) is U.SUCCESS
    assert turn.zeros.holds(GPA, GPA + PAGE_SIZE)
    assert half.ask(uv.PAGE_IN.number, LPID, OWN, GPA, 0, PAGE_SHIFT, turn=turn) is U.SUCCESS
    assert turn.pending_writes() == ((GPA, PLAIN),)
    assert not turn.zeros


def test_a_breach_is_stored():
    store, half = Store(), Half()
    assert half.page_out(OWN, GPA) is U.SUCCESS
    store.commit(half.model.take_changes())
    half.memory.pages[OWN] = PLAIN
    assert half.page_in(OWN, GPA) is U.P3
    store.commit(half.model.take_changes())
    again = UltravisorModel(half.memory, store.records.values())
    assert again.vms[LPID].breaches == 1


def test_the_last_page_that_a_key_is_good_for():
    half = Half()
    half.vm.next_version = 1 << 40
    assert half.page_out(OWN, GPA) is U.SUCCESS
    before = half.snapshot()
    assert half.page_out(OWN, GPA + PAGE_SIZE) is U.RETRY
    assert half.snapshot() == before


def test_a_slot_ends_at_a_page_whatever_its_size_is():
    """One byte takes a page, so the next slot cannot begin in it."""
    half = Half()
    half.must(uv.REGISTER_MEM_SLOT.number, LPID, SIZE + PAGE_SIZE, PAGE_SIZE, 0, 1)
    number = uv.REGISTER_MEM_SLOT.number
    assert half.ask(number, LPID, SIZE, PAGE_SIZE + 1, 0, 2) is U.P3
    assert half.ask(number, LPID, SIZE, PAGE_SIZE, 0, 2) is U.SUCCESS


def test_memory_that_is_given_up_before_the_vm_is_secure_is_not_there():
    half = Half(is_secure=False)
    assert half.page_in(ALIAS + GPA, GPA) is U.SUCCESS
    assert half.vm.present.holds(GPA, GPA + PAGE_SIZE)
    half.must(uv.UNREGISTER_MEM_SLOT.number, LPID, 0)
    half.must(uv.REGISTER_MEM_SLOT.number, LPID, 0, SIZE, 0, 0)
    assert not half.vm.present.touches(GPA, GPA + PAGE_SIZE)
