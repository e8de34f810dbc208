# SPDX-License-Identifier: Apache-2.0
"""The hypervisor's half, with an ultravisor that says what a test wants."""

from __future__ import annotations

import ast
import pathlib
import types
from collections.abc import Sequence

import pytest
from tests.unit.hcalld.domain.halves import Store

import hcalld.domain.hypervisor as hypervisor_package
import hcalld.domain.ultravisor as ultravisor_package
from hcalld.core.errors import StoreError
from hcalld.core.records import Lifetime, Record
from hcalld.domain.hypervisor.half import CALLS, HypervisorHalf, HypervisorSettings
from hcalld.domain.hypervisor.memory import MAX_PAGES, HypervisorMemory
from hcalld.domain.hypervisor.states import GFNS, PHASES, GfnEvent, GfnState, VmCall, VmPhase
from hcalld.domain.ultravisor.abi import PAGE_SHIFT, PAGE_SIZE, ContentNeeded, Returned, Turn
from hcallproto.abi.families import svm, uv
from hcallproto.abi.returns import H, U
from hcallproto.abi.spec import Caller

LPID = 1
SIZE = 32 * PAGE_SIZE
GPA = 3 * PAGE_SIZE


class Ultravisor:
    """Answers as told; keeps what was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[int, ...]]] = []
        self.answers: dict[int, U] = {}
        self.memory: HypervisorMemory | None = None
        self.wants_content = False

    def ultracall(self, turn: Turn, number: int, args: Sequence[int]) -> Returned:
        name = next(call.name for call in uv.FAMILY.calls if call.number == number)
        self.calls.append((name, tuple(args)))
        status = self.answers.get(number, U.SUCCESS)
        if number == uv.PAGE_OUT.number and status is U.SUCCESS:
            if self.wants_content:
                raise ContentNeeded(args[0], (args[2],))
            assert self.memory is not None
            assert self.memory.store(args[1], b"c" * PAGE_SIZE)
        return Returned(status)


class Half:
    """The half with one slot."""

    def __init__(
        self, settings: HypervisorSettings | None = None, stored: Sequence[Record] = ()
    ) -> None:
        self.ultravisor = Ultravisor()
        self.memory = HypervisorMemory(LPID)
        self.ultravisor.memory = self.memory
        self.model = HypervisorHalf(LPID, self.memory, settings, stored)
        if not stored:
            self.model.set_memory([(0, SIZE)])

    def turn(self) -> Turn:
        return Turn(LPID, self.ultravisor, self.model)

    def ask(self, number: int, *args: int) -> H:
        status = self.turn().hypercall(number, *args).status
        assert isinstance(status, H)
        return status

    def start(self) -> Half:
        assert self.ask(svm.INIT_START.number) is H.SUCCESS
        return self

    def done(self) -> Half:
        self.start()
        assert self.ask(svm.INIT_DONE.number) is H.SUCCESS
        self.ultravisor.calls.clear()
        return self

    def page_in(self, gpa: int = GPA, flags: int = 0, order: int = PAGE_SHIFT) -> H:
        return self.ask(svm.PAGE_IN.number, gpa, flags, order)

    def page_out(self, gpa: int = GPA, flags: int = 0, order: int = PAGE_SHIFT) -> H:
        return self.ask(svm.PAGE_OUT.number, gpa, flags, order)

    def state(self, gpa: int = GPA) -> GfnState:
        return self.model.gfns[gpa >> PAGE_SHIFT]

    def force(self, state: GfnState) -> None:
        if state is GfnState.OUT:
            self.force(GfnState.SECURE)
            assert self.page_out() is H.SUCCESS
        else:
            gfn = GPA >> PAGE_SHIFT
            self.model.gfns.set(gfn, gfn + 1, state)
        self.ultravisor.calls.clear()


# -- tables ------------------------------------------------------------------------------------


def test_tables_are_whole():
    assert set(PHASES) == {(phase, call) for phase in VmPhase for call in VmCall}
    assert set(GFNS) == {(state, event) for state in GfnState for event in GfnEvent}


PHASE_CODES = {
    VmPhase.NORMAL: (H.SUCCESS, H.UNSUPPORTED, H.UNSUPPORTED, H.UNSUPPORTED, H.UNSUPPORTED),
    VmPhase.STARTED: (H.STATE, H.SUCCESS, H.PARAMETER, H.SUCCESS, H.SUCCESS),
    VmPhase.DONE: (H.STATE, H.STATE, H.STATE, H.PARAMETER, H.SUCCESS),
}


@pytest.mark.parametrize("phase", VmPhase, ids=lambda phase: phase.name)
@pytest.mark.parametrize("index", range(5))
def test_every_call_in_every_phase(phase: VmPhase, index: int):
    half = Half()
    if phase is VmPhase.STARTED:
        half.start()
    elif phase is VmPhase.DONE:
        half.done()
    call = (svm.INIT_START, svm.INIT_DONE, svm.INIT_ABORT, svm.PAGE_IN, svm.PAGE_OUT)[index]
    args = (GPA, 0, PAGE_SHIFT) if index > 2 else ()
    assert half.ask(call.number, *args) is PHASE_CODES[phase][index]


@pytest.mark.parametrize("accepts", [True, False])
@pytest.mark.parametrize("flags", [0, 1])
@pytest.mark.parametrize("state", GfnState, ids=lambda state: state.name)
def test_page_in_in_every_state(state: GfnState, flags: int, accepts: bool):
    half = Half().start()
    half.force(state)
    if not accepts:
        half.ultravisor.answers[uv.PAGE_IN.number] = U.P3
    taken, code = GFNS[state, GfnEvent.SHARE if flags else GfnEvent.PAGE_IN]
    normal = half.memory.lra_of(GPA)
    source = normal if flags else half.model.out.get(GPA >> PAGE_SHIFT, normal)
    assert half.page_in(flags=flags) is (code if accepts else H.PARAMETER)
    assert half.state() is (taken if accepts else state)
    asked = [("UV_PAGE_IN", (LPID, source, GPA, 0, PAGE_SHIFT))] if code is H.SUCCESS else []
    assert half.ultravisor.calls == asked
    assert len(half.memory) == (state is GfnState.OUT and not accepts)


@pytest.mark.parametrize("accepts", [True, False])
@pytest.mark.parametrize("state", GfnState, ids=lambda state: state.name)
def test_page_out_in_every_state(state: GfnState, accepts: bool):
    half = Half().start()
    half.force(state)
    if not accepts:
        half.ultravisor.answers[uv.PAGE_OUT.number] = U.RETRY
    taken, code = GFNS[state, GfnEvent.PAGE_OUT]
    asks = taken is not state
    assert half.page_out() is (H.PARAMETER if asks and not accepts else code)
    assert half.state() is (taken if accepts else state)
    assert bool(half.ultravisor.calls) is asks
    assert len(half.memory) == (half.state() is GfnState.OUT)


# -- codes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpa", "flags", "order", "code"),
    [
        (GPA, 2, 12, H.P3),
        (GPA, 0, 17, H.P3),
        (GPA, 0, 0, H.P3),
        (GPA, 2, PAGE_SHIFT, H.P2),
        (GPA, 3, PAGE_SHIFT, H.P2),
        (SIZE, 0, PAGE_SHIFT, H.PARAMETER),
        (SIZE, 1, PAGE_SHIFT, H.PARAMETER),
        ((1 << 64) - 1, 0, PAGE_SHIFT, H.PARAMETER),
    ],
)
def test_codes_of_a_page(gpa: int, flags: int, order: int, code: H):
    half = Half().start()
    half.ultravisor.calls.clear()
    assert half.page_in(gpa, flags, order) is code
    assert half.page_out(gpa, flags & 2, order) is code
    assert half.ultravisor.calls == []
    assert half.page_out(GPA, 1) is H.P2


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        (HypervisorSettings(has_secure_memory=False), H.UNSUPPORTED),
        (HypervisorSettings(is_radix=False), H.UNSUPPORTED),
        (HypervisorSettings(allows=False), H.AUTHORITY),
        (HypervisorSettings(allows=False, is_radix=False), H.UNSUPPORTED),
    ],
)
def test_a_vm_that_may_not_counts_as_started(settings: HypervisorSettings, code: H):
    half = Half(settings)
    assert half.ask(svm.INIT_START.number) is code
    assert half.ultravisor.calls == []
    phases = [half.model.phase]
    assert half.ask(svm.INIT_ABORT.number) is H.PARAMETER
    phases.append(half.model.phase)
    assert phases == [VmPhase.STARTED, VmPhase.NORMAL]


def test_slots_are_registered():
    half = Half()
    half.model.set_memory([(0, SIZE), (2 * SIZE, 3 * SIZE)])
    half.start()
    assert half.ultravisor.calls == [
        ("UV_REGISTER_MEM_SLOT", (LPID, 0, SIZE, 0, 0)),
        ("UV_REGISTER_MEM_SLOT", (LPID, 2 * SIZE, SIZE, 0, 1)),
    ]
    half.model.set_memory([])
    assert len(half.model.slots) == 2


def test_a_slot_that_is_refused_takes_the_others_back():
    half = Half()
    half.model.set_memory([(0, SIZE), (2 * SIZE, 3 * SIZE)])

    def ultracall(turn: Turn, number: int, args: Sequence[int]) -> Returned:
        half.ultravisor.calls.append((str(number), tuple(args)))
        refused = number == uv.REGISTER_MEM_SLOT.number and args[4] == 1
        return Returned(U.P3 if refused else U.SUCCESS)

    half.ultravisor.ultracall = ultracall  # type: ignore[method-assign]
    assert half.ask(svm.INIT_START.number) is H.PARAMETER
    assert half.ultravisor.calls[-1] == (str(uv.UNREGISTER_MEM_SLOT.number), (LPID, 0))


def test_done_moves_all_but_what_is_shared():
    half = Half().start()
    half.page_in(0)
    half.page_in(GPA, 1)
    half.ultravisor.calls.clear()
    assert half.ask(svm.INIT_DONE.number) is H.SUCCESS
    assert half.ultravisor.calls == []
    assert half.model.resident_count == SIZE // PAGE_SIZE - 1
    assert half.state() is GfnState.SHARED


def test_abort_gives_pages_back_and_ends_the_vm():
    half = Half().start()
    half.page_in(0)
    half.page_in(GPA)
    half.page_in(2 * GPA)
    half.page_out(2 * GPA)
    half.ultravisor.calls.clear()
    assert half.ask(svm.INIT_ABORT.number) is H.PARAMETER
    names = [name for name, _ in half.ultravisor.calls]
    assert names == ["UV_PAGE_OUT", "UV_PAGE_OUT", "UV_SVM_TERMINATE"]
    assert half.model.phase is VmPhase.NORMAL
    assert len(half.memory) == 0
    assert half.model.take_changes() == []


def test_content_that_is_needed_leaves_nothing():
    half = Half().done()
    half.ultravisor.wants_content = True
    with pytest.raises(ContentNeeded):
        half.page_out()
    assert len(half.memory) == 0
    assert half.state() is GfnState.SECURE


def test_pages_for_ciphertext_are_bounded():
    memory = HypervisorMemory(LPID)
    pages = [memory.allocate() for _ in range(MAX_PAGES)]
    assert memory.allocate() is None
    assert pages[0]
    memory.free(pages[0])
    assert memory.allocate() == pages[0]
    half = Half().done()
    while half.memory.allocate() is not None:
        pass
    assert half.page_out() is H.PARAMETER


def test_memory_that_is_none():
    memory = HypervisorMemory(LPID)
    lra = memory.allocate()
    assert lra
    assert not memory.store(lra + PAGE_SIZE, bytes(PAGE_SIZE))
    assert not memory.store(lra + 8, bytes(PAGE_SIZE))
    assert not memory.store(lra, b"short")
    assert memory.load(lra + 8) is None
    assert memory.guest_page(lra) is None
    assert memory.guest_page(memory.lra_of(GPA)) == (LPID, GPA)


# -- the hypervisor's own -------------------------------------------------------------------------


def test_memory_is_plugged_and_unplugged():
    half = Half()
    assert half.model.plug(half.turn(), SIZE, SIZE)
    assert half.model.unplug(half.turn(), SIZE, SIZE)
    half.done()
    assert half.model.plug(half.turn(), SIZE, SIZE)
    assert half.ultravisor.calls == [("UV_REGISTER_MEM_SLOT", (LPID, SIZE, SIZE, 0, 1))]
    assert half.state(SIZE) is GfnState.SECURE
    half.page_out(SIZE)
    half.ultravisor.calls.clear()
    assert half.model.unplug(half.turn(), SIZE, SIZE)
    assert half.ultravisor.calls == [("UV_UNREGISTER_MEM_SLOT", (LPID, 1))]
    assert half.state(SIZE) is GfnState.NORMAL
    assert len(half.memory) == 0
    assert not half.model.unplug(half.turn(), SIZE, SIZE)
    half.ultravisor.answers[uv.REGISTER_MEM_SLOT.number] = U.PARAMETER
    assert not half.model.plug(half.turn(), SIZE, SIZE)
    assert list(half.model.slots) == [0]


def test_off_unregisters_and_ends_the_vm():
    half = Half()
    half.model.svm_off(half.turn())
    assert half.ultravisor.calls == []
    half.done()
    half.page_out()
    half.ultravisor.calls.clear()
    half.model.svm_off(half.turn())
    assert [name for name, _ in half.ultravisor.calls] == [
        "UV_UNREGISTER_MEM_SLOT",
        "UV_SVM_TERMINATE",
    ]
    assert half.model.phase is VmPhase.NORMAL
    assert len(half.memory) == 0


def test_victims_go_round():
    half = Half(HypervisorSettings(resident_pages=30)).done()
    assert half.model.excess() == 2
    assert half.model.excess(1) == 3
    half.page_in(5 * PAGE_SIZE, 1)
    assert half.model.excess() == 1
    first = half.model.victims(20)
    second = half.model.victims(20)
    assert len(set(first)) == len(set(second)) == 20
    assert set(first) | set(second) == {n * PAGE_SIZE for n in range(32)} - {5 * PAGE_SIZE}
    assert len(half.model.victims(100)) == 31
    assert Half().done().model.excess(100) == 0
    assert Half().model.victims(3) == ()


def test_victims_when_some_are_spared_then_they_are_the_last():
    half = Half(HypervisorSettings(resident_pages=30)).done()
    spared = {n * PAGE_SIZE for n in range(1, 30)}
    assert half.model.victims(3, spared) == tuple(n * PAGE_SIZE for n in (0, 30, 31))
    assert half.model.victims(4, spared) == tuple(n * PAGE_SIZE for n in (0, 30, 31, 1))
    assert half.model.victims(1, spared) == (30 * PAGE_SIZE,)


# -- records -----------------------------------------------------------------------------------


def filled() -> tuple[Half, Store]:
    half = Half().done()
    store = Store()
    half.page_out()
    half.page_in(5 * PAGE_SIZE, 1)
    store.commit(half.model.take_changes())
    return half, store


def test_it_outlives_the_daemon():
    half, store = filled()
    again = Half(stored=list(store.records.values()))
    assert again.model.phase is VmPhase.DONE
    assert again.model.slots == half.model.slots
    assert list(again.model.gfns.all_runs()) == list(half.model.gfns.all_runs())
    assert again.model.out == half.model.out
    assert again.model.take_changes() == []
    assert again.page_in() is H.SUCCESS
    store.commit(again.model.take_changes())
    assert {key[:1] for _, key in store.records} == {b"v", b"s", b"g"}
    assert again.page_out() is H.SUCCESS


def test_off_leaves_no_record():
    half, store = filled()
    half.model.svm_off(half.turn())
    store.commit(half.model.take_changes())
    assert store.records == {}


def test_malformed_records_are_refused():
    _, store = filled()
    good = list(store.records.values())
    for index, record in enumerate(good):
        namespace, key, value, run = record.namespace, record.key, record.value, Lifetime.RUN
        for one in [
            Record(namespace, key, b"", run),
            Record(namespace, key, b"\2" + value[1:], run),
            Record(namespace, key, value + b"\0", run),
            Record(namespace, key, value[:-1], run),
            Record(namespace, key, value[:1] + b"\xff" * (len(value) - 2), run),
            Record(namespace, b"?" + key[1:], value, run),
            Record(namespace, key + b"\0", value, run),
            Record(namespace, key, value),
        ]:
            others = good[:index] + good[index + 1 :]
            with pytest.raises(StoreError):
                Half(stored=[*others, one])


@pytest.mark.parametrize(
    ("start", "size"), [(1, PAGE_SIZE), (0, 0), (0, 1 << 62), (1 << 57, PAGE_SIZE)]
)
def test_slots_that_cannot_be_are_refused(start: int, size: int):
    _, store = filled()
    value = b"\1" + start.to_bytes(8, "big") + size.to_bytes(8, "big") + bytes(4)
    records = [
        Record(record.namespace, record.key, value, Lifetime.RUN)
        if record.key[:1] == b"s"
        else record
        for record in store.records.values()
    ]
    with pytest.raises(StoreError, match="slot"):
        Half(stored=records)


def test_ciphertext_of_two_pages_is_refused():
    half, store = filled()
    half.page_out(7 * PAGE_SIZE)
    store.commit(half.model.take_changes())
    value = b"\1" + (1).to_bytes(4, "big")
    records = [
        Record(record.namespace, record.key, value, Lifetime.RUN)
        if record.key[:1] == b"o"
        else record
        for record in store.records.values()
    ]
    with pytest.raises(StoreError, match="another one's"):
        Half(stored=records)


def test_ciphertext_that_is_missing_is_refused():
    _, store = filled()
    rest = [record for record in store.records.values() if record.key[:1] != b"c"]
    with pytest.raises(StoreError, match="no such page"):
        Half(stored=rest)


# -- the ABI -----------------------------------------------------------------------------------


def test_every_call_of_the_ultravisor_has_a_method():
    expected = {call.number for call in svm.FAMILY.calls if call.caller is Caller.ULTRAVISOR}
    assert set(CALLS) == expected
    assert Half().ask(0xEF10, 1) is H.FUNCTION


def imported(package: types.ModuleType) -> set[str]:
    """Our modules that a package's modules import."""
    (folder,) = package.__path__
    return {
        node.module
        for path in pathlib.Path(folder).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module
    }


def test_the_halves_know_each_other_by_the_abi_alone():
    of_hypervisor = imported(hypervisor_package)
    assert {name for name in of_hypervisor if ".ultravisor" in name} == {
        "hcalld.domain.ultravisor.abi"
    }
    of_ultravisor = imported(ultravisor_package)
    assert not {name for name in of_ultravisor if ".hypervisor" in name}
    assert not {name for name in of_hypervisor | of_ultravisor if ".pef" in name}
