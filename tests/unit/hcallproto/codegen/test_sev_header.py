# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import re

import pytest

from hcallproto.abi.families import sev
from hcallproto.abi.registers import FIRST_ARGUMENT
from hcallproto.abi.returns import SevCode, code_name
from hcallproto.abi.spec import BufferShape, Direction, Hcall
from hcallproto.codegen import sev_header as module
from hcallproto.codegen.errors import CodegenError
from hcallproto.codegen.sev_header import sev_header
from hcallproto.wire import schema as s

HEADER = sev_header()
DEFINES = dict(re.findall(r"^#define (\w+) +([^\s\\]+)$", HEADER, re.MULTILINE))
ENTRIES = dict(
    re.findall(
        r'^    \{ 0x\w+u, "(\w+)", (.*?)^    {3}\} \}, ?\\?$', HEADER, re.MULTILINE | re.DOTALL
    )
)


def number(text: str) -> int:
    return int(text.rstrip("u"), 0)


def fields_of(name: str) -> list[tuple[str, ...]]:
    """(offset, size, flags, also, name) of each field."""
    return re.findall(r"\{ (\d+), (\d+), ([A-Z_| ]+|0), (\d+) \} /\* (\w+)", ENTRIES[name])


@pytest.mark.parametrize("call", sev.FAMILY.calls, ids=lambda call: call.name)
def test_call_when_generated_then_its_fields_are_in_the_order_of_registers(call: Hcall):
    assert number(DEFINES[f"CALL_{call.name}"]) == call.number
    fields = fields_of(call.name)
    for arg in call.args:
        field = fields[arg.register - FIRST_ARGUMENT]
        assert field[4] == arg.name
        assert field[2].startswith("SEV_FIELD_IN" if call.structure else "SEV_FIELD_POINTER")
    for output in call.outputs:
        field = fields[output.register - FIRST_ARGUMENT]
        assert (field[4], "SEV_FIELD_OUT" in field[2]) == (output.name, True)
        assert int(field[3]) == (output.also_with[0] if output.also_with else 0)


def test_fields_when_generated_then_they_lie_as_the_kernel_has_them():
    assert [field[:2] for field in fields_of("KVM_SEV_SEND_START")] == [
        ("0", "4"), ("8", "8"), ("16", "4"), ("24", "8"), ("32", "4"),
        ("40", "8"), ("48", "4"), ("56", "8"), ("64", "4"),
    ]  # fmt: skip
    assert [field[:2] for field in fields_of("SEV_PLATFORM_STATUS")] == [
        ("0", "1"), ("1", "1"), ("2", "1"), ("3", "4"), ("7", "1"), ("8", "4"),
    ]  # fmt: skip


def test_bounds_when_generated_then_no_command_has_more():
    assert max(len(fields_of(call.name)) for call in sev.FAMILY.calls) == number(
        DEFINES["SEV_MAX_FIELDS"]
    )
    ends = [
        int(offset) + int(size)
        for call in sev.FAMILY.calls
        if call.structure
        for offset, size, *_ in fields_of(call.name)
    ]
    assert max(ends) <= number(DEFINES["SEV_MAX_STRUCTURE_SIZE"]) == 72


def test_fields_when_named_then_they_have_the_index_of_their_register():
    named = {name: value for name, value in DEFINES.items() if name.startswith("FIELD_")}
    found = {
        f"FIELD_{call.name}_{field[4].upper()}": str(index)
        for call in sev.FAMILY.calls
        for index, field in enumerate(fields_of(call.name))
    }
    assert named
    assert named.items() <= found.items()


def test_fields_when_they_only_come_back_then_they_are_not_sent():
    assert {field[2] for field in fields_of("KVM_SEV_GUEST_STATUS")} == {"SEV_FIELD_OUT"}


@pytest.mark.parametrize(
    ("name", "buffers"),
    [
        ("KVM_SEV_LAUNCH_UPDATE_DATA", ["{ 0, 1, 3, 0 }"]),
        ("KVM_SEV_LAUNCH_SECRET", ["{ 0, 1, 1, 0 }", "{ 2, 3, 2, 0 }", "{ 4, 5, 1, 0 }"]),
        ("KVM_SEV_DBG_ENCRYPT", ["{ 0, 2, 1, 0 }", "{ 1, 2, 2, 0 }"]),
        ("SEV_GET_ID", ["{ 0, SEV_SIZE_FIXED, 2, 128 }"]),
        ("KVM_MEMORY_ENCRYPT_REG_REGION", ["{ 0, 0, 0, 0 }"]),
    ],
)
def test_buffers_when_generated_then_they_say_what_may_be_touched(name: str, buffers: list[str]):
    tail = ENTRIES[name].rpartition(", { \\")[2]
    assert re.findall(r"\{[^{}]*\}", tail) == buffers


def test_blocks_when_generated_then_only_debugging_rounds_out():
    rounded = [name for name, rest in ENTRIES.items() if rest.startswith("24, 16,")]
    assert rounded == ["KVM_SEV_DBG_DECRYPT", "KVM_SEV_DBG_ENCRYPT"]


def test_every_call_and_status_is_there():
    assert list(ENTRIES) == [call.name for call in sev.FAMILY.calls]
    assert int(DEFINES["SEV_CALL_COUNT"]) == len(sev.FAMILY.calls)
    for code in SevCode:
        assert f"X({code_name(code)}, {code:d})" in HEADER


def test_wire_when_generated_then_it_is_that_of_the_schema():
    assert number(DEFINES["HCLP_MAGIC"]) == s.MAGIC
    assert number(DEFINES["HCLP_MAX_MAX_FRAME"]) == s.MAX_MAX_FRAME
    assert number(DEFINES["HCLP_READ_REPLY"]) == s.FrameType.READ_REPLY
    assert s.REGISTERS[number(DEFINES["HCLP_STATUS_INDEX"])] == 3
    assert s.REGISTERS[number(DEFINES["HCLP_FIRST_INDEX"])] == FIRST_ARGUMENT


def test_nothing_is_defined_twice():
    names = re.findall(r"^#define (\w+)", HEADER, re.MULTILINE)
    assert len(names) == len(set(names))


def test_shape_when_commands_have_none_such_then_it_is_refused():
    buffer = dataclasses.replace(sev.GET_ID.buffers[0], shape=BufferShape.PAGE_BOUNDED)
    with pytest.raises(CodegenError, match="SEV_GET_ID: data has a shape"):
        module._buffer_entry(sev.GET_ID, buffer)


def test_output_when_it_comes_with_two_codes_then_it_is_refused():
    output = sev.LAUNCH_MEASURE.outputs[0]
    two = dataclasses.replace(output, also_with=(SevCode.INVALID_LEN, SevCode.EFAULT))
    with pytest.raises(CodegenError, match="len comes with 2 codes"):
        list(module._field_entries(dataclasses.replace(sev.LAUNCH_MEASURE, outputs=(two,))))


def test_direction_when_a_buffer_is_rewritten_then_it_is_both():
    assert sev.LAUNCH_UPDATE_DATA.buffers[0].direction is Direction.IN
    assert "{ 0, 1, 3, 0 }" in ENTRIES["KVM_SEV_LAUNCH_UPDATE_DATA"]
