# SPDX-License-Identifier: Apache-2.0
"""Linux guests, captured with secrets, run again in process to the byte.

Secure VMs are in ``test_replay_secure``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.e2e.daemon import run_hcalld
from tests.e2e.patience import wait_until
from tests.kernel.guestside import LIBRARY, succeed

if TYPE_CHECKING:
    from tests.e2e.daemon import Daemon
    from tests.e2e.lab import Lab

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

SUMMARY = re.compile(
    r"no differences, (\d+) calls, (\d+) compared, (\d+) equal, 0 differ, (\d+) left out"
)

KEYS = """\
for n in 1 2 3 4; do keyctl add trusted key$n "new 64" @u > /tmp/id || exit 1; done
keyctl print $(cat /tmp/id) > /tmp/wrapped
keyctl clear @u
echo READY
"""
"""A guest that wraps keys."""

MORE_KEYS = """\
read -r told
until keyctl add trusted again "load $(cat /tmp/wrapped)" @u; do sleep 1; done
until keyctl add trusted more "new 32" @u; do sleep 1; done
"""


def seal(lab: Lab) -> str:
    """How a test's captures are opened."""
    passphrase = lab.artifacts / "passphrase"
    passphrase.touch(0o600)
    passphrase.write_text("of this test\n")
    return f"passphrase-file:{passphrase}"


def captured(daemon: Daemon, path: Path, how: str) -> None:
    """Starts a daemon that captures into a file of its own."""
    options = daemon.options
    daemon.options = [*options, "--capture", str(path), "--capture-secrets", how]
    daemon.start()
    daemon.options = options


def replayed(path: Path, how: str) -> tuple[int, int]:
    """Plays a capture, in which nothing may differ; gives calls, and those left out."""
    done = run_hcalld("replay", "code", "--secrets", how, str(path))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    found = SUMMARY.fullmatch(done.stdout.splitlines()[-1])
    assert found is not None, done.stdout[-4000:]
    calls, compared, equal, left_out = map(int, found.groups())
    assert calls == compared + left_out
    assert compared == equal
    return calls, left_out


def test_wrapped_keys_are_replayed_to_the_byte_although_the_daemon_was_killed(lab: Lab) -> None:
    how = seal(lab)
    before, after = (lab.artifacts / f"{name}.pcapng" for name in ("before", "after"))
    daemon = lab.daemon(is_started=False)
    captured(daemon, before, how)
    script = LIBRARY + KEYS + MORE_KEYS
    machine = lab.linux("own", script, daemon, userland="initramfs-tools")
    machine.console.expect("READY", 120)
    # A capture is written some time after what it tells of.
    wait_until(lambda: before.stat().st_size > 10_000, "a capture on disk", 30)
    daemon.kill()
    captured(daemon, after, how)
    machine.enter("go on")
    succeed(machine)
    daemon.terminate()
    calls, left_out = replayed(before, how)
    assert calls > 8
    assert left_out < calls
    calls, left_out = replayed(after, how)
    assert calls
    assert not left_out


def test_a_capture_without_secrets_is_replayed_as_far_as_it_goes(lab: Lab) -> None:
    path = lab.artifacts / "capture.pcapng"
    daemon = lab.daemon("--capture", str(path))
    succeed(lab.linux("own", LIBRARY + KEYS, daemon, userland="initramfs-tools"))
    daemon.terminate()
    done = run_hcalld("replay", "code", str(path))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    found = SUMMARY.fullmatch(done.stdout.splitlines()[-1])
    assert found is not None
    calls, compared, equal, left_out = map(int, found.groups())
    assert calls == compared + left_out
    assert compared == equal > 0
