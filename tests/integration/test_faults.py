# SPDX-License-Identifier: Apache-2.0
"""Faults on purpose with the real QEMU: its deadline, its reconnection, its memory."""

from __future__ import annotations

import re

import pytest
from tests.e2e.daemon import Daemon, run_hcalld
from tests.e2e.lab import Lab
from tests.e2e.machine import Machine

from hcallproto.abi.families import pks
from hcallproto.abi.returns import H

pytestmark = pytest.mark.qemu

NUMBER = pks.GET_CONFIG.number
HOLD = f"hold number={NUMBER} gap-ms=60000 run-ms=0"
"""The stub's CPU 0 makes one call, which succeeds; the others run on."""


def start(lab: Lab, rules: str, *options: str) -> Daemon:
    """A daemon with rules from the start."""
    file = lab.artifacts / "faults.toml"
    file.write_text(rules, "utf-8")
    return lab.daemon("--faults", str(file), *options)


def rule(what: str, call: str = pks.GET_CONFIG.name) -> str:
    """A rule for one call."""
    return f'[[fault]]\ncall = "{call}"\ntimes = 1\n{what}\n'


def code_of(machine: Machine) -> int:
    """What the guest was told."""
    machine.report().must_pass("hold")
    found = re.search(r"# hold number=0x\w+ code=(-?\d+)", machine.console.text)
    assert found is not None
    return int(found[1])


def lines(daemon: Daemon, call: str = pks.GET_CONFIG.name) -> list[str]:
    """The trace's lines of a call."""
    return [line for line in daemon.trace_lines() if f" {call}(" in line]


@pytest.mark.parametrize(
    ("what", "code", "note"),
    [
        ('return = "H_AUTHORITY"', H.AUTHORITY, "return H_AUTHORITY"),
        ("return = -4711", -4711, "return -4711"),
        ("delay_ms = 300", H.SUCCESS, "delay 300 ms"),
    ],
)
def test_answers(what: str, code: int, note: str, lab: Lab) -> None:
    capture = lab.artifacts / "all.pcapng"
    daemon = start(lab, rule(what), "--capture", str(capture))
    assert code_of(lab.stub(HOLD, daemon)) == code
    (line,) = lines(daemon)
    assert f"fault 1: {note}" in line
    assert f"fault='fault 1: {note}'" in daemon.log_text()
    daemon.close()
    read = run_hcalld("decode", str(capture))
    assert f"fault 1: {note}" in read.stdout, read.stderr


@pytest.mark.parametrize(
    ("what", "note"),
    [
        ("drop_reply = true", "no reply"),
        ("delay_ms = 60000", "delay 60000 ms"),
    ],
)
def test_what_is_late_meets_the_deadline(what: str, note: str, lab: Lab) -> None:
    profiles = lab.artifacts / "profiles"
    profiles.mkdir()
    (profiles / "default.toml").write_text("[hcalld]\ndeadline_ms = 300\n")
    daemon = start(lab, rule(what), "--profile-dir", str(profiles))
    assert code_of(lab.stub(HOLD, daemon)) == pks.GET_CONFIG.timeout_code
    (line,) = lines(daemon)
    assert f"fault 1: {note}" in line
    assert "call cancelled by the shim" in daemon.log_text()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_connection_that_breaks_comes_back(when: str, lab: Lab) -> None:
    daemon = start(lab, rule(f'close = "{when}"'))
    assert code_of(lab.stub(HOLD, daemon)) == H.SUCCESS
    assert daemon.log_text().count("guest connected") == 2
    assert f"fault 1: close {when}" in daemon.log_text()
    # The call changed nothing, so it has no record, and is carried out again.
    assert len(lines(daemon)) == (1 if when == "before" else 2)


def test_nothing_is_done_twice_or_not_at_all(lab: Lab) -> None:
    """Connections break around calls that change the store, and the guest notices nothing."""
    rules = [
        rule('close = "after"\nafter = 1', pks.WRITE_OBJECT.name),
        rule('close = "before"', pks.WRITE_OBJECT.name),
        rule('close = "after"', pks.GEN_PASSWORD.name),
        rule('close = "after"', pks.CONFIRM_OBJECT_FLUSHED.name),
        rule("delay_ms = 100", pks.CONFIRM_OBJECT_FLUSHED.name),
    ]
    daemon = start(lab, "".join(rules))
    lab.stub("persist-write seed=7 require=1", daemon).report().must_pass("persist-write")
    lab.stub("persist-check seed=7 clean=1 require=1", daemon).report().must_pass("persist-check")
    assert daemon.log_text().count("guest connected") == 2 + 4
    replayed = [line for line in daemon.trace_lines() if "recorded reply" in line]
    assert sorted({re.search(r" (H_\w+)\(", line)[1] for line in replayed}) == [  # type: ignore[index]
        "H_PKS_GEN_PASSWORD",
        "H_PKS_WRITE_OBJECT",
    ]


def test_corrupt_bytes_arrive(lab: Lab) -> None:
    """Of the configuration, the keystore's size; the stub finds it out."""
    daemon = start(lab, '[[fault]]\ncall = "H_PKS_GET_CONFIG"\n' + CORRUPT)
    report = lab.stub("pks_config kbytes=64 require=1", daemon).report()
    assert report.status == 1
    assert any(line.startswith("pks_config: not ok") for line in report.failures())
    assert all("fault 1: corrupt buffer" in line for line in lines(daemon))


CORRUPT = 'corrupt = { name = "buffer", offset = 13, bits = 1 }\n'


def test_a_full_store_and_a_bad_disk_are_told_and_pass(lab: Lab) -> None:
    """The stub's check fails where the store fails; the next boot finds all as it should be."""
    rules = rule('gone = "space"', pks.WRITE_OBJECT.name)
    rules += rule('gone = "disk"', pks.CONFIRM_OBJECT_FLUSHED.name)
    daemon = start(lab, rules)
    assert lab.stub("persist-write seed=7 require=1", daemon).report().status == 1
    (refused,) = [line for line in daemon.trace_lines() if "No space left on device" in line]
    assert f"= H_{pks.WRITE_OBJECT.timeout_code.name} " in refused
    lab.stub("persist-write seed=8 require=1", daemon, name="other").report()
    (failed,) = [line for line in daemon.trace_lines() if "Input/output error" in line]
    assert "= H_ABORTED " in failed
    lab.stub("persist-write seed=9 require=1", daemon, name="third").report().must_pass(
        "persist-write"
    )
