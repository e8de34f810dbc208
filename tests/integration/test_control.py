# SPDX-License-Identifier: Apache-2.0
"""The control socket of a daemon that runs: where it is, who may use it, what it does to guests."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from tests.e2e.control import Traced, ctl, missed, page_out, the_guest
from tests.e2e.daemon import Daemon, run_hcalld
from tests.e2e.fakeshim import FakeShim, connect, hello
from tests.e2e.lab import Lab
from tests.e2e.patience import wait_until
from tests.e2e.secure import SecureLab

from hcalld.control import endpoint
from hcallproto.abi.families import pks
from hcallproto.abi.returns import H

pytestmark = pytest.mark.qemu


def control_path(daemon: Daemon) -> Path:
    return daemon.state_dir / "control"


def answers(path: Path) -> bool:
    """A daemon answers there."""
    return run_hcalld("ctl", "guests", "--control", str(path)).returncode == 0


def shim(daemon: Daemon, name: str = "") -> FakeShim:
    """A connected guest."""
    fake = FakeShim(connect(daemon.socket))
    fake.negotiate(hello(name))
    return fake


# -- the socket ---------------------------------------------------------------------------------


def test_it_is_in_the_state_directory_while_the_daemon_runs(lab: Lab) -> None:
    daemon = lab.daemon()
    path = control_path(daemon)
    assert path.stat().st_mode & 0o777 == 0o600
    assert ctl(daemon, "guests") == {"guests": []}
    assert run_hcalld("ctl", "guests", "--state-dir", str(daemon.state_dir)).stdout == (
        "no guest is connected\n"
    )
    assert daemon.terminate() == 0
    assert not path.exists()
    told = run_hcalld("ctl", "guests", "--state-dir", str(daemon.state_dir))
    assert told.returncode == 1
    assert told.stderr.startswith(f"hcalld: no daemon answers at {path} (nobody listens)")


def test_what_a_killed_daemon_left_is_replaced(lab: Lab) -> None:
    daemon = lab.daemon()
    daemon.kill()
    assert control_path(daemon).exists()
    assert not answers(control_path(daemon))
    daemon.start()
    assert answers(control_path(daemon))


def test_it_can_be_elsewhere_or_nowhere(lab: Lab) -> None:
    elsewhere = lab.socket_dir / "ctl"
    daemon = lab.daemon("--memory", "--control", str(elsewhere), name="memory")
    assert answers(elsewhere)
    daemon.close()
    assert not elsewhere.exists()
    for name, option in (("memory-only", "--memory"), ("without", "--no-control")):
        daemon = lab.daemon(option, name=name)
        assert not control_path(daemon).exists()
        assert "control socket" not in daemon.log_text()


@pytest.mark.parametrize("what", ["directory", "file", "living daemon"])
def test_a_default_path_that_is_taken_costs_the_socket_only(what: str, lab: Lab) -> None:
    daemon = lab.daemon(is_started=False)
    path = control_path(daemon)
    daemon.state_dir.mkdir(mode=0o700)
    other = None
    if what == "directory":
        path.mkdir()
    elif what == "file":
        path.write_text("precious")
    else:
        other = lab.daemon("--control", str(path), name="other")
    daemon.start()
    assert "no control socket" in daemon.log_text()
    guest = shim(daemon)
    assert guest.call(pks.GET_CONFIG.number, 0x1000, 32).status == H.SUCCESS
    guest.close()
    daemon.close()
    if other is not None:
        assert answers(path)
        other.close()
    elif what == "file":
        assert path.read_text() == "precious"
    else:
        assert path.is_dir()


@pytest.mark.parametrize("what", ["directory", "file", "missing directory"])
def test_a_path_that_was_asked_for_and_is_taken_ends_the_daemon(what: str, lab: Lab) -> None:
    path = lab.artifacts / "taken"
    if what == "directory":
        path.mkdir()
    elif what == "file":
        path.write_text("precious")
    else:
        path = path / "control"
    words = ["--memory", "--socket-path", str(lab.socket_dir / "s"), "--control", str(path)]
    done = run_hcalld("serve", *words)
    assert done.returncode == 1
    assert str(path) in done.stderr.splitlines()[-1]
    assert not (lab.socket_dir / "s").exists()


def test_another_user_is_not_let_in(lab: Lab) -> None:
    """By the socket's mode; and by his uid, if somebody changes that."""
    path = lab.socket_dir / "ctl"
    daemon = lab.daemon("--control", str(path))
    lab.socket_dir.chmod(0o755)

    def as_nobody() -> bytes:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            answer = b"failed"
            try:
                os.setuid(65534)
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                    sock.settimeout(20)
                    sock.connect(str(path))
                    answer = sock.recv(1 << 16) + sock.recv(1 << 16)
            except PermissionError:
                answer = b"denied"
            finally:
                os.write(writing, answer)
                os._exit(0)
        os.close(writing)
        os.waitpid(child, 0)
        with os.fdopen(reading, "rb") as file:
            return file.read()

    assert as_nobody() == b"denied"
    path.chmod(0o666)
    failure = json.loads(as_nobody())
    assert failure["kind"] == "not-allowed"
    assert "uid 65534 may not" in failure["message"]
    assert "control client refused" in daemon.log_text()
    assert answers(path)


# -- guests ---------------------------------------------------------------------------------------


def test_a_partition_that_a_daemon_has_is_said_to_be_shown_by_guests(lab: Lab) -> None:
    daemon = lab.daemon()
    guest = shim(daemon, "lpar7")
    guest.call(pks.GET_CONFIG.number, 0x1000, 32)
    told = run_hcalld("ctl", "show", "--state-dir", str(daemon.state_dir), "lpar7")
    assert told.returncode == 1
    assert "in use by process" in told.stderr
    assert "'hcalld ctl guests' says what its guest does" in told.stderr
    (row,) = ctl(daemon, "guests")["guests"]
    assert (row["partition"], row["calls"], row["vcpus"]) == ("lpar7", 1, 4)
    done = run_hcalld("ctl", "page-out", "--state-dir", str(daemon.state_dir), "lpar7")
    assert done.returncode == 1
    assert "may not become secure" in done.stderr
    guest.close()


@pytest.fixture
def hostile(lab: Lab) -> Iterator[Callable[[Daemon], list[socket.socket]]]:
    """Clients of a daemon that mean no good."""
    clients: list[socket.socket] = []

    def attack(daemon: Daemon) -> list[socket.socket]:
        for number in range(60):
            sock = endpoint.connect(control_path(daemon), 20)
            sock.setblocking(False)
            clients.append(sock)
            data = (b"garbage\n" * 8000, b'{"command":', b'{"command":"guests"}\n' * 3000)
            try:
                sock.send(data[number % 3])
            except OSError:
                continue
        return clients

    yield attack
    for sock in clients:
        sock.close()


def test_guests_are_served_whatever_clients_do(
    hostile: Callable[[Daemon], list[socket.socket]], lab: Lab
) -> None:
    daemon = lab.daemon()
    guest = shim(daemon)
    for _ in range(3):
        clients = hostile(daemon)
        for _ in range(200):
            assert guest.call(pks.GET_CONFIG.number, 0x1000, 32).status == H.SUCCESS
        for sock in clients[: len(clients) // 2]:
            sock.close()
    for sock in clients:
        sock.close()
    wait_until(lambda: answers(control_path(daemon)), "a free place for a client")
    assert the_guest(daemon)["calls"] == 600
    guest.close()


# -- page-out -------------------------------------------------------------------------------------

ROUNDS: Final = 5
CPUS: Final = 4


def activity(process: int) -> tuple[int, bool]:
    """Ticks that a process has run, and whether a thread of it runs or could."""
    ticks, can_run = 0, False
    for path in Path(f"/proc/{process}/task").iterdir():
        state, *fields = (path / "stat").read_text("ascii").rpartition(")")[2].split()
        ticks += int(fields[10]) + int(fields[11])
        can_run |= state != "S"
    return ticks, can_run


def wait_until_it_waits(process: int) -> None:
    """Waits until all threads of a process that has much to do wait for something else.

    Not for how long: on a busy machine one that could run may not for a while.
    """
    quiet: list[int] = []

    def has_waited() -> bool:
        ticks, can_run = activity(process)
        if can_run or quiet[-1:] != [ticks]:
            quiet.clear()
        if not can_run:
            quiet.append(ticks)
        return len(quiet) >= 10

    wait_until(has_waited, "all CPUs' wait", 60)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("byte_order", "memory", "threads", "rounds", "words"),
    [
        # CPUs that wait for others take what the daemon needs. What the stub touches is among the
        # first pages, which go first, the first time.
        ("le", "shared", "multi", 1, ("--pages", "512")),
        # On one thread they take turns.
        ("be", "private", "single", ROUNDS, ()),
        pytest.param("le", "shared", "multi", ROUNDS, (), marks=pytest.mark.soak),
        pytest.param("be", "private", "multi", ROUNDS, (), marks=pytest.mark.soak),
    ],
)
def test_four_cpus_touch_what_a_command_took_out(
    byte_order: Any, memory: Any, threads: Any, rounds: int, words: tuple[str, ...], lab: Lab
) -> None:
    secure = SecureLab(lab)
    daemon = secure.daemon
    machine = secure.stub(
        f"secure_touch esm=1 rounds={rounds} require=1",
        byte_order=byte_order,
        memory=memory,
        memory_mib=256,
        smp=CPUS,
        threads=threads,
    )
    process = daemon.process
    assert process is not None
    went = 0
    for number in range(1, rounds + 1):
        machine.console.expect(f"# touch ready {number}\n", 120)
        # What the CPUs wait in comes back, and nothing else.
        done = page_out(daemon, *words)
        went += done["went"]
        assert done["pef"]["out"] > (int(words[1]) if words else 4096) - 16
        before = len(daemon.trace_lines())
        # All of them have missed the page before the first one can get it.
        process.send_signal(signal.SIGSTOP)
        machine.qmp.execute("inject-nmi")
        wait_until_it_waits(machine.process.pid)
        process.send_signal(signal.SIGCONT)

        def at_once(before: int = before) -> list[int]:
            cpus = missed(daemon.trace_lines()[before:])
            return [page for page, who in cpus.items() if who == set(range(CPUS))]

        wait_until(at_once, "a page that all CPUs missed")
    machine.report().must_pass("secure_touch")
    assert Traced(daemon.trace_lines()).went == went
