# SPDX-License-Identifier: Apache-2.0
"""A call on its way to a handler, and the checks that the table alone decides.

``Plan`` turns an ``Hcall`` and a partition's limits into a flat list of checks once, so
that a call costs one short loop. The order is the one of the arguments; an address is
checked with its whole range if its size argument is valid, with its first byte if not,
so that of two bad arguments the first one names the code. A command's addresses are its
family's to check.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

from hcalld.core.errors import HcallError
from hcalld.core.guestmem import RamMap
from hcallproto.abi.registers import REAL_ADDRESS_MASK
from hcallproto.abi.returns import Code
from hcallproto.abi.spec import (
    Arg,
    ArgKind,
    Bound,
    Buffer,
    BufferShape,
    Condition,
    Hcall,
    Level,
    Limit,
)
from hcallproto.payloads.pks import PAGE_SIZE


class Registers(Protocol):
    """Register values as unsigned 64-bit numbers, by register number."""

    def __getitem__(self, number: int, /) -> int: ...


Limits = Mapping[Limit, int]
"""A partition's values for the bounds that the ABI leaves to it."""


@dataclasses.dataclass(slots=True)
class Call:
    """One call with its arguments checked.

    ``args`` holds the arguments by name; a guest's addresses have the ignored bits masked off.
    """

    hcall: Hcall
    args: dict[str, int]
    vcpu: int
    ram: RamMap
    nip: int = 0
    msr: int = 0
    pidr: int = 0
    lpidr: int = 0
    is_resent: bool = False
    """It may have been carried out before, as far as effects outside the store go."""
    is_alone: bool = True
    """No other vCPU runs; told of ultracalls only."""

    def __getitem__(self, name: str) -> int:
        return self.args[name]

    def refuse(self, name: str, why: str) -> HcallError:
        """The error for argument ``name``, with the code of its position."""
        return HcallError(self.hcall.arg_code(self.hcall.arg(name)), why)


def resolve(bound: Bound, limits: Limits) -> int:
    """The number behind a bound."""
    return limits[bound] if isinstance(bound, Limit) else bound


def buffer_max_size(buffer: Buffer, limits: Limits) -> int:
    """Greatest size of a buffer in bytes, its fixed head included."""
    return buffer.header_size + resolve(buffer.max_size, limits)


def page_rest(gpa: int) -> int:
    """Bytes from ``gpa`` to the end of its 4 KiB page."""
    return PAGE_SIZE - (gpa & (PAGE_SIZE - 1))


@dataclasses.dataclass(frozen=True, slots=True)
class _Check:
    """One argument's check with everything looked up."""

    name: str
    register: int
    kind: ArgKind
    minimum: int
    maximum: int
    code: Code
    buffer: Buffer | None
    size_register: int
    size_minimum: int
    size_maximum: int
    condition: tuple[int, int, int] | None
    """(register, mask, value): otherwise the argument is not looked at."""


class Plan:
    """The checks of one call for one set of limits."""

    __slots__ = ("_checks", "buffers", "codes", "hcall", "limits")

    def __init__(self, hcall: Hcall, limits: Limits) -> None:
        self.hcall = hcall
        self.limits = limits
        self.codes = frozenset(entry.code for entry in hcall.codes)
        """The codes that the table declares; a handler that gives another has a bug."""
        self.buffers = {
            buffer.address: (buffer, buffer_max_size(buffer, limits)) for buffer in hcall.buffers
        }
        """By address argument: a buffer, and its greatest size."""
        self._checks = tuple(self._check(arg) for arg in hcall.args)

    def _check(self, arg: Arg) -> _Check:
        if self.hcall.level is Level.COMMAND and arg.kind is ArgKind.ADDRESS:
            # A client's pointers have 64 bits, and the family knows when one is not looked at.
            arg = dataclasses.replace(arg, kind=ArgKind.OPAQUE)
        buffer, greatest = self.buffers.get(arg.name, (None, 0))
        size = self.hcall.arg(buffer.size) if buffer is not None and buffer.size else None
        if buffer is None or buffer.shape is BufferShape.FIXED:
            size_bounds = (greatest, greatest)
        elif size is None:
            size_bounds = (buffer.header_size, buffer.header_size)
        else:
            size_bounds = (size.minimum, resolve(size.maximum, self.limits))
        return _Check(
            name=arg.name,
            register=arg.register,
            kind=arg.kind,
            minimum=arg.minimum,
            # A plain int: the complement of an IntFlag has the flag's own bits only.
            maximum=int(resolve(arg.maximum, self.limits)),
            code=self.hcall.arg_code(arg),
            buffer=buffer,
            size_register=size.register if size is not None else 0,
            size_minimum=size_bounds[0],
            size_maximum=size_bounds[1],
            condition=None if arg.only_when is None else self._condition(arg.only_when),
        )

    def _condition(self, condition: Condition) -> tuple[int, int, int]:
        register = self.hcall.arg(condition.name).register
        return register, int(condition.mask), condition.value

    def arguments(self, registers: Registers, ram: RamMap) -> dict[str, int]:
        """Check all arguments in order.

        Args:
            registers: register number to value, as unsigned 64-bit numbers.
            ram: the guest's RAM.

        Returns:
            The arguments by name.

        Raises:
            HcallError: an argument is invalid; its code is that of the argument.
        """
        args: dict[str, int] = {}
        for check in self._checks:
            value = registers[check.register]
            kind = check.kind
            condition = check.condition
            if condition and registers[condition[0]] & condition[1] != condition[2]:
                pass
            elif kind is ArgKind.ADDRESS:
                value &= REAL_ADDRESS_MASK
                if check.buffer is not None:
                    self._check_range(check, value, registers, ram)
            elif kind is ArgKind.FLAGS:
                if value & ~check.maximum:
                    raise HcallError(
                        check.code,
                        f"{check.name} 0x{value:x} has bits outside 0x{check.maximum:x}",
                    )
            elif kind is ArgKind.ZERO:
                if value:
                    raise HcallError(check.code, f"{check.name} is 0x{value:x}, expected 0")
            elif not check.minimum <= value <= check.maximum:
                raise HcallError(
                    check.code,
                    f"{check.name} {value} is not between {check.minimum} and {check.maximum}",
                )
            args[check.name] = value
        return args

    def range_of(self, name: str, call: Call) -> tuple[int, int]:
        """Address and size of one of the call's buffers, as the shim would cut it."""
        buffer, size = self.buffers[name]
        gpa = call.args[name]
        if buffer.size is not None:
            size = call.args[buffer.size]
        elif buffer.shape is BufferShape.PAGE_BOUNDED:
            size = min(size, page_rest(gpa), call.ram.bytes_from(gpa))
        return gpa, size

    def _check_range(self, check: _Check, gpa: int, registers: Registers, ram: RamMap) -> None:
        buffer = check.buffer
        assert buffer is not None
        size = check.size_maximum
        if check.size_register:
            size = registers[check.size_register]
            if not check.size_minimum <= size <= check.size_maximum:
                size = 1
        if gpa % buffer.alignment:
            raise HcallError(
                check.code, f"{check.name} 0x{gpa:x} is not {buffer.alignment}-byte aligned"
            )
        if not ram.contains(gpa, size):
            raise HcallError(check.code, f"{check.name} 0x{gpa:x} + {size} is not in guest RAM")
        if buffer.page_bounded and size > page_rest(gpa):
            raise HcallError(check.code, f"{check.name} 0x{gpa:x} + {size} crosses a page")
