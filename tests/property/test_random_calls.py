# SPDX-License-Identifier: Apache-2.0
"""Random registers and memory, for every call that is served.

Whatever a guest does: no exception, a declared code, and after a refusal no byte of
memory and no record has changed. ``tests/soak/test_random_calls.py`` has millions.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.property.random_guest import ADDRESSES, CALL_LIST, NUMBERS, RandomGuest
from tests.unit.hcalld.families.registers import GOOD, prepared

from hcalld.core.outcome import Outcome
from hcalld.testing import PureMachine
from hcallproto.abi.returns import H
from hcallproto.abi.spec import ArgKind, Hcall

CALLS_A_SEED = 3000


def check(machine: PureMachine, hcall: Hcall, registers: list[int]) -> Outcome:
    memory, generation = machine.guest.snapshot(), machine.store.generation
    outcome = machine.hcall(hcall, *registers)
    if outcome.code is not H.SUCCESS:
        assert outcome.why
        assert machine.guest.snapshot() == memory
        is_busy = outcome.code is H.BUSY or outcome.code >= H.LONG_BUSY_ORDER_1_MSEC
        assert machine.store.generation == generation + is_busy
    assert all(model.take_changes() == [] for model in machine.models.values())
    return outcome


@given(data=st.data(), busy_answers=st.sampled_from([0, 1]))
def test_any_sequence_of_calls_is_answered(data: st.DataObject, busy_answers: int):
    machine = prepared(busy_answers=busy_answers)
    for _ in range(data.draw(st.integers(1, 8))):
        hcall = data.draw(st.sampled_from(CALL_LIST))
        registers = [
            data.draw(
                st.just(GOOD[hcall.name][arg.name])
                | st.sampled_from(ADDRESSES if arg.kind is ArgKind.ADDRESS else NUMBERS)
                | st.integers(0, (1 << 64) - 1)
            )
            for arg in hcall.args
        ]
        check(machine, hcall, registers)


@pytest.mark.parametrize("seed", range(3))
def test_thousands_of_random_calls_raise_nothing(seed: int):
    guest = RandomGuest(seed)
    for count in range(CALLS_A_SEED):
        guest.disturb()
        generation = guest.machine.store.generation
        outcome = guest.call()
        if outcome.code < 0:
            assert outcome.writes == ()
            assert guest.machine.store.generation == generation
        assert guest.machine.changes() == []
        if count % 500 == 0:
            guest.check()
    guest.check()
