# SPDX-License-Identifier: Apache-2.0
"""The calls of one connection: which are live, which are being cancelled.

A virtual CPU has at most one live call and a few cancelled ones that the daemon has not
acknowledged, so both sides hold a bounded amount of state whatever the peer sends.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

from hcallproto.conn.states import CALL, CallState
from hcallproto.wire import frames as f
from hcallproto.wire.schema import MAX_CANCELLING, FrameType

CallFrame = (
    f.Call
    | f.Reply
    | f.Cancel
    | f.Cancelled
    | f.Command
    | f.CommandReply
    | f.Read
    | f.ReadReply
    | f.Write
    | f.WriteReply
)


class CallRuleError(Exception):
    """A frame broke a rule about calls; the connection says whose fault that is."""


@dataclasses.dataclass(slots=True)
class _Track:
    """One call that is not in state NONE."""

    state: CallState
    level: int = 0
    """LEV of a live call: only a reply to level 2 may change NIP and MSR."""
    request: int = 0
    """Number of the memory request outstanding, or 0."""
    request_type: FrameType = FrameType.READ
    segment_count: int = 0


_LEVEL_ULTRACALL = 2
_ANSWERS = {FrameType.READ_REPLY: FrameType.READ, FrameType.WRITE_REPLY: FrameType.WRITE}


class CallTable:
    """Applies the call table to the frames of one connection."""

    def __init__(self) -> None:
        self._tracks: dict[tuple[int, int], _Track] = {}
        self._live: dict[int, int] = {}
        self._cancelling: Counter[int] = Counter()
        self._newest_seq = 0

    def __len__(self) -> int:
        return len(self._tracks)

    def state(self, vcpu: int, seq: int) -> CallState:
        """The state of a call; NONE for one that is over or never was."""
        track = self._tracks.get((vcpu, seq))
        return track.state if track is not None else CallState.NONE

    def live(self) -> list[tuple[int, int]]:
        """(vcpu, seq) of the live calls."""
        return list(self._live.items())

    def clear(self) -> None:
        """A reset: no call is left."""
        self._tracks.clear()
        self._live.clear()
        self._cancelling.clear()

    def apply(self, frame_type: FrameType, frame: CallFrame) -> bool:
        """Move the frame's call.

        Returns:
            False if the frame concerns a call that is being cancelled and its receiver
            has nothing to do with it (a crossed REPLY).

        Raises:
            CallRuleError: the frame may not come now.
        """
        key = (frame.vcpu, frame.seq)
        track = self._tracks.get(key)
        before = track.state if track is not None else CallState.NONE
        after = CALL.get((before, frame_type))
        if after is None:
            raise CallRuleError(
                f"{frame_type.name} for vcpu {frame.vcpu} call {frame.seq}, "
                f"whose state is {before.value}"
            )
        if track is None:
            if after is CallState.LIVE:
                self._begin(key, frame)
            elif after is CallState.CANCELLING:
                self._cancel(key, _Track(after))
            return True
        if frame_type in (FrameType.READ, FrameType.WRITE):
            self._request(track, frame_type, frame)
        elif frame_type in _ANSWERS:
            self._answer(track, frame_type, frame)
        elif frame_type is FrameType.CANCEL:
            self._cancel(key, track)
        elif isinstance(frame, f.Reply) and frame.context and track.level != _LEVEL_ULTRACALL:
            raise CallRuleError("REPLY changes NIP or MSR of a call whose level is not 2")
        track.state = after
        if after is CallState.NONE:
            del self._tracks[key]
            if frame_type is FrameType.CANCELLED:
                self._cancelling[frame.vcpu] -= 1
            else:
                del self._live[frame.vcpu]
        return not (before is CallState.CANCELLING and after is CallState.CANCELLING)

    def _begin(self, key: tuple[int, int], frame: CallFrame) -> None:
        vcpu, seq = key
        if vcpu in self._live:
            raise CallRuleError(f"vcpu {vcpu} has a live call, {self._live[vcpu]}, already")
        # Resent calls come first on a connection and in order, so that one rule serves both.
        if seq <= self._newest_seq:
            raise CallRuleError(f"call sequence {seq} is not above {self._newest_seq}")
        self._newest_seq = seq
        self._live[vcpu] = seq
        self._tracks[key] = _Track(
            CallState.LIVE, level=frame.level if isinstance(frame, f.Call) else 0
        )

    def _cancel(self, key: tuple[int, int], track: _Track) -> None:
        vcpu, seq = key
        if self._cancelling[vcpu] >= MAX_CANCELLING:
            raise CallRuleError(
                f"vcpu {vcpu} has {MAX_CANCELLING} calls being cancelled that the daemon "
                "has not acknowledged"
            )
        self._cancelling[vcpu] += 1
        if self._live.get(vcpu) == seq:
            del self._live[vcpu]
        self._tracks[key] = track

    def _request(self, track: _Track, frame_type: FrameType, frame: CallFrame) -> None:
        assert isinstance(frame, f.Read | f.Write)
        if frame.request == 0:
            raise CallRuleError(f"{frame_type.name} with request number 0")
        track.request = frame.request
        track.request_type = frame_type
        track.segment_count = len(frame.segments)

    def _answer(self, track: _Track, frame_type: FrameType, frame: CallFrame) -> None:
        assert isinstance(frame, f.ReadReply | f.WriteReply)
        if frame.request != track.request or _ANSWERS[frame_type] is not track.request_type:
            raise CallRuleError(
                f"{frame_type.name} {frame.request} answers no request; outstanding is "
                f"{track.request_type.name} {track.request}"
            )
        if isinstance(frame, f.ReadReply) and len(frame.segments) != track.segment_count:
            raise CallRuleError(
                f"READ_REPLY has {len(frame.segments)} segments, {track.segment_count} were asked"
            )
