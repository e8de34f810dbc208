# SPDX-License-Identifier: Apache-2.0
"""Captures of real guests, with secrets, and by a command while guests run."""

from __future__ import annotations

import collections
import json
import re
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.e2e import tshark
from tests.e2e.daemon import Daemon, run_hcalld
from tests.e2e.lab import Lab
from tests.e2e.machine import Machine
from tests.e2e.patience import wait_until
from tests.e2e.stubwords import CALLING, KEYSTORE

from hcalld.captures.events import Event, Events
from hcalld.core.secret import Secret
from hcalld.crypto.locks import Identity, Passphrase, Unlock
from hcallproto.capture import entries as e
from hcallproto.capture.records import Record
from hcallproto.wire import frames as f
from hcallproto.wire.frames import Frame

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

PASSPHRASE = b"correct horse battery"

LINE = re.compile(r"(\S+) cpu(\d+) #(\d+) (\S+?)\(.* = (\S+)")


def calls_of(lines: list[str]) -> collections.Counter[tuple[str, ...]]:
    """Guest, vCPU, sequence number, call and return code of each line."""
    found = (LINE.search(line) for line in lines)
    return collections.Counter(match.groups() for match in found if match)


def decode(path: Path, *words: str) -> list[str]:
    done = run_hcalld("decode", *words, str(path))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# -- with secrets -------------------------------------------------------------------------------


def passphrase_file(tmp_path: Path) -> Path:
    path = tmp_path / "capture.pass"
    path.write_bytes(PASSPHRASE)
    path.chmod(0o600)
    return path


def opened(path: Path, unlock: Unlock) -> tuple[list[Event], Events]:
    events = Events([path.read_bytes()], unlock)
    found = list(events)
    assert events.problems == events.remarks == []
    return found, events


def test_a_capture_with_secrets_has_all_that_a_replay_needs(lab: Lab, tmp_path: Path) -> None:
    path = lab.artifacts / "capture.pcapng"
    how = f"passphrase-file:{passphrase_file(tmp_path)}"
    daemon = lab.daemon("--capture", str(path), "--capture-secrets", how)
    # What is read of shared RAM is in no frame.
    lab.stub(KEYSTORE, daemon, memory="shared").report().must_pass("pks_object", "pks_user")
    daemon.terminate()
    assert path.stat().st_mode & 0o777 == 0o600
    # To who has no key it is a capture like others.
    traced = calls_of(daemon.trace_lines())
    assert calls_of(decode(path)) == traced
    assert len(tshark.read(lab, path, ("hcall.ret",))) > 2 * traced.total()
    copy = lab.artifacts / "copy.pcapng"
    for tool, *more in (("capinfos",), ("editcap", copy)):
        subprocess.run([lab.require(tool), path, *more], check=True, capture_output=True)
    # To who has it, it is whole, and so is a copy.
    found, events = opened(path, Passphrase(Secret(PASSPHRASE)))
    assert events.inexact == {}
    assert not any(event.is_blanked for event in found)
    assert [one.what for one in opened(copy, Passphrase(Secret(PASSPHRASE)))[0]] == [
        event.what for event in found
    ]
    (state,) = [event.what for event in found if isinstance(event.what, e.State)]
    assert (state.partition, state.is_begin, state.problem) == ("default", True, "")
    asked = {event.what.effect for event in found if isinstance(event.what, e.Answer)}
    assert asked >= {e.EffectKind.ENTROPY, e.EffectKind.FLUSH, e.EffectKind.READ_RAM}
    # What is blanked is not in the file for others; tests/integration/test_secrets.py searches all.
    content = path.read_bytes()
    shown = [one.what for one in Events([content]) if not isinstance(one.what, Record)]
    whole = [one.what for one in found if isinstance(one.what, Frame)]
    hidden = [
        write.data
        for blanked, frame in zip(shown, whole, strict=True)
        if isinstance(frame, f.Reply) and blanked != frame
        for write in frame.writes
        if write.data is not None and len(set(write.data)) > 64
    ]
    assert len(hidden) > 10
    assert not any(data[-32:] in content for data in hidden)


def test_secrets_are_captured_from_the_middle_of_a_connection(lab: Lab, tmp_path: Path) -> None:
    path = lab.artifacts / "capture.pcapng"
    daemon = lab.daemon()
    machine = call_and_call(lab, daemon)
    private = X25519PrivateKey.generate()
    public = tmp_path / "public.pem"
    pem = (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    public.write_bytes(private.public_key().public_bytes(*pem))
    ctl(daemon, "start", "--secrets", f"recipient:{public}", str(path))
    wait_for_frames(daemon)
    assert ", 0 of them dropped" in ctl(daemon, "stop")
    machine.close()
    found, events = opened(path, Identity(private))
    (state,) = [event.what for event in found if isinstance(event.what, e.State)]
    assert not state.is_begin
    assert bool(state.problem) == bool(state.waiting) == bool(events.inexact)
    assert any(record.namespace == "pks" for record in state.records)
    for words, why in (
        (("--secrets", "passphrase:"), "expected passphrase-file:PATH or recipient:FILE"),
        (("--secrets", f"passphrase-file:{tmp_path / 'none'}"), "no such passphrase file"),
    ):
        done = run_hcalld(
            *("ctl", "capture", "start", *words, str(path)), "--state-dir", str(daemon.state_dir)
        )
        assert done.returncode != 0
        assert why in done.stderr


def call_and_call(lab: Lab, daemon: Daemon) -> Machine:
    """A guest that calls for as long as it runs; two CPUs, for one that waits takes all of one."""
    machine = lab.stub(CALLING, daemon, smp=2)
    machine.console.expect("= soak")
    return machine


def wait_for_frames(daemon: Daemon) -> None:
    """Waits until 30 calls are captured: by the trace, for a command takes a processor's time."""
    wanted = len(daemon.trace_lines()) + 30
    wait_until(lambda: len(daemon.trace_lines()) >= wanted, "some calls")
    assert int(ctl(daemon, "show").split()[1]) > 50


def ctl(daemon: Daemon, *words: str) -> str:
    done = run_hcalld("ctl", "capture", *words, "--state-dir", str(daemon.state_dir))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_capture_is_started_and_stopped_while_a_guest_runs(lab: Lab) -> None:
    path = lab.artifacts / "capture.pcapng"
    daemon = lab.daemon()
    call_and_call(lab, daemon)
    assert "no capture goes on" in ctl(daemon, "show")
    assert str(path) in ctl(daemon, "start", str(path))
    wait_for_frames(daemon)
    done = run_hcalld("ctl", "capture", "start", str(path), "--state-dir", str(daemon.state_dir))
    assert "a capture goes on already" in done.stderr
    assert ", 0 of them dropped" in ctl(daemon, "stop")
    size = path.stat().st_size
    captured, traced = calls_of(decode(path)), calls_of(daemon.trace_lines())
    assert sum(captured.values()) > 20
    assert captured <= traced
    # Those that waited for their replies at the end are there, too.
    sequence = sorted(json.loads(line)["seq"] for line in decode(path, "--json"))
    assert sequence == list(range(sequence[0], sequence[-1] + 1)), "none is missing"
    count = len(daemon.trace_lines())
    wait_until(lambda: len(daemon.trace_lines()) > count, "calls after the capture")
    assert calls_of(daemon.trace_lines()) > traced
    assert path.stat().st_size == size


def test_a_capture_that_cannot_be_written_ends_the_daemon(lab: Lab) -> None:
    daemon = lab.daemon("--capture", "/dev/full", is_started=False)
    daemon.start()
    lab.stub(CALLING, daemon, smp=2)
    wait_until(lambda: not daemon.is_alive, "the daemon's end")
    assert "/dev/full: the capture cannot be written: No space left" in daemon.log_text()
