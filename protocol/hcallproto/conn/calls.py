# SPDX-License-Identifier: Apache-2.0
"""The calls of one connection: which are live, which are being cancelled.

A virtual CPU has at most one live call and a few cancelled ones that the daemon has not
acknowledged, and a machine has only so many virtual CPUs, so both sides hold a bounded
amount of state whatever the peer sends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from hcallproto.conn.states import CALL, CallState
from hcallproto.wire import frames as f
from hcallproto.wire.schema import (
    LEVEL_SHIM,
    MAX_CANCELLING,
    NO_VCPU,
    AccessStatus,
    FrameType,
)

CallFrame = (
    f.Call
    | f.Reply
    | f.Cancel
    | f.Cancelled
    | f.Read
    | f.ReadReply
    | f.Write
    | f.WriteReply
    | f.Pages
    | f.PagesReply
)


class CallRuleError(Exception):
    """A frame broke a rule about calls; the connection says whose fault that is."""


class _Track:
    """One call. Holds none of its frames' data.

    Attributes:
        seq: the call's number, or ``_NO_SEQ`` in state NONE.
        state: where the call stands.
        level: that of the CALL; None if it was over when it was cancelled.
        request: number of the memory request outstanding.
        request_type: READ, WRITE or PAGES.
        asked: (gpa, size) pairs of a READ.
    """

    __slots__ = ("asked", "level", "request", "request_type", "seq", "state")

    def __init__(self, seq: int, state: CallState) -> None:
        self.seq = seq
        self.state = state
        self.level: int | None = None
        self.request = 0
        self.request_type = FrameType.READ
        self.asked: tuple[tuple[int, int], ...] = ()


_NO_SEQ = -1
_LEVEL_ULTRACALL = 2
_LEVELS_WITH_PAGES = (_LEVEL_ULTRACALL, LEVEL_SHIM)
_T = FrameType
_NONE = CallState.NONE
_LIVE = CallState.LIVE
_CANCELLING = CallState.CANCELLING


class CallTable:
    """Applies the call table to the frames of one connection.

    Attributes:
        vcpu_max: how many virtual CPUs there can be.
        levels: that calls may have.
    """

    def __init__(self) -> None:
        self.vcpu_max = 0
        self.levels: tuple[int, ...] = (1,)
        # Of at most vcpu_max virtual CPUs, used for one call after another.
        self._newest: dict[int, _Track] = {}
        self._cancelled: dict[tuple[int, int], _Track] = {}
        self._cancelled_count: Counter[int] = Counter()
        self._newest_seq = 0

    def __len__(self) -> int:
        """How many calls are not over."""
        return len(self.live()) + len(self._cancelled)

    def state(self, vcpu: int, seq: int) -> CallState:
        """The state of a call; NONE for one that is over or never was."""
        track = self._find(vcpu, seq)
        return track.state if track is not None else _NONE

    def live(self) -> list[tuple[int, int]]:
        """(vcpu, seq) of the live calls."""
        return [(v, track.seq) for v, track in self._newest.items() if track.state is not _NONE]

    def clear(self) -> None:
        """A reset: no call is left."""
        self._newest.clear()
        self._cancelled.clear()
        self._cancelled_count.clear()

    def apply(self, frame_type: FrameType, frame: CallFrame) -> bool:
        """Move the frame's call.

        Returns:
            False if the frame concerns a call that is being cancelled and its receiver
            has nothing to do with it (a crossed REPLY).

        Raises:
            CallRuleError: the frame may not come now; nothing has changed.
        """
        track = self._find(frame.vcpu, frame.seq)
        before = _NONE if track is None else track.state
        after = CALL.get((before, frame_type))
        if after is None:
            raise CallRuleError(
                f"{frame_type.name} for vcpu {frame.vcpu} call {frame.seq}, "
                f"whose state is {before.value}"
            )
        if track is None:
            if after is _LIVE:
                self._begin(frame)
            else:
                self._cancel(frame, _Track(frame.seq, after))
            return True
        check = _CHECKS.get(frame_type)
        if check is not None:
            check(track, frame)
        if frame_type is _T.CANCEL:
            self._cancel(frame, track)
            # The virtual CPU goes on without it.
            del self._newest[frame.vcpu]
        elif after is _NONE:
            if before is _LIVE:
                track.seq = _NO_SEQ
            else:
                self._forget(frame)
        track.state = after
        return before is not _CANCELLING or after is not _CANCELLING

    def _find(self, vcpu: int, seq: int) -> _Track | None:
        track = self._newest.get(vcpu)
        if track is not None and track.seq == seq:
            return track
        return self._cancelled.get((vcpu, seq))

    def _begin(self, frame: CallFrame) -> None:
        vcpu, seq = frame.vcpu, frame.seq
        # Resent calls come first on a connection and in order, so that one rule serves both.
        if seq <= self._newest_seq:
            raise CallRuleError(f"call sequence {seq} is not above {self._newest_seq}")
        assert isinstance(frame, f.Call)
        level = frame.level
        if level not in self.levels:
            raise CallRuleError(f"call of level {level}, in force are {self.levels}")
        track = self._newest.get(vcpu)
        if track is None:
            self._make_room(vcpu)
            track = self._newest[vcpu] = _Track(seq, _LIVE)
        elif track.state is not _NONE:
            raise CallRuleError(f"vcpu {vcpu} has a live call, {track.seq}, already")
        self._newest_seq = seq
        track.seq = seq
        track.state = _LIVE
        track.level = level

    def _make_room(self, vcpu: int) -> None:
        """See that there is room for the record of one more virtual CPU."""
        if len(self._newest) >= self.vcpu_max:
            # Only those with a live call count: of the others the peer may know less.
            live = {v: track for v, track in self._newest.items() if track.state is not _NONE}
            if len(live) >= self.vcpu_max:
                raise CallRuleError(f"vcpu {vcpu} calls, and there are only {self.vcpu_max}")
            self._newest = live
        if vcpu == NO_VCPU:
            raise CallRuleError("a call has no vcpu")

    def _cancel(self, frame: CallFrame, track: _Track) -> None:
        vcpu = frame.vcpu
        count = self._cancelled_count[vcpu]
        if count >= MAX_CANCELLING:
            raise CallRuleError(
                f"vcpu {vcpu} has {count} calls being cancelled that the daemon has not "
                "acknowledged"
            )
        if vcpu == NO_VCPU or (not count and len(self._cancelled_count) >= self.vcpu_max):
            raise CallRuleError(f"cancel for vcpu {vcpu}, and there are only {self.vcpu_max}")
        self._cancelled_count[vcpu] = count + 1
        self._cancelled[vcpu, frame.seq] = track

    def _forget(self, frame: CallFrame) -> None:
        """The daemon has acknowledged a cancelled call."""
        vcpu = frame.vcpu
        del self._cancelled[vcpu, frame.seq]
        if self._cancelled_count[vcpu] > 1:
            self._cancelled_count[vcpu] -= 1
        else:
            del self._cancelled_count[vcpu]


def _check_reply(track: _Track, frame: f.Reply) -> None:
    if frame.context and track.level != _LEVEL_ULTRACALL:
        raise CallRuleError("REPLY changes NIP or MSR of a call whose level is not 2")
    if frame.pages and track.level not in _LEVELS_WITH_PAGES:
        raise CallRuleError("REPLY has page states of a call whose level is neither 2 nor 3")
    if track.level == LEVEL_SHIM and frame.registers:
        raise CallRuleError("REPLY sets registers, and the shim itself made the call")


def _begin_read(track: _Track, frame: f.Read) -> None:
    _begin_request(track, _T.READ, frame.request)
    track.asked = frame.segments


def _begin_write(track: _Track, frame: f.Write) -> None:
    _begin_request(track, _T.WRITE, frame.request)


def _begin_pages(track: _Track, frame: f.Pages) -> None:
    _begin_request(track, _T.PAGES, frame.request)


def _begin_request(track: _Track, frame_type: FrameType, request: int) -> None:
    if request == 0:
        raise CallRuleError(f"{frame_type.name} with request number 0")
    track.request = request
    track.request_type = frame_type


def _check_read_reply(track: _Track, frame: f.ReadReply) -> None:
    _check_answer(track, _T.READ, frame.request)
    if len(frame.segments) != len(track.asked):
        raise CallRuleError(
            f"READ_REPLY has {len(frame.segments)} segments, {len(track.asked)} were asked"
        )
    for (status, data), (gpa, size) in zip(frame.segments, track.asked, strict=True):
        if status is AccessStatus.OK and len(data) != size:
            raise CallRuleError(f"READ_REPLY has {len(data)} bytes of 0x{gpa:x}, {size} were asked")


def _check_write_reply(track: _Track, frame: f.WriteReply) -> None:
    _check_answer(track, _T.WRITE, frame.request)


def _check_pages_reply(track: _Track, frame: f.PagesReply) -> None:
    _check_answer(track, _T.PAGES, frame.request)


def _check_answer(track: _Track, frame_type: FrameType, request: int) -> None:
    if request != track.request or track.request_type is not frame_type:
        raise CallRuleError(
            f"answer to {frame_type.name} {request}; outstanding is "
            f"{track.request_type.name} {track.request}"
        )


_CHECKS: Mapping[FrameType, Callable[[_Track, Any], None]] = {
    _T.REPLY: _check_reply,
    _T.READ: _begin_read,
    _T.WRITE: _begin_write,
    _T.READ_REPLY: _check_read_reply,
    _T.WRITE_REPLY: _check_write_reply,
    _T.PAGES: _begin_pages,
    _T.PAGES_REPLY: _check_pages_reply,
}
"""What a frame must be beside allowed; each raises CallRuleError before it changes anything."""
