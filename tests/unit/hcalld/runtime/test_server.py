# SPDX-License-Identifier: Apache-2.0
"""Listeners: unix sockets and what may be at their path, TCP with TLS, inherited ones."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import resource
import socket
import ssl
import stat
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio
import trustme
from tests.unit.hcalld.runtime import ledger
from tests.unit.hcalld.runtime.conftest import Logs
from tests.unit.hcalld.runtime.daemon import Daemon
from tests.unit.hcalld.runtime.shim import Shim, hello

from hcalld.app import TcpOptions
from hcalld.core.errors import ConfigError
from hcalld.runtime import server as server_module
from hcalld.runtime.server import inherited_socket, listen_tcp, listen_unix
from hcalld.runtime.transport import SocketTransport, StreamTransport
from hcallproto.abi.returns import H
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

NOBODY = 65534


def events(logs: Logs, name: str) -> Logs:
    return [entry for entry in logs if entry["event"] == name]


def dial(path: pathlib.Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(os.fspath(path))
    return sock


# -- unix sockets: the path ----------------------------------------------------------------


@contextlib.contextmanager
def listening(path: pathlib.Path, mode: int = 0o600, group: int | None = None) -> Iterator[None]:
    sock = listen_unix(path, mode, group)
    try:
        yield
    finally:
        sock.close()


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_listen_unix_when_a_mode_is_asked_then_the_socket_has_it(tmp_path: pathlib.Path, mode: int):
    path = tmp_path / "hc.sock"
    before = os.umask(0o077)
    try:
        with listening(path, mode):
            assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        assert os.umask(before) == 0o077


def test_listen_unix_when_a_group_is_asked_then_the_socket_has_it(tmp_path: pathlib.Path):
    path = tmp_path / "hc.sock"
    group = os.getgroups()[0] if os.getgroups() else os.getgid()
    with listening(path, 0o660, group):
        assert path.stat().st_gid == group


def test_listen_unix_when_nobody_listens_any_more_then_the_path_is_taken_over(
    tmp_path: pathlib.Path,
):
    path = tmp_path / "hc.sock"
    with listening(path):
        pass
    assert path.is_socket()
    with listening(path):
        dial(path).close()


def test_listen_unix_when_a_daemon_lives_there_then_it_is_left_alone(tmp_path: pathlib.Path):
    path = tmp_path / "hc.sock"
    with listening(path):
        with pytest.raises(ConfigError, match=r"living daemon.*--socket-path"):
            listen_unix(path, 0o600)
        dial(path).close()


def test_listen_unix_when_a_living_daemon_is_too_busy_to_accept_then_it_is_left_alone(
    tmp_path: pathlib.Path,
):
    path = tmp_path / "hc.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as busy:
        busy.bind(os.fspath(path))
        busy.listen(0)
        waiting = []
        for _ in range(4):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.setblocking(False)
            waiting.append(sock)
            if sock.connect_ex(os.fspath(path)) == errno.EAGAIN:
                break
        with pytest.raises(ConfigError, match="living daemon"):
            listen_unix(path, 0o600)
        assert path.is_socket()
        for sock in waiting:
            sock.close()


def test_listen_unix_when_a_datagram_socket_lives_there_then_it_is_left_alone(
    tmp_path: pathlib.Path,
):
    path = tmp_path / "hc.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(os.fspath(path))
        with pytest.raises(ConfigError, match="cannot listen: Protocol wrong type"):
            listen_unix(path, 0o600)
        assert path.is_socket()


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_listen_unix_when_something_else_is_there_then_it_is_left_alone(
    tmp_path: pathlib.Path, kind: str
):
    path = tmp_path / "precious"
    if kind == "file":
        path.write_text("precious")
    else:
        path.mkdir()
    with pytest.raises(ConfigError, match="not a socket; name another path or remove it"):
        listen_unix(path, 0o600)
    assert path.exists()


def test_listen_unix_when_a_dangling_link_is_there_then_it_is_left_alone(tmp_path: pathlib.Path):
    path = tmp_path / "link"
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="not a socket"):
        listen_unix(path, 0o600)
    assert path.is_symlink()


def test_listen_unix_when_the_directory_is_not_there_then_one_line_says_so(tmp_path: pathlib.Path):
    with pytest.raises(ConfigError, match=r"No such file or directory; expected a path") as raised:
        listen_unix(tmp_path / "missing" / "hc.sock", 0o600)
    assert "\n" not in str(raised.value)


def test_listen_unix_when_the_path_is_too_long_then_the_limit_is_told(tmp_path: pathlib.Path):
    with pytest.raises(ConfigError, match=r"too long.*at most 107 bytes"):
        listen_unix(tmp_path / ("x" * 108), 0o600)


def test_listen_unix_when_we_may_not_write_there_then_one_line_says_so(
    tmp_path: pathlib.Path, unprivileged: Callable[[], contextlib.AbstractContextManager[None]]
):
    tmp_path.chmod(0o500)
    with unprivileged(), pytest.raises(ConfigError, match="Permission denied; expected a path"):
        listen_unix(tmp_path / "hc.sock", 0o600)


def test_listen_unix_when_the_group_is_not_ours_to_give_then_nothing_is_left(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    def chown(path: object, uid: int, gid: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chown", chown)
    path = tmp_path / "hc.sock"
    with pytest.raises(ConfigError, match="Operation not permitted"):
        listen_unix(path, 0o600, group=1)
    assert not path.exists()


@pytest.fixture
def unprivileged() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """To act as a user whom permissions stop, which root is not."""

    @contextlib.contextmanager
    def act() -> Iterator[None]:
        if os.geteuid():
            yield
            return
        os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)

    return act


# -- TCP and inherited sockets ---------------------------------------------------------------


def test_listen_tcp_when_the_port_is_in_use_then_one_line_says_so():
    with listen_tcp("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(
            ConfigError, match=f"127.0.0.1:{port}: cannot listen: Address already in use"
        ):
            listen_tcp("127.0.0.1", port)


def test_listen_tcp_when_the_host_is_unknown_then_one_line_says_so():
    with pytest.raises(ConfigError, match="cannot listen"):
        listen_tcp("host.invalid", 0)


def test_inherited_when_it_listens_then_that_is_told():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock, is_listening = inherited_socket(os.dup(listener.fileno()))
        with sock:
            assert is_listening


def test_inherited_when_it_is_connected_then_that_is_told():
    ours, theirs = socket.socketpair()
    with ours:
        sock, is_listening = inherited_socket(theirs.detach())
        with sock:
            assert not is_listening


def test_inherited_when_it_is_no_socket_then_one_line_says_so(tmp_path: pathlib.Path):
    with (
        (tmp_path / "file").open("w") as file,
        pytest.raises(ConfigError, match=r"--fd \d+: .*expected an open stream socket"),
    ):
        inherited_socket(file.fileno())


def test_inherited_when_it_is_a_datagram_socket_then_one_line_says_so():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        with pytest.raises(ConfigError, match="not a stream socket"):
            inherited_socket(sock.fileno())
        assert sock.fileno() >= 0
        os.fstat(sock.fileno())


@pytest.mark.parametrize("fd", [-1, 1_000_000])
def test_inherited_when_it_is_not_open_then_one_line_says_so(fd: int):
    with pytest.raises(ConfigError, match=f"--fd {fd}: .*expected an open stream socket"):
        inherited_socket(fd)


# -- accepting ---------------------------------------------------------------------------------


async def test_listen_when_guests_come_then_each_is_served(
    daemon: Daemon, nursery: trio.Nursery, tmp_path: pathlib.Path
):
    path = tmp_path / "hc.sock"
    with listen_unix(path, 0o600) as listener:
        nursery.start_soon(daemon.server.listen, listener)
        for number in range(3):
            shim = Shim(SocketTransport(dial(path)))
            await shim.negotiate(hello(f"guest{number}", instance=bytes([number]) * 16))
            assert (await shim.call(ledger.PUT, 1, 1)).status == H.SUCCESS
            await shim.close()
        await daemon.gone()
        nursery.cancel_scope.cancel()


async def test_listen_when_the_peers_uid_is_not_allowed_then_it_is_turned_away(
    nursery: trio.Nursery, logs: Logs
):
    uid = os.getuid()
    daemon = Daemon(nursery, allowed_uids={uid + 1})
    ours, theirs = socket.socketpair()
    await daemon.server.serve_socket(theirs)
    with ours:
        assert ours.recv(1) == b""
    (entry,) = events(logs, "connection refused")
    assert f"peer uid {uid} is not among [{uid + 1}]" in entry["reason"]
    assert "--allow-uid" in entry["reason"]


@pytest.mark.usefixtures("ledger_served", "logs")
async def test_listen_when_the_peers_uid_is_allowed_then_it_is_served(nursery: trio.Nursery):
    daemon = Daemon(nursery, allowed_uids={os.getuid(), 12345})
    shim = await daemon.connect_socket()
    await shim.negotiate(hello())
    assert (await shim.call(ledger.PUT, 1, 1)).status == H.SUCCESS
    await shim.close()


class Shy(socket.socket):
    """A listener whose first guest hangs up between being announced and accepted."""

    refusals = 1

    def accept(self) -> tuple[socket.socket, Any]:
        if self.refusals:
            self.refusals -= 1
            raise BlockingIOError
        return super().accept()


async def test_listen_when_a_guest_is_gone_before_it_is_accepted_then_the_next_is_served(
    daemon: Daemon, nursery: trio.Nursery, tmp_path: pathlib.Path
):
    path = tmp_path / "hc.sock"
    with Shy(fileno=listen_unix(path, 0o600).detach()) as listener:
        nursery.start_soon(daemon.server.listen, listener)
        shim = Shim(SocketTransport(dial(path)))
        await shim.negotiate(hello())
        assert (await shim.call(ledger.PUT, 1, 1)).status == H.SUCCESS
        await shim.close()
        await daemon.gone()
        nursery.cancel_scope.cancel()


async def test_listen_when_descriptors_run_out_then_guests_wait_until_there_are_some(
    daemon: Daemon, nursery: trio.Nursery, tmp_path: pathlib.Path, logs: Logs
):
    path = tmp_path / "hc.sock"
    with listen_unix(path, 0o600) as listener:
        sock = dial(path)
        with no_descriptors_left():
            nursery.start_soon(daemon.server.listen, listener)
            await daemon.settle()
        assert "Too many open files" in events(logs, "cannot accept")[0]["reason"]
        shim = Shim(SocketTransport(sock))
        await shim.negotiate(hello())
        assert (await shim.call(ledger.PUT, 1, 1)).status == H.SUCCESS
        await shim.close()
        await daemon.gone()
        nursery.cancel_scope.cancel()


@contextlib.contextmanager
def no_descriptors_left() -> Iterator[None]:
    """Fills every number below the limit, and lowers the limit to there."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    fillers = [os.dup(0)]
    while fillers[-1] < highest:
        fillers.append(os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 1, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in fillers:
            os.close(fd)


# -- TLS -----------------------------------------------------------------------------------------


class Tls:
    """A daemon's TLS listener, and certificates of both sides."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.ca = trustme.CA()
        self.ca.cert_pem.write_to_path(folder / "ca.pem")
        server = self.ca.issue_cert("localhost")
        server.cert_chain_pems[0].write_to_path(folder / "cert.pem")
        server.private_key_pem.write_to_path(folder / "key.pem")
        self.options = TcpOptions(
            host="127.0.0.1",
            port=0,
            certificate=folder / "cert.pem",
            key=folder / "key.pem",
            client_ca=folder / "ca.pem",
        )
        self.listener = listen_tcp("127.0.0.1", 0)
        self.address = self.listener.getsockname()

    def client_context(self, ca: trustme.CA | None) -> ssl.SSLContext:
        """A client's, with a certificate of ``ca`` or without any."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        if ca is not None:
            ca.issue_cert("guest@example.org").configure_cert(context)
        return context

    async def connect(self, ca: trustme.CA | None) -> Shim:
        """A shim behind TLS."""
        stream = trio.SSLStream(
            await trio.open_tcp_stream(*self.address),
            self.client_context(ca),
            server_hostname="localhost",
        )
        return Shim(StreamTransport(stream, "daemon"))


@pytest.fixture
async def tls(daemon: Daemon, nursery: trio.Nursery, tmp_path: pathlib.Path) -> Tls:
    tls = Tls(tmp_path)
    nursery.start_soon(serve_tls, daemon, tls)
    return tls


async def serve_tls(daemon: Daemon, tls: Tls) -> None:
    with tls.listener:
        await daemon.server.listen(tls.listener, tls.options.context())


async def test_tls_when_both_have_certificates_then_the_guest_is_served(
    daemon: Daemon, tls: Tls, logs: Logs
):
    shim = await tls.connect(tls.ca)
    await shim.negotiate(hello(features=s.Feature.SHARED_RAM))
    assert shim.welcome is not None
    assert shim.welcome.features == s.Feature(0)
    assert (await shim.call(ledger.PUT, 1, 1)).status == H.SUCCESS
    await shim.start(ledger.LOAD, 2, 0x100, 8)
    await shim.answer_read(await shim.expect(f.Read), bytes(8))
    assert (await shim.expect(f.Reply)).status == H.SUCCESS
    assert events(logs, "guest connected")[0]["peer"].endswith("(TLS)")
    await shim.close()
    await daemon.gone()


@pytest.mark.parametrize("whose", ["nobody's", "a stranger's"])
async def test_tls_when_the_clients_certificate_is_not_ours_then_it_is_turned_away(
    daemon: Daemon, tls: Tls, logs: Logs, whose: str
):
    shim = await tls.connect(None if whose == "nobody's" else trustme.CA())
    # The alert, or only the end of the connection: OpenSSL's releases differ.
    with pytest.raises(Exception, match=r"(?i)tls|ssl|alert|reset|broken|None came"):
        await shim.negotiate(hello())
    await shim.close()
    refused = await wait_for(logs, "connection refused")
    assert "certificate" in refused["reason"].lower()
    assert refused["peer"].startswith("127.0.0.1:")
    await must_serve(tls)


async def wait_for(logs: Logs, name: str) -> dict[str, Any]:
    for _ in range(5000):
        if found := events(logs, name):
            return found[0]
        await trio.sleep(0.001)
    raise AssertionError(f"{name!r} was not logged")


async def must_serve(tls: Tls) -> None:
    """Whatever a stranger did, the next guest is served."""
    shim = await tls.connect(tls.ca)
    await shim.negotiate(hello())
    assert (await shim.call(ledger.PUT, 1, 1)).status == H.SUCCESS
    await shim.close()


async def test_tls_when_the_peer_does_not_speak_it_then_it_is_turned_away(tls: Tls, logs: Logs):
    with socket.create_connection(tls.address) as sock:
        sock.sendall(b"HCLP, surely?\r\n" * 4)
        await wait_for(logs, "connection refused")
    await must_serve(tls)


async def test_tls_when_the_peer_says_nothing_then_it_is_turned_away_in_time(
    tls: Tls, logs: Logs, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch, socket.create_connection(tls.address):
        patch.setattr(server_module, "TLS_HANDSHAKE_SECONDS", 0.01)
        refused = await wait_for(logs, "connection refused")
    assert refused["reason"] == "no TLS handshake in time"
    await must_serve(tls)


async def test_tls_when_the_peer_resets_the_connection_before_it_is_served_then_others_are(
    tls: Tls, logs: Logs
):
    # A port scanner: the connection is gone when it is accepted.
    with socket.create_connection(tls.address) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await wait_for(logs, "connection refused")
    await must_serve(tls)


@pytest.mark.parametrize("missing", ["cert.pem", "key.pem", "ca.pem"])
def test_context_when_a_file_cannot_be_read_then_one_line_says_which_are_expected(
    tmp_path: pathlib.Path, missing: str
):
    tls = Tls(tmp_path)
    tls.listener.close()
    (tmp_path / missing).unlink()
    with pytest.raises(ConfigError, match=r"expected PEM files for --tls-cert"):
        tls.options.context()


@pytest.mark.parametrize("garbled", ["cert.pem", "key.pem", "ca.pem"])
def test_context_when_a_file_is_no_pem_then_one_line_says_which_are_expected(
    tmp_path: pathlib.Path, garbled: str
):
    tls = Tls(tmp_path)
    tls.listener.close()
    (tmp_path / garbled).write_text("rubbish")
    with pytest.raises(ConfigError, match=r"expected PEM files for --tls-cert"):
        tls.options.context()


def test_context_when_there_are_no_certificates_then_it_is_plain_tcp():
    assert TcpOptions(host="127.0.0.1", port=0).context() is None
