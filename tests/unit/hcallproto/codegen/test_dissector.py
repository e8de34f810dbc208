# SPDX-License-Identifier: Apache-2.0
"""The generated Wireshark dissector, judged by tshark."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.hcallproto.capture.sample import read_of_db

from hcallproto.abi.families import pks, sev, tpm, uv
from hcallproto.abi.registry import CALLS, FAMILY_OF
from hcallproto.abi.returns import CODE_SETS, Code, H, SevCode, code_name
from hcallproto.abi.spec import Direction, Hcall
from hcallproto.abi.verdicts import Verdict, verdict
from hcallproto.capture import pcapng
from hcallproto.codegen.dissector import lua
from hcallproto.payloads.pks import Policy
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.encode import encode

TIME = 1_795_285_506_000_000_000
GETRANDOM = bytes.fromhex("80010000000c0000017b0020")
"""TPM2_GetRandom of 32 bytes."""
RANDOM = bytes.fromhex("800100000010000000000004") + b"\1\2\3\4"


class Tshark:
    """Writes captures and lets tshark print them."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._program = program
        self._capture = folder / "capture.pcapng"
        self._lua = folder / "hcalld.lua"
        self._lua.write_text(lua())

    def frames(self, *frames: f.Frame | bytes) -> None:
        """Write a capture of one guest, a microsecond from frame to frame."""
        parts = [
            pcapng.section("hcalld 0"),
            pcapng.interface(pcapng.LinkType.FRAMES, "lpar7"),
            pcapng.interface(pcapng.LinkType.RECORDS, "lpar7"),
        ]
        for number, frame in enumerate(frames):
            data = frame if isinstance(frame, bytes) else encode(frame)
            parts.append(pcapng.packet(0, TIME + 1000 * number, data))
        parts.append(pcapng.packet(1, TIME, b'{"kind": "start", "version": 1}'))
        self.write(b"".join(parts))

    def write(self, data: bytes) -> None:
        """Write a capture that is there already."""
        self._capture.write_bytes(data)

    def run(self, *options: str, passes: int = 2) -> str:
        command: list[str | Path] = [
            self._program,
            "-r",
            self._capture,
            "-X",
            f"lua_script:{self._lua}",
        ]
        command += ["-2"] * (passes == 2)
        done = subprocess.run(
            (*command, *options), capture_output=True, text=True, errors="replace", check=True
        )
        assert "Lua" not in done.stdout + done.stderr
        assert "Dissector bug" not in done.stdout + done.stderr
        return done.stdout

    def fields(self, *names: str, only: str = "") -> list[tuple[str, ...]]:
        """The values of fields, a row for each frame."""
        words = [word for name in names for word in ("-e", name)]
        text = self.run("-T", "fields", *words, *(("-Y", only) if only else ()))
        return [tuple(line.split("\t")) for line in text.splitlines()]


@pytest.fixture
def tshark(tmp_path: Path, require: Callable[[str], Path]) -> Tshark:
    return Tshark(require("tshark"), tmp_path)


def call(hcall: Hcall, *segments: f.Segment, seq: int = 1, **args: int) -> f.Call:
    values = {arg.register: args.get(arg.name, 0) for arg in hcall.args} | {3: hcall.number}
    gpr = tuple(values.get(register, 0) for register in s.REGISTERS)
    return f.Call(3, 0, seq, False, hcall.level, gpr, 0, 0, 0, 0, segments)


def announce(hcalls: Iterable[Hcall]) -> f.Announce:
    specs = []
    for hcall in hcalls:
        buffers = tuple(
            f.BufferSpec(hcall.arg(one.address).register, s.BufferKind.FIXED, s.Direction.IN, 0, 64)
            for one in hcall.buffers
            if one.direction is Direction.IN
        )
        spec = f.CallSpec(hcall.number, hcall.level, s.Disposition.FORWARD, 0, 1, 0, 0, buffers)
        specs.append(spec)
    return f.Announce(f.Announcement(tuple(specs), ("hcall-pks",), (("ibm,a", b"\2"),)), 1, 0)


def ok(index: int, data: bytes) -> f.Segment:
    return f.Segment(index, 0x1000 * (index + 1), s.SegmentStatus.OK, data)


def test_every_call_and_code_has_its_name(tshark: Tshark):
    frames: list[f.Frame] = [announce(CALLS)]
    expected = []
    for number, hcall in enumerate(CALLS, 1):
        codes: list[Code] = list(hcall.return_codes)
        code = codes[number % len(codes)]
        frames += (call(hcall, seq=number), f.Reply(3, 0, number, code))
        family = FAMILY_OF[hcall.name].name
        expected.append((hcall.name, f"0x{hcall.number:016x}", family, str(hcall.level), ""))
        expected.append((hcall.name, "", family, "", code_name(code)))
    tshark.frames(*frames)
    names = ("hcall.name", "hcall.nr", "hcall.family", "hcall.level", "hcall.ret_name")
    assert tshark.fields(*names, only="hcall") == expected
    known = {code_name(code) for codes in CODE_SETS for code in codes}
    assert known >= {row[4] for row in expected} - {""}


@pytest.mark.parametrize("number", [sev.LAUNCH_MEASURE.number, 0xAEBA_0063])
def test_a_commands_status_is_a_refusal_above_0(tshark: Tshark, number: int):
    """The table may not know the command; its level says how its status is read."""
    hcall = dataclasses.replace(sev.LAUNCH_MEASURE, number=number)
    frames: list[f.Frame] = []
    for seq, code in enumerate((SevCode.SUCCESS, SevCode.INVALID_LEN, SevCode.EINVAL), 1):
        frames += (call(hcall, seq=seq, len=8), f.Reply(3, 0, seq, code, ((5, 48),)))
    tshark.frames(*frames)
    rows = tshark.fields("hcall.ret_name", "_ws.expert.message", only="hcall.ret")
    assert rows == [
        ("SEV_RET_SUCCESS", ""),
        ("SEV_RET_INVALID_LEN", "SEV_RET_INVALID_LEN"),
        ("EINVAL", "EINVAL"),
    ]


def test_refusals_are_those_that_everything_else_counts(tshark: Tshark):
    frames: list[f.Frame] = []
    expected = []
    for hcall in (pks.WRAP_OBJECT, uv.SHARE_PAGE, sev.LAUNCH_MEASURE, sev.PEK_CSR):
        for args in ({}, {arg.name: 8 for arg in hcall.args}, {hcall.args[0].name: 8}):
            for code in hcall.return_codes:
                seq = len(frames)
                made = call(hcall, seq=seq, **args)
                frames += (made, f.Reply(3, 0, seq, code))
                if verdict(code, type(code), hcall, made.by_number()) is Verdict.REFUSED:
                    expected.append((str(seq), code_name(code)))
    tshark.frames(*frames)
    rows = tshark.fields("hcall.call", "_ws.expert.message", only="hcall.refused")
    assert [(str(int(number) - 1), code) for number, code in rows] == expected


def test_a_commands_fields_are_found(tshark: Tshark):
    start = call(sev.LAUNCH_START, policy=5, dh_uaddr=0x7FFF_0000_1000, dh_len=2084)
    measured = f.WriteSegment(0x7FFF_0000_2000, 48, bytes(range(48)))
    tshark.frames(
        start,
        f.Reply(3, 0, 1, 0, ((4, 7),)),
        call(sev.LAUNCH_MEASURE, seq=2, uaddr=0x7FFF_0000_2000, len=48),
        f.Reply(3, 0, 2, 0, ((5, 48),), (measured,)),
    )
    assert tshark.fields("sev.dh_uaddr.gpa", "sev.dh_len", only="sev.policy == 5") == [
        ("0x00007fff00001000", "2084")
    ]
    assert tshark.fields("frame.number", only="sev.handle == 7") == [("2",)]
    assert tshark.fields("sev.uaddr.bytes", only="sev.uaddr.bytes") == [(bytes(range(48)).hex(),)]


def test_the_list_of_packets_has_no_certificates(tshark: Tshark):
    start = call(sev.LAUNCH_START, ok(0, bytes(range(256))), policy=5, dh_len=256)
    tshark.frames(announce([sev.LAUNCH_START]), start)
    assert tshark.fields("_ws.col.Info")[1] == ("cpu3 CALL KVM_SEV_LAUNCH_START(policy=ES|NODBG)",)
    assert tshark.fields("sev.dh_uaddr.bytes", only="sev.policy") == [(bytes(range(256)).hex(),)]


def test_a_label_that_came_with_its_call_is_shown_and_found(tshark: Tshark):
    read = call(pks.READ_OBJECT, ok(0, bytes(32)), ok(1, b"db\0\xff"), label_size=4)
    tshark.frames(announce([pks.READ_OBJECT]), read, f.Reply(3, 0, 1, H.NOT_FOUND))
    rows = tshark.fields("pks.label", "hcall.ret", "hcall.time", only='pks.label contains "db"')
    assert rows == [(r"db\x00\xff", "", "")]
    assert tshark.fields("hcall.ret", "hcall.time", "hcall.call", only="hcall.ret == -7") == [
        ("-7", "0.000001000", "2")
    ]
    assert tshark.fields("hcall.reply", "hcall.blanked", only="pks.label") == [("3", "1")]
    assert "pks.auth" not in tshark.fields("_ws.col.Info")[1][0]


def test_a_label_that_was_read_during_its_call_is_shown(tshark: Tshark):
    tshark.frames(
        call(pks.READ_OBJECT, auth=0x1000, label=0xF000_0000_0000_2000, label_size=3),
        f.Read(3, 0, 1, 1, ((0x1000, 32), (0x2000, 3))),
        f.ReadReply(3, 0, 1, 1, ((s.AccessStatus.OK, bytes(32)), (s.AccessStatus.OK, b"kek"))),
    )
    assert tshark.fields("frame.number", only='pks.label == "kek"') == [("3",)]


def test_values_are_spelled(tshark: Tshark):
    write = call(pks.WRITE_OBJECT, policy=Policy.WORLDREADABLE | Policy.SIGNEDUPDATE)
    password = call(pks.GEN_PASSWORD, seq=2, consumer=3)
    tshark.frames(write, password)
    assert [row[0] for row in tshark.fields("_ws.col.Info")][:2] == [
        "cpu3 CALL H_PKS_WRITE_OBJECT(policy=SIGNEDUPDATE|WORLDREADABLE)",
        "cpu3 CALL H_PKS_GEN_PASSWORD(consumer=OS)",
    ]


def test_what_a_reply_writes_is_named(tshark: Tshark):
    read = call(pks.READ_OBJECT, out=0x3000, out_size=64)
    writes = (f.WriteSegment(0x3000, 4, b"data"), f.WriteSegment(0x9000, 4096, None))
    pages = (f.PageRange(0x10000, 4096, s.PageState.UNSHARED),)
    reply = f.Reply(3, 0, 1, 0, ((4, 4), (5, 1)), writes, pages=pages)
    tshark.frames(read, reply)
    ((data, rest, size),) = tshark.fields(
        "pks.out", "hcalld.rest", "hcalld.page_range.size", only="hcall.ret == 0"
    )
    assert (data, rest, size) == ("data", "", "4096")


def test_tpm_payloads_are_handed_to_wiresharks_own_dissector(tshark: Tshark):
    tshark.frames(
        announce([tpm.TPM_COMM]),
        call(tpm.TPM_COMM, ok(0, GETRANDOM), operation=1, response=0x3000),
        f.Reply(3, 0, 1, 0, ((4, 16),), (f.WriteSegment(0x3000, 16, RANDOM),)),
        call(tpm.TPM_COMM, ok(0, bytes(12)), seq=2, operation=1),
    )
    assert tshark.fields("frame.number", only="tpm.req.cc == 0x17b") == [("2",)]
    assert tshark.fields("frame.number", only="tpm.resp.rc == 0") == [("3",)]
    assert tshark.fields("frame.number", only="hcall.blanked") == [("4",)]


def test_of_tpm_payloads_that_are_blanked_the_header_is_handed_over(tshark: Tshark):
    blanked = GETRANDOM[:10] + bytes(20), RANDOM[:10] + bytes(6)
    tshark.frames(
        announce([tpm.TPM_COMM]),
        call(tpm.TPM_COMM, ok(0, blanked[0]), operation=1, response=0x3000),
        f.Reply(3, 0, 1, 0, ((4, 16),), (f.WriteSegment(0x3000, 16, blanked[1]),)),
    )
    rows = tshark.fields("frame.number", "hcall.blanked", "_ws.malformed", only="tpm.req.cc==0x17b")
    assert rows == [("2", "1", "")]
    rows = tshark.fields("frame.number", "hcall.blanked", "_ws.malformed", only="tpm.resp.rc == 0")
    assert rows == [("3", "1", "")]


def test_what_is_no_tpm_command_does_not_hide_the_call(tshark: Tshark):
    """Wireshark's dissector fails with what ends too early; the script must not."""
    start = bytes.fromhex("80010000000c000001760001")  # TPM2_StartAuthSession, cut off
    tshark.frames(
        announce([tpm.TPM_COMM]),
        call(tpm.TPM_COMM, ok(0, b"\x80"), operation=1),
        f.Reply(3, 0, 1, H.P3),
        call(tpm.TPM_COMM, ok(0, start), seq=2, operation=1),
        f.Reply(3, 0, 2, 0),
    )
    text = tshark.run("-V")  # which looks for errors of Lua
    assert "TPM2_CC_StartAuthSession" in text
    assert tshark.fields("hcall.reply", only="tpm.request.bytes") == [("3",), ("5",)]


@pytest.mark.parametrize("passes", [1, 2])
def test_the_list_of_packets_names_calls_labels_codes_and_reasons(tshark: Tshark, passes: int):
    """Without a filter Wireshark makes no tree when it first reads a file."""
    tshark.write(bytes(read_of_db().data))
    lines = tshark.run(passes=passes).splitlines()
    assert [re.sub(r".* hcalld \d+ ", "", line) for line in lines[4:]] == [
        'cpu3 CALL H_PKS_READ_OBJECT(label="db\\x00")',
        "cpu3 READ",
        'cpu3 CALL H_PKS_READ_OBJECT(label="db\\x00")',
        "cpu3 READ_REPLY",
        "cpu3 REPLY H_PKS_READ_OBJECT = H_NOT_FOUND -- no object has this label",
        "cpu3 REPLY H_PKS_READ_OBJECT = H_SUCCESS",
    ]
    assert " lpar8 \N{RIGHTWARDS ARROW} hcalld " in lines[6]
    assert " hcalld \N{RIGHTWARDS ARROW} lpar8 " in lines[8]


def test_two_guests_calls_of_the_same_number_are_told_apart(tshark: Tshark):
    tshark.write(bytes(read_of_db().data))
    rows = tshark.fields("hcall.call", "hcall.time", "hcall.stream", only="hcall.ret")
    assert rows == [("7", "0.000002000", "1"), ("5", "0.000005000", "0")]
    assert tshark.fields("hcall.reply", only="hcall.nr") == [("10",), ("9",)]
    assert len(tshark.fields("frame.number", only="hcall.stream == 0")) == 4


def test_refusals_are_noted_with_their_reasons(tshark: Tshark):
    tshark.write(bytes(read_of_db().data))
    rows = tshark.fields(
        "_ws.expert.message", "hcall.reason", "frame.comment", only="hcall.refused"
    )
    reason = "no object has this label"
    # Wireshark makes a message of the comment, too.
    assert rows == [(f"{reason},H_NOT_FOUND: {reason}", reason, reason)]
    expert = tshark.run("-q", "-z", "expert")
    assert re.search(r"1 +Response .*H_NOT_FOUND: no object has this label", expert)


def test_what_is_written_during_a_call_is_named(tshark: Tshark):
    tshark.frames(
        call(pks.READ_OBJECT, out=0x3000, out_size=64),
        f.Write(3, 0, 1, 1, (f.WriteSegment(0x3000, 4, b"data"),)),
    )
    assert tshark.fields("pks.out", only=f"hcalld.type == {s.FrameType.WRITE}") == [("data",)]


def test_calls_before_a_reset_are_understood_by_the_announcement_before(tshark: Tshark):
    label = call(pks.READ_OBJECT, ok(0, bytes(32)), ok(1, b"db"), label_size=2)
    tshark.frames(announce([pks.READ_OBJECT]), announce([]), label)
    assert tshark.fields("pks.label", only="pks.label") == [("db",)]


def every_frame() -> list[f.Frame]:
    """One of each type, with something in every tail."""
    features = s.Feature(1)
    spec = f.CallSpec(0x41C, 1, s.Disposition.ANSWER, 0, 1, -2, -2, ())
    announcement = f.Announcement((spec,), ("hcall-pks",), (("ibm,a", b"\0\2"),))
    access = s.AccessStatus.OK
    page = f.PageRange(0x1000, 0x1000, s.PageState.UNSHARED)
    return [
        f.Hello(1, 1, 1 << 20, features, bytes(16), bytes(16), 0, 1, 1, 0, 12, "vm", "QEMU", 0),
        f.Welcome(1, 1 << 20, features, announcement, 0),
        f.Accept((f.RefusedCall(4, 1, s.RefusedReason.DUPLICATE),), True, 0, 0),
        f.Announce(announcement, 1, 0),
        f.Ram((f.RamRegion(0, 1 << 30),), 0, 0),
        call(uv.SHARE_PAGE),
        f.Read(3, 0, 1, 1, ((0, 4),)),
        f.ReadReply(3, 0, 1, 1, ((access, b"data"),)),
        f.Write(3, 0, 1, 2, (f.WriteSegment(0, 4, b"data"), f.WriteSegment(8, 4, None))),
        f.WriteReply(3, 0, 1, 2, access, 0),
        f.Pages(3, 0, 1, 3, (page,)),
        f.PagesReply(3, 0, 1, 3, access, 0),
        f.Reply(3, 0, 1, 0, ((0, 1), (4, 2), (31, 3)), context=3, nip=4, msr=0, msr_mask=0),
        f.Cancel(3, 0, 2, s.CancelReason.DEADLINE),
        f.Cancelled(3, 0, 2, s.Effect.NONE),
        f.Event(s.EventKind.RESET, s.NO_VCPU, 1, 1),
        f.EventAck(s.EventKind.RESET, 1, 1),
        f.Control(s.ControlAction.TERMINATE, "because", 1),
        f.Goodbye(s.GoodbyeReason.SHUTDOWN, "ended", 1),
        f.ShimGoodbye(s.GoodbyeReason.BREACH, "wrong", 1),
    ]


def test_every_frame_is_understood_to_its_last_byte(tshark: Tshark):
    frames = every_frame()
    assert {type(frame) for frame in frames} == set(f.FRAME_TYPES)
    tshark.frames(*frames)
    rows = tshark.fields("hcalld.type", "hcalld.rest", "_ws.malformed")
    assert rows[:-1] == [(str(f.FRAME_TYPES[type(frame)].value), "", "") for frame in frames]
    assert "because" in tshark.fields("_ws.col.Info")[-4][0]
    described: Any = json.loads(tshark.run("-T", "json", "-Y", "json"))
    assert '"version"' in json.dumps(described).replace("\\", "")


def test_damaged_frames_are_no_errors_of_the_script(tshark: Tshark):
    random_source = random.Random(7)
    damaged = []
    for frame in every_frame():
        data = encode(frame)
        damaged += [data[:size] for size in range(1, len(data), 5)]
        for _ in range(20):
            changed = bytearray(data)
            changed[random_source.randrange(len(data))] = random_source.randrange(256)
            damaged.append(bytes(changed))
    tshark.frames(*damaged)
    assert len(tshark.run().splitlines()) == len(damaged) + 1
