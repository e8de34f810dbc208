# SPDX-License-Identifier: Apache-2.0
"""Registration of handlers, effects, errors and records."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from hcalld.core.effects import Entropy, GuestMemoryError, WriteGuest
from hcalld.core.errors import HcallError
from hcalld.core.handlers import HandlerSet
from hcalld.core.outcome import Outcome
from hcalld.core.records import Loaded, Record, RecordedReply
from hcallproto.abi.families import pks, tpm
from hcallproto.abi.returns import H


async def handler(call: Any, model: Any):
    return Outcome(H.SUCCESS)


def test_handles_binds_a_declared_call():
    handlers: HandlerSet[Any] = HandlerSet(pks.FAMILY)

    assert handlers.handles(pks.GET_CONFIG)(handler) is handler
    assert handlers.by_call == {pks.GET_CONFIG: handler}
    assert handlers.gate is None


def test_handles_refuses_another_familys_call():
    with pytest.raises(ValueError, match="not declared in family pks"):
        HandlerSet(pks.FAMILY).handles(tpm.FAMILY.calls[0])


def test_handles_refuses_a_second_handler():
    handlers: HandlerSet[Any] = HandlerSet(pks.FAMILY)
    handlers.handles(pks.GET_CONFIG)(handler)

    with pytest.raises(ValueError, match="has a handler already"):
        handlers.handles(pks.GET_CONFIG)


def test_handles_binds_several_calls_to_one_handler():
    handlers: HandlerSet[Any] = HandlerSet(pks.FAMILY)
    handlers.handles(pks.GET_CONFIG, pks.READ_OBJECT)(handler)
    assert handlers.by_call == {pks.GET_CONFIG: handler, pks.READ_OBJECT: handler}


def test_handles_refuses_a_call_declared_decode_only():
    undone = dataclasses.replace(pks.GET_CONFIG, decode_only=True)
    family = dataclasses.replace(pks.FAMILY, calls=(undone,))
    with pytest.raises(ValueError, match="decode_only"):
        HandlerSet(family).handles(undone)


def test_an_effect_yields_itself_and_returns_the_answer():
    step = Entropy(4).__await__()

    assert next(step) == Entropy(4)
    with pytest.raises(StopIteration) as stop:
        step.send(b"1234")
    assert stop.value.value == b"1234"


def test_reprs_hold_no_guest_bytes():
    assert b"secret".hex() not in repr(WriteGuest(0, b"secret"))
    for shown in (
        repr(WriteGuest(0, b"hunter2")),
        repr(Outcome(H.SUCCESS, (), ((0, b"hunter2"),))),
        repr(Record("pks", b"key", b"hunter2")),
        repr(RecordedReply(0, 1, b"hunter2")),
    ):
        assert "hunter2" not in shown


def test_hcall_error_names_code_and_reason():
    assert str(HcallError(H.P2, "label too long")) == "H_P2: label too long"


def test_guest_memory_error_names_the_range():
    error = GuestMemoryError(0x1000, 16, "not RAM")

    assert str(error) == "guest address 0x1000, 16 bytes: not RAM"
    assert (error.gpa, error.size) == (0x1000, 16)


def test_loaded_of_picks_one_namespace():
    mine, other = Record("pks", b"a", b""), Record("tpm", b"a", b"")

    assert Loaded([mine, other], []).of("pks") == [mine]
