# SPDX-License-Identifier: Apache-2.0
"""A capture's calls by who made them, after the file was read once.

Calls wait as bytes: in memory as long as they are few, then in a file without a name that
goes with the process. Of a long capture only the places of its calls in there stay in memory.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import io
import operator
import os
import pickle
import tempfile
from collections.abc import Iterator
from typing import IO, Final, Self

from hcalld.core.errors import HcalldError
from hcallproto.abi.spec import Hcall
from hcallproto.capture.exchanges import Exchange

MAX_CALLERS: Final = 1 << 14
"""Each takes memory, however few its calls are."""
MAX_WAITING_BYTES: Final = 32 << 20
"""Of calls; if there are more, they go to a file."""

Caller = tuple[str, int]
"""A guest's name and the number of its virtual CPU."""

# The table's entry holds what only code can make, and is the same for many calls.
_FIELDS: Final = tuple(one.name for one in dataclasses.fields(Exchange) if one.name != "hcall")
_of = operator.attrgetter(*_FIELDS)
_SIZE_BYTES: Final = 8


@dataclasses.dataclass(slots=True)
class _Calls:
    """One caller's."""

    waiting: bytearray = dataclasses.field(default_factory=bytearray)
    """The newest."""
    places: array.array[int] = dataclasses.field(default_factory=lambda: array.array("Q"))
    """Of those before in the file."""


def _temporary() -> IO[bytes]:
    return tempfile.TemporaryFile(prefix="hcalld-calls-")


class CallsByCaller:
    """Keeps calls until they are asked for. A context manager, which frees the file.

    Args:
        name: of the capture, for messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._callers: dict[Caller, _Calls] = {}
        self._waiting_bytes = 0
        self._file: IO[bytes] | None = None
        self._stack = contextlib.ExitStack()
        self._hcalls: dict[int, Hcall | None] = {}
        """The table's entries that are met, by identity."""

    def __enter__(self) -> Self:
        """The calls."""
        return self

    def __exit__(self, *_: object) -> None:
        """Forget them."""
        # What is not written by now is not wanted any more.
        with contextlib.suppress(OSError):
            self._stack.close()

    @property
    def callers(self) -> set[Caller]:
        """Who called."""
        return set(self._callers)

    def add(self, caller: Caller, exchange: Exchange) -> None:
        """Keep a call.

        Raises:
            HcalldError: there are too many callers, or there is no room.
        """
        calls = self._callers.get(caller)
        if calls is None:
            if len(self._callers) >= MAX_CALLERS:
                raise HcalldError(
                    f"{self._name}: more than {MAX_CALLERS} virtual CPUs of guests; expected a "
                    "capture of fewer, as of one guest"
                )
            calls = self._callers[caller] = _Calls()
        self._hcalls[id(exchange.hcall)] = exchange.hcall
        data = pickle.dumps((id(exchange.hcall), _of(exchange)), pickle.HIGHEST_PROTOCOL)
        calls.waiting += data
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= MAX_WAITING_BYTES:
            self._put_away()

    def calls(self, caller: Caller) -> Iterator[Exchange]:
        """A caller's calls, in their order."""
        calls = self._callers.get(caller)
        if calls is None:
            return
        for place in calls.places:
            yield from self._loaded(self._read(place))
        yield from self._loaded(calls.waiting)

    def _loaded(self, data: bytes | bytearray) -> Iterator[Exchange]:
        stream = io.BytesIO(data)
        while stream.tell() < len(data):
            # Our own words: nobody else can open the file.
            hcall, values = pickle.load(stream)
            yield Exchange(hcall=self._hcalls[hcall], **dict(zip(_FIELDS, values, strict=True)))

    def _read(self, place: int) -> bytes:
        assert self._file is not None
        self._file.seek(place)
        return self._file.read(int.from_bytes(self._file.read(_SIZE_BYTES), "big"))

    def _put_away(self) -> None:
        try:
            if self._file is None:
                self._file = self._stack.enter_context(_temporary())
            place = self._file.seek(0, os.SEEK_END)
            for calls in self._callers.values():
                if calls.waiting:
                    calls.places.append(place)
                    place += _SIZE_BYTES + len(calls.waiting)
                    self._file.write(len(calls.waiting).to_bytes(_SIZE_BYTES, "big"))
                    self._file.write(calls.waiting)
                    calls.waiting = bytearray()
            self._file.flush()
        except OSError as error:
            raise HcalldError(
                f"{self._name}: its calls cannot be kept in {tempfile.gettempdir()}: "
                f"{error.strerror}; make room, or set TMPDIR to a directory that has some"
            ) from None
        self._waiting_bytes = 0
