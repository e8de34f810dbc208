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
from tests.kernel.guestside import profile

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

WORDS = "self dt pks pks=1 require=1"


def captured(lab: Lab, memory: str, words: str = WORDS) -> tuple[Path, str]:
    """A capture of the stub with secrets, and what opens it."""
    passphrase = lab.artifacts / "passphrase"
    passphrase.touch(0o600)
    passphrase.write_text("of this test\n")
    how = f"passphrase-file:{passphrase}"
    path = lab.artifacts / "capture.pcapng"
    daemon = lab.daemon("--capture", str(path), "--capture-secrets", how, name="first")
    lab.stub(words, daemon, memory=memory).report().must_pass("pks_object", "pks_user")
    daemon.terminate()
    return path, how


def play(daemon: Daemon, *words: str | Path) -> tuple[int, list[str]]:
    done = run_hcalld("replay", "guest", "--socket-path", str(daemon.socket), *map(str, words))
    return done.returncode, done.stdout.splitlines() + done.stderr.splitlines()


@pytest.mark.parametrize("memory", ["private", "shared"])
def test_another_daemon_gives_the_stub_the_same_answers(memory: str, lab: Lab) -> None:
    path, how = captured(lab, memory)
    with_secrets = lab.daemon(name="second")
    status, said = play(with_secrets, "--secrets", how, path)
    assert (status, said[-1].split(",")[0]) == (0, "no differences"), said
    # One whose keystore is of another size gives others.
    other = lab.daemon(*profile(lab, "keystore_kbytes = 128\n"), name="third")
    status, said = play(other, "--secrets", how, "--stop", path)
    assert status == 1
    assert "H_PKS_GET_CONFIG: totalsize: 00020000, expected 00010000" in said[0]


def test_without_secrets_what_is_left_is_the_same(lab: Lab) -> None:
    path, _ = captured(lab, "private")
    status, said = play(lab.daemon(name="second"), path)
    assert any(
        "left out, for the capture has no secrets: H_PKS_GEN_PASSWORD.password" in one
        for one in said
    )
    assert (status, said[-1].split(",")[0]) == (0, "no differences"), said


def test_the_stub_is_answered_by_its_capture(lab: Lab) -> None:
    path, how = captured(lab, "private")
    where = lab.socket_dir / "replay.sock"
    words = ["replay", "machine", "--secrets", how, "--socket-path", str(where), str(path)]
    with subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, text=True) as process:
        try:
            # The socket's file is there before somebody listens.
            assert process.stdout is not None
            assert process.stdout.readline().startswith("waiting for a guest at ")
            machine = lab.stub(WORDS, chardev=socket_chardev(where), memory="private")
            machine.report().must_pass("pks_object", "pks_user")
            said, _ = process.communicate(timeout=patience(30))
        finally:
            process.kill()
    assert process.returncode == 0, said
    assert said.splitlines()[-1].startswith("no differences, ")
