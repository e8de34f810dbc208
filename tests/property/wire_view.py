# SPDX-License-Identifier: Apache-2.0
"""What one side of a ready connection knows, in sets, and what follows from it.

A naive second implementation of ``hcallproto.conn``: no tables, and the rules in the words of
``docs/wire.rst``.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

from hcallproto.conn.states import Role
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

Key = tuple[int, int]
Answer = f.ReadReply | f.WriteReply | f.PagesReply
Request = f.Read | f.Write | f.Pages


class Verdict(enum.Enum):
    """What is to be done with a frame."""

    TAKE = "take"
    DROP = "drop"
    REFUSE = "refuse"


@dataclasses.dataclass
class View:
    """One side's knowledge.

    Attributes:
        live: the call of each vCPU that has one.
        levels: LEV of the calls that were heard of before they were cancelled.
        cancelling: cancelled, and not acknowledged.
        asked: the memory request that each call waits for.
        told: resets that wait for their acknowledgement: (reset, event number).
    """

    role: Role
    reset: int
    vcpu_max: int
    acknowledged: int = -1
    newest_seq: int = 0
    live: dict[int, int] = dataclasses.field(default_factory=dict)
    levels: dict[Key, int] = dataclasses.field(default_factory=dict)
    cancelling: set[Key] = dataclasses.field(default_factory=set)
    asked: dict[Key, Request] = dataclasses.field(default_factory=dict)
    told: list[tuple[int, int]] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.acknowledged = self.reset

    def is_live(self, key: Key) -> bool:
        vcpu, seq = key
        return self.live.get(vcpu) == seq

    def keys(self) -> set[Key]:
        """The calls that are not over."""
        return set(self.live.items()) | self.cancelling

    def hear(self, frame: Any, *, is_sender: bool) -> Verdict:
        """Judge a frame that we send or receive, and learn from it if it is taken."""
        if isinstance(frame, f.Event | f.EventAck):
            return self._hear_event(frame)
        if frame.reset != self.reset:
            return self._judge_other_run(frame, is_sender=is_sender)
        verdict = self._judge(frame)
        if verdict is Verdict.TAKE:
            self._learn(frame)
        return Verdict.TAKE if is_sender and verdict is Verdict.DROP else verdict

    def _hear_event(self, frame: f.Event | f.EventAck) -> Verdict:
        if isinstance(frame, f.Event):
            if frame.kind is not s.EventKind.RESET:
                return Verdict.TAKE
            if frame.reset <= self.reset:
                return Verdict.REFUSE
            self.reset = frame.reset
            self.told.append((frame.reset, frame.request))
            self.live, self.levels, self.cancelling, self.asked = {}, {}, set(), {}
            return Verdict.TAKE
        if frame.kind is not s.EventKind.RESET or (frame.reset, frame.request) not in self.told:
            return Verdict.REFUSE
        self.told = [told for told in self.told if told[0] > frame.reset]
        self.acknowledged = frame.reset
        return Verdict.TAKE

    def _judge_other_run(self, frame: Any, *, is_sender: bool) -> Verdict:
        if frame.reset > self.reset:
            return Verdict.REFUSE
        is_answer = isinstance(frame, Answer)
        match self.role, is_sender:
            case Role.SHIM, True:
                return Verdict.TAKE if is_answer else Verdict.REFUSE
            case Role.SHIM, False:
                if frame.reset < self.acknowledged:
                    return Verdict.REFUSE
                return Verdict.TAKE if isinstance(frame, Request) else Verdict.DROP
            case Role.DAEMON, False if is_answer:
                return Verdict.DROP
        return Verdict.REFUSE

    def _judge(self, frame: Any) -> Verdict:
        key = (frame.vcpu, frame.seq)
        is_known = key in self.keys()
        fine = False
        match frame:
            case f.Call():
                fine = (
                    frame.vcpu not in self.live
                    and not is_known
                    and frame.seq > self.newest_seq
                    and frame.level in (1, 2, 3)
                    and len(self.live) < self.vcpu_max
                )
            case f.Cancel():
                of_cpu = [k for k in self.cancelling if k[0] == frame.vcpu]
                cpus = {vcpu for vcpu, _ in self.cancelling} | {frame.vcpu}
                fine = (
                    key not in self.cancelling
                    and len(of_cpu) < s.MAX_CANCELLING
                    and len(cpus) <= self.vcpu_max
                )
            case f.Reply():
                fine = (
                    is_known
                    and key not in self.asked
                    and (not frame.context or self.levels.get(key) == 2)
                    and (not frame.pages or self.levels.get(key) in (2, 3))
                    and not (frame.registers and self.levels.get(key) == 3)
                )
                if fine and key in self.cancelling:
                    return Verdict.DROP
            case f.Cancelled():
                fine = key in self.cancelling and key not in self.asked
            case f.Read() | f.Write() | f.Pages():
                fine = is_known and key not in self.asked and frame.request != 0
            case f.ReadReply() | f.WriteReply() | f.PagesReply():
                fine = key in self.asked and _fits(frame, self.asked[key])
        return Verdict.TAKE if fine else Verdict.REFUSE

    def _learn(self, frame: Any) -> None:
        key = (frame.vcpu, frame.seq)
        match frame:
            case f.Call():
                self.live[frame.vcpu] = self.newest_seq = frame.seq
                self.levels[key] = frame.level
            case f.Cancel():
                if self.is_live(key):
                    del self.live[frame.vcpu]
                else:
                    self.levels.pop(key, None)
                self.cancelling.add(key)
            case f.Reply():
                del self.live[frame.vcpu]
            case f.Cancelled():
                self.cancelling.remove(key)
            case f.Read() | f.Write() | f.Pages():
                self.asked[key] = frame
            case f.ReadReply() | f.WriteReply() | f.PagesReply():
                del self.asked[key]


def _fits(answer: Answer, request: Request) -> bool:
    if answer.request != request.request:
        return False
    if isinstance(answer, f.WriteReply):
        return isinstance(request, f.Write)
    if isinstance(answer, f.PagesReply):
        return isinstance(request, f.Pages)
    return (
        isinstance(request, f.Read)
        and len(answer.segments) == len(request.segments)
        and all(
            status is not s.AccessStatus.OK or len(data) == size
            for (status, data), (_, size) in zip(answer.segments, request.segments, strict=True)
        )
    )
