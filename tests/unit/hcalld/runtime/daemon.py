# SPDX-License-Identifier: Apache-2.0
"""A daemon's server in the test's own event loop, with stores that fail when told to."""

from __future__ import annotations

import dataclasses
import socket
import threading
from collections.abc import Callable, Collection, Sequence

import trio
import trio.testing
from tests.unit.hcalld.runtime.shim import RAM, Shim, hello

from hcalld.backends.base import TpmBackend
from hcalld.config import Profile, Profiles
from hcalld.core.answered import Answered
from hcalld.core.errors import StoreError
from hcalld.core.records import Change, Loaded, Record, RecordedReply, Run
from hcalld.domain.attribute_records import NAMESPACE as ATTRIBUTES
from hcalld.runtime.server import Server
from hcalld.runtime.transport import SocketTransport, StreamTransport
from hcalld.stores.memory import MemoryState, MemoryStore
from hcallproto.wire import frames as f


@dataclasses.dataclass
class Faults:
    """What a store does wrong: texts of errors, empty for none; and what it has seen."""

    load: str = ""
    begin_run: str = ""
    commit: str = ""
    flush: str = ""
    rest: str = ""
    close: str = ""
    may_flush: threading.Event = dataclasses.field(default_factory=threading.Event)
    """Cleared: flushes wait for it."""
    is_never_dirty: bool = False
    """No flushes at all: a clock that jumps does not wait for the thread that does them."""
    loads: int = 0
    flushes: int = 0
    flushing: int = 0
    """Flushes at this moment."""
    flushing_most: int = 0
    rests: int = 0
    closes: int = 0
    closed_while_flushing: bool = False

    def __post_init__(self) -> None:
        self.may_flush.set()


class FaultyStore(MemoryStore):
    """A store in memory, with faults."""

    def __init__(self, state: MemoryState, faults: Faults) -> None:
        super().__init__(state)
        self.faults = faults

    def load(self) -> Loaded:
        """See Store."""
        self.faults.loads += 1
        if self.faults.load:
            raise StoreError(self.faults.load)
        return super().load()

    def begin_run(self, run: Run) -> bool:
        """See Store."""
        if self.faults.begin_run:
            raise StoreError(self.faults.begin_run)
        return super().begin_run(run)

    def commit(self, changes: Sequence[Change], reply: RecordedReply | None) -> None:
        """See Store."""
        if self.faults.commit:
            raise StoreError(self.faults.commit)
        super().commit(changes, reply)

    @property
    def dirty(self) -> bool:
        """See Store."""
        return super().dirty and not self.faults.is_never_dirty

    def flush(self) -> None:
        """See Store."""
        faults = self.faults
        faults.flushes += 1
        faults.flushing += 1
        faults.flushing_most = max(faults.flushing_most, faults.flushing)
        try:
            assert faults.may_flush.wait(20)
            if faults.flush:
                raise StoreError(faults.flush)
            super().flush()
        finally:
            faults.flushing -= 1

    def rest(self) -> None:
        """See Store."""
        self.faults.rests += 1
        super().rest()
        if self.faults.rest:
            raise StoreError(self.faults.rest)

    def close(self) -> None:
        """See Store."""
        self.faults.closes += 1
        self.faults.closed_while_flushing |= bool(self.faults.flushing)
        super().close()
        if self.faults.close:
            raise StoreError(self.faults.close)


class Daemon:
    """A server, the states of its partitions, and who is connected.

    Args:
        nursery: runs the sessions.
        profiles: which guest gets which attributes.
        strict: bugs of handlers end the test.
        open_tpm: gives the TPM of a profile's partition.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        profiles: Profiles | None = None,
        *,
        strict: bool = True,
        spin_us: int = 0,
        allowed_uids: Collection[int] | None = None,
        open_tpm: Callable[[Profile], TpmBackend | None] = lambda _: None,
    ) -> None:
        self.nursery = nursery
        self.faults = Faults()
        self.states: dict[str, MemoryState] = {}
        self.answered: list[Answered] = []
        self._sockets: list[socket.socket] = []
        self.server = Server(
            profiles or Profiles(None),
            self.open_store,
            open_tpm=open_tpm,
            observers=[self.answered.append],
            allowed_uids=allowed_uids,
            spin_us=spin_us,
            strict=strict,
        )

    def open_store(self, profile: Profile) -> FaultyStore:
        """A partition's store, with what it held when it was last closed."""
        state = self.states.setdefault(profile.partition, MemoryState())
        return FaultyStore(state, self.faults)

    def stored(self, partition: str = "lpar7") -> list[Record]:
        """What a partition's models keep in its store."""
        records = self.states[partition].records.values()
        return [record for record in records if record.namespace != ATTRIBUTES]

    async def connect(self) -> Shim:
        """A connection through memory."""
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self.server.serve_transport, StreamTransport(theirs, "memory"))
        return Shim(StreamTransport(ours, "daemon"))

    async def connect_socket(self, prepare: Callable[[socket.socket], None] | None = None) -> Shim:
        """A connection through a unix socket, which passes descriptors."""
        ours, theirs = socket.socketpair()
        self._sockets.append(ours)
        if prepare is not None:
            prepare(theirs)
        self.nursery.start_soon(self.server.serve_socket, theirs)
        return Shim(SocketTransport(ours))

    async def guest(self, greeting: f.Hello | None = None, ram: f.Ram = RAM) -> Shim:
        """A guest that has negotiated, over a connection through memory."""
        shim = await self.connect()
        await shim.negotiate(greeting or hello(), ram)
        return shim

    async def settle(self) -> None:
        """Lets every other task run until it waits."""
        await trio.testing.wait_all_tasks_blocked()

    async def gone(self) -> None:
        """Waits until no session is left."""
        for session in list(self.server.sessions.values()):
            await session.ended.wait()

    def close(self) -> None:
        """Ends what is left of connections through sockets."""
        for sock in self._sockets:
            sock.close()
