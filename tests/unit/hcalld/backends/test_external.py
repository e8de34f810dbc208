# SPDX-License-Identifier: Apache-2.0
"""TPMs of others: what a session opens, frees and leaves alone."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
from collections.abc import AsyncIterator

import pytest
import trio
from tests.unit.hcalld.backends.peer import RANDOM, Contexts, response, serve
from trio.testing import MockClock

from hcalld.backends import external
from hcalld.backends.external import TpmDevice, TpmSocket
from hcalld.core.errors import BackendUnavailable
from hcalld.core.records import Run

OTHERS = 0x8000_0007
MINE = 0x8000_0001


class Listener:
    """A TPM that listens on a unix socket, one connection after the other."""

    def __init__(self, path: pathlib.Path, contexts: Contexts) -> None:
        self.path = path
        self.contexts = contexts
        self.connections = 0
        self.is_mute = False
        """It answers no command of a guest."""
        self.is_dead = False
        """It answers nothing."""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            await sock.bind(os.fspath(self.path))
            sock.listen(1)
            task_status.started()
            async with trio.open_nursery() as nursery:
                while True:
                    accepted, _ = await sock.accept()
                    self.connections += 1
                    nursery.start_soon(serve, trio.SocketStream(accepted), self.answer)

    def answer(self, command: bytes) -> bytes | None:
        made = self.contexts(command)
        is_silent = self.is_dead or (self.is_mute and command == RANDOM)
        return None if is_silent else made


@pytest.fixture
async def listener(socket_dir: pathlib.Path, nursery: trio.Nursery) -> Listener:
    listener = Listener(socket_dir / "tpm.sock", Contexts(OTHERS))
    await nursery.start(listener.run)
    return listener


@pytest.fixture
async def tpm(listener: Listener) -> AsyncIterator[TpmSocket]:
    backend = TpmSocket(listener.path, timeout_s=3)
    backend.begin_run(Run(b"", 0))
    yield backend
    await backend.aclose()


async def test_a_session_is_one_connection(tpm: TpmSocket, listener: Listener):
    assert not tpm.is_open
    await tpm.open()
    assert tpm.is_open
    for _ in range(3):
        assert await tpm.transmit(RANDOM) == response(b"answer")
    await tpm.open()
    assert listener.connections == 1
    await tpm.close_session()
    assert not tpm.is_open
    await tpm.open()
    assert listener.connections == 2


async def test_at_once_and_later(tpm: TpmSocket):
    await tpm.open()
    assert tpm.transmit_now(RANDOM) is None
    assert await tpm.finish() == response(b"answer")


async def test_closing_frees_the_sessions_contexts_and_no_others(
    tpm: TpmSocket, listener: Listener
):
    await tpm.open()
    listener.contexts.loaded.append(MINE)
    await tpm.close_session()
    assert listener.contexts.flushed == [MINE]
    assert listener.contexts.loaded == [OTHERS]


async def test_closing_what_is_not_open_asks_nobody(tpm: TpmSocket, listener: Listener):
    await tpm.close_session()
    assert listener.connections == 0


async def test_a_lost_session_is_closed_over_a_new_connection(
    tpm: TpmSocket, listener: Listener, autojump_clock: MockClock
):
    await tpm.open()
    listener.contexts.loaded.append(MINE)
    listener.is_mute = True
    with pytest.raises(BackendUnavailable, match="no whole response within 3 s"):
        await tpm.transmit(RANDOM)
    assert not tpm.is_open
    with pytest.raises(BackendUnavailable, match="the session is lost"):
        await tpm.transmit(RANDOM)
    listener.is_mute = False
    await tpm.close_session()
    assert listener.contexts.flushed == [MINE]
    await tpm.open()
    assert await tpm.transmit(RANDOM) == response(b"answer")
    assert listener.connections == 3


async def test_ending_in_the_middle_frees_too(tpm: TpmSocket, listener: Listener):
    await tpm.open()
    listener.contexts.loaded.append(MINE)
    await tpm.aclose()
    assert listener.contexts.loaded == [OTHERS]
    assert not tpm.is_open


async def test_ending_when_the_tpm_is_mute_takes_little_time(
    tpm: TpmSocket, listener: Listener, autojump_clock: MockClock
):
    await tpm.open()
    listener.is_dead = True
    before = trio.current_time()
    await tpm.aclose()
    assert trio.current_time() - before <= external.CLOSE_SECONDS


async def test_opening_that_is_given_up_leaves_contexts_alone(
    tpm: TpmSocket, listener: Listener, autojump_clock: MockClock
):
    listener.is_dead = True
    with pytest.raises(BackendUnavailable):
        await tpm.open()
    listener.is_dead = False
    await tpm.close_session()
    assert listener.contexts.loaded == [OTHERS]


@pytest.mark.parametrize("kind", [TpmSocket, TpmDevice])
async def test_what_is_not_there_is_told(kind: type[TpmSocket | TpmDevice], tmp_path: pathlib.Path):
    backend = kind(tmp_path / "nothing", timeout_s=1)
    with pytest.raises(BackendUnavailable, match="No such file or directory; expected a TPM"):
        await backend.open()
    await backend.aclose()


async def test_a_socket_that_nobody_listens_on_is_told(socket_dir: pathlib.Path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.fspath(socket_dir / "dead"))
        with pytest.raises(BackendUnavailable, match="Connection refused"):
            await TpmSocket(socket_dir / "dead", timeout_s=1).open()


# -- devices -----------------------------------------------------------------------------------


async def test_a_file_is_no_device(tmp_path: pathlib.Path):
    (tmp_path / "file").touch()
    with pytest.raises(BackendUnavailable, match="not a character device"):
        await TpmDevice(tmp_path / "file", timeout_s=1).open()


@pytest.fixture
async def pty(nursery: trio.Nursery) -> AsyncIterator[tuple[pathlib.Path, Contexts]]:
    """A TPM at the other end of a pty."""
    master, slave = os.openpty()
    contexts = Contexts(OTHERS)
    os.set_blocking(master, False)

    async def run() -> None:
        with contextlib.suppress(trio.ClosedResourceError):
            while True:
                await trio.lowlevel.wait_readable(master)
                os.write(master, contexts(os.read(master, 8192)))

    nursery.start_soon(run)
    await trio.testing.wait_all_tasks_blocked()
    yield pathlib.Path(os.ttyname(slave)), contexts
    trio.lowlevel.notify_closing(master)
    os.close(master)
    os.close(slave)


async def test_a_pty_passes_every_byte(pty: tuple[pathlib.Path, Contexts]):
    path, contexts = pty
    backend = TpmDevice(path, timeout_s=3)
    await backend.open()
    command = bytes(range(256))
    assert await backend.transmit(command) == response(b"answer")
    assert contexts.commands[-1] == command
    contexts.loaded.append(MINE)
    await backend.close_session()
    assert contexts.loaded == [OTHERS]
    await backend.aclose()


def managed(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, path: pathlib.Path) -> None:
    """Make a device one of class tpmrm."""
    number = path.stat().st_rdev
    folder = tmp_path / f"{os.major(number)}:{os.minor(number)}"
    folder.mkdir()
    (folder / "subsystem").symlink_to("../../class/tpmrm")
    monkeypatch.setattr(external, "SYS_DEV_CHAR", tmp_path)


async def test_a_resource_manager_frees_by_itself(
    pty: tuple[pathlib.Path, Contexts], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
):
    path, contexts = pty
    managed(monkeypatch, tmp_path, path)
    backend = TpmDevice(path, timeout_s=3)
    await backend.open()
    assert await backend.transmit(RANDOM) == response(b"answer")
    await backend.close_session()
    assert contexts.commands == [RANDOM]
    assert not backend.is_open


@pytest.mark.parametrize("is_managed", [True, False])
async def test_a_device_that_owes_a_response(
    is_managed: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
    autojump_clock: MockClock,
):
    master, slave = os.openpty()
    path = pathlib.Path(os.ttyname(slave))
    if is_managed:
        managed(monkeypatch, tmp_path, path)
    else:
        monkeypatch.setattr(external, "list_contexts", _none)
    backend = TpmDevice(path, timeout_s=3)
    await backend.open()
    first = backend._channel
    with pytest.raises(BackendUnavailable, match="no whole response"):
        await backend.transmit(RANDOM)
    if is_managed:
        # The kernel drops what is late when the device is closed.
        await backend.open()
        assert backend._channel is not first
    else:
        with pytest.raises(BackendUnavailable, match="no whole response"):
            await backend.open()
        os.write(master, response(b"late"))
        await backend.open()
        assert backend._channel is first
    assert backend.is_open
    backend._drop()
    os.close(master)
    os.close(slave)


async def _none(_: object) -> frozenset[int]:
    return frozenset()
