# SPDX-License-Identifier: Apache-2.0
"""All families together, and the checks that hold them consistent.

To be in ``FAMILIES`` is to be registered: everything that is derived from the table
starts here. ``problems()`` is what the tests call; it names whatever is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

from hcallproto.abi.families import pks, sev, svm, tpm, uv
from hcallproto.abi.registers import CONTEXT_REGISTERS, FIRST_ARGUMENT, LAST_ARGUMENT, U64_MAX
from hcallproto.abi.returns import Code, code_name
from hcallproto.abi.spec import (
    Arg,
    ArgKind,
    Buffer,
    BufferShape,
    Family,
    Hcall,
    Level,
)

FAMILIES: Final[tuple[Family, ...]] = (
    pks.FAMILY,
    tpm.FAMILY,
    svm.FAMILY,
    uv.FAMILY,
    sev.FAMILY,
)

CALLS: Final[tuple[Hcall, ...]] = tuple(call for family in FAMILIES for call in family.calls)

BY_NUMBER: Final[Mapping[tuple[int, int], Hcall]] = MappingProxyType(
    {(call.level, call.number): call for call in CALLS}
)
BY_NAME: Final[Mapping[str, Hcall]] = MappingProxyType({call.name: call for call in CALLS})
FAMILY_OF: Final[Mapping[str, Family]] = MappingProxyType(
    {call.name: family for family in FAMILIES for call in family.calls}
)

RANGES: Final[Mapping[Level, tuple[range, ...]]] = MappingProxyType(
    {
        # PAPR's numbers up to Linux 7.2's MAX_HCALL_OPCODE; raise it with the kernel.
        # 0xEF00 to 0xEF80 are reserved for secure VMs (QEMU ppc-spapr-uv-hcalls.rst).
        Level.SC1: (range(0x4, 0x494 + 4, 4), range(0xEF00, 0xEF80 + 4, 4)),
        # Linux ultravisor-api.h and the firmware's uapi_uvcall.h begin at 0xF104.
        Level.SC2: (range(0xF104, 0xF1FC + 4, 4),),
        # The low half of the ioctl's number, then the command: abi/families/sev.py.
        Level.COMMAND: tuple(range(nr << 16, nr + 1 << 16) for nr in sev.Ioctl),
    }
)
"""Where a call's number may lie."""


def find(number: int, level: int) -> Hcall | None:
    """The call with this number and level, or None."""
    return BY_NUMBER.get((level, number))


def problems(families: Iterable[Family] = FAMILIES) -> list[str]:
    """Everything that is inconsistent in the table, one sentence each, by name."""
    found: list[str] = []
    names: dict[str, str] = {}
    numbers: dict[tuple[Level, int], str] = {}
    constants: dict[str, str] = {}
    for family in families:
        found += (f"{family.name}: {what}" for what in _family_problems(family))
        for name, _ in family.constants:
            if name in constants:
                found.append(f"{family.name}: constant {name} is also in {constants[name]}")
            constants[name] = family.name
        for call in family.calls:
            if call.name in names:
                found.append(f"{call.name}: declared in {names[call.name]} and {family.name}")
            names[call.name] = family.name
            key = (call.level, call.number)
            if key in numbers:
                found.append(f"{call.name}: number 0x{call.number:x} is {numbers[key]}'s")
            numbers[key] = call.name
            found += (f"{call.name}: {what}" for what in call_problems(call))
    return found


def _family_problems(family: Family) -> Iterator[str]:
    for what, text in (("title", family.title), ("source", family.source)):
        if not text.strip():
            yield f"{what} is empty"
    if not family.calls:
        yield "has no calls"


def call_problems(call: Hcall) -> Iterator[str]:
    """What is inconsistent in one call."""
    yield from _number_problems(call)
    yield from _structure_problems(call)
    yield from _register_problems(call)
    for arg in call.args:
        yield from _arg_problems(call, arg)
    yield from _buffer_problems(call)
    yield from _code_problems(call)
    for what, text in (("doc", call.doc), ("source", call.source)):
        if not text.strip():
            yield f"{what} is empty"
    if not 0 < call.deadline_ms <= 600_000:
        yield f"deadline of {call.deadline_ms} ms is not between 1 ms and 10 minutes"
    known = {arg.name for arg in call.args} | {output.name for output in call.outputs}
    for name in call.milestone.tells if call.milestone is not None else ():
        if name not in known:
            yield f"milestone tells {name}, which is no argument or output"


def _number_problems(call: Hcall) -> Iterator[str]:
    if call.level is not Level.COMMAND and call.number % 4:
        yield f"number 0x{call.number:x} is not a multiple of 4"
    if not any(call.number in numbers for numbers in RANGES[call.level]):
        known = ", ".join(f"0x{r.start:x} to 0x{r[-1]:x}" for r in RANGES[call.level])
        yield f"number 0x{call.number:x} is not in a known range ({known})"
    prefix = {Level.SC1: "H_", Level.SC2: "UV_"}.get(call.level, "")
    if not call.name.startswith(prefix):
        yield f"name does not begin with {prefix}"


def _structure_problems(call: Hcall) -> Iterator[str]:
    if call.structure is None:
        return
    if call.level is not Level.COMMAND:
        yield "has a structure, which is for commands"
    fields = [part.name for part in call.structure.subcons if part.name]
    places = [(arg.name, arg.register) for arg in call.args]
    places += [(output.name, output.register) for output in call.outputs]
    for name, register in places:
        if name not in fields:
            yield f"{name} is no field of its structure"
        elif fields.index(name) + FIRST_ARGUMENT != register:
            yield f"{name} is in r{register}, which is not its place in the structure"


def _register_problems(call: Hcall) -> Iterator[str]:
    registers = [arg.register for arg in call.args]
    ordinary = [r for r in registers if r not in CONTEXT_REGISTERS]
    expected = list(range(FIRST_ARGUMENT, FIRST_ARGUMENT + len(ordinary)))
    if ordinary != expected or len(ordinary) > LAST_ARGUMENT - FIRST_ARGUMENT + 1:
        yield f"arguments are in r{ordinary}, expected r4 to r12 in order without a gap"
    if registers[: len(ordinary)] != ordinary:
        yield "arguments in r0, r2 and r31 must come last"
    outputs = [output.register for output in call.outputs]
    if outputs != sorted(set(outputs)) or any(
        not FIRST_ARGUMENT <= register <= LAST_ARGUMENT for register in outputs
    ):
        yield f"outputs are in r{outputs}, expected r4 to r12 in rising order"
    for what, items in (("argument", call.args), ("output", call.outputs)):
        seen: set[str] = set()
        for item in items:
            if item.name in seen:
                yield f"two {what}s are called {item.name}"
            seen.add(item.name)
            if not item.name.isidentifier():
                yield f"{what} name {item.name!r} is not an identifier"
            if not item.doc.strip():
                yield f"{what} {item.name} has no doc"


def _arg_problems(call: Hcall, arg: Arg) -> Iterator[str]:
    if isinstance(arg.maximum, int) and not 0 <= arg.minimum <= arg.maximum <= U64_MAX:
        yield f"argument {arg.name} has bounds {arg.minimum} to {arg.maximum}"
    if arg.only_when is not None:
        name = arg.only_when.name
        if name not in [other.name for other in call.args[: call.args.index(arg)]]:
            yield f"argument {arg.name} depends on {name}, which is no earlier argument"
    if may_be_invalid(call, arg):
        code = call.arg_code(arg)
        if not _lists(call, code):
            yield f"argument {arg.name} can give {code_name(code)}, which codes do not list"
    is_address = arg.kind is ArgKind.ADDRESS
    if is_address and not call.decode_only and not _is_buffer(call, arg):
        yield f"address {arg.name} has no buffer, but the call is served"


def may_be_invalid(call: Hcall, arg: Arg) -> bool:
    """Some value of ``arg`` is refused by the table alone."""
    match arg.kind:
        case ArgKind.ADDRESS:
            return _is_buffer(call, arg)
        case ArgKind.ZERO | ArgKind.TOKEN:
            return True
        case ArgKind.FLAGS:
            return arg.maximum != U64_MAX
        case ArgKind.SIZE | ArgKind.VALUE | ArgKind.OPAQUE | ArgKind.TEXT:
            return arg.minimum > 0 or arg.maximum != U64_MAX


def _is_buffer(call: Hcall, arg: Arg) -> bool:
    return any(buffer.address == arg.name for buffer in call.buffers)


def _lists(call: Hcall, code: Code) -> bool:
    """``codes`` lists it, in the right set: H_P2 and U_P2 are equal as numbers."""
    return any(entry.code is code for entry in call.codes)


def _buffer_problems(call: Hcall) -> Iterator[str]:
    kinds = {arg.name: arg.kind for arg in call.args}
    seen: set[str] = set()
    for buffer in call.buffers:
        if kinds.get(buffer.address) is not ArgKind.ADDRESS:
            yield f"buffer {buffer.address} is not an ADDRESS argument"
        if buffer.address in seen:
            yield f"argument {buffer.address} has two buffers"
        seen.add(buffer.address)
        yield from (f"buffer {buffer.address} {what}" for what in _shape_problems(buffer, kinds))


def _shape_problems(buffer: Buffer, kinds: Mapping[str, ArgKind]) -> Iterator[str]:
    if buffer.shape is BufferShape.SIZED:
        if buffer.size is None:
            yield "is SIZED but names no size argument"
        elif kinds.get(buffer.size) is not ArgKind.SIZE:
            yield f"is sized by {buffer.size}, which is not a SIZE argument"
    elif buffer.size is not None:
        yield f"is {buffer.shape.name} but names the size argument {buffer.size}"
    if buffer.page_bounded and buffer.shape is not BufferShape.SIZED:
        yield f"is {buffer.shape.name}: page_bounded is for SIZED ones"
    if buffer.alignment < 1 or buffer.alignment & (buffer.alignment - 1):
        yield f"has alignment {buffer.alignment}, which is no power of 2"
    if isinstance(buffer.max_size, int) and buffer.max_size < 1:
        yield f"has a greatest size of {buffer.max_size}"


def _code_problems(call: Hcall) -> Iterator[str]:
    kind = call.return_codes
    listed = [entry.code for entry in call.codes]
    for entry in call.codes:
        if type(entry.code) is not kind:
            yield f"lists {code_name(entry.code)}, expected a {kind.__name__}_ code"
        if listed.count(entry.code) > 1:
            yield f"lists {code_name(entry.code)} twice"
        if not entry.when.strip():
            yield f"does not say when {code_name(entry.code)} is returned"
    told = {"timeout": call.timeout_code, "lost": call.lost_code, "foreign": call.foreign_code}
    for what, code in told.items():
        if code is not None and not _lists(call, code):
            yield f"{what} code {code_name(code)} is not listed"
    for output in call.outputs:
        for code in output.also_with:
            if not _lists(call, code):
                yield f"output {output.name} is defined with {code_name(code)}, not listed"
    if call.query is not None:
        if not _lists(call, call.query.code):
            yield f"a question's code {code_name(call.query.code)} is not listed"
        names = {arg.name for arg in call.args}
        asked = {name for name, _ in call.query.lengths}
        yield from (f"asks by {name}, no argument" for name in call.query.asks if name not in names)
        yield from (
            f"is asked for {name}, which is no output"
            for name in sorted(asked - {output.name for output in call.outputs})
        )
    if call.level is Level.SC1 and call.from_problem_state:
        yield "is a hypercall from problem state, which gets H_PRIVILEGE"
