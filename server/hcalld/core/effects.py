# SPDX-License-Identifier: Apache-2.0
"""Effects: what a handler asks the world for.

A handler is a coroutine that awaits effects. ``__await__`` yields the effect itself; a
driver performs it and sends the answer back in. So a handler reads like straight code,
imports no event loop, needs none in its tests, and the list of its effects is its audit
trail. ``hcalld.runtime.driver`` performs them for real, ``hcalld.testing`` scripts them.

Rules for handlers: all arguments are checked before the first effect; each guest buffer
is read once (the guest may change it between two reads); the model is changed only after
every check, with no effect between reading a value and writing what depends on it; guest
memory is written last, through the Outcome.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Effect(Generic[T]):
    """Base of all effects; ``T`` is the type of the answer."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, Any, T]:
        answer: T = yield self
        return answer


@dataclasses.dataclass(frozen=True, slots=True)
class ReadBuffer(Effect[bytes]):
    """The bytes of one of the call's IN buffers, by its address argument's name.

    A PAGE_BOUNDED buffer comes cut at its page's end. Served from what the shim sent
    with the call, from shared RAM, or by asking the shim. If the range has meanwhile
    left RAM the driver raises HcallError with the argument's code.
    """

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class ReadGuest(Effect[bytes]):
    """``size`` bytes of guest RAM at ``gpa``. Raises GuestMemoryError in the handler.

    ``then`` is the range that the handler reads next if this one is there; it has to, unless it
    refuses. What must be asked of the shim is on its way then while the handler is at work.
    """

    gpa: int
    size: int
    then: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class WriteGuest(Effect[None]):
    """Write guest RAM now, not with the reply. Raises GuestMemoryError in the handler."""

    gpa: int
    data: bytes = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class ZeroGuest(Effect[None]):
    """Zero guest RAM now. Raises GuestMemoryError in the handler."""

    gpa: int
    size: int


@dataclasses.dataclass(frozen=True, slots=True)
class Entropy(Effect[bytes]):
    """``size`` random bytes from the system's generator."""

    size: int


@dataclasses.dataclass(frozen=True, slots=True)
class Now(Effect[int]):
    """Nanoseconds since the epoch."""


@dataclasses.dataclass(frozen=True, slots=True)
class Flush(Effect[None]):
    """Wait until everything committed so far is on stable storage (fsync).

    Raises StoreError in the handler if it may not be.
    """


@dataclasses.dataclass(frozen=True, slots=True)
class Note(Effect[None]):
    """A remark for the trace and the capture; must hold no secret."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class TpmTransmit(Effect[bytes]):
    """Send a command to the partition's TPM, once, and wait for the whole response.

    Opens the partition's session with the TPM. Raises BackendUnavailable in the handler if
    no response comes; the session is closed then, and what the TPM did is not known.
    """

    command: bytes = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class TpmClose(Effect[None]):
    """Close the partition's session with its TPM, if there is one.

    Raises BackendUnavailable in the handler if the TPM did not free what belonged to it.
    """


@dataclasses.dataclass(frozen=True, slots=True)
class ReadPlatform(Effect[bytes]):
    """The SEV platform as it is now, packed: ``domain.sev.platform``. Never waits.

    Several VMs share a platform, so what it is no connection's frames say. What is read and
    what ``ChangePlatform`` makes of it are one step if no other effect is between them.
    """


@dataclasses.dataclass(frozen=True, slots=True)
class ChangePlatform(Effect[None]):
    """Change the SEV platform; never waits.

    What of it outlives the daemon is committed before this is answered. Raises StoreError in
    the handler if it cannot be; nothing has changed then.
    """

    change: bytes = dataclasses.field(repr=False)
    is_kept: bool
    """It outlives the daemon."""


class GuestMemoryError(Exception):
    """An address range is not guest RAM, or the call is no longer alive."""

    def __init__(self, gpa: int, size: int, why: str) -> None:
        super().__init__(f"guest address 0x{gpa:x}, {size} bytes: {why}")
        self.gpa = gpa
        self.size = size
