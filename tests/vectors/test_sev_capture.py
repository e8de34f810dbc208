# SPDX-License-Identifier: Apache-2.0
"""What the tools for captures make of commands of SEV, by a capture of them."""

from __future__ import annotations

import collections
import gzip
import json
import re
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner, Result

from hcalld.cli import cli
from hcalld.core.outcome import Outcome
from hcalld.observe.figures import Figures
from hcalld.report.gather import Gathered
from hcallproto.abi.returns import SevCode, code_name
from hcallproto.capture.reading import CaptureReader, exchanges

CAPTURE: Final = Path(__file__).with_name("captures") / "sev.pcapng.gz"


def run(*words: str | Path) -> Result:
    done = CliRunner().invoke(cli, list(map(str, words)))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done


def decode(*words: str) -> list[dict[str, Any]]:
    done = run("decode", "--json", *words, CAPTURE)
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_call_is_a_command_that_the_table_knows():
    calls = decode()
    assert calls == decode("--call", "sev")
    assert {one["level"] for one in calls} == {4}
    assert all(one["call"] for one in calls)
    (start, *_) = decode("--call", "0xaeba0002")
    assert start["call"] == "KVM_SEV_LAUNCH_START"
    assert start["args"]["policy"] == "ES"
    assert start["args"]["dh_uaddr"]["size"] == 2084
    assert start["outputs"] == {"handle": 1}


@pytest.mark.parametrize(
    ("code", "calls"),
    [
        (SevCode.BAD_MEASUREMENT, {"KVM_SEV_RECEIVE_UPDATE_DATA"}),
        (SevCode.INVALID_GUEST_STATE, {"KVM_SEV_LAUNCH_FINISH"}),
        (SevCode.ALREADY_OWNED, {"SEV_PEK_CERT_IMPORT"}),
        (SevCode.EBUSY, set()),
    ],
    ids=lambda one: one.name if isinstance(one, SevCode) else "",
)
def test_calls_are_found_by_their_status(code: SevCode, calls: set[str]):
    found = decode("--return", code_name(code))
    assert {one["call"] for one in found} == calls
    assert {one["status"] for one in found} <= {int(code)}
    by_number = decode("--call", "sev", "--return", str(int(code)))
    assert {one["call"] for one in by_number} >= calls


QUESTIONS: Final = {
    "SEV_PDH_CERT_EXPORT": 2,
    "KVM_SEV_LAUNCH_MEASURE": 2,
    "KVM_SEV_SEND_START": 2,
    "SEV_PEK_CSR": 1,
    "SEV_GET_ID2": 1,
}
"""How often the capture's clients only asked for lengths."""


def test_what_is_refused_has_a_reason_and_what_is_not_has_none():
    refused = decode("--refused")
    assert refused
    assert all(one["status"] and one["reason"] for one in refused)
    seqs = {(one["guest"], one["seq"], one["time_ns"]) for one in refused}
    questions: collections.Counter[str] = collections.Counter()
    for one in decode():
        if (one["guest"], one["seq"], one["time_ns"]) in seqs:
            continue
        if one.get("reason", "").startswith("asked for lengths: "):
            assert one["status"] == SevCode.INVALID_LEN
            questions[one["call"]] += 1
        else:
            assert (one["status"], one.get("reason")) == (0, None)
    assert questions == QUESTIONS


def test_all_that_count_refusals_count_the_same():
    refused = collections.Counter(one["call"] for one in decode("--refused"))
    data = gzip.decompress(CAPTURE.read_bytes())
    reported = {name: one.refused for name, one in Gathered([data]).calls.items() if one.refused}
    figures = Figures().of("sev-1")
    for _, exchange in exchanges(CaptureReader([data])):
        assert exchange.reply is not None
        outcome = Outcome(SevCode(exchange.reply.status), why=exchange.reason)
        figures.answered(exchange.hcall, exchange.call, outcome, 1)
    assert collections.Counter(one.call for one in figures.refusals) == refused == reported
    assert figures.refused_count == refused.total() > 0


def test_a_capture_is_the_same_as_itself_and_not_as_another_run(tmp_path: Path):
    assert run("diff", CAPTURE, CAPTURE).exit_code == 0
    data = bytearray(gzip.decompress(CAPTURE.read_bytes()))
    reply = re.search(rb"HCLP\0\x0a", bytes(data))
    assert reply is not None
    # r3 of the first reply, after the header: another firmware status.
    data[reply.start() + 32 + 7] ^= SevCode.HWERROR_UNSAFE
    other = tmp_path / "other.pcapng"
    other.write_bytes(data)
    done = run("diff", CAPTURE, other)
    assert done.exit_code == 1
    assert "SEV_RET_HWERROR_UNSAFE" in done.stdout


def test_the_report_has_the_commands_and_what_became_of_them(tmp_path: Path):
    page = tmp_path / "page.html"
    assert run("report", CAPTURE, "-o", page).exit_code == 0
    text = page.read_text("utf-8")
    assert "SEV_RET_BAD_MEASUREMENT" in text
    gathered = Gathered([gzip.decompress(CAPTURE.read_bytes())])
    calls = decode()
    by_name = collections.Counter(one["call"] for one in calls)
    assert {name: one.count for name, one in gathered.calls.items()} == by_name
    assert {one.family for one in gathered.calls.values()} == {"sev"}
    refused = sum(one["status"] != 0 for one in calls) - sum(QUESTIONS.values())
    assert sum(one.refused for one in gathered.calls.values()) == refused > 0


def test_the_list_of_calls_has_them():
    done = run("list", "sev", "--json")
    listed = {one["name"]: one for one in json.loads(done.stdout)}
    assert {one["call"] for one in decode()} <= set(listed)
    assert listed["KVM_SEV_LAUNCH_MEASURE"]["number"] == 0xAEBA_0006
    assert listed["KVM_SEV_LAUNCH_MEASURE"]["outputs"] == ["len"]
