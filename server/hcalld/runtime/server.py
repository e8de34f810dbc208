# SPDX-License-Identifier: Apache-2.0
"""Listeners, and who owns which partition."""

from __future__ import annotations

import errno
import os
import pathlib
import socket
import ssl
import stat
from collections.abc import Callable, Collection

import trio

from hcalld.backends.base import TpmBackend
from hcalld.config import Profile, Profiles
from hcalld.core.answered import Observer
from hcalld.core.errors import ConfigError
from hcalld.core.log import Log
from hcalld.core.tally import Tallies
from hcalld.core.tap import Taps
from hcalld.families.registry import Kind
from hcalld.faults.engine import Faults
from hcalld.runtime.flushing import FlushRounds, flush_each
from hcalld.runtime.partition import Partition
from hcalld.runtime.session import Session
from hcalld.runtime.sev import PlatformHost
from hcalld.runtime.tpm import TpmSession
from hcalld.runtime.transport import (
    SocketTransport,
    StreamTransport,
    Transport,
    accept,
    describe_peer,
    make_room,
    peer_uid,
)
from hcalld.runtime.world import RealWorld, World
from hcalld.stores.base import FlushStores, Store
from hcallproto.wire import frames as f

TAKEOVER_SECONDS = 2.0
"""How long a new guest waits for the end of the one that has its partition."""

TLS_HANDSHAKE_SECONDS = 10


class Server:
    """All sessions and partitions of a daemon.

    Args:
        profiles: which guest gets which attributes.
        open_store: opens the store of a profile's partition.
        open_tpm: gives the TPM of a profile's partition, or None; may raise ConfigError.
        flush_stores: flushes stores that ``open_store`` opened, together.
        observers: told of every answered call.
        allowed_uids: who may connect to a unix socket; None: anybody that can open it.
        spin_us: how long to look for a next call before waiting in the event loop.
        strict: a bug in a handler ends the session instead of being answered.
        faults: what goes wrong on purpose from the start.
    """

    def __init__(
        self,
        profiles: Profiles,
        open_store: Callable[[Profile], Store],
        *,
        open_tpm: Callable[[Profile], TpmBackend | None] = lambda _: None,
        flush_stores: FlushStores = flush_each,
        observers: Collection[Observer] = (),
        allowed_uids: Collection[int] | None = None,
        spin_us: int = 0,
        strict: bool = False,
        faults: Faults | None = None,
    ) -> None:
        self.profiles = profiles
        self.sessions: dict[str, Session] = {}
        self.faults = Faults() if faults is None else faults
        """What goes wrong on purpose."""
        self.taps: Taps | None = None
        """What keeps frames now; see ``begin_taps``."""
        self.tallies: Tallies | None = None
        """What counts the calls of those that connect from now on."""
        self._platforms: dict[str, PlatformHost] = {}
        self._open_store = open_store
        self._open_tpm = open_tpm
        self._rounds = FlushRounds(flush_stores)
        self._observers = list(observers)
        self._allowed_uids = allowed_uids
        self._spin_us = spin_us
        self._strict = strict
        self._log = Log()

    # -- partitions (session.PartitionOwner) ----------------------------------------------

    async def claim(self, hello: f.Hello, session: Session) -> Partition:
        """Hand the machine's partition to its session.

        The same instance takes over from its own older connection; another machine has to
        wait until the partition is free.

        Raises:
            ConfigError: no profile, or the partition is in use.
        """
        if Kind.of(hello.features) is Kind.CLIENT:
            return self._join(hello, session)
        profile = self.profiles.find(hello.name, hello.uuid)
        if profile.partition in self._platforms:
            raise ConfigError(
                f"partition {profile.partition!r} is a SEV platform that is in use, and no guest; "
                "give the guest another -name"
            )
        owner = self.sessions.get(profile.partition)
        if owner is not None:
            if owner.hello is not None and owner.hello.instance == hello.instance:
                owner.stop("a newer connection of the same machine has taken over")
            with trio.move_on_after(TAKEOVER_SECONDS):
                await owner.ended.wait()
        if profile.partition in self.sessions:
            owner = self.sessions[profile.partition]
            raise ConfigError(
                f"partition {profile.partition!r} is in use by another guest "
                f"({owner.transport.peer}); give each QEMU its own -name or -uuid"
            )
        backend = self._open_tpm(profile)
        tpm = None if backend is None else TpmSession(backend)
        self.sessions[profile.partition] = session
        return Partition(profile, lambda: self._open_store(profile), self._rounds, tpm)

    def _join(self, hello: f.Hello, session: Session) -> Partition:
        """The partition of one more connection to a SEV platform."""
        # A guest may have any name, that of a VM too.
        partition = self._host(hello.name).join(self.sessions)
        self.sessions[partition.id] = session
        return partition

    def _host(self, name: str) -> PlatformHost:
        """The SEV platform with a name.

        Raises:
            ConfigError: there is none, or a guest has its partition.
        """
        profile = self.profiles.find_platform(name)
        host = self._platforms.get(profile.partition)
        if host is None:
            owner = self.sessions.get(profile.partition)
            taken = None if owner is None else owner.partition
            if taken is not None and taken.kind is Kind.GUEST:
                raise ConfigError(
                    f"partition {profile.partition!r} is in use by a guest, and is no SEV "
                    "platform; name another one by HCALLD_SEV_PLATFORM"
                )
            host = PlatformHost(profile, lambda: self._open_store(profile), self._rounds)
            self._platforms[profile.partition] = host
        return host

    def _forget_idle(self) -> None:
        self._platforms = {name: host for name, host in self._platforms.items() if not host.is_idle}

    async def platform_roots(self, name: str) -> tuple[str, tuple[bytes, bytes]]:
        """The name of a SEV platform, and the certificates of its ASK and ARK.

        Raises:
            ConfigError: there is no such platform, or its settings are wrong.
            StoreError: its store cannot be used.
        """
        # As a connection does: what is not in use is opened, and closed again.
        host = self._host(name)
        vm = host.join(self.sessions)
        try:
            await host.prepare()
            return host.id, host.roots
        finally:
            await host.leave(vm)
            self._forget_idle()

    def release(self, partition: Partition, session: Session) -> None:
        """The session is over, and its partition free."""
        if self.sessions.get(partition.id) is session:
            del self.sessions[partition.id]
        self._forget_idle()

    def world(self, partition: Partition) -> World:
        """See PartitionOwner."""
        return RealWorld(partition, self.faults)

    def begin_taps(self, taps: Taps) -> None:
        """Have all connections' frames kept from now on."""
        self.taps = taps
        for session in self.sessions.values():
            session.begin_tap()

    def end_taps(self) -> None:
        """Have no more frames kept."""
        self.taps = None
        for session in self.sessions.values():
            session.end_tap()

    async def rest_idle_partitions(self, idle_seconds: float) -> None:
        """Give up the memory of guests that do not call, for ever; a task of the daemon."""
        while True:
            await trio.sleep(idle_seconds)
            for session in list(self.sessions.values()):
                await session.rest_if_idle()

    # -- connections ----------------------------------------------------------------------

    async def serve_transport(self, transport: Transport) -> None:
        """Serve one connection until it ends."""
        session = Session(
            transport,
            self,
            self._observers,
            spin_us=self._spin_us,
            strict=self._strict,
        )
        await session.run()

    async def serve_socket(self, sock: socket.socket) -> None:
        """Serve a connected socket; turns away a uid that is not allowed."""
        uid = peer_uid(sock)
        if self._allowed_uids is not None and uid is not None and uid not in self._allowed_uids:
            self._log.warning(
                "connection refused",
                reason=f"peer uid {uid} is not among {sorted(self._allowed_uids)}; "
                "allow it with --allow-uid",
            )
            sock.close()
            return
        await self.serve_transport(SocketTransport(sock))

    async def serve_tls(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        """Serve a connected TCP socket after a TLS handshake."""
        sock.setblocking(False)
        peer = describe_peer(sock)
        stream = trio.SSLStream(
            trio.SocketStream(trio.socket.from_stdlib_socket(sock)), context, server_side=True
        )
        try:
            with trio.fail_after(TLS_HANDSHAKE_SECONDS):
                await stream.do_handshake()
        except (trio.BrokenResourceError, trio.TooSlowError, ssl.SSLError) as error:
            reason = str(error.__cause__ or error) or "no TLS handshake in time"
            self._log.warning("connection refused", peer=peer, reason=reason)
            await trio.aclose_forcefully(stream)
            return
        await self.serve_transport(StreamTransport(stream, f"{peer} (TLS)"))

    async def listen(self, listener: socket.socket, context: ssl.SSLContext | None = None) -> None:
        """Accept connections for ever, each in a task of its own."""
        listener.setblocking(False)
        async with trio.open_nursery() as nursery:
            while True:
                sock = await accept(listener, self._log, "cannot accept")
                make_room(sock)
                if context is not None:
                    nursery.start_soon(self.serve_tls, sock, context)
                else:
                    nursery.start_soon(self.serve_socket, sock)


def listen_unix(path: pathlib.Path, mode: int, group: int | None = None) -> socket.socket:
    """A listening unix socket at ``path``; replaces one that nobody listens on.

    Args:
        path: where.
        mode: permission bits of the socket.
        group: group id that owns it, or None.

    Raises:
        ConfigError: the path is in use by a living daemon, or cannot be made.
    """
    try:
        if path.exists() or path.is_symlink():
            _remove_stale(path)
        return _bind_unix(path, mode, group)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot listen: {error.strerror or error}; expected a path in a directory "
            "that exists and that we may write (at most 107 bytes)"
        ) from None


def _bind_unix(path: pathlib.Path, mode: int, group: int | None) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        mask = os.umask(0o777 & ~mode)
        try:
            sock.bind(os.fspath(path))
        finally:
            os.umask(mask)
        try:
            if group is not None:
                os.chown(path, -1, group)
            os.chmod(path, mode)
            sock.listen(128)
        except OSError:
            path.unlink()
            raise
    except OSError:
        sock.close()
        raise
    return sock


_LIVING = frozenset({errno.EAGAIN, errno.ETIMEDOUT})
"""What connecting says to a socket whose owner has no time to accept."""


def _remove_stale(path: pathlib.Path) -> None:
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise ConfigError(f"{path}: exists and is not a socket; name another path or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(os.fspath(path))
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                path.unlink()
                return
            if error.errno not in _LIVING and not isinstance(error, TimeoutError):
                raise
    raise ConfigError(
        f"{path}: a living daemon listens here; stop it, or name another --socket-path"
    )


def listen_tcp(host: str, port: int) -> socket.socket:
    """A listening TCP socket.

    Raises:
        ConfigError: the address cannot be bound.
    """
    try:
        return socket.create_server((host, port), reuse_port=False, backlog=128)
    except OSError as error:
        raise ConfigError(f"{host}:{port}: cannot listen: {error.strerror or error}") from None


def inherited_socket(fd: int) -> tuple[socket.socket, bool]:
    """A socket passed as a file descriptor, and whether it is a listening one.

    Raises:
        ConfigError: the descriptor is not a stream socket; it stays open.
    """
    try:
        sock = socket.socket(fileno=fd)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"--fd {fd}: {why}; expected an open stream socket") from None
    if sock.type != socket.SOCK_STREAM:
        sock.detach()
        raise ConfigError(f"--fd {fd}: not a stream socket; expected an open stream socket")
    return sock, bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
