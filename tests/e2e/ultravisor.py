# SPDX-License-Identifier: Apache-2.0
"""What an ultravisor does to a CPU and to pages, for tests that play it."""

from __future__ import annotations

from collections import deque
from typing import Any

from tests.e2e.fakedaemon import Peer, forward

from hcallproto.abi.returns import U
from hcallproto.abi.spec import Hcall
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

PAGE = 4096

WRONG = b"\xff\xa5" * (PAGE // 2)
"""What a page reads as that is paged out, if it is read at all."""


def ultracall(call: Hcall, *, from_problem_state: bool = False) -> f.CallSpec:
    """Announces an ultracall."""
    spec = forward(call.number, level=2, lost_status=U.RETRY)
    if from_problem_state:
        return spec._replace(flags=spec.flags | s.CALL_FLAG_PROBLEM_STATE)
    return spec


def enter(
    peer: Peer, call: f.Call, *, status: int = U.SUCCESS, registers: Any = (), pages: Any = ()
) -> None:
    """Answers UV_ESM: the guest goes on at the address in its r4, in secure state."""
    peer.send(
        f.Reply(
            call.vcpu,
            call.reset,
            call.seq,
            status,
            registers=registers,
            context=s.CONTEXT_NIP | s.CONTEXT_MSR,
            nip=call.registers()[4],
            msr=s.MSR_S,
            msr_mask=s.MSR_S | s.MSR_EE,
            pages=pages,
        )
    )


class Pager:
    """Keeps the content of pages that are out.

    Args:
        peer: The guest's connection.

    Attributes:
        paged_in: How many pages were missed and brought back.
    """

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._stored: dict[int, bytes] = {}
        self._early: deque[f.Frame] = deque()
        self.paged_in = 0

    def receive(self, seconds: float = 60) -> f.Frame:
        """The next frame that is no answer to us; missed pages are brought."""
        while True:
            frame = self._early.popleft() if self._early else self._peer.receive(seconds)
            if not (isinstance(frame, f.Call) and frame.level == s.LEVEL_SHIM):
                return frame
            if frame.number == s.ShimCall.ATTEND:
                return frame
            self._page_in(frame)

    def _answer_to(self, kind: type[f.Frame]) -> Any:
        """The answer to a request; calls that come meanwhile wait."""
        while not isinstance(frame := self._peer.receive(), kind):
            assert isinstance(frame, f.Call), frame
            self._early.append(frame)
        return frame

    def page_out(self, call: f.Call, *gpas: int) -> None:
        """Moves the content of pages to us, on behalf of a call."""
        peer = self._peer
        state = s.PageState.UNSHARED | s.PageState.PAGED_OUT
        name = (call.vcpu, call.reset, call.seq)
        new = [gpa for gpa in gpas if gpa not in self._stored]
        if not new:
            return
        peer.send(f.Pages(*name, 1, tuple(f.PageRange(gpa, PAGE, state) for gpa in new)))
        assert self._answer_to(f.PagesReply).status is s.AccessStatus.OK
        for gpa in new:
            peer.send(f.Read(*name, 2, ((gpa, PAGE),)))
            ((status, content),) = self._answer_to(f.ReadReply).segments
            assert status is s.AccessStatus.OK
            self._stored[gpa] = content
        peer.send(f.Write(*name, 3, tuple(f.WriteSegment(gpa, PAGE, WRONG) for gpa in new)))
        assert self._answer_to(f.WriteReply).status is s.AccessStatus.OK

    def bring(self, *gpas: int) -> tuple[tuple[f.WriteSegment, ...], tuple[int, ...]]:
        """Segments with the content of those pages that are out, and which they are."""
        out = tuple(gpa for gpa in gpas if gpa in self._stored)
        return tuple(f.WriteSegment(gpa, PAGE, self._stored.pop(gpa)) for gpa in out), out

    def _page_in(self, call: f.Call) -> None:
        """Moves one back; a page that several vCPUs miss is brought once."""
        assert call.number == s.ShimCall.PAGE_IN
        writes, gpas = self.bring(call.registers()[4] & -PAGE)
        self.paged_in += len(gpas)
        pages = tuple(f.PageRange(gpa, PAGE, s.PageState.UNSHARED) for gpa in gpas)
        self._peer.send(f.Reply(call.vcpu, call.reset, call.seq, 0, writes=writes, pages=pages))
