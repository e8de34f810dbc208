# SPDX-License-Identifier: Apache-2.0
"""Captures of the guest stub, played to a daemon as the stub, and to the stub as a daemon."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.e2e.daemon import COMMAND, Daemon, run_hcalld
from tests.e2e.lab import Lab
from tests.e2e.machine import socket_chardev
from tests.e2e.patience import patience
from tests.e2e.stubwords import KEYSTORE
from tests.kernel.guestside import profile

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]


def captured(lab: Lab, memory: str) -> tuple[Path, str]:
    """A capture of the stub with secrets, and what opens it."""
    passphrase = lab.artifacts / "passphrase"
    passphrase.touch(0o600)
    passphrase.write_text("of this test\n")
    how = f"passphrase-file:{passphrase}"
    path = lab.artifacts / "capture.pcapng"
    daemon = lab.daemon("--capture", str(path), "--capture-secrets", how, name="first")
    lab.stub(KEYSTORE, daemon, memory=memory).report().must_pass("pks_object", "pks_user")
    daemon.terminate()
    return path, how


def play(daemon: Daemon, *words: str | Path) -> tuple[int, list[str]]:
    where = ("--socket-path", str(daemon.socket))
    done = run_hcalld("replay", "guest", *where, *map(str, words), seconds=250)
    return done.returncode, done.stdout.splitlines() + done.stderr.splitlines()


def must_answer_the_same(lab: Lab, path: Path, how: str) -> None:
    """Another daemon does, and one whose keystore is of another size does not."""
    with_secrets = lab.daemon(name="second")
    status, said = play(with_secrets, "--secrets", how, path)
    assert (status, said[-1].split(",")[0]) == (0, "no differences"), said
    other = lab.daemon(*profile(lab, "keystore_kbytes = 128\n"), name="third")
    status, said = play(other, "--secrets", how, "--stop", path)
    assert status == 1
    assert "H_PKS_GET_CONFIG: totalsize: 00020000, expected 00010000" in said[0]


def must_be_the_same_without_secrets(lab: Lab, path: Path) -> None:
    """What is left is."""
    status, said = play(lab.daemon(name="fourth"), path)
    assert any(
        "left out, for the capture has no secrets: H_PKS_GEN_PASSWORD.password" in one
        for one in said
    )
    assert (status, said[-1].split(",")[0]) == (0, "no differences"), said


def must_answer_the_stub(lab: Lab, path: Path, how: str) -> None:
    """The capture does, in a daemon's place."""
    where = lab.socket_dir / "replay.sock"
    words = ["replay", "machine", "--secrets", how, "--socket-path", str(where), str(path)]
    with subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, text=True) as process:
        try:
            # The socket's file is there before somebody listens.
            assert process.stdout is not None
            assert process.stdout.readline().startswith("waiting for a guest at ")
            machine = lab.stub(KEYSTORE, chardev=socket_chardev(where), memory="private")
            machine.report().must_pass("pks_object", "pks_user")
            said, _ = process.communicate(timeout=patience(100))
        finally:
            process.kill()
    assert process.returncode == 0, said
    assert said.splitlines()[-1].startswith("no differences, ")


def test_a_capture_of_private_memory_replays(lab: Lab) -> None:
    """One boot, played in each way."""
    path, how = captured(lab, "private")
    must_answer_the_same(lab, path, how)
    must_be_the_same_without_secrets(lab, path)
    must_answer_the_stub(lab, path, how)


def test_a_capture_of_shared_memory_replays(lab: Lab) -> None:
    must_answer_the_same(lab, *captured(lab, "shared"))
