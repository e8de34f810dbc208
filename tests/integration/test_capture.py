# SPDX-License-Identifier: Apache-2.0
"""Captures of real guests: what the trace said is in them, and Wireshark reads them."""

from __future__ import annotations

import collections
import json
import re
import subprocess
from pathlib import Path

import pytest
from tests.e2e.daemon import Daemon, run_hcalld
from tests.e2e.lab import Lab
from tests.e2e.patience import wait_until

import hcallproto.capture

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

LUA = Path(hcallproto.capture.__file__).with_name("hcalld.lua")
EVERYTHING = "self dt pks pks=1 require=1"

CALLING = "soak pks=1 seconds=600 pause-ms=5"
"""A guest that calls and calls."""

LINE = re.compile(r"(\S+) cpu(\d+) #(\d+) (\S+?)\(.* = (\S+)")


def calls_of(lines: list[str]) -> collections.Counter[tuple[str, ...]]:
    """Guest, vCPU, sequence number, call and return code of each line."""
    found = (LINE.search(line) for line in lines)
    return collections.Counter(match.groups() for match in found if match)


def decode(path: Path, *words: str) -> list[str]:
    done = run_hcalld("decode", *words, str(path))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def tshark(lab: Lab, path: Path, *words: str) -> list[list[str]]:
    done = subprocess.run(
        [lab.require("tshark"), "-2", "-r", path, "-X", f"lua_script:{LUA}", *words],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Lua" not in done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


@pytest.mark.parametrize("memory", ["shared", "private"])
def test_a_capture_says_what_the_trace_says(memory: str, lab: Lab) -> None:
    path = lab.artifacts / "capture.pcapng"
    daemon = lab.daemon("--capture", str(path))
    lab.stub(EVERYTHING, daemon, memory=memory).report().must_pass("pks_object", "pks_user")
    daemon.terminate()
    traced = calls_of(daemon.trace_lines())
    assert len(traced) > 100
    assert calls_of(decode(path)) == traced
    refused = [line for line in daemon.trace_lines() if "H_NOT_FOUND" in line]
    reasons = [line.partition(" -- ")[2] for line in decode(path, "--return", "H_NOT_FOUND")]
    assert sorted(reasons) == sorted(line.partition(" -- ")[2] for line in refused)
    shown = tshark(
        lab, path, "-Y", "hcall.ret", "-T", "fields", "-e", "hcall.name", "-e", "hcall.ret_name"
    )
    assert collections.Counter(map(tuple, shown)) == collections.Counter(
        call[3:] for call in traced.elements()
    )
    assert tshark(lab, path, "-Y", "hcalld.rest or _ws.malformed") == []
    copy = lab.artifacts / "copy.pcapng"
    for tool, *more in (("capinfos",), ("editcap", copy)):
        subprocess.run([lab.require(tool), path, *more], check=True, capture_output=True)
    assert calls_of(decode(copy)) == traced


def test_no_secret_is_in_a_capture(lab: Lab) -> None:
    path = lab.artifacts / "capture.pcapng"
    daemon = lab.daemon("--capture", str(path))
    lab.stub("pks pks=1 require=1", daemon, memory="private").report().must_pass("pks_password")
    daemon.terminate()
    written = [json.loads(line) for line in decode(path, "--json", "--call", "write_object")]
    assert written
    assert all("data" not in json.dumps(one["args"].get("auth", "")) for one in written)
    frames = tshark(lab, path, "-Y", "pks.data.bytes", "-T", "fields", "-e", "pks.data.bytes")
    assert frames
    assert {byte for (data,) in frames for byte in data} <= set("0,")


def ctl(daemon: Daemon, *words: str) -> str:
    done = run_hcalld("ctl", "capture", *words, "--state-dir", str(daemon.state_dir))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_capture_is_started_and_stopped_while_a_guest_runs(lab: Lab) -> None:
    path = lab.artifacts / "capture.pcapng"
    daemon = lab.daemon()
    lab.stub(CALLING, daemon).console.expect("= soak")
    assert "no capture goes on" in ctl(daemon, "show")
    assert str(path) in ctl(daemon, "start", str(path))
    wait_until(lambda: int(ctl(daemon, "show").split()[1]) > 50, "some frames")
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
    wait_until(lambda: calls_of(daemon.trace_lines()) > traced, "calls after the capture")
    assert path.stat().st_size == size


def test_a_capture_that_cannot_be_written_ends_the_daemon(lab: Lab) -> None:
    daemon = lab.daemon("--capture", "/dev/full", is_started=False)
    daemon.start()
    lab.stub(CALLING, daemon)
    wait_until(lambda: not daemon.is_alive, "the daemon's end")
    assert "/dev/full: the capture cannot be written: No space left" in daemon.log_text()
