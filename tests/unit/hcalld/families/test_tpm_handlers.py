# SPDX-License-Identifier: Apache-2.0
"""H_TPM_COMM's handler: which effects, in which order, and what it makes of them."""

from __future__ import annotations

import pytest

from hcalld.core.call import Call
from hcalld.core.effects import ReadBuffer, TpmClose, TpmTransmit
from hcalld.core.errors import BackendUnavailable, HcallError
from hcalld.core.guestmem import RamMap
from hcalld.core.outcome import Outcome
from hcalld.domain.attributes import PartitionAttributes
from hcalld.domain.tpm import TRANSITIONS, SessionEvent, SessionState, TpmModel
from hcalld.families.tpm.handlers import h_tpm_comm
from hcalld.testing.driver import run_pure
from hcalld.testing.machine import PureMachine
from hcallproto.abi.families import tpm
from hcallproto.abi.returns import H

COMMAND = bytes.fromhex("80010000000c0000017b0008")
RESPONSE = bytes.fromhex("80010000000a00000101")
READ = ReadBuffer("request")


def call(operation: int, *, is_resent: bool = False) -> Call:
    args = {
        "operation": operation,
        "request": 0x1000,
        "request_size": 12,
        "response": 0x2000,
        "response_size": 4096,
    }
    return Call(tpm.TPM_COMM, args, 0, RamMap([(0, 1 << 20)]), is_resent=is_resent)


def model() -> TpmModel:
    return TpmModel(PartitionAttributes(), [])


def test_execute_reads_sends_and_writes():
    steps = [(READ, COMMAND), (TpmTransmit(COMMAND), RESPONSE)]
    assert run_pure(h_tpm_comm(call(1), model()), steps) == Outcome(
        H.SUCCESS, ((4, 10),), ((0x2000, RESPONSE),)
    )


def test_execute_without_a_response():
    steps = [(READ, COMMAND), (TpmTransmit(COMMAND), BackendUnavailable("it died"))]
    with pytest.raises(HcallError, match="H_RESOURCE: it died"):
        run_pure(h_tpm_comm(call(1), model()), steps)


def test_execute_that_is_sent_again_closes_and_sends_nothing():
    with pytest.raises(HcallError, match="H_RESOURCE: sent again"):
        run_pure(h_tpm_comm(call(1, is_resent=True), model()), [(TpmClose(), None)])


@pytest.mark.parametrize("is_resent", [False, True])
def test_close(is_resent: bool):
    closing = h_tpm_comm(call(2, is_resent=is_resent), model())
    assert run_pure(closing, [(TpmClose(), None)]) == Outcome(H.SUCCESS)


def test_close_that_fails():
    steps = [(TpmClose(), BackendUnavailable("mute"))]
    with pytest.raises(HcallError, match="H_RESOURCE: mute"):
        run_pure(h_tpm_comm(call(2), model()), steps)


def test_effects_do_not_show_what_they_carry():
    assert "8001" not in repr(TpmTransmit(COMMAND))


def test_a_machine_with_a_tpm():
    machine = PureMachine(tpm=lambda command: RESPONSE if command == COMMAND else b"")
    machine.guest.write(0x1000, COMMAND)
    outcome = machine.hcall(tpm.TPM_COMM, 1, 0x1000, 12, 0x1000, 4096)
    assert (outcome.code, outcome.registers) == (H.SUCCESS, ((4, 10),))
    assert machine.guest.read(0x1000, 12) == RESPONSE + COMMAND[10:]
    assert machine.has_tpm_session
    assert machine.hcall(tpm.TPM_COMM, 2, 0, 0, 0, 0).code is H.SUCCESS
    assert not machine.has_tpm_session


def test_a_machine_without_one():
    machine = PureMachine()
    assert machine.hcall(tpm.TPM_COMM, 1, 0x1000, 12, 0x1000, 4096).code is H.RESOURCE


def test_the_table_of_states_is_whole():
    """Two events cannot come in every state: opening what is open, freeing what is not stale."""
    missing = {(s, e) for s in SessionState for e in SessionEvent} - TRANSITIONS.keys()
    assert missing == {
        (SessionState.OPEN, SessionEvent.OPENED),
        (SessionState.STALE, SessionEvent.OPENED),
        (SessionState.CLOSED, SessionEvent.FREED),
        (SessionState.OPEN, SessionEvent.FREED),
    }
    assert {TRANSITIONS[s, SessionEvent.CLOSE] for s in SessionState} == {SessionState.STALE}
    assert SessionState.OPEN not in {TRANSITIONS[s, SessionEvent.RESET] for s in SessionState}
