# SPDX-License-Identifier: Apache-2.0
"""The tables of ``docs/hcalls/``: every call with its registers, codes and deadlines."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import textwrap
from collections.abc import Iterator
from typing import Any

import construct

from hcallproto.abi.families import sev
from hcallproto.abi.registers import FIRST_ARGUMENT, R_NUMBER, U32_MAX, U64_MAX
from hcallproto.abi.registry import FAMILIES
from hcallproto.abi.returns import CODE_SETS, H, code_name
from hcallproto.abi.spec import (
    Arg,
    ArgKind,
    Bound,
    Buffer,
    BufferShape,
    Condition,
    Direction,
    Family,
    Hcall,
    Level,
    Limit,
    Names,
    Output,
)
from hcallproto.codegen.layouts import fields_of, layout
from hcallproto.codegen.rst import LINE_WIDTH, Blocks, code, table

_MADE_BY = {Level.SC1: "``sc 1``", Level.SC2: "``sc 2``", Level.COMMAND: "``ioctl``"}


def blocks(family: Family) -> Blocks:
    """The blocks of a family's page."""
    return {
        f"calls {family.name}": functools.partial(summary, family),
        **{f"call {call.name}": functools.partial(call_block, call) for call in family.calls},
        **{
            f"layout {name}": functools.partial(layout, structure)
            for name, structure in _structures(family)
        },
    }


def _structures(family: Family) -> Iterator[tuple[str, construct.Construct[Any, Any]]]:
    """The structures in guest memory, from the family's module in ``payloads``, if any."""
    name = f"hcallproto.payloads.{family.name}"
    if importlib.util.find_spec(name) is not None:
        for attribute, structure in vars(importlib.import_module(name)).items():
            if isinstance(structure, construct.Struct):
                yield attribute, structure


def summary(family: Family) -> str:
    """Number, name and meaning of each call."""
    return table(
        ("Number", "Call", "Made by", "Served", "What it does"),
        [
            (
                f"0x{call.number:x}",
                code(call.name),
                _MADE_BY[call.level],
                "no" if call.decode_only else "yes",
                call.doc,
            )
            for call in family.calls
        ],
    )


def call_block(call: Hcall) -> str:
    """Everything that the table says about a call."""
    parts = [
        textwrap.fill(call.doc, LINE_WIDTH),
        "\n".join(
            textwrap.fill(
                f":{name}: {text}", LINE_WIDTH, subsequent_indent="   ", break_on_hyphens=False
            )
            for name, text in _fields(call)
        ),
    ]
    args = [(arg.register, code(arg.name), _arg_text(call, arg)) for arg in call.args]
    if args:
        parts += (
            "Arguments:" if call.structure is None else _fields_title(call),
            _places(call, args),
        )
    outputs = [
        (output.register, code(output.name), _output_text(output)) for output in call.outputs
    ]
    if call.result:
        outputs.insert(0, (R_NUMBER, "result", f"when positive, {call.result}"))
    if outputs:
        parts += (_outputs_title(call), _places(call, outputs))
    parts += _status_parts(call) if call.level is Level.COMMAND else _code_parts(call)
    return "\n\n".join(parts)


def _fields_title(call: Hcall) -> str:
    assert call.structure is not None
    return f"Fields of its structure of {call.structure.sizeof()} bytes:"


def _outputs_title(call: Hcall) -> str:
    if call.structure is None:
        return "Results beside the code in ``r3``:"
    return "Fields that come back:" if call.args else _fields_title(call)


def _places(call: Hcall, rows: list[tuple[int, str, str]]) -> str:
    """Arguments or results, with their registers, and offsets in the command's structure."""
    if call.structure is None:
        return table(
            ("Register", "Name", "Meaning"),
            [(code(f"r{register}"), name, text) for register, name, text in rows],
        )
    places = [field for field in fields_of(call.structure) if field.name]
    table_rows = []
    for register, name, text in rows:
        place = places[register - FIRST_ARGUMENT]
        where = (str(place.offset), place.type, code(f"r{register}"))
        table_rows.append((*where, name, text))
    return table(("Offset", "Type", "Register", "Field", "Meaning"), table_rows)


def _code_parts(call: Hcall) -> list[str]:
    rows = [(code(name), str(value), when) for name, value, when in _codes(call)]
    return ["Codes:", table(("Code", "Value", "When"), rows)]


def _status_parts(call: Hcall) -> list[str]:
    """Of a command: what the firmware says is in ``error``, what the kernel does is not."""
    codes = list(_codes(call))
    return [
        "Statuses; with each but the first the ioctl gives -EIO:",
        table(
            ("Status", "``error``", "When"),
            [(code(name), f"0x{value:02x}", when) for name, value, when in codes if value >= 0],
        ),
        "Errors that the ioctl gives itself, with ``error`` as it was:",
        table(
            ("Error", "Value", "When"),
            [(code(name), str(value), when) for name, value, when in codes if value < 0],
        ),
    ]


def _number(call: Hcall) -> str:
    text = f"0x{call.number:x}, "
    if call.level is not Level.COMMAND:
        return text + _MADE_BY[call.level]
    ioctl = sev.Ioctl(call.number >> sev.COMMAND_SHIFT)
    if call.name == ioctl.name:
        return text + code(ioctl.name)
    return f"{text}{code(ioctl.name)} command {call.number & sev.COMMAND_MASK}"


def _fields(call: Hcall) -> Iterator[tuple[str, str]]:
    yield "number", _number(call)
    if call.level is not Level.COMMAND:
        yield "caller", call.caller.value
    yield "served", "no, decode only" if call.decode_only else "yes"
    remains = (
        "the change may have been made all the same"
        if call.effect_may_remain
        else "nothing is changed"
    )
    yield (
        "deadline",
        f"{call.deadline_ms / 1000:g} s, then {code(code_name(call.timeout_code))}; {remains}",
    )
    lost = code(code_name(call.lost_code))
    if call.waits_for_daemon:
        yield "daemon gone", f"waited for until the deadline; {lost} if memory vanished meanwhile"
    else:
        yield "daemon gone", f"{lost} at once"
    if call.query is not None:
        asks = " or ".join(map(code, call.query.asks))
        lengths = ", ".join(f"{code(name)} {least}" for name, least in call.query.lengths)
        yield (
            "question",
            f"{asks} 0; {code(code_name(call.query.code))} comes with {lengths}",
        )
    yield "source", call.source


def _arg_text(call: Hcall, arg: Arg) -> str:
    text = "; ".join((arg.doc, *_arg_kind(call, arg)))
    if arg.only_when is not None:
        text += f"; {_condition_text(call, arg.only_when)}"
    if arg.names is not None:
        text += f": {_spelled(arg.names, arg.kind)}"
    return text


def _condition_text(call: Hcall, condition: Condition) -> str:
    names = call.arg(condition.name).names
    if condition.mask == U64_MAX:
        spelled = names(condition.value).name if names is not None else condition.value
        return f"only if {code(condition.name)} is {spelled}"
    bits = names(condition.mask).name if names is not None else f"0x{condition.mask:x}"
    return f"only if {code(condition.name)} {'has' if condition.value else 'has not'} {bits}"


def _arg_kind(call: Hcall, arg: Arg) -> Iterator[str]:
    match arg.kind:
        case ArgKind.ADDRESS:
            buffers = [buffer for buffer in call.buffers if buffer.address == arg.name]
            whose = "address" if call.level is Level.COMMAND else "real address"
            yield ", ".join((whose, *map(_buffer_text, buffers)))
        case ArgKind.SIZE | ArgKind.VALUE if arg.names is None:
            yield _range(arg)
        case ArgKind.FLAGS if arg.maximum == 0:
            yield "no bit is defined"
        case ArgKind.FLAGS if arg.names is None or isinstance(arg.maximum, Limit):
            yield f"only bits of {_bound(arg.maximum, ArgKind.FLAGS)}"
        case _:
            return


def _buffer_text(buffer: Buffer) -> str:
    way = "read" if buffer.direction is Direction.IN else "written"
    match buffer.shape:
        case BufferShape.SIZED:
            how = f"{code(str(buffer.size))} bytes"
        case BufferShape.FIXED:
            how = f"{_bound(buffer.max_size)} bytes"
        case BufferShape.PAGE_BOUNDED:
            how = f"at most {buffer.header_size} + {_bound(buffer.max_size)} bytes"
    rules = [f"{way}, {how}"]
    if buffer.alignment > 1:
        rules.append(f"{buffer.alignment}-byte aligned")
    if buffer.page_bounded or buffer.shape is BufferShape.PAGE_BOUNDED:
        rules.append("within a 4 KiB page")
    if buffer.secret:
        rules.append("secret")
    return ", ".join(rules)


def _range(arg: Arg) -> str:
    if arg.maximum == U64_MAX:
        return "number" if arg.minimum == 0 else f"{arg.minimum} or more"
    if arg.minimum == arg.maximum:
        return f"always {arg.minimum}"
    return f"{arg.minimum} to {_bound(arg.maximum)}"


def _bound(bound: Bound, kind: ArgKind = ArgKind.SIZE) -> str:
    if isinstance(bound, Limit):
        return f"the partition's {code(bound.value)}"
    if kind is ArgKind.FLAGS:
        return f"0x{bound:x}"
    return "2^32 - 1" if bound == U32_MAX else str(bound)


def _spelled(names: Names, kind: ArgKind) -> str:
    width = 16 if max(names) >> 32 else 8
    form = f"0x{{:0{width}x}}" if kind is ArgKind.FLAGS else "{}"
    return ", ".join(f"{form.format(member.value)} {member.name}" for member in names)


def _output_text(output: Output) -> str:
    text = output.doc
    if output.secret:
        text += " (secret)"
    if output.also_with:
        codes = ", ".join(_long_busy_once([code_name(entry) for entry in output.also_with]))
        text += f"; also with {codes}"
    if output.otherwise is not None:
        text += f"; {output.otherwise} with every other code"
    if output.names is not None:
        text += f": {_spelled(output.names, output.kind)}"
    return text


def _long_busy_once(names: list[str]) -> Iterator[str]:
    """The six H_LONG_BUSY_ORDER_* as one."""
    seen = False
    for name in names:
        if not name.startswith("H_LONG_BUSY"):
            yield code(name)
        elif not seen:
            seen = True
            yield "any H_LONG_BUSY"


def _codes(call: Hcall) -> Iterator[tuple[str, int, str]]:
    for entry in call.codes:
        when = entry.when
        if entry.code in (call.timeout_code, call.lost_code) and "deadline" not in when:
            when += "; the deadline passed or the daemon is gone"
        yield code_name(entry.code), entry.code, when
    if call.level is Level.SC1:
        yield code_name(H.PRIVILEGE), H.PRIVILEGE, "the caller is in problem state; QEMU answers"


def families() -> str:
    """The families, with what announces them."""
    return table(
        ("Family", "Calls", "Served", "Announced by", "Title"),
        [
            (
                f"`{family.name} <{family.name}.rst>`__",
                str(len(family.calls)),
                str(sum(not call.decode_only for call in family.calls)),
                ", ".join(map(code, family.hypertas)) or "none",
                family.title,
            )
            for family in FAMILIES
        ],
    )


def codes() -> str:
    """All return codes by value."""
    by_value: dict[int, list[str]] = {}
    for codes in CODE_SETS:
        for entry in codes:
            by_value.setdefault(int(entry), []).append(code_name(entry))
    order = sorted(by_value, key=lambda value: (value < 0, abs(value)))
    return table(
        ("Value", "Names"),
        [(str(value), ", ".join(map(code, by_value[value]))) for value in order],
    )


INDEX_BLOCKS: Blocks = {"calls all": families, "codes all": codes}
