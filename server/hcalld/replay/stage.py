# SPDX-License-Identifier: Apache-2.0
"""What a session has around it while it is replayed: no socket, no server, no disk, no TPM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import trio

from hcalld.core.errors import BackendUnavailable
from hcalld.core.records import Run
from hcalld.core.tally import Tallies
from hcalld.core.tap import Tap, Taps
from hcalld.runtime.flushing import FlushRounds
from hcalld.runtime.partition import Partition
from hcalld.runtime.session import Session
from hcalld.runtime.world import World
from hcalld.stores.base import Store
from hcallproto.wire import frames as f

TURNS: Final = 64
"""Frames that are given without a turn of the event loop."""


class Shim(Protocol):
    """Plays the shim's part: the player."""

    def next_frame(self) -> bytes:
        """The frame that comes now; b"": none."""

    def went_out(self, data: bytes) -> None:
        """Frames of the daemon."""


class ReplayTransport:
    """A connection to nobody; see ``runtime.transport.Transport``.

    Args:
        shim: gives the frames and takes them.
        passes_descriptors: the shim had descriptors to pass; none is passed.
    """

    peer = "a capture"

    def __init__(self, shim: Shim, *, passes_descriptors: bool) -> None:
        self.passes_descriptors = passes_descriptors
        self.is_ended = False
        self.is_waiting = False
        self._shim = shim
        self._turns = 0
        self._woken = trio.Event()

    def wake(self) -> bool:
        """There may be frames now; True: somebody waits for them."""
        if not self.is_waiting or self._woken.is_set():
            return False
        self._woken.set()
        return True

    def end(self) -> None:
        """There will be no more."""
        self.is_ended = True
        self._woken.set()

    def try_receive(self, room: memoryview | None = None) -> memoryview | bytes | None:
        """See Transport."""
        return self._shim.next_frame() or None

    async def receive(self, room: memoryview | None = None) -> memoryview | bytes:
        """See Transport."""
        while True:
            data = self._shim.next_frame()
            self._turns += 1
            if data and self._turns % TURNS:
                return data
            await trio.lowlevel.checkpoint()
            if data or self.is_ended:
                return data
            self._woken = trio.Event()
            self.is_waiting = True
            try:
                await self._woken.wait()
            finally:
                self.is_waiting = False

    def try_send(self, data: bytes | memoryview) -> int:
        """See Transport."""
        self._shim.went_out(bytes(data))
        return len(data)

    async def send(self, data: bytes | memoryview) -> None:
        """See Transport."""
        self._shim.went_out(bytes(data))

    def take_descriptors(self, count: int) -> list[int]:
        """See Transport: what is read of shared RAM the capture answers."""
        return []

    async def aclose(self) -> None:
        """See Transport."""


class Owner:
    """Has one partition for one session; see ``runtime.session.PartitionOwner``.

    Args:
        partition: it.
        world: its.
        tap: is told of the frames.
    """

    def __init__(self, partition: Partition, world: World, tap: Tap) -> None:
        self.taps: Taps | None = self
        self.tallies: Tallies | None = None
        self._partition = partition
        self._world = world
        self._tap = tap

    async def claim(self, hello: f.Hello, session: Session) -> Partition:
        """See PartitionOwner."""
        return self._partition

    def release(self, partition: Partition, session: Session) -> None:
        """See PartitionOwner."""

    def world(self, partition: Partition) -> World:
        """See PartitionOwner."""
        return self._world

    def tap(self, partition: str, profile: Mapping[str, str], *, is_continued: bool = False) -> Tap:
        """See Taps."""
        return self._tap


class AtOnce(FlushRounds):
    """Flushes without a thread: there is no disk to wait for."""

    async def flush(self, store: Store) -> None:
        """See FlushRounds."""
        store.flush()


class NoTpm:
    """Stands for the TPM that a partition had: the capture answers in its place."""

    description = "a capture"
    is_open = False

    def begin_run(self, run: Run) -> None:
        """See TpmBackend."""

    async def open(self) -> None:
        """See TpmBackend."""
        raise BackendUnavailable("a replay reaches no TPM")

    async def transmit(self, command: bytes) -> bytes:
        """See TpmBackend."""
        raise BackendUnavailable("a replay reaches no TPM")

    def transmit_now(self, command: bytes) -> bytes | None:
        """See TpmBackend."""
        raise BackendUnavailable("a replay reaches no TPM")

    async def finish(self) -> bytes:
        """See TpmBackend."""
        raise BackendUnavailable("a replay reaches no TPM")

    async def close_session(self) -> None:
        """See TpmBackend."""

    async def aclose(self) -> None:
        """See TpmBackend."""
