# SPDX-License-Identifier: Apache-2.0
"""From a fixed-size construct schema to one ``struct.Struct``.

construct's own ``compile()`` drops length checks and is, by its documents, not for
untrusted data; plain construct takes 40 times as long as a ``Layout``, which
``tests/property/test_codec.py`` holds equal to its schema.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from typing import Any

import construct

from hcallproto.errors import Breach, RemoteProtocolError
from hcallproto.wire import schema


class Layout:
    """One fixed-size structure: the values of its fields, constants checked and left out.

    Attributes:
        name: for messages.
        size: in bytes.
        pack: field values to bytes, constants filled in; raises ``struct.error`` if a value
            does not fit its field.
        unpack: bytes and offset to field values; raises ``struct.error`` if the bytes are too
            few, and does not look at the constants.
    """

    __slots__ = ("_constants", "name", "pack", "size", "unpack")

    def __init__(self, name: str, subcon: construct.Construct[Any, Any]) -> None:
        self.name = name
        self._constants: list[tuple[int, bytes]] = []
        formats: list[str] = []
        self._walk(subcon, formats)
        # Constants are pad bytes to ``struct``: skipped when read, and written as zeros.
        fields = struct.Struct(">" + "".join(formats))
        self.size: int = fields.size
        if self.size != subcon.sizeof():
            raise TypeError(f"{name}: layout has {self.size} bytes, schema {subcon.sizeof()}")
        self.unpack: Callable[..., tuple[Any, ...]] = fields.unpack_from
        self.pack: Callable[..., bytes] = fields.pack
        for at, constant in self._constants:
            if any(constant):
                if at:
                    raise TypeError(f"{name}: only a leading constant may be other than zero")
                formats[0] = f"{len(constant)}s"
                leading = struct.Struct(">" + "".join(formats))
                self.pack = functools.partial(leading.pack, constant)

    def _walk(self, subcon: Any, formats: list[str]) -> None:
        """Flatten ``subcon`` into struct formats, noting where constants stand."""
        if isinstance(subcon, construct.Renamed):
            self._walk(subcon.subcon, formats)
        elif isinstance(subcon, construct.Struct):
            for field in subcon.subcons:
                self._walk(field, formats)
        elif isinstance(subcon, construct.Const):
            constant = subcon.build(None)
            self._constants.append((struct.calcsize(">" + "".join(formats)), constant))
            formats.append(f"{len(constant)}x")
        elif isinstance(subcon, construct.Array):
            for _ in range(int(subcon.count)):  # type: ignore[arg-type]  # fixed here
                self._walk(subcon.subcon, formats)
        elif isinstance(subcon, construct.FormatField) and subcon.fmtstr[0] == ">":
            formats.append(subcon.fmtstr[1:])
        elif isinstance(subcon, construct.Bytes) and isinstance(subcon.length, int):
            formats.append(f"{subcon.length}s")
        else:
            raise TypeError(f"{self.name}: no fixed layout for {subcon!r}")

    def check_constants(self, data: bytes | bytearray, offset: int = 0) -> None:
        """Whether the constants stand where they must.

        Raises:
            RemoteProtocolError: they do not.
        """
        for at, constant in self._constants:
            if not data.startswith(constant, offset + at):
                found = bytes(data[offset + at : offset + at + len(constant)])
                raise RemoteProtocolError(
                    Breach.LAYOUT,
                    f"{self.name} has {found.hex()} where {constant.hex()} must stand",
                )

    def unpack_from(self, data: bytes | bytearray, offset: int = 0) -> tuple[Any, ...]:
        """The field values at ``offset``, constants checked.

        Raises:
            RemoteProtocolError: too short, or a constant is wrong.
        """
        try:
            values = self.unpack(data, offset)
        except struct.error:
            raise RemoteProtocolError(
                Breach.LAYOUT,
                f"{self.name} needs {self.size} bytes, {max(0, len(data) - offset)} are there",
            ) from None
        for at, constant in self._constants:
            if not data.startswith(constant, offset + at):
                self.check_constants(data, offset)
        return values


HEADER = Layout("header", schema.HEADER)
HELLO = Layout("HELLO", schema.HELLO)
WELCOME = Layout("WELCOME", schema.WELCOME)
ANNOUNCEMENT = Layout("announcement", schema.ANNOUNCEMENT)
CALL_SPEC = Layout("announced call", schema.CALL_SPEC)
BUFFER_SPEC = Layout("buffer descriptor", schema.BUFFER_SPEC)
ACCEPT = Layout("ACCEPT", schema.ACCEPT)
REFUSED_CALL = Layout("refused call", schema.REFUSED_CALL)
RAM = Layout("RAM", schema.RAM)
RAM_REGION = Layout("RAM region", schema.RAM_REGION)
GOODBYE = Layout("GOODBYE", schema.GOODBYE)
CALL = Layout("CALL", schema.CALL)
CALL_SEGMENT = Layout("call segment", schema.CALL_SEGMENT)
REPLY = Layout("REPLY", schema.REPLY)
WRITE_SEGMENT = Layout("write segment", schema.WRITE_SEGMENT)
CANCEL = Layout("CANCEL", schema.CANCEL)
CANCELLED = Layout("CANCELLED", schema.CANCELLED)
READ = Layout("READ", schema.READ)
READ_SEGMENT = Layout("read segment", schema.READ_SEGMENT)
READ_REPLY = Layout("READ_REPLY", schema.READ_REPLY)
READ_DATA = Layout("read data", schema.READ_DATA)
WRITE = Layout("WRITE", schema.WRITE)
WRITE_REPLY = Layout("WRITE_REPLY", schema.WRITE_REPLY)
PAGES = Layout("page states", schema.PAGES)
PAGE_RANGE = Layout("page range", schema.PAGE_RANGE)
PAGES_REPLY = Layout("PAGES_REPLY", schema.PAGES_REPLY)
EVENT = Layout("EVENT", schema.EVENT)
EVENT_ACK = Layout("EVENT_ACK", schema.EVENT_ACK)
CONTROL = Layout("CONTROL", schema.CONTROL)
