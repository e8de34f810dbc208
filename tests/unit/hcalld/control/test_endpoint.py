# SPDX-License-Identifier: Apache-2.0
"""The control socket in the file system."""

from __future__ import annotations

import os
import pathlib
import socket
from collections.abc import Iterator

import pytest

from hcalld.control.endpoint import Endpoint, connect
from hcalld.core.errors import ConfigError


@pytest.fixture
def deep(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory whose path alone is too long for a socket's."""
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def closing() -> Iterator[list[Endpoint]]:
    endpoints: list[Endpoint] = []
    yield endpoints
    for endpoint in endpoints:
        endpoint.close()


def test_endpoint_when_it_listens_then_only_its_owner_may_connect(
    tmp_path: pathlib.Path, closing: list[Endpoint]
):
    before = os.umask(0)
    try:
        endpoint = Endpoint(tmp_path / "control")
        assert os.umask(0) == 0
    finally:
        os.umask(before)
    closing.append(endpoint)
    assert (tmp_path / "control").stat().st_mode & 0o777 == 0o600
    connect(tmp_path / "control", 5).close()


def test_endpoint_when_it_is_closed_then_its_path_is_gone(tmp_path: pathlib.Path):
    endpoint = Endpoint(tmp_path / "control")
    endpoint.close()
    assert list(tmp_path.iterdir()) == []
    endpoint.close()


def test_endpoint_when_the_path_is_long_then_it_serves_all_the_same(deep: pathlib.Path):
    endpoint = Endpoint(deep / "control")
    connect(deep / "control", 5).close()
    endpoint.close()
    assert list(deep.iterdir()) == []


def test_endpoint_when_a_dead_one_is_there_then_it_is_replaced(
    tmp_path: pathlib.Path, closing: list[Endpoint]
):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(tmp_path / "control"))
    closing.append(Endpoint(tmp_path / "control"))
    connect(tmp_path / "control", 5).close()


def test_endpoint_when_another_lives_there_then_it_is_left_alone(
    tmp_path: pathlib.Path, closing: list[Endpoint]
):
    closing.append(Endpoint(tmp_path / "control"))
    with pytest.raises(ConfigError, match="another daemon listens here; give another path"):
        Endpoint(tmp_path / "control")
    connect(tmp_path / "control", 5).close()


def test_endpoint_when_another_is_busy_then_it_is_left_alone(tmp_path: pathlib.Path):
    path = tmp_path / "control"
    clients = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as busy:
        busy.bind(str(path))
        busy.listen(0)
        for _ in range(2):
            client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            client.setblocking(False)
            clients.append(client)
            client.connect_ex(str(path))
        with pytest.raises(ConfigError, match="another daemon listens here"):
            Endpoint(path)
        assert path.exists()
        for client in clients:
            client.close()


@pytest.mark.parametrize("what", ["directory", "file", "link to a file", "fifo", "dead link"])
def test_endpoint_when_something_else_is_there_then_it_is_left_alone(
    what: str, tmp_path: pathlib.Path
):
    path = tmp_path / "control"
    other = tmp_path / "other"
    other.write_text("precious")
    if what == "directory":
        path.mkdir()
    elif what == "file":
        path.write_text("precious")
    elif what == "link to a file":
        path.symlink_to(other)
    elif what == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "nowhere")
    before = path.lstat()
    with pytest.raises(ConfigError, match="exists and is not a socket; remove it, or give"):
        Endpoint(path)
    assert path.lstat() == before
    assert other.read_text() == "precious"


@pytest.mark.parametrize("name", ["missing/control", "file/control", "n" * 200])
def test_endpoint_when_it_cannot_be_made_then_one_line_says_so(name: str, tmp_path: pathlib.Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot listen: .*--no-control") as raised:
        Endpoint(tmp_path / name)
    assert "\n" not in str(raised.value)


def test_endpoint_when_another_has_taken_its_place_then_that_is_not_removed(
    tmp_path: pathlib.Path, closing: list[Endpoint]
):
    path = tmp_path / "control"
    first = Endpoint(path)
    path.unlink()
    closing.append(Endpoint(path))
    first.close()
    connect(path, 5).close()


def test_endpoint_when_its_path_is_gone_then_closing_it_is_no_error(tmp_path: pathlib.Path):
    endpoint = Endpoint(tmp_path / "control")
    (tmp_path / "control").unlink()
    endpoint.close()


@pytest.mark.parametrize("what", ["nothing", "no directory", "dead", "file"])
def test_connect_when_no_daemon_is_there_then_it_is_said_where_it_was_sought(
    what: str, tmp_path: pathlib.Path
):
    path = tmp_path / "control"
    if what == "no directory":
        path = path / "control"
    elif what == "file":
        path.write_text("")
    elif what == "dead":
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
            dead.bind(str(path))
    with pytest.raises(ConfigError) as raised:
        connect(path, 5)
    text = str(raised.value)
    assert f"no daemon answers at {path} (nobody listens)" in text
    assert "--state-dir" in text
    assert "--control" in text


def test_connect_when_the_daemon_takes_nobody_then_it_gives_up(tmp_path: pathlib.Path):
    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as hanging:
        hanging.bind(str(path))
        hanging.listen(0)
        first = connect(path, 5)
        with pytest.raises(ConfigError, match=r"takes no client within 0\.2 s"):
            connect(path, 0.2)
        first.close()
