# SPDX-License-Identifier: Apache-2.0
"""Starting and ending the daemon, and what it refuses: one line that says what to do."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.e2e.daemon import COMMAND, Daemon, run_hcalld
from tests.e2e.fakeshim import FakeShim, connect, hello
from tests.e2e.lab import Lab
from tests.e2e.patience import patience, wait_until
from tests.e2e.wire import PeerClosed

from hcallproto.abi.families import pks
from hcallproto.abi.returns import H
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

BUFFER = 0x1000


def get_config(shim: FakeShim) -> f.Reply:
    return shim.call(pks.GET_CONFIG.number, BUFFER, 512)


def write_password(shim: FakeShim) -> None:
    """Changes the store, whatever it held."""
    reply = shim.call(pks.GEN_PASSWORD.number, 3, 0, BUFFER, 64)
    assert reply.status == H.SUCCESS


def must_refuse(ended: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit status 1, nothing on stdout, one line on stderr with these words."""
    assert ended.returncode == 1, ended
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("hcalld: ")
    for word in words:
        assert word in line


def serve(lab: Lab, *options: str) -> subprocess.CompletedProcess[str]:
    """A daemon that must end by itself."""
    return run_hcalld("serve", "--memory", *options)


# -- sockets --------------------------------------------------------------------------------


def test_socket_of_a_living_daemon(lab: Lab) -> None:
    daemon = lab.daemon("--memory")
    must_refuse(
        serve(lab, "--socket-path", str(daemon.socket)),
        str(daemon.socket),
        "a living daemon listens here",
    )
    with FakeShim(connect(daemon.socket)) as shim:
        shim.negotiate(hello())
        assert get_config(shim).status == H.SUCCESS


def test_socket_of_a_dead_daemon_is_replaced(lab: Lab) -> None:
    daemon = lab.daemon("--memory")
    daemon.kill()
    assert daemon.socket.exists()
    daemon.start()
    with FakeShim(connect(daemon.socket)) as shim:
        shim.negotiate(hello())


def test_socket_path_that_is_a_file(lab: Lab) -> None:
    path = lab.socket_dir / "file"
    path.write_text("precious", "utf-8")
    must_refuse(serve(lab, "--socket-path", str(path)), str(path), "not a socket")
    assert path.read_text("utf-8") == "precious"


@pytest.mark.parametrize("name", ["missing/hcalld.sock", "x" * 120])
def test_socket_path_that_cannot_be(name: str, lab: Lab) -> None:
    path = lab.socket_dir / name
    must_refuse(serve(lab, "--socket-path", str(path)), "cannot listen", "107 bytes")


def without_root(words: list[str]) -> list[str]:
    """Root without what makes permissions void for it; others as they are."""
    if os.geteuid() != 0:
        return words
    setpriv = shutil.which("setpriv")
    assert setpriv is not None, "setpriv is in Debian's util-linux"
    return [setpriv, "--bounding-set=-dac_override,-dac_read_search", *words]


def test_socket_directory_without_permission(lab: Lab) -> None:
    directory = lab.socket_dir / "closed"
    directory.mkdir(mode=0o500)
    ended = subprocess.run(
        without_root([*COMMAND, "serve", "--memory", "--socket-path", str(directory / "sock")]),
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=False,
    )
    must_refuse(ended, "cannot listen", "Permission denied")


def test_socket_mode_and_group(lab: Lab) -> None:
    daemon = lab.daemon("--memory")
    assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600
    other = lab.daemon(
        *("--memory", "--socket-mode", "0660", "--socket-group", str(os.getegid())), name="other"
    )
    status = other.socket.stat()
    assert stat.S_IMODE(status.st_mode) == 0o660
    assert status.st_gid == os.getegid()
    assert serve(lab, "--socket-mode", "0999").returncode == 2


def test_uid_that_is_not_allowed(lab: Lab) -> None:
    daemon = lab.daemon("--memory", "--allow-uid", "54321")
    with FakeShim(connect(daemon.socket)) as shim:
        with contextlib.suppress(PeerClosed):
            shim.send(hello())
        assert not shim.wait_closed()
    assert f"peer uid {os.geteuid()} is not among [54321]" in daemon.log_text()


@pytest.mark.parametrize("options", [["--allow-any-uid"], ["--allow-uid", str(os.geteuid())]])
def test_uid_that_is_allowed(options: list[str], lab: Lab) -> None:
    daemon = lab.daemon("--memory", *options)
    with FakeShim(connect(daemon.socket)) as shim:
        shim.negotiate(hello())


def test_tcp_wants_tls() -> None:
    ended = run_hcalld("serve", "--memory", "--listen", "127.0.0.1:0")
    assert ended.returncode == 2
    assert "--tls-cert" in ended.stderr
    assert "--allow-plaintext-tcp" in ended.stderr


def test_tcp_without_tls_if_asked_in_so_many_words(lab: Lab) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    lab.daemon(
        *("--memory", "--listen", f"127.0.0.1:{port}", "--allow-plaintext-tcp"), socket_path=False
    )
    with FakeShim(socket.create_connection(("127.0.0.1", port))) as shim:
        shim.negotiate(hello(features=s.Feature.SHARED_RAM))
        assert get_config(shim).status == H.SUCCESS


# -- inherited sockets ----------------------------------------------------------------------


def test_fd_connected(lab: Lab) -> None:
    """It serves the one connection, and ends with it."""
    ours, theirs = socket.socketpair()
    with theirs:
        daemon = lab.daemon(
            "--memory", "--fd", str(theirs.fileno()), socket_path=False, is_started=False
        )
        daemon.start([theirs.fileno()])
    with FakeShim(ours) as shim:
        shim.negotiate(hello())
        assert get_config(shim).status == H.SUCCESS
    assert daemon.process is not None
    assert daemon.process.wait(patience(20)) == 0


def test_fd_listening(lab: Lab) -> None:
    path = lab.socket_dir / "inherited"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        daemon = lab.daemon(
            "--memory", "--fd", str(listener.fileno()), socket_path=False, is_started=False
        )
        daemon.start([listener.fileno()])
    for number in range(2):
        with FakeShim(connect(path)) as shim:
            shim.negotiate(hello(instance=bytes([number] * 16)))
            assert get_config(shim).status == H.SUCCESS
    assert daemon.is_alive


def test_fd_that_is_no_socket(lab: Lab) -> None:
    must_refuse(serve(lab, "--fd", "0"), "--fd 0", "expected an open stream socket")


def test_fd_that_is_not_open(lab: Lab) -> None:
    must_refuse(serve(lab, "--fd", "77"), "--fd 77", "expected an open stream socket")


# -- ending ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ends_at_once(number: signal.Signals, lab: Lab) -> None:
    """With guests and half-made connections; the guests are told, the socket is removed."""
    daemon = lab.daemon()
    shims = [FakeShim(connect(daemon.socket)) for _ in range(10)]
    try:
        for index, shim in enumerate(shims[:-1]):
            shim.negotiate(hello(f"guest{index}"))
            write_password(shim)
        assert daemon.process is not None
        start = time.monotonic()
        daemon.process.send_signal(number)
        assert daemon.process.wait(patience(20)) == 0
        seconds = time.monotonic() - start
        goodbyes = [shim.wait_closed() for shim in shims[:-1]]
    finally:
        for shim in shims:
            shim.close()
    lab.measure(seconds=round(seconds, 3))
    for (goodbye,) in goodbyes:
        assert isinstance(goodbye, f.Goodbye)
        assert goodbye.reason is s.GoodbyeReason.SHUTDOWN
    assert not daemon.socket.exists()


def test_capabilities() -> None:
    ended = run_hcalld("--print-capabilities")
    assert ended.returncode == 0
    assert ended.stderr == ""
    told = json.loads(ended.stdout)
    assert told["type"] == "spapr-hcall"
    assert told["protocol-versions"] == [s.VERSION]
    assert "H_PKS_WRITE_OBJECT" in told["families"]["pks"]["served"]


# -- profiles -------------------------------------------------------------------------------

PROFILES = {
    "unknown key": ("keystore_kbytez = 4\n", "keystore_kbytez"),
    "unknown key of a table": ("[pks]\nmax_label = 1\n", "max_label"),
    "unknown key of ours": ("[hcalld]\nfoo = 1\n", "foo"),
    "wrong type": ('secure_boot = "yes"\n', "secure_boot"),
    "out of range": ("keystore_kbytes = 129\n", "keystore_kbytes"),
    "too small": ("keystore_kbytes = 3\n", "keystore_kbytes"),
    "not TOML": ("keystore_kbytes 4\n", "TOML"),
    "not UTF-8": ("keystore_kbytes = 4 # \udcff\n", "profiles"),
    "bad uuid": ('[hcalld]\nuuid = "x"\n', "uuid"),
}


@pytest.mark.parametrize("case", PROFILES)
def test_profile_that_is_wrong(case: str, lab: Lab) -> None:
    text, word = PROFILES[case]
    directory = lab.artifacts / "profiles"
    directory.mkdir()
    (directory / "web1.toml").write_text(text, "utf-8", errors="surrogateescape")
    ended = serve(
        lab, "--socket-path", str(lab.socket_dir / "sock"), "--profile-dir", str(directory)
    )
    must_refuse(ended, str(directory), word)
    assert not (lab.socket_dir / "sock").exists()


def test_profile_directory_that_is_not_there(lab: Lab) -> None:
    ended = serve(lab, "--profile-dir", str(lab.artifacts / "nowhere"))
    must_refuse(ended, "nowhere")


# -- stores ---------------------------------------------------------------------------------


@pytest.fixture
def used(lab: Lab) -> tuple[Daemon, Path]:
    """A daemon that has ended, and the database of its partition ``one``."""
    daemon = lab.daemon()
    with FakeShim(connect(daemon.socket)) as shim:
        shim.negotiate(hello("one"))
        write_password(shim)
    wait_until(lambda: "guest gone" in daemon.log_text(), "the end of the session")
    assert daemon.terminate() == 0
    return daemon, daemon.state_dir / "partitions" / "one" / "keystore.db"


def overwrite_header(path: Path) -> None:
    path.write_bytes(b"not a database at all" + path.read_bytes()[21:])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def change_a_page(path: Path) -> None:
    data = bytearray(path.read_bytes())
    # The last page of a table: not the file's own structure.
    for offset in range(len(data) - 200, len(data)):
        data[offset] ^= 0xFF
    path.write_bytes(data)


def make_newer(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
        db.commit()


def make_another_programs(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA application_id = 1")
        db.commit()


def plant_a_trigger(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TRIGGER t AFTER INSERT ON records BEGIN DELETE FROM records; END")
        db.commit()


def remove_key(path: Path) -> None:
    (path.parents[2] / "key").unlink()


def change_key(path: Path) -> None:
    key = path.parents[2] / "key"
    text = key.read_text("ascii")
    key.write_text(text[:-2] + ("0" if text[-2] != "0" else "1") + "\n", "ascii")


def open_key_to_others(path: Path) -> None:
    (path.parents[2] / "key").chmod(0o644)


STORES: dict[Callable[[Path], None], str] = {
    overwrite_header: "damaged",
    truncate: "damaged",
    change_a_page: "damaged",
    make_newer: "newer",
    make_another_programs: "not a store of hcalld",
    plant_a_trigger: "damaged",
    remove_key: "is missing",
    change_key: "key",
    open_key_to_others: "chmod 0600",
}


@pytest.mark.parametrize("spoil", STORES, ids=lambda spoil: spoil.__name__)
def test_store_that_cannot_be_used(
    spoil: Callable[[Path], None], used: tuple[Daemon, Path]
) -> None:
    """Its guest is refused in words, the file stays as it is, and others are served."""
    daemon, path = used
    spoil(path)
    before = path.read_bytes()
    listed = run_hcalld("state", "list", "--state-dir", str(daemon.state_dir), "one")
    must_refuse(listed, STORES[spoil])
    daemon.start()
    with FakeShim(connect(daemon.socket)) as shim:
        shim.send(hello("one"))
        (goodbye,) = shim.wait_closed()
    assert isinstance(goodbye, f.Goodbye)
    assert goodbye.reason is s.GoodbyeReason.REFUSED
    assert STORES[spoil] in goodbye.text
    assert path.read_bytes() == before
    if spoil not in (remove_key, change_key, open_key_to_others):
        with FakeShim(connect(daemon.socket)) as other:
            other.negotiate(hello("two"))
            write_password(other)


def test_store_that_another_daemon_has_open(lab: Lab) -> None:
    first = lab.daemon()
    with FakeShim(connect(first.socket)) as shim:
        shim.negotiate(hello("one"))
        second = Daemon(lab.artifacts, lab.socket_dir, name="second")
        second.options[second.options.index(str(second.state_dir))] = str(first.state_dir)
        with second, FakeShim(connect(second.socket)) as other:
            other.send(hello("one"))
            (goodbye,) = other.wait_closed()
        assert isinstance(goodbye, f.Goodbye)
        assert first.process is not None
        assert f"is in use by process {first.process.pid}" in goodbye.text
        listed = run_hcalld("state", "list", "--state-dir", str(first.state_dir), "one")
        must_refuse(listed, "in use")
        write_password(shim)


def test_state_directory_without_permission(lab: Lab) -> None:
    closed = lab.artifacts / "closed"
    closed.mkdir(mode=0o500)
    daemon = Daemon(lab.artifacts, lab.socket_dir)
    daemon.options[daemon.options.index(str(daemon.state_dir))] = str(closed)
    daemon.command = without_root(list(COMMAND))
    with daemon, FakeShim(connect(daemon.socket)) as shim:
        shim.send(hello("one"))
        (goodbye,) = shim.wait_closed()
    assert isinstance(goodbye, f.Goodbye)
    assert "Permission denied" in goodbye.text
    assert "--state-dir" in goodbye.text


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..", ".", "a/b", "x" * 500, "\x00", "\n", "\u202e", "ü" * 40]
)
def test_names_of_guests_are_data(name: str, lab: Lab) -> None:
    """QEMU's -name is chosen by whoever starts the guest: never a path."""
    daemon = lab.daemon()
    with FakeShim(connect(daemon.socket)) as shim:
        shim.send(hello(name))
        answer = shim.receive()
    assert isinstance(answer, (f.Welcome, f.Goodbye))
    made = {path.relative_to(daemon.state_dir) for path in daemon.state_dir.rglob("*")}
    for path in made:
        assert path.parts[0] in ("control", "key", "key-source", "partitions")
        assert len(path.parts) <= 3
