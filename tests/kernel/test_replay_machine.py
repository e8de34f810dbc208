# SPDX-License-Identifier: Apache-2.0
"""Kernels boot with nothing but a capture behind the device, and find the same keystore."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.e2e.daemon import COMMAND
from tests.e2e.machine import socket_chardev
from tests.e2e.patience import patience
from tests.kernel.guestside import INITIALIZED, results, succeed
from tests.vectors.captures.make import HERE, NEW_KEYS, PASSPHRASE

if TYPE_CHECKING:
    from tests.e2e.lab import Lab

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]


class Replay:
    """``hcalld replay machine`` as a process.

    Args:
        path: Where it listens.
        words: Its options, and the capture.
    """

    def __init__(self, path: Path, *words: str | Path) -> None:
        self.path = path
        self.process = subprocess.Popen(
            [*COMMAND, "replay", "machine", "--socket-path", str(path), *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self) -> list[str]:
        """Waits for its end; gives what it said."""
        said, _ = self.process.communicate(timeout=patience(30))
        return said.splitlines()


@contextlib.contextmanager
def replay(lab: Lab, *words: str | Path) -> Iterator[Replay]:
    """Starts one, and ends it if nothing else does."""
    one = Replay(lab.socket_dir / "replay.sock", *words)
    try:
        # The socket's file is there before somebody listens.
        assert one.process.stdout is not None
        assert "waiting for a guest at " in one.process.stdout.readline()
        yield one
    finally:
        one.process.kill()
        one.process.wait()


def test_debians_kernel_finds_the_captured_keystore(lab: Lab) -> None:
    with replay(lab, HERE / "debian.pcapng.gz") as played:
        machine = lab.linux("debian", "true\n", chardev=socket_chardev(played.path))
        text = succeed(machine)
        said = played.end()
    assert INITIALIZED in text
    assert said[-1].startswith("no differences, 4 answered, 0 not in the capture"), said
    assert played.process.returncode == 0


def test_our_kernel_gets_the_captured_keys(lab: Lab) -> None:
    """What the capture's kernel was given, this one is given: the wrapped keys are the same."""
    passphrase = lab.artifacts / "passphrase"
    passphrase.touch(0o600)
    passphrase.write_bytes(PASSPHRASE.read_bytes())
    kept = HERE / "pkwm.pcapng.gz"
    shown = []
    for _ in range(2):
        with replay(lab, "--secrets", f"passphrase-file:{passphrase}", kept) as played:
            machine = lab.linux(
                "own", NEW_KEYS, chardev=socket_chardev(played.path), userland="initramfs-tools"
            )
            text = succeed(machine)
            said = played.end()
        assert INITIALIZED in text
        assert said[-1].startswith("no differences, "), said
        assert played.process.returncode == 0
        shown.append(results(text))
    first, second = shown
    assert re.fullmatch("[0-9a-f]{2112}", first["kmk"])
    assert first == second


def test_what_the_capture_does_not_know_is_told(lab: Lab) -> None:
    """Debian's capture has no key wrapped: our kernel is told that there is no such call."""
    with replay(lab, "--json", HERE / "debian.pcapng.gz") as played:
        machine = lab.linux(
            "own",
            NEW_KEYS,
            chardev=socket_chardev(played.path),
            userland="initramfs-tools",
            failures=(),
        )
        machine.console.expect_end(120)
        said = played.end()
    assert played.process.returncode == 1
    assert any('"call": "H_PKS_GEN_KEY"' in line for line in said), said
