# SPDX-License-Identifier: Apache-2.0
"""The composition root: the only file that wires all parts of the daemon together."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from typing import TextIO

import trio

from hcalld import __version__
from hcalld.backends.base import TpmBackend
from hcalld.backends.tpms import Tpms
from hcalld.config import Profile, Profiles
from hcalld.control import faulting
from hcalld.control.commands import Parts, bound_to
from hcalld.control.endpoint import Endpoint
from hcalld.control.listener import ControlListener
from hcalld.control.statistics import Statistics
from hcalld.core.answered import Observer
from hcalld.core.errors import ConfigError
from hcalld.core.log import Log
from hcalld.faults.files import read as read_faults
from hcalld.metrics.address import MetricsOptions
from hcalld.metrics.address import listen as listen_metrics
from hcalld.observe.capture import CaptureOptions
from hcalld.observe.capturing import Capturing
from hcalld.observe.figures import Figures
from hcalld.observe.trace import Trace
from hcalld.runtime import sdnotify
from hcalld.runtime.server import Server, inherited_socket, listen_tcp, listen_unix
from hcalld.stores.base import Store
from hcalld.stores.directory import StateDirectory
from hcalld.stores.fsync import make_directory
from hcalld.stores.keys import KeySource
from hcalld.stores.memory import MemoryDirectory

TPM_WAIT_US = 100
"""A TPM's response is waited for so long before the event loop's turn, which costs as much."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TcpOptions:
    """A TCP listener."""

    host: str
    port: int
    certificate: pathlib.Path | None = None
    key: pathlib.Path | None = None
    client_ca: pathlib.Path | None = None

    def context(self) -> ssl.SSLContext | None:
        """The TLS context: client certificates are required.

        Raises:
            ConfigError: a file cannot be read.
        """
        if self.certificate is None:
            return None
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.load_cert_chain(self.certificate, self.key)
            context.load_verify_locations(self.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        except OSError as error:
            raise ConfigError(
                f"TLS: {error}; expected PEM files for --tls-cert, --tls-key and --tls-ca"
            ) from None
        return context


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ControlOptions:
    """The control socket."""

    path: pathlib.Path
    is_default: bool = False
    """Nobody asked for it: without it the daemon serves its guests all the same."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What ``hcalld serve`` was asked to do."""

    socket_path: pathlib.Path | None = None
    fd: int | None = None
    tcp: TcpOptions | None = None
    socket_mode: int = 0o600
    socket_group: int | None = None
    allowed_uids: frozenset[int] | None = None
    control: ControlOptions | None = None
    metrics: MetricsOptions | None = None
    state_dir: pathlib.Path | None = None
    """None: state is kept in memory and lost at the end."""
    key_source: KeySource | None = None
    """None: the master key is the file ``key`` in the state directory."""
    profile_dir: pathlib.Path | None = None
    refuse_unknown: bool = False
    trace: TextIO | None = None
    capture: CaptureOptions | None = None
    faults: pathlib.Path | None = None
    """What goes wrong on purpose from the start."""
    spin_us: int = 20
    idle_seconds: float = 30


def build_directory(options: ServeOptions) -> StateDirectory | MemoryDirectory:
    """Where the options say that state is kept.

    Raises:
        ConfigError: the key's source is wrong.
        StoreError: the key that was named is not there.
    """
    if options.state_dir is None:
        return MemoryDirectory()
    directory = StateDirectory(options.state_dir, options.key_source)
    if options.key_source is not None:
        # It may ask, or take long: not while guests wait.
        directory.unlock()
    return directory


def build_server(
    options: ServeOptions, directory: StateDirectory | MemoryDirectory, tpms: Tpms
) -> Server:
    """The server for the options.

    Raises:
        ConfigError: a profile is wrong, or a rule of faults.
    """

    def open_store(profile: Profile) -> Store:
        return directory.open(profile.partition)

    def open_tpm(profile: Profile) -> TpmBackend | None:
        return tpms.open(profile.tpm, profile.partition, profile.source)

    observers: list[Observer] = [] if options.trace is None else [Trace(options.trace)]
    return Server(
        Profiles(options.profile_dir, refuse_unknown=options.refuse_unknown),
        open_store,
        open_tpm=open_tpm,
        flush_stores=directory.flush_stores,
        observers=observers,
        allowed_uids=options.allowed_uids,
        spin_us=options.spin_us,
        faults=None if options.faults is None else read_faults(options.faults),
    )


@dataclasses.dataclass(slots=True)
class _Sockets:
    """Where guests come from."""

    listeners: list[tuple[socket.socket, ssl.SSLContext | None]]
    connected: socket.socket | None = None


def _open_sockets(options: ServeOptions, stack: contextlib.ExitStack) -> _Sockets:
    """Open what the options ask for; ``stack`` closes it, and removes the path."""
    sockets = _Sockets([])
    context = options.tcp.context() if options.tcp is not None else None
    if options.fd is not None:
        sock, is_listening = inherited_socket(options.fd)
        stack.enter_context(sock)
        if is_listening:
            sockets.listeners.append((sock, None))
        else:
            sockets.connected = sock
    if options.tcp is not None:
        sock = stack.enter_context(listen_tcp(options.tcp.host, options.tcp.port))
        sockets.listeners.append((sock, context))
    if options.socket_path is not None:
        sock = listen_unix(options.socket_path, options.socket_mode, options.socket_group)
        stack.enter_context(sock)
        stack.callback(options.socket_path.unlink, missing_ok=True)
        sockets.listeners.append((sock, None))
    return sockets


def _open_control(options: ServeOptions, stack: contextlib.ExitStack) -> Endpoint | None:
    """The control socket, if there is to be one; ``stack`` removes it.

    A default one that cannot be had, as when another daemon uses the state directory too,
    is only told of.
    """
    control = options.control
    if control is None:
        return None
    try:
        if control.is_default:
            make_directory(control.path.parent)
        endpoint = Endpoint(control.path)
    except (ConfigError, OSError) as error:
        if not control.is_default:
            raise
        Log().warning("no control socket", reason=str(error))
        return None
    stack.callback(endpoint.close)
    return endpoint


def _open_metrics(options: ServeOptions, stack: contextlib.ExitStack) -> socket.socket | None:
    """Where metrics are to be had, if anywhere; ``stack`` closes it, and removes a path."""
    if options.metrics is None:
        return None
    sock = stack.enter_context(listen_metrics(options.metrics))
    if options.metrics.path is not None:
        stack.callback(options.metrics.path.unlink, missing_ok=True)
    return sock


async def serve(options: ServeOptions) -> None:
    """Run the daemon until SIGTERM or SIGINT, or until its inherited connection ends.

    Raises:
        ConfigError: it cannot start as asked.
        HcalldError: it cannot go on, as when the trace cannot be written; in a group.
    """
    directory = build_directory(options)
    tpms = Tpms(
        directory if isinstance(directory, StateDirectory) else None,
        wait_us=TPM_WAIT_US if options.spin_us else 0,
    )
    server = build_server(options, directory, tpms)
    figures = server.tallies = Figures(server.sessions.__contains__)
    log = Log()
    with contextlib.ExitStack() as stack:
        stack.callback(faulting.end, server.faults)
        stack.callback(directory.close)
        stack.callback(tpms.close)
        sockets = _open_sockets(options, stack)
        endpoint = _open_control(options, stack)
        metrics = _open_metrics(options, stack)
        # What keeps their frames outlives the guests.
        async with (
            trio.open_nursery() as keeping,
            _capturing(server, keeping, options) as capturing,
            trio.open_nursery() as nursery,
        ):
            statistics = Statistics(server, capturing, figures)
            nursery.start_soon(_stop_on_signal, nursery.cancel_scope)
            nursery.start_soon(server.rest_idle_partitions, options.idle_seconds)
            for listener, context in sockets.listeners:
                nursery.start_soon(server.listen, listener, context)
                log.info("listening", address=_address(listener), tls=context is not None)
            if endpoint is not None:
                # Not who may connect guests: who runs the daemon.
                parts = Parts(server, capturing, statistics)
                control = ControlListener(bound_to(parts), {os.geteuid(), 0})
                nursery.start_soon(control.listen, endpoint.socket)
                log.info("control socket", address=str(endpoint.path))
            if metrics is not None:
                # Here: HTTP and Prometheus' library take time that most daemons need not.
                from hcalld.metrics.endpoint import MetricsEndpoint

                nursery.start_soon(MetricsEndpoint(statistics.now).listen, metrics)
                log.info("metrics", address=_address(metrics))
            if sockets.connected is not None:
                nursery.start_soon(_serve_one, server, sockets.connected, nursery.cancel_scope)
            sdnotify.notify("READY=1")
    log.info("stopped")


@contextlib.asynccontextmanager
async def _capturing(
    server: Server, nursery: trio.Nursery, options: ServeOptions
) -> AsyncIterator[Capturing]:
    """What begins and ends captures; the one that goes on is ended.

    Raises:
        CaptureFailed: the options asked for it, and not all of it could be written.
    """
    capturing = Capturing(server, nursery, f"hcalld {__version__}")
    if options.capture is not None:
        capturing.begin(options.capture, is_vital=True)
    try:
        yield capturing
    finally:
        with trio.CancelScope(shield=True):
            done = await capturing.end()
    if done is not None and done.is_vital:
        done.must_be_whole()


async def _serve_one(server: Server, sock: socket.socket, scope: trio.CancelScope) -> None:
    """Serve an inherited connection; its end is the daemon's."""
    await server.serve_socket(sock)
    scope.cancel()


async def _stop_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            Log().info("stopping", signal=signal.Signals(number).name)
            scope.cancel()
            return


def _address(listener: socket.socket) -> str:
    name = listener.getsockname()
    return name if isinstance(name, str) else f"{name[0]}:{name[1]}"
