# SPDX-License-Identifier: Apache-2.0
"""Captures of real guests of each family, read by Wireshark with no more than the Lua file."""

from __future__ import annotations

import collections
import re
import subprocess
from pathlib import Path

import pytest
from tests.e2e.daemon import Daemon, run_hcalld
from tests.e2e.lab import Lab
from tests.e2e.secure import SecureLab

from hcallproto.capture import DISSECTOR

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(400)]

SECRET = bytes((7 * n + 3) & 0xFF for n in range(150))
"""What ``guest_stub/tests/secure_files.c`` expects in its blob; only secure VMs may see it."""

LINE = re.compile(r"cpu(\d+) #(\d+) (\S+?)\(.* = ([HU]_\w+|\S+)")


def tshark(lab: Lab, path: Path, only: str, *fields: str) -> list[tuple[str, ...]]:
    """Fields of the frames that a display filter finds."""
    words = [word for field in fields for word in ("-e", field)]
    done = subprocess.run(
        [
            *(lab.require("tshark"), "-2", "-r", path, "-X", f"lua_script:{DISSECTOR}"),
            *("-Y", only, "-T", "fields", *words),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Lua" not in done.stdout + done.stderr
    return [tuple(line.split("\t")) for line in done.stdout.splitlines()]


def must_say_what_the_trace_says(lab: Lab, path: Path, daemon: Daemon) -> None:
    """Each answered call: vCPU, number, name, return code."""
    found = (LINE.search(line) for line in daemon.trace_lines())
    traced = collections.Counter(match.groups() for match in found if match)
    decoded = run_hcalld("decode", str(path))
    assert decoded.returncode == 0, decoded.stderr
    found = (LINE.search(line) for line in decoded.stdout.splitlines())
    assert collections.Counter(match.groups() for match in found if match) == traced
    # In one go: Wireshark takes a while to run Lua over thousands of frames.
    rows = tshark(lab, path, "hcall.ret", "hcall.name", "frame.number", "hcall.call", "hcall.time")
    assert rows
    names = collections.Counter(row[0] for row in rows)
    assert names == collections.Counter(key[2] for key in traced.elements())
    # Each reply has a call before it, and knows how long it took.
    assert all(int(call) < int(number) and float(time) >= 0 for _, number, call, time in rows)
    assert tshark(lab, path, "hcalld.rest or _ws.malformed or _ws.lua", "frame.number") == []


def must_be_read_by_tools(lab: Lab, path: Path) -> None:
    """Copies, two in one, and in another order."""
    copies = [lab.artifacts / f"{name}.pcapng" for name in ("copy", "merged", "ordered")]
    for words in (
        (lab.require("capinfos"), path),
        (lab.require("editcap"), path, copies[0]),
        (lab.require("mergecap"), "-w", copies[1], path, copies[0]),
        (lab.require("reordercap"), path, copies[2]),
    ):
        subprocess.run(words, check=True, capture_output=True)
    lines = run_hcalld("decode", str(path)).stdout
    assert run_hcalld("decode", str(copies[0])).stdout == lines
    assert run_hcalld("decode", str(copies[2])).stdout == lines
    assert run_hcalld("diff", str(path), str(copies[2])).returncode == 0


def test_the_keystore(lab: Lab) -> None:
    path = lab.artifacts / "pks.pcapng"
    daemon = lab.daemon("--capture", str(path))
    lab.stub("pks pks=1 require=1", daemon, memory="private").report().must_pass("pks_object")
    assert daemon.terminate() == 0
    must_say_what_the_trace_says(lab, path, daemon)
    must_be_read_by_tools(lab, path)
    only = "pks.label or hcall.ret == -7 or hcall.refused"
    fields = ("pks.label", "hcall.ret", "hcall.ret_name", "hcall.reason", "frame.comment")
    rows = tshark(lab, path, only, *fields)
    assert any(row[0] for row in rows)
    refused = [row for row in rows if row[1] == "-7"]
    assert {row[2] for row in refused} == {"H_NOT_FOUND"}
    assert all(row[3] for row in refused)
    assert any(row[4] for row in refused)


def test_a_tpm(lab: Lab) -> None:
    path = lab.artifacts / "tpm.pcapng"
    profiles = lab.artifacts / "profiles"
    profiles.mkdir()
    program = lab.require("swtpm")
    (profiles / "default.toml").write_text(f'[tpm]\nbackend = "swtpm"\nprogram = "{program}"\n')
    daemon = lab.daemon("--profile-dir", str(profiles), "--capture", str(path))
    lab.stub("tpm require=1", daemon, memory="private").report().must_pass("tpm_random")
    assert daemon.terminate() == 0
    must_say_what_the_trace_says(lab, path, daemon)
    must_be_read_by_tools(lab, path)
    get_random = "tpm.req.cc == 0x17b"
    assert tshark(lab, path, get_random, "hcall.name")
    answers = tshark(lab, path, "tpm.resp.rc == 0", "hcall.name", "hcall.blanked")
    assert {row[0] for row in answers} == {"H_TPM_COMM"}
    assert {row[1] for row in answers if row[1]} == {"1"}, "what is behind the header is blanked"


def test_a_secure_vm(lab: Lab) -> None:
    """UV_* and H_SVM_*, those of QEMU itself, and a secret that comes in registers."""
    path = lab.artifacts / "svm.pcapng"
    secure = SecureLab(lab, "page_shift = 12\nsecure_memory_mib = 16\n", "--capture", str(path))
    machine = secure.stub(
        "secure_memory secure_calls secure_files esm=1 require=1", attached={"rootd": SECRET}
    )
    machine.report().must_pass("secure_memory", "secure_calls", "secure_files")
    assert secure.daemon.terminate() == 0
    must_say_what_the_trace_says(lab, path, secure.daemon)
    must_be_read_by_tools(lab, path)
    families = {row[0] for row in tshark(lab, path, "hcall.nr", "hcall.family")}
    assert {"uv", "svm"} <= families
    names = {row[0] for row in tshark(lab, path, "hcall.ret", "hcall.name")}
    assert {"UV_ESM", "UV_ESMB_GET_FILE", "H_SVM_INIT_START", "H_SVM_PAGE_IN"} <= names
    assert not {name for name in names if name.startswith("call 0x")}
    codes = tshark(lab, path, 'hcall.name == "UV_SHARE_PAGE"', "hcall.ret_name")
    assert "U_SUCCESS" in {row[0] for row in codes}
    for gpa in range(0, len(SECRET) - 8, 8):
        assert SECRET[gpa : gpa + 8] not in path.read_bytes(), "a piece of the blob's file"
