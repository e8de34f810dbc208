# SPDX-License-Identifier: Apache-2.0
"""What a live daemon has made anew, in the place of what the capture has.

Passwords, continue tokens and wrapped keys are results of one call and inputs of later
ones. A guest that is played from a capture has to pass on the live ones. The table says
which results are ``fresh``, which registers hold a token, and where an authorization is.
"""

from __future__ import annotations

import collections
from typing import Final, TypeVar

from hcallproto.abi.registers import REAL_ADDRESS_MASK
from hcallproto.abi.registry import find
from hcallproto.abi.spec import ArgKind, Buffer, Direction, Hcall
from hcallproto.payloads.pks import AUTH_HEADER, AUTH_HEADER_SIZE, Auth, parse_auth
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

_K = TypeVar("_K")
_V = TypeVar("_V")

MAX_TOKENS: Final = 4096
MAX_CONTENTS: Final = 1024
MIN_CONTENT: Final = 16
"""Bytes that are too many to be the same by chance."""


class Anew:
    """Captured values to live ones, of one connection.

    Attributes:
        replaced: how many values were passed on in the place of others.
    """

    def __init__(self) -> None:
        self.replaced = 0
        self._tokens: collections.OrderedDict[int, int] = collections.OrderedDict()
        self._contents: collections.OrderedDict[bytes, bytes] = collections.OrderedDict()
        self._short: collections.OrderedDict[tuple[bytes, bytes], None] = collections.OrderedDict()
        """Pairs of contents that are too short to be looked for within others."""
        self._passwords: dict[int, tuple[bytes, bytes]] = {}
        """By consumer: the captured one, which may be blanked, and the live one."""

    def reset(self) -> None:
        """A reset ends passwords and tokens; keys stay."""
        self._tokens.clear()
        self._passwords.clear()

    # -- what is passed on ----------------------------------------------------------------

    def registers(self, call: f.Call) -> f.Call:
        """The call with live tokens."""
        hcall = find(call.number, call.level)
        for arg in hcall.args if hcall is not None else ():
            if arg.kind is ArgKind.TOKEN:
                place = s.REGISTERS.index(arg.register)
                live = self._tokens.get(call.gpr[place])
                if live is not None:
                    self.replaced += 1
                    call = call._replace(gpr=(*call.gpr[:place], live, *call.gpr[place + 1 :]))
        return call

    def content(self, buffer: Buffer | None, data: bytes, *, was_refused: bool = False) -> bytes:
        """What the guest has in a buffer, with what is live now.

        Args:
            buffer: which one; None: memory that is none.
            data: what it had in the capture.
            was_refused: the call had no authority, maybe for its password.
        """
        if buffer is not None and buffer.layout is AUTH_HEADER:
            return self._authorization(data, was_refused=was_refused)
        for old, new in self._contents.items():
            at = data.find(old)
            if at >= 0:
                self.replaced += 1
                data = data[:at] + new + data[at + len(old) :]
        return data

    def _authorization(self, data: bytes, *, was_refused: bool) -> bytes:
        auth = _parsed(data)
        if auth is None or not auth.password:
            return data
        old, new = self._passwords.get(auth.consumer, (b"", b""))
        if was_refused and not any(auth.password):
            # Without secrets a wrong password and the right one are the same zeros. One that
            # the guest has set is zeros now, too.
            new = b"\xff" * len(auth.password)
        elif auth.password != old or len(old) != len(new):
            return data
        self.replaced += 1
        end = AUTH_HEADER_SIZE + len(new)
        return data[:AUTH_HEADER_SIZE] + new + data[end:]

    # -- what is learnt -------------------------------------------------------------------

    def learn(self, call: f.Call, captured: f.Reply, live: f.Reply) -> None:
        """Compare the answers to a call: what is fresh in one stands for that in the other."""
        hcall = find(call.number, call.level)
        if hcall is None:
            return
        mine, its = dict(captured.registers), dict(live.registers)
        for output in hcall.outputs:
            old, new = mine.get(output.register), its.get(output.register)
            if output.kind is ArgKind.TOKEN and old and new:
                _remember(self._tokens, old, new, MAX_TOKENS)
        for buffer in hcall.buffers:
            if not buffer.fresh or buffer.direction is not Direction.OUT:
                continue
            old_data, new_data = (_written(hcall, call, buffer, one) for one in (captured, live))
            if not old_data or len(old_data) != len(new_data):
                continue
            consumer = _consumer(hcall, call)
            if consumer is not None:
                self._passwords[consumer] = old_data, new_data
            elif old_data == new_data or not any(old_data):
                continue
            elif len(old_data) >= MIN_CONTENT:
                _remember(self._contents, old_data, new_data, MAX_CONTENTS)
            else:
                _remember(self._short, (old_data, new_data), None, MAX_CONTENTS)

    def expected(self, captured: f.Reply, live: f.Reply) -> f.Reply:
        """A captured reply with what stands for what it writes now."""
        if not (self._contents or self._short) or not any(one.data for one in captured.writes):
            return captured
        written = {one.gpa: one.data for one in live.writes}
        writes = []
        for one in captured.writes:
            if one.data is not None:
                # What is short may be the same by chance: it must be what was made, too.
                now = written.get(one.gpa)
                is_short = now is not None and (one.data, now) in self._short
                data = now if is_short else self.content(None, one.data)
                one = one._replace(data=data)  # the same, as it is now
            writes.append(one)
        return captured._replace(writes=tuple(writes))


def _remember(where: collections.OrderedDict[_K, _V], old: _K, new: _V, limit: int) -> None:
    if len(where) >= limit:
        where.popitem(last=False)
    where[old] = new


def _parsed(data: bytes) -> Auth | None:
    try:
        return parse_auth(data, len(data))
    except ValueError:
        return None


def _consumer(hcall: Hcall, call: f.Call) -> int | None:
    """Whose password a call makes; None: it makes none."""
    for arg in hcall.args:
        if arg.name == "consumer" and any(one.address == "password" for one in hcall.buffers):
            return call.by_number()[arg.register]
    return None


def _written(hcall: Hcall, call: f.Call, buffer: Buffer, reply: f.Reply) -> bytes:
    """What a reply writes to a buffer, from its first byte on, as one segment."""
    gpa = call.by_number()[hcall.arg(buffer.address).register] & REAL_ADDRESS_MASK
    return next((one.data for one in reply.writes if one.gpa == gpa and one.data), b"")
