# SPDX-License-Identifier: Apache-2.0
"""The values: one for each type, with the fields of the schema."""

from __future__ import annotations

from tests.unit.hcallproto.conn.talk import CALL, GPR

from hcallproto.wire import frames as f
from hcallproto.wire import schema as s


def test_frame_types_when_listed_then_every_type_has_one_class():
    assert set(f.FRAME_TYPES.values()) == set(s.FrameType)
    assert len(f.FRAME_TYPES) == len(s.FrameType)
    assert set(f.FRAME_TYPES) == set(f.Frame.__args__)


def test_call_when_asked_for_its_registers_then_each_has_its_number():
    assert CALL.number == GPR[s.REGISTERS.index(3)]
    assert CALL.registers() == dict(zip(s.REGISTERS, GPR, strict=True))
    assert sorted(CALL.registers()) == [0, *range(2, 13), 31]
    # By number each is found too, the last one far from the others.
    by_number = CALL.by_number()
    assert {number: by_number[number] for number in s.REGISTERS} == CALL.registers()
