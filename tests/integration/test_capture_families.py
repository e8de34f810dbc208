# SPDX-License-Identifier: Apache-2.0
"""Captures of real guests of each family, read by Wireshark with no more than the Lua file."""

from __future__ import annotations

import collections
import json
import re
import subprocess
from pathlib import Path
from typing import Final

import pytest
from tests.e2e import tshark
from tests.e2e.daemon import Daemon, run_hcalld
from tests.e2e.lab import Lab
from tests.e2e.secure import SecureLab
from tests.e2e.stubwords import KEYSTORE
from tests.e2e.tshark import Row

from hcallproto.abi.families import pks

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(400)]

SECRET = bytes((7 * n + 3) & 0xFF for n in range(150))
"""What ``guest_stub/tests/secure_files.c`` expects in its blob; only secure VMs may see it."""

LINE: Final = re.compile(r"(\S+) cpu(\d+) #(\d+) (\S+?)\(.* = ([HU]_\w+|\S+)")
NOT_FOUND: Final = "H_NOT_FOUND"
GET_RANDOM: Final = 0x17B


REPLY: Final = ("hcall.ret", "hcall.name", "frame.number", "hcall.call", "hcall.time")


def decode(path: Path, *words: str) -> list[str]:
    """What ``hcalld decode`` prints."""
    done = run_hcalld("decode", *words, str(path))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def calls_of(lines: list[str]) -> collections.Counter[tuple[str, ...]]:
    """Each answered call: guest, vCPU, number, name, return code."""
    found = (LINE.search(line) for line in lines)
    return collections.Counter(match.groups() for match in found if match)


def replies_of(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["hcall.ret"]]


def must_say_what_the_trace_says(decoded: list[str], rows: list[Row], daemon: Daemon) -> None:
    """Of each call, in our own reader and in Wireshark."""
    traced = calls_of(daemon.trace_lines())
    assert calls_of(decoded) == traced
    replies = replies_of(rows)
    names = collections.Counter(row["hcall.name"] for row in replies)
    assert names == collections.Counter(key[3] for key in traced.elements())
    # Each reply has a call before it, and knows how long it took.
    for row in replies:
        assert int(row["hcall.call"]) < int(row["frame.number"])
        assert float(row["hcall.time"]) >= 0


def must_be_read_by_tools(lab: Lab, path: Path, decoded: list[str]) -> None:
    """Copies, two in one, and in another order."""
    copies = [lab.artifacts / f"{name}.pcapng" for name in ("copy", "merged", "ordered")]
    for words in (
        (lab.require("capinfos"), path),
        (lab.require("editcap"), path, copies[0]),
        (lab.require("mergecap"), "-w", copies[1], path, copies[0]),
        (lab.require("reordercap"), path, copies[2]),
    ):
        subprocess.run(words, check=True, capture_output=True)
    assert decode(copies[0]) == decoded
    assert decode(copies[2]) == decoded
    assert run_hcalld("diff", str(path), str(copies[2])).returncode == 0


def test_the_keystore(lab: Lab) -> None:
    path = lab.artifacts / "pks.pcapng"
    daemon = lab.daemon("--capture", str(path))
    # What is asked for is in frames.
    machine = lab.stub(KEYSTORE, daemon, memory="private")
    machine.report().must_pass("pks_object", "pks_user", "pks_password")
    assert daemon.terminate() == 0
    decoded = decode(path)
    fields = ("pks.label", "pks.data.bytes", "hcall.ret_name", "hcall.reason", "frame.comment")
    rows = tshark.read(lab, path, (*REPLY, *fields))
    must_say_what_the_trace_says(decoded, rows, daemon)
    must_be_read_by_tools(lab, path, decoded)
    traced = calls_of(daemon.trace_lines())
    assert {hcall.name for hcall in pks.FAMILY.calls} <= {key[3] for key in traced}
    assert any(row["pks.label"] for row in rows)
    shown = collections.Counter(
        (row["hcall.name"], row["hcall.ret_name"]) for row in replies_of(rows)
    )
    assert shown == collections.Counter(key[3:] for key in traced.elements())
    # Refusals have their reasons, in all three places.
    reasons = [line.partition(" -- ")[2] for line in daemon.trace_lines() if NOT_FOUND in line]
    selected = [line.partition(" -- ")[2] for line in decode(path, "--return", NOT_FOUND)]
    refused = [row for row in rows if row["hcall.ret"] == "-7"]
    assert {row["hcall.ret_name"] for row in refused} == {NOT_FOUND}
    assert all(reasons)
    assert sorted(reasons) == sorted(selected) == sorted(row["hcall.reason"] for row in refused)
    assert any(row["frame.comment"] for row in refused)
    must_have_no_secret(path, rows)


def must_have_no_secret(path: Path, rows: list[Row]) -> None:
    """Neither passwords nor what objects hold."""
    written = [json.loads(line) for line in decode(path, "--json", "--call", "write_object")]
    assert written
    assert all("data" not in json.dumps(one["args"].get("auth", "")) for one in written)
    data = [row["pks.data.bytes"] for row in rows if row["pks.data.bytes"]]
    assert data
    assert set("".join(data)) <= set("0,")


def test_a_tpm(lab: Lab) -> None:
    path = lab.artifacts / "tpm.pcapng"
    profiles = lab.artifacts / "profiles"
    profiles.mkdir()
    program = lab.require("swtpm")
    (profiles / "default.toml").write_text(f'[tpm]\nbackend = "swtpm"\nprogram = "{program}"\n')
    daemon = lab.daemon("--profile-dir", str(profiles), "--capture", str(path))
    lab.stub("tpm require=1", daemon, memory="private").report().must_pass("tpm_random")
    assert daemon.terminate() == 0
    decoded = decode(path)
    fields = ("tpm.req.cc", "tpm.resp.rc", "hcall.blanked")
    rows = tshark.read(lab, path, (*REPLY, *fields), passes=2)
    must_say_what_the_trace_says(decoded, rows, daemon)
    must_be_read_by_tools(lab, path, decoded)
    assert GET_RANDOM in {int(row["tpm.req.cc"], 16) for row in rows if row["tpm.req.cc"]}
    answers = [row for row in rows if row["tpm.resp.rc"] and not int(row["tpm.resp.rc"], 16)]
    assert {row["hcall.name"] for row in answers} == {"H_TPM_COMM"}
    blanked = {row["hcall.blanked"] for row in answers if row["hcall.blanked"]}
    assert blanked == {"1"}, "what is behind the header is blanked"


def test_a_secure_vm(lab: Lab) -> None:
    """UV_* and H_SVM_*, those of QEMU itself, and a secret that comes in registers."""
    path = lab.artifacts / "svm.pcapng"
    secure = SecureLab(lab, "page_shift = 12\nsecure_memory_mib = 16\n", "--capture", str(path))
    machine = secure.stub(
        "secure_memory secure_calls secure_files esm=1 require=1", attached={"rootd": SECRET}
    )
    machine.report().must_pass("secure_memory", "secure_calls", "secure_files")
    assert secure.daemon.terminate() == 0
    decoded = decode(path)
    fields = ("hcall.nr", "hcall.family", "hcall.ret_name")
    rows = tshark.read(lab, path, (*REPLY, *fields), passes=2)
    must_say_what_the_trace_says(decoded, rows, secure.daemon)
    must_be_read_by_tools(lab, path, decoded)
    assert {"uv", "svm"} <= {row["hcall.family"] for row in rows if row["hcall.nr"]}
    names = {row["hcall.name"] for row in replies_of(rows)}
    assert {"UV_ESM", "UV_ESMB_GET_FILE", "H_SVM_INIT_START", "H_SVM_PAGE_IN"} <= names
    assert not {name for name in names if name.startswith("call 0x")}
    codes = {row["hcall.ret_name"] for row in rows if row["hcall.name"] == "UV_SHARE_PAGE"}
    assert "U_SUCCESS" in codes
    content = path.read_bytes()
    for gpa in range(0, len(SECRET) - 8, 8):
        assert SECRET[gpa : gpa + 8] not in content, "a piece of the blob's file"
