# SPDX-License-Identifier: Apache-2.0
"""A family of calls for tests of the runtime: a model of numbered entries.

Its handlers do, one each, what a handler may do: end at once, ask the guest's memory, flush,
refuse, or be broken. What one of them waits for, a test answers when it likes: the handlers that
wait read guest memory, which goes over the wire when it is not shared.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from hcalld.core.call import Call
from hcalld.core.effects import (
    Entropy,
    Flush,
    GuestMemoryError,
    Note,
    Now,
    ReadBuffer,
    ReadGuest,
    WriteGuest,
    ZeroGuest,
)
from hcalld.core.errors import HcallError, StoreError
from hcalld.core.handlers import HandlerSet
from hcalld.core.outcome import Outcome
from hcalld.core.records import Change, Lifetime, Put, Record
from hcalld.domain.attributes import PartitionAttributes
from hcalld.families.registry import Served
from hcallproto.abi.returns import H
from hcallproto.abi.spec import (
    Arg,
    ArgKind,
    Buffer,
    BufferShape,
    Caller,
    Direction,
    Family,
    Hcall,
    Level,
    opaque,
    size,
    value,
)

NAMESPACE: Final = "ledger"
SECRET: Final = b"hunter2 hunter2!"
"""What broken handlers hold in their hands when they break."""
FIXED_SIZE: Final = 8
PAGE_BOUNDED_SIZE: Final = 256
LARGE_SIZE: Final = 64 * 1024
"""Above what is sent with a call when RAM is shared."""


class Ledger:
    """Entries by number; what is above ``2**32`` lives for a run only."""

    def __init__(self, attributes: PartitionAttributes, records: Iterable[Record] = ()) -> None:
        self.attributes = attributes
        self.entries: dict[int, bytes] = {}
        self._changes: list[Change] = []
        for record in records:
            if record.namespace == NAMESPACE:
                self.entries[int.from_bytes(record.key, "big")] = record.value

    def put(self, key: int, data: bytes) -> None:
        """Enters or replaces an entry."""
        self.entries[key] = data
        lifetime = Lifetime.RUN if key >> 32 else Lifetime.PERSISTENT
        self._changes.append(Put(Record(NAMESPACE, key.to_bytes(8, "big"), data, lifetime)))

    def take_changes(self) -> list[Change]:
        """See Model."""
        changes, self._changes = self._changes, []
        return changes


_KEY = value("key", 4, "number of the entry")


def _address(register: int, name: str = "buffer") -> Arg:
    return Arg(name=name, register=register, kind=ArgKind.ADDRESS, doc="buffer")


def _hcall(
    number: int,
    name: str,
    args: tuple[Arg, ...],
    *buffers: Buffer,
    caller: Caller = Caller.KERNEL,
) -> Hcall:
    return Hcall(
        name=f"H_LEDGER_{name}",
        number=number,
        level=Level.SC1,
        doc="For tests.",
        source="this file",
        args=args,
        buffers=buffers,
        caller=caller,
        timeout_code=H.RESOURCE,
        lost_code=H.CLOSED,
    )


_GPA = opaque("gpa", 5, "guest address, not checked before")
_SIZE = size("size", 6, "bytes")

PUT = _hcall(0xF000, "PUT", (_KEY, value("value", 5, "of the entry")))
GET = _hcall(0xF004, "GET", (_KEY,))
LOAD = _hcall(0xF008, "LOAD", (_KEY, _GPA, _SIZE))
STORE = _hcall(0xF00C, "STORE", (_KEY, _GPA, _SIZE))
FLUSH = _hcall(0xF010, "FLUSH", (_KEY,))
REFUSE = _hcall(0xF014, "REFUSE", (_KEY,))
BREAK = _hcall(0xF018, "BREAK", (_KEY,))
BREAK_LATER = _hcall(0xF01C, "BREAK_LATER", (_KEY, _GPA, _SIZE))
SIZED = _hcall(
    0xF020,
    "SIZED",
    (_KEY, _address(5), size("buffer_size", 6, "bytes", maximum=64)),
    Buffer(
        address="buffer",
        direction=Direction.IN,
        shape=BufferShape.SIZED,
        max_size=64,
        size="buffer_size",
        secret=True,
    ),
)
FIXED = _hcall(
    0xF024,
    "FIXED",
    (_KEY, _address(5)),
    Buffer(address="buffer", direction=Direction.IN, shape=BufferShape.FIXED, max_size=FIXED_SIZE),
)
PAGE_BOUNDED = _hcall(
    0xF028,
    "PAGE_BOUNDED",
    (_KEY, _address(5)),
    Buffer(
        address="buffer",
        direction=Direction.IN,
        shape=BufferShape.PAGE_BOUNDED,
        max_size=PAGE_BOUNDED_SIZE,
    ),
)
LARGE = _hcall(
    0xF02C,
    "LARGE",
    (_KEY, _address(5), size("buffer_size", 6, "bytes", maximum=LARGE_SIZE)),
    Buffer(
        address="buffer",
        direction=Direction.IN,
        shape=BufferShape.SIZED,
        max_size=LARGE_SIZE,
        size="buffer_size",
    ),
)
NOTE = _hcall(0xF030, "NOTE", (_KEY,), caller=Caller.ANY)
FLUSH_THEN_PUT = _hcall(0xF034, "FLUSH_THEN_PUT", (_KEY,))
LOAD_TWICE = _hcall(0xF038, "LOAD_TWICE", (_KEY, _GPA, _SIZE))
UNSERVED = Hcall(
    name="H_LEDGER_UNSERVED",
    number=0xF0F0,
    level=Level.SC1,
    doc="For tests.",
    source="this file",
    decode_only=True,
)
ULTRA = Hcall(
    name="UV_LEDGER",
    number=0xF0F4,
    level=Level.SC2,
    doc="For tests.",
    source="this file",
)

FAMILY = Family(
    name="ledger",
    title="Ledger",
    source="this file",
    hypertas=("hcall-ledger",),
    calls=(
        PUT,
        GET,
        LOAD,
        STORE,
        FLUSH,
        REFUSE,
        BREAK,
        BREAK_LATER,
        SIZED,
        FIXED,
        PAGE_BOUNDED,
        LARGE,
        NOTE,
        FLUSH_THEN_PUT,
        LOAD_TWICE,
        UNSERVED,
        ULTRA,
    ),
)


def check_open(ledger: Ledger) -> None:
    """The family's gate."""
    if not ledger.attributes.keystore_kbytes:
        raise HcallError(H.STATE, "keystore_kbytes is 0")


HANDLERS: HandlerSet[Ledger] = HandlerSet(FAMILY, gate=check_open)
SERVED: Final = (Served(HANDLERS, Ledger),)


def _counted(ledger: Ledger) -> Outcome:
    return Outcome(H.SUCCESS, ((4, len(ledger.entries)),))


@HANDLERS.handles(PUT)
async def put(call: Call, ledger: Ledger) -> Outcome:
    ledger.put(call["key"], call["value"].to_bytes(8, "big"))
    return _counted(ledger)


@HANDLERS.handles(GET)
async def get(call: Call, ledger: Ledger) -> Outcome:
    data = ledger.entries.get(call["key"])
    if data is None:
        raise HcallError(H.NOT_FOUND, f"no entry {call['key']}")
    return Outcome(H.SUCCESS, ((4, int.from_bytes(data[:8], "big")),))


@HANDLERS.handles(LOAD)
async def load(call: Call, ledger: Ledger) -> Outcome:
    try:
        data = await ReadGuest(call["gpa"], call["size"])
    except GuestMemoryError as error:
        raise HcallError(H.P2, str(error)) from None
    ledger.put(call["key"], data)
    return _counted(ledger)


@HANDLERS.handles(LOAD_TWICE)
async def load_twice(call: Call, ledger: Ledger) -> Outcome:
    """Reads two ranges, the second one ahead; what the first one says may come in between."""
    gpa, part = call["gpa"], call["size"]
    try:
        data = await ReadGuest(gpa, part, (gpa + part, part))
        match data[:1]:
            case b"r":
                raise HcallError(H.P3, "refused in between")
            case b"w":
                await WriteGuest(gpa, b"in between")
            case b"o":
                data += await ReadGuest(gpa, 1)
            case b"e":
                ledger.put(call["key"], data)
                return _counted(ledger)
        data += await ReadGuest(gpa + part, part)
    except GuestMemoryError as error:
        raise HcallError(H.P2, str(error)) from None
    ledger.put(call["key"], data)
    return _counted(ledger)


@HANDLERS.handles(STORE)
async def store(call: Call, ledger: Ledger) -> Outcome:
    """The entry goes into memory, and zeros behind it; the reply says what r4 was."""
    gpa, room = call["gpa"], call["size"]
    data = ledger.entries.get(call["key"], b"")[:room]
    try:
        await WriteGuest(gpa, data)
        await ZeroGuest(gpa + len(data), room - len(data))
    except GuestMemoryError as error:
        raise HcallError(H.P2, str(error)) from None
    return Outcome(H.SUCCESS, ((4, call["key"]),), ((gpa + room, b"end"),))


@HANDLERS.handles(FLUSH)
async def flush(call: Call, ledger: Ledger) -> Outcome:
    try:
        await Flush()
    except StoreError as error:
        raise HcallError(H.ABORTED, str(error), ((4, 0),)) from None
    return _counted(ledger)


@HANDLERS.handles(REFUSE)
async def refuse(call: Call, ledger: Ledger) -> Outcome:
    raise HcallError(H.P3, f"nobody likes entry {call['key']}", ((4, 77), (5, 78)))


@HANDLERS.handles(BREAK)
async def break_now(call: Call, ledger: Ledger) -> Outcome:
    ledger.put(call["key"], SECRET)
    raise RuntimeError("broken on purpose")


@HANDLERS.handles(BREAK_LATER)
async def break_later(call: Call, ledger: Ledger) -> Outcome:
    await ReadGuest(call["gpa"], call["size"])
    ledger.put(call["key"], SECRET)
    raise RuntimeError("broken on purpose, later")


async def _put_buffer(call: Call, ledger: Ledger) -> Outcome:
    data = await ReadBuffer("buffer")
    ledger.put(call["key"], data)
    return Outcome(H.SUCCESS, ((4, len(data)),))


for _buffered in (SIZED, FIXED, PAGE_BOUNDED, LARGE):
    HANDLERS.handles(_buffered)(_put_buffer)


@HANDLERS.handles(NOTE)
async def note(call: Call, ledger: Ledger) -> Outcome:
    await Note("first remark")
    await Note("second remark")
    stamp = await Now()
    entropy = await Entropy(16)
    return Outcome(H.SUCCESS, ((4, stamp), (5, struct.unpack(">QQ", entropy)[0])))


@HANDLERS.handles(FLUSH_THEN_PUT)
async def flush_then_put(call: Call, ledger: Ledger) -> Outcome:
    await Flush()
    ledger.put(call["key"], b"after the flush")
    return _counted(ledger)
