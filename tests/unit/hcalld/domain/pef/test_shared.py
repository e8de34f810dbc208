# SPDX-License-Identifier: Apache-2.0
"""Sharing calls that are too much for one turn: whole in the end, and true at any time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from hcalld.core.effects import Effect, GuestMemoryError, ZeroGuest
from hcalld.core.outcome import Outcome
from hcalld.core.pages import PageBits, SetPages
from hcalld.domain.pef import shared
from hcalld.domain.pef.machine import PefSettings
from hcalld.domain.pef.shared import share, unshare, unshare_all
from hcalld.domain.ultravisor.abi import PAGE_SIZE, Returned, Turn
from hcalld.testing.pef import PefGuest
from hcallproto.abi.families import svm, uv
from hcallproto.abi.returns import H, U

Running = Coroutine[Effect[Any], Any, Outcome]

LOW = 0x60_1000
HIGH = 0x7F_F000
GFN, COUNT = LOW >> 12, (HIGH - LOW) >> 12
SECRET = b"secret of the guest".ljust(64)
EDGES = (LOW - 64, HIGH)
INSIDE = tuple(range(LOW + 0x1000, HIGH, 0x3_0000))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "PIECE_SIZE", 4 * PAGE_SIZE)


def make() -> PefGuest:
    """A VM whose pages are strewn with shared ones, some out, and secrets everywhere."""
    guest = PefGuest(PefSettings(page_shift=12))
    assert guest.enter().code is U.SUCCESS
    for gpa in (*EDGES, *INSIDE):
        guest.store_bytes(gpa, SECRET)
    for gfn in range(GFN + 0x40, GFN + COUNT, 7):
        assert guest.run(share(guest.machine, gfn, 1)).code is U.SUCCESS
    # The edges' pages too: their other ends are not shared.
    guest.run(guest.machine.page_out([LOW, 0x63_0000]))
    return guest


def to_the_end(guest: PefGuest, running: Running, after: Callable[[Effect[Any]], None]) -> Outcome:
    """Run a call; ``after`` is told of each effect. Its reply is carried out."""

    async def whole() -> Outcome:
        return await running

    perform = guest.perform

    def told(effect: Effect[Any]) -> Any:
        answer = perform(effect)
        after(effect)
        return answer

    guest.perform = told  # type: ignore[method-assign]
    try:
        return guest.run(whole())
    finally:
        guest.perform = perform  # type: ignore[method-assign]


def is_shared(guest: PefGuest) -> bool:
    """True if all of it is, was zeroed, and nothing beside it is touched."""
    (vm,) = guest.machine.ultravisor.vms.values()
    assert guest.load(LOW - 64, 64) == SECRET
    assert guest.load(HIGH, 64) == SECRET
    return (
        vm.shared_count == COUNT
        and {guest.bits_at(gpa) for gpa in range(LOW, HIGH, 0x1000)} == {PageBits.NONE}
        and guest.bits_at(LOW - 1) == guest.bits_at(HIGH) == PageBits.UNSHARED
        and not any(any(guest.load(gpa, 64)) for gpa in INSIDE)
    )


def test_a_great_share():
    guest = make()
    effects: list[Effect[Any]] = []
    outcome = to_the_end(guest, share(guest.machine, GFN, COUNT), effects.append)
    assert outcome.code is U.SUCCESS
    assert sum(isinstance(effect, SetPages) for effect in effects) > 10
    assert len(outcome.zeros) < 8
    assert is_shared(guest)


def test_a_great_unshare_leaves_zeros_only():
    guest = make()
    guest.run(share(guest.machine, GFN, COUNT))
    guest.guest.write(LOW, b"from the host" * 1000)
    guest.guest.write(HIGH - 0x8_0000, b"from the host" * 1000)
    assert guest.run(unshare(guest.machine, GFN, COUNT)).code is U.SUCCESS
    assert guest.guest.read(LOW, HIGH - LOW) == bytes(HIGH - LOW)
    assert {guest.bits_at(gpa) for gpa in range(LOW, HIGH, 0x1000)} == {PageBits.UNSHARED}


def test_all_is_taken_back():
    guest = make()
    assert guest.run(unshare_all(guest.machine)).code is U.SUCCESS
    assert guest.machine.ultravisor.vms[1].shared_count == 0
    assert PageBits.NONE not in {guest.bits_at(gpa) for gpa in range(LOW, HIGH, 0x1000)}
    assert guest.load(INSIDE[0], 64) == SECRET


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("call", ["share", "unshare", "unshare_all"])
def test_a_daemon_that_dies_anywhere_has_the_call_sent_again(call: str, commits: bool):
    count = 0
    is_over = False
    while not is_over:
        guest = make()
        if call != "share":
            guest.run(share(guest.machine, GFN, COUNT))
            guest.guest.write(LOW, b"from the host" * 1000)

        def running(guest: PefGuest = guest) -> Running:
            if call == "unshare_all":
                return unshare_all(guest.machine)
            return {"share": share, "unshare": unshare}[call](guest.machine, GFN, COUNT)

        first = running()
        is_over = drive(guest, first, count)
        if commits and not is_over:
            # Another vCPU's call is answered, and commits all that has changed.
            guest.run(guest.machine.touch(0))
        first.close()
        guest.reload()
        assert guest.run(running()).code is U.SUCCESS
        if call == "share":
            assert is_shared(guest), count
        else:
            assert guest.guest.read(LOW, HIGH - LOW) == bytes(HIGH - LOW)
            assert guest.machine.ultravisor.vms[1].shared_count == 0
        count += 1
    assert count > 10


def drive(guest: PefGuest, running: Running, count: int) -> bool:
    """Perform some effects; True if the call ends before, and its reply is lost."""
    answer: Any = None
    try:
        for _ in range(count):
            answer = guest.perform(running.send(answer))
        running.send(answer)
    except StopIteration:
        return True
    return False


def test_cut_off_anywhere_it_can_be_called_again():
    count = 0
    while True:
        guest = make()
        running = share(guest.machine, GFN, COUNT)
        if drive(guest, running, count):
            break
        running.close()
        for gpa in EDGES:
            assert guest.load(gpa, 64) == SECRET
        assert guest.run(share(guest.machine, GFN, COUNT)).code is U.SUCCESS
        assert is_shared(guest), count
        count += 1
    assert count > 10


def test_a_page_that_is_wanted_meanwhile_is_taken_again():
    guest = make()
    guest.run(share(guest.machine, GFN, COUNT))
    wanted = LOW + 2 * PAGE_SIZE
    seen: list[int] = []

    def touch(effect: Effect[Any]) -> None:
        if isinstance(effect, ZeroGuest) and effect.gpa <= wanted < effect.gpa + effect.size:
            seen.append(effect.gpa)
            if len(seen) > 1:
                return
            # Another vCPU's access gives it back, shared as it was, and the host writes to it.
            perform_touch(guest, wanted)
            assert guest.bits_at(wanted) == PageBits.NONE
            guest.guest.write(wanted, b"from the host")

    outcome = to_the_end(guest, unshare(guest.machine, GFN, COUNT), touch)
    assert outcome.code is U.SUCCESS
    assert len(seen) == 2
    assert guest.guest.read(wanted, 64) == bytes(64)


def test_a_great_share_while_pages_go_out_for_want_of_room(monkeypatch: pytest.MonkeyPatch):
    """What goes out is something else: both would take the same pages, again and again."""
    monkeypatch.setattr(shared, "PIECE_SIZE", 64 * PAGE_SIZE)
    monkeypatch.setattr(shared, "TRIES", 1)
    guest = make()
    half = guest.machine.hypervisor
    half.settings = dataclasses.replace(half.settings, resident_pages=0)
    trims: list[int] = []

    def trim(effect: Effect[Any]) -> None:
        if isinstance(effect, SetPages) and len(half.out) < 16 and not trims:
            half.hand = LOW // PAGE_SIZE
            trims.append(len(half.out))
            guest.run(guest.machine.trim())
            trims.clear()

    outcome = to_the_end(guest, share(guest.machine, GFN, COUNT), trim)
    assert outcome.code is U.SUCCESS
    assert len(half.out) >= 16
    half.settings = dataclasses.replace(half.settings, resident_pages=None)
    assert is_shared(guest)


def perform_touch(guest: PefGuest, gpa: int) -> None:
    running = guest.machine.touch(gpa)
    try:
        running.send(None)
    except StopIteration as stop:
        guest.set_bits(stop.value.pages)
        return
    raise AssertionError("it waits")


def test_a_page_that_is_wanted_all_the_time():
    guest = make()

    def touch(effect: Effect[Any]) -> None:
        if isinstance(effect, ZeroGuest):
            perform_touch(guest, effect.gpa)

    outcome = to_the_end(guest, share(guest.machine, GFN, COUNT), touch)
    assert outcome.code is U.RETRY
    assert guest.run(share(guest.machine, GFN, COUNT)).code is U.SUCCESS
    assert is_shared(guest)


def test_a_hypervisor_that_refuses_a_later_piece():
    guest = make()
    (vm,) = guest.machine.ultravisor.vms.values()
    before = list(vm.pages.all_runs())
    half = guest.machine.hypervisor
    real = half.hypercall
    refused = 0x7A_0000

    def hypercall(turn: Turn, number: int, args: Any) -> Returned:
        if number == svm.PAGE_IN.number and args[:2] == (refused, 1):
            return Returned(H.PARAMETER)
        return real(turn, number, args)

    half.hypercall = hypercall  # type: ignore[method-assign]
    outcome = guest.run(share(guest.machine, GFN, COUNT))
    assert outcome.code is U.P2
    assert "does not share page 0x7a0000" in outcome.why
    shared_before = [run for run in before if run[2] > 1]
    assert [run for run in vm.pages.all_runs() if run[2] > 1] == shared_before
    for gpa in EDGES:
        assert guest.load(gpa, 64) == SECRET
    assert not guest.doom


def test_memory_that_vanishes_meanwhile():
    guest = make()

    def fail(effect: Effect[Any]) -> None:
        if isinstance(effect, ZeroGuest):
            raise GuestMemoryError(effect.gpa, effect.size, "gone")

    outcome = to_the_end(guest, share(guest.machine, GFN, COUNT), fail)
    assert outcome.code is U.P2
    assert "gone" in outcome.why


@pytest.mark.parametrize("count", [2, 0x80])
def test_a_page_that_is_not_given_back_ends_the_vm(count: int):
    guest = make()
    guest.run(share(guest.machine, GFN, count))
    half = guest.machine.hypervisor
    half.hypercall = lambda turn, number, args: Returned(H.PARAMETER)  # type: ignore[method-assign]
    outcome = guest.call(uv.UNSHARE_ALL_PAGES)
    assert outcome.code is U.P2
    assert "does not give back" in guest.doom
