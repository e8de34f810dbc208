# SPDX-License-Identifier: Apache-2.0
"""A daemon for the library that a test holds in its hand, and that may lie."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from tests.e2e.fakedaemon import FakeDaemon, Peer, announcement, forward
from tests.e2e.sevprogram import (
    KVM_MEMORY_ENCRYPT_OP,
    SEV_ISSUE_CMD,
    Result,
    SevProgram,
)

from hcallproto.abi.families import sev
from hcallproto.abi.registers import FIRST_ARGUMENT
from hcallproto.abi.returns import SevCode
from hcallproto.abi.spec import Direction, Hcall
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

TIMEOUT = -62
"""ETIME: announced for a deadline that has passed, to be told from what the library would say."""
LOST = -104
"""ECONNRESET: the same for a daemon that is gone."""


def spec(
    hcall: Hcall, *buffers: f.BufferSpec, deadline_ms: int = 60_000, level: int = 4
) -> f.CallSpec:
    """How a command is announced; without ``buffers`` as the daemon does it."""
    return forward(
        hcall.number,
        *(buffers or prefetched(hcall)),
        deadline_ms=deadline_ms,
        is_waiting=False,
        timeout_status=TIMEOUT,
        lost_status=LOST,
        level=level,
    )


def prefetched(hcall: Hcall) -> tuple[f.BufferSpec, ...]:
    """The buffers that come with the CALL."""
    return tuple(
        f.BufferSpec(
            hcall.arg(buffer.address).register,
            s.BufferKind.SIZED,
            s.Direction.IN,
            hcall.arg(buffer.size).register,
            buffer.max_size if isinstance(buffer.max_size, int) else 0,
        )
        for buffer in hcall.buffers
        if buffer.direction is Direction.IN and buffer.prefetch and buffer.size is not None
    )


def announce_all(deadline_ms: int = 60_000) -> list[f.CallSpec]:
    """All commands."""
    return [spec(hcall, deadline_ms=deadline_ms) for hcall in sev.FAMILY.calls]


@dataclasses.dataclass(slots=True)
class Pending:
    """A command that a program has issued, and that the test answers."""

    program: SevProgram
    hcall: Hcall
    argument: int
    data: int

    def result(self) -> Result:
        """Waits for what comes of it."""
        return self.program.result(self.program.answer(), self.hcall, self.argument, self.data)


def begin(program: SevProgram, fd: int, hcall: Hcall, **fields: int) -> Pending:
    """Lets a program issue a command, and does not wait."""
    request = KVM_MEMORY_ENCRYPT_OP
    if hcall.number >> sev.COMMAND_SHIFT == sev.Ioctl.SEV_ISSUE_CMD:
        request = SEV_ISSUE_CMD
    data = program.structure(hcall, **fields)
    argument = program.argument(hcall, data)
    program.send("ioctl", fd, request, argument)
    return Pending(program, hcall, argument, data)


def meet(
    fake: FakeDaemon, calls: Iterable[f.CallSpec] = (), max_frame_size: int = s.MIN_MAX_FRAME
) -> Peer:
    """Accepts a connection, and negotiates."""
    peer = fake.accept()
    hello = peer.greet()
    assert hello.features == s.Feature.COMMANDS
    calls = tuple(calls) or announce_all()
    peer.welcome(announcement(calls), s.Feature.COMMANDS, max_frame_size)
    return peer


def register(hcall: Hcall, name: str) -> int:
    """The register of a field."""
    assert hcall.structure is not None
    names = [part.name for part in hcall.structure.subcons if part.name]
    return FIRST_ARGUMENT + names.index(name)


def write(address: int, data: bytes) -> f.WriteSegment:
    """Memory to write."""
    return f.WriteSegment(address, len(data), data)


REFUSED = SevCode.INVALID_GUEST_STATE
