# SPDX-License-Identifier: Apache-2.0
"""Captures with secrets of a daemon that runs: begun with it or in the middle, in files that turn.

That they are all that a replay needs, the replay says: each reply is the same, to the byte.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.daemon import Daemon, run_hcalld
from tests.e2e.fakeshim import FakeShim, connect, hello
from tests.e2e.lab import Lab
from tests.e2e.leaks import Secrets
from tests.integration.test_secrets import (
    CLEAR_LABEL,
    OUT,
    PARTITION,
    PROFILE,
    SUCCESSES,
    Stage,
    set_password,
    write_and_read,
)

from hcalld.captures.events import Events
from hcalld.core.secret import Secret
from hcalld.crypto.locks import Passphrase
from hcalld.domain.labels import os_label
from hcallproto.abi.families import pks
from hcallproto.capture import entries as e

PASSPHRASE = b"correct horse battery"


@pytest.fixture
def how(tmp_path: Path) -> str:
    """What opens the captures."""
    path = tmp_path / "capture.pass"
    path.write_bytes(PASSPHRASE)
    path.chmod(0o600)
    return f"passphrase-file:{path}"


def daemon_of(lab: Lab, tmp_path: Path, *words: str) -> Daemon:
    profiles = tmp_path / "profiles"
    profiles.mkdir()
    (profiles / f"{PARTITION}.toml").write_text(PROFILE)
    return lab.daemon("--profile-dir", str(profiles), *words)


@contextlib.contextmanager
def stage_of(lab: Lab, daemon: Daemon, tmp_path: Path) -> Iterator[Stage]:
    """A guest of the daemon's."""
    with FakeShim(connect(daemon.socket)) as shim:
        shim.negotiate(hello(PARTITION))
        yield Stage(lab, daemon, Secrets(), tmp_path, shim)


def ctl(daemon: Daemon, *words: str) -> str:
    done = run_hcalld("ctl", "capture", *words, "--state-dir", str(daemon.state_dir))
    assert done.returncode == 0, done.stderr
    return done.stdout


def replayed(how: str, *paths: Path) -> str:
    """What the replay of a capture says, at its end."""
    whole = paths[0].with_name("whole.pcapng")
    whole.write_bytes(b"".join(path.read_bytes() for path in paths))
    done = run_hcalld("replay", "code", "--secrets", how, str(whole))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


def read(stage: Stage) -> None:
    """Has the guest read what ``write_and_read`` wrote."""
    name = stage.label(os_label(b"clear", CLEAR_LABEL))
    stage.good(pks.READ_OBJECT, stage.auth(), *name, OUT, 4000)


def test_a_capture_from_the_begin_replays_to_the_byte(lab: Lab, tmp_path: Path, how: str) -> None:
    path = lab.artifacts / "all.pcapng"
    daemon = daemon_of(lab, tmp_path, "--capture", str(path), "--capture-secrets", how)
    with stage_of(lab, daemon, tmp_path) as stage:
        for succeed in SUCCESSES:
            succeed(stage)
    daemon.terminate()
    assert path.stat().st_mode & 0o777 == 0o600
    said = replayed(how, path)
    assert "0 differ" in said
    assert "0 left out" in said
    assert int(said.partition(" calls, ")[2].split()[0]) > len(SUCCESSES)


def test_a_capture_from_the_middle_replays_to_the_byte(lab: Lab, tmp_path: Path, how: str) -> None:
    path = lab.artifacts / "middle.pcapng"
    daemon = daemon_of(lab, tmp_path)
    with stage_of(lab, daemon, tmp_path) as stage:
        for succeed in SUCCESSES:
            succeed(stage)
        ctl(daemon, "start", "--secrets", how, str(path))
        for number in range(3):
            name = stage.label(os_label(b"k", b"again %d" % number))
            stage.good(pks.GEN_KEY, stage.auth(), *name, 0, OUT, 48)
        read(stage)
        assert ", 0 of them dropped" in ctl(daemon, "stop")
    events = Events([path.read_bytes()], Passphrase(Secret(PASSPHRASE)))
    (state,) = [event.what for event in events if isinstance(event.what, e.State)]
    assert (state.is_begin, state.problem) == (False, "")
    assert events.inexact == {}
    said = replayed(how, path)
    assert ", 4 equal, 0 differ, 0 left out" in said


def test_files_that_turn_replay_as_one(lab: Lab, tmp_path: Path, how: str) -> None:
    path = lab.artifacts / "ring.pcapng"
    words = ("--capture", str(path), "--capture-secrets", how, "--capture-size", "1")
    daemon = daemon_of(lab, tmp_path, *words)
    with stage_of(lab, daemon, tmp_path) as stage:
        set_password(stage)
        write_and_read(stage)
        for _ in range(2500):
            read(stage)
    daemon.terminate()
    paths = sorted(lab.artifacts.glob("ring_*.pcapng"))
    assert len(paths) > 1
    said = replayed(how, *paths)
    assert "0 differ" in said
    assert "0 left out" in said
    # The second one alone has no begin, and nothing can be said of it.
    done = run_hcalld("replay", "code", "--secrets", how, str(paths[1]))
    assert ", 0 compared, " in done.stdout
