# SPDX-License-Identifier: Apache-2.0
r"""One call as one line for people, or as a JSON-able object for machines.

::

    lpar7 cpu0 #12 H_PKS_WRITE_OBJECT(auth=OS+32, label="sed-opal"/"/default/pri\0",
        policy=WORLDREADABLE, data=@0x1f3a40 64 bytes) = H_RESOURCE 63us -- exists already

(on one line). Names of arguments, values and results come from the table of calls. What
the table marks as secret is shown by its size only; the authorization structure by its
consumer and the size of its password. All that a guest can choose is quoted, so that it
cannot steer a terminal or forge a line.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from hcallproto.abi.registers import FIRST_ARGUMENT, LAST_ARGUMENT, R_NUMBER
from hcallproto.abi.registry import CALLS
from hcallproto.abi.returns import status_name
from hcallproto.abi.spec import (
    Arg,
    ArgKind,
    Buffer,
    BufferShape,
    Condition,
    Direction,
    Hcall,
    Level,
    Names,
    Output,
    level_codes,
)
from hcallproto.payloads.quoting import printable, quote

Registers = Mapping[int, int]
"""Register number to value, as an unsigned 64-bit number."""
Contents = Mapping[str, bytes | None]
"""Address argument to the bytes that came with the call; None: not readable."""


class _Shown(NamedTuple):
    """One argument or result."""

    name: str
    text: str
    value: Any
    """The same for JSON: numbers that people count with as numbers, others as text."""


_Show = Callable[[Registers, Contents], _Shown]
"""Renders one argument or result from a call's registers and buffers."""
_MayShow = Callable[[Registers, Contents], _Shown | None]
"""The same, or None if it is not worth a word."""


def render_call(
    hcall: Hcall | None,
    gpr: Registers,
    *,
    level: int = Level.SC1,
    buffers: Contents | None = None,
    status: int | None = None,
    outputs: Registers | None = None,
    reason: str = "",
    duration_ns: int | None = None,
    where: str = "",
) -> str:
    """One line, without a line feed.

    Args:
        hcall: the call, or None for a number that the table does not know.
        gpr: r3 to r12 as the call was made, and r0, r2, r31 if known.
        level: LEV of the ``sc``; looked at for unknown calls only.
        buffers: bytes of IN buffers by their address argument.
        status: r3 as the caller gets it, signed; None: no answer yet, or never.
        outputs: result registers.
        reason: why a call was refused.
        duration_ns: from the call to its answer.
        where: stands in front: guest, virtual CPU, sequence number.
    """
    plan = _plan(hcall)
    if plan is None:
        args: Sequence[_Shown] = tuple(_unknown_args(gpr))
        kind = level_codes(level).kind
        parts = [f"{kind} 0x{gpr[R_NUMBER]:x}({_join(args)})"]
    else:
        parts = [f"{plan.hcall.name}({_join(plan.args(gpr, buffers or {}))})"]
    if where:
        parts.insert(0, printable(where))
    if status is not None:
        parts.append(f"= {_status(hcall, level, status)}")
        if plan is not None and outputs:
            parts += (f"{shown.name}={shown.text}" for shown in plan.outputs(status, outputs))
    if duration_ns is not None:
        parts.append(_duration(duration_ns))
    if reason:
        parts.append(f"-- {printable(reason)}")
    return " ".join(parts)


def describe_call(
    hcall: Hcall | None,
    gpr: Registers,
    *,
    level: int = Level.SC1,
    buffers: Contents | None = None,
    status: int | None = None,
    outputs: Registers | None = None,
    reason: str = "",
    duration_ns: int | None = None,
) -> dict[str, Any]:
    """The same as a JSON-able object; see ``render_call`` for the arguments.

    Addresses, bit sets and other values that may pass 2^53 are text in hexadecimal.
    """
    plan = _plan(hcall)
    shown = tuple(_unknown_args(gpr)) if plan is None else plan.args(gpr, buffers or {})
    described: dict[str, Any] = {
        "call": None if hcall is None else hcall.name,
        "number": gpr[R_NUMBER] if hcall is None else hcall.number,
        "level": int(level if hcall is None else hcall.level),
        "args": {item.name: item.value for item in shown},
    }
    if status is not None:
        described["status"] = status
        described["code"] = _status(hcall, level, status)
        if plan is not None and outputs:
            described["outputs"] = {item.name: item.value for item in plan.outputs(status, outputs)}
    if duration_ns is not None:
        described["duration_ns"] = duration_ns
    if reason:
        described["reason"] = reason
    return described


class _Plan:
    """How one call is shown, looked up once."""

    __slots__ = ("_args", "_outputs", "hcall")

    def __init__(self, hcall: Hcall) -> None:
        self.hcall = hcall
        self._args = tuple(_argument_shows(hcall))
        self._outputs = tuple(_output_shows(hcall))

    def args(self, gpr: Registers, buffers: Contents) -> list[_Shown]:
        """The arguments in order, as far as they mean something."""
        shown = (show(gpr, buffers) for show in self._args)
        return [item for item in shown if item is not None]

    def outputs(self, status: int, registers: Registers) -> Iterator[_Shown]:
        """The results that are defined with this status."""
        for statuses, needed, show in self._outputs:
            if (status in statuses or (self.hcall.result and status > 0)) and needed in registers:
                yield show(registers, {})


def _plan(hcall: Hcall | None) -> _Plan | None:
    if hcall is None:
        return None
    plan = _PLANS.get(hcall.name)
    return plan if plan is not None and plan.hcall is hcall else _Plan(hcall)


# -- arguments --------------------------------------------------------------------------


def _argument_shows(hcall: Hcall) -> Iterator[_MayShow]:
    buffers = {buffer.address: buffer for buffer in hcall.buffers}
    sizes = {buffer.size for buffer in hcall.buffers}
    texts: list[Arg] = []
    for arg in hcall.args:
        if arg.kind is ArgKind.TEXT:
            texts.append(arg)
            continue
        if arg.name in sizes:
            continue  # stands behind its buffer's address
        buffer = buffers.get(arg.name)
        show = _number_show(arg) if buffer is None else _buffer_show(hcall, arg, buffer)
        if arg.only_when is not None:
            yield _only_when(hcall, arg.only_when, show)
        elif arg.kind is ArgKind.ZERO:
            yield _unless_zero(arg.register, show)
        else:
            yield show
    if texts:
        yield _text_show(texts[0].name, [arg.register for arg in texts], secret=False)


def _unless_zero(register: int, show: _Show) -> _MayShow:
    return lambda gpr, buffers: show(gpr, buffers) if gpr[register] else None


def _only_when(hcall: Hcall, condition: Condition, show: _Show) -> _MayShow:
    register, value, mask = hcall.arg(condition.name).register, condition.value, condition.mask
    return lambda gpr, buffers: show(gpr, buffers) if gpr[register] & mask == value else None


def _number_show(item: Arg | Output) -> _Show:
    name, register = item.name, item.register
    form = _form(item.kind, item.names)
    return lambda gpr, _: _Shown(name, *form(gpr[register]))


def _buffer_show(hcall: Hcall, arg: Arg, buffer: Buffer) -> _Show:
    """``@0x1f3a40 64 bytes``, or what the bytes say."""
    size_register = None if buffer.size is None else hcall.arg(buffer.size).register
    fixed = buffer.max_size if buffer.shape is BufferShape.FIXED else None
    describe = buffer.describe
    is_read = buffer.direction is Direction.IN and buffer.prefetch

    def show(gpr: Registers, buffers: Contents) -> _Shown:
        gpa = gpr[arg.register]
        size = fixed if size_register is None else gpr[size_register]
        text = f"@0x{gpa:x}" if size is None else f"@0x{gpa:x} {size} bytes"
        value: dict[str, Any] = {"gpa": f"0x{gpa:x}"}
        if size is not None:
            value["size"] = size
        if is_read and arg.name in buffers:
            data = buffers[arg.name]
            if data is None:
                text += " (not readable)"
                value["readable"] = False
            elif describe is not None:
                text = value["text"] = describe(data)
        return _Shown(arg.name, text, value)

    return show


def _text_show(first: str, registers: Sequence[int], *, secret: bool) -> _Show:
    """Registers that together hold a NUL-padded text."""
    name = first.rstrip("0123456789")

    def show(gpr: Registers, _: Contents) -> _Shown:
        data = b"".join(gpr[register].to_bytes(8, "big") for register in registers)
        if secret:
            text = f"{len(data)} bytes"
            return _Shown(name, text, text)
        text = quote(data.rstrip(b"\0"))
        return _Shown(name, text, text[1:-1])

    return show


def _unknown_args(gpr: Registers) -> Iterator[_Shown]:
    for register in range(FIRST_ARGUMENT, LAST_ARGUMENT + 1):
        if register in gpr:
            text = f"0x{gpr[register]:x}"
            yield _Shown(f"r{register}", text, text)


# -- values -----------------------------------------------------------------------------

_Form = Callable[[int], tuple[str, Any]]


def _form(kind: ArgKind, names: Names | None) -> _Form:
    """How a value of this kind is written: as text, and for JSON."""
    if names is not None:
        return _flags_form(names) if issubclass(names, enum.IntFlag) else _names_form(names)
    if kind in (ArgKind.SIZE, ArgKind.VALUE):
        return lambda value: (str(value), value)
    return _hexadecimal


def _hexadecimal(value: int) -> tuple[str, Any]:
    text = f"0x{value:x}" if value else "0"
    return text, text


def _names_form(names: Names) -> _Form:
    by_value = {member.value: str(member.name) for member in names}

    def form(value: int) -> tuple[str, Any]:
        text = by_value.get(value)
        return (str(value), value) if text is None else (text, text)

    return form


def _flags_form(names: Names) -> _Form:
    bits = [(member.value, str(member.name)) for member in names]
    known = 0
    for bit, _ in bits:
        known |= bit

    def form(value: int) -> tuple[str, Any]:
        parts = [name for bit, name in bits if value & bit]
        if value & ~known:
            parts.append(f"0x{value & ~known:x}")
        text = "|".join(parts) or "0"
        return text, text

    return form


# -- results ----------------------------------------------------------------------------


def _output_shows(hcall: Hcall) -> Iterator[tuple[frozenset[int], int, _Show]]:
    """(statuses with which it is defined, its first register, how it is shown)."""
    texts = [output for output in hcall.outputs if output.kind is ArgKind.TEXT]
    for output in hcall.outputs:
        if output not in texts:
            statuses = frozenset((0, *output.also_with))
            yield statuses, output.register, _output_show(output)
    if texts:
        registers = [output.register for output in texts]
        show = _text_show(texts[0].name, registers, secret=any(item.secret for item in texts))
        yield frozenset(), registers[0], show


def _output_show(output: Output) -> _Show:
    if output.secret:
        shown = _Shown(output.name, "8 bytes", "8 bytes")
        return lambda _registers, _buffers: shown
    return _number_show(output)


def _status(hcall: Hcall | None, level: int, status: int) -> str:
    """``H_P2``, ``23 bytes``, or the number when it has no name."""
    if hcall is None:
        return status_name(status, level_codes(level).codes)
    if hcall.result and status >= 0 and all(entry.code != status for entry in hcall.codes):
        value = f"0x{status:x}" if hcall.sets_context else str(status)
        return f"{value} {hcall.result}"
    return status_name(status, hcall.return_codes)


def _duration(nanoseconds: int) -> str:
    """``63us``, ``1.3ms``, ``2.50s``."""
    if nanoseconds < 1_000_000:
        return f"{nanoseconds // 1000}us"
    if nanoseconds < 1_000_000_000:
        return f"{nanoseconds / 1_000_000:.1f}ms"
    return f"{nanoseconds / 1_000_000_000:.2f}s"


def _join(shown: Sequence[_Shown]) -> str:
    return ", ".join([f"{item.name}={item.text}" for item in shown])


_PLANS: Final[Mapping[str, _Plan]] = {hcall.name: _Plan(hcall) for hcall in CALLS}
