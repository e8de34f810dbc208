# SPDX-License-Identifier: Apache-2.0
"""From a fixed-size construct schema to one ``struct.Struct``.

construct's own ``compile()`` drops length checks and is, by its documents, not for
untrusted data; plain construct takes 20 us a frame. A ``Layout`` takes 0.5 us and is held
equal to its schema by ``tests/property/test_codec.py``.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable
from typing import Any

import construct

from hcallproto.errors import Breach, RemoteProtocolError
from hcallproto.wire import schema


class Layout:
    """One fixed-size structure: the values of its fields, constants checked and left out."""

    __slots__ = ("_constants", "_struct", "_variables", "name", "size")

    def __init__(self, name: str, subcon: construct.Construct[Any, Any]) -> None:
        self.name = name
        formats: list[str] = []
        self._constants: list[tuple[int, Any]] = []
        self._walk(subcon, formats)
        self._struct = struct.Struct(">" + "".join(formats))
        self.size: int = self._struct.size
        if self.size != subcon.sizeof():
            raise TypeError(f"{name}: layout has {self.size} bytes, schema {subcon.sizeof()}")
        constant_indices = {index for index, _ in self._constants}
        kept = [index for index in range(len(formats)) if index not in constant_indices]
        self._variables: Callable[[tuple[Any, ...]], tuple[Any, ...]]
        if len(kept) == 1:
            self._variables = lambda values: (values[kept[0]],)
        else:
            self._variables = operator.itemgetter(*kept)

    def _walk(self, subcon: Any, formats: list[str]) -> None:
        """Flatten ``subcon`` into struct formats, noting where constants stand."""
        if isinstance(subcon, construct.Renamed):
            self._walk(subcon.subcon, formats)
        elif isinstance(subcon, construct.Struct):
            for field in subcon.subcons:
                self._walk(field, formats)
        elif isinstance(subcon, construct.Const):
            self._constants.append((len(formats), subcon.value))
            self._walk(subcon.subcon, formats)
        elif isinstance(subcon, construct.Array):
            for _ in range(int(subcon.count)):  # type: ignore[arg-type]  # fixed here
                self._walk(subcon.subcon, formats)
        elif isinstance(subcon, construct.FormatField):
            formats.append(subcon.fmtstr[1:])
        elif isinstance(subcon, construct.Bytes):
            formats.append(f"{subcon.length}s")
        else:
            raise TypeError(f"{self.name}: no fixed layout for {subcon!r}")

    def unpack_from(self, data: bytes | bytearray, offset: int = 0) -> tuple[Any, ...]:
        """The field values at ``offset``, constants left out.

        Raises:
            RemoteProtocolError: too short, or a constant is wrong.
        """
        try:
            values = self._struct.unpack_from(data, offset)
        except struct.error:
            raise RemoteProtocolError(
                Breach.LAYOUT,
                f"{self.name} needs {self.size} bytes, {max(0, len(data) - offset)} are there",
            ) from None
        if self._constants:
            for index, expected in self._constants:
                if values[index] != expected:
                    raise RemoteProtocolError(
                        Breach.LAYOUT,
                        f"{self.name} has {values[index]!r} where {expected!r} must stand",
                    )
            return self._variables(values)
        return values

    def pack(self, *values: Any) -> bytes:
        """The bytes for the field values, constants filled in.

        Raises:
            struct.error: a value does not fit its field.
        """
        if self._constants:
            full = list(values)
            for index, constant in self._constants:
                full.insert(index, constant)
            return self._struct.pack(*full)
        return self._struct.pack(*values)


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
COMMAND = Layout("COMMAND", schema.COMMAND)
COMMAND_REPLY = Layout("COMMAND_REPLY", schema.COMMAND_REPLY)
READ = Layout("READ", schema.READ)
READ_SEGMENT = Layout("read segment", schema.READ_SEGMENT)
READ_REPLY = Layout("READ_REPLY", schema.READ_REPLY)
READ_DATA = Layout("read data", schema.READ_DATA)
WRITE = Layout("WRITE", schema.WRITE)
WRITE_REPLY = Layout("WRITE_REPLY", schema.WRITE_REPLY)
EVENT = Layout("EVENT", schema.EVENT)
EVENT_ACK = Layout("EVENT_ACK", schema.EVENT_ACK)
CONTROL = Layout("CONTROL", schema.CONTROL)
