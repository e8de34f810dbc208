# SPDX-License-Identifier: Apache-2.0
"""What people read of a call; and that no secret is in it."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcallproto.abi.families import pks, sev, svm, tpm, uv
from hcallproto.abi.registry import CALLS
from hcallproto.abi.returns import H, SevCode, U
from hcallproto.abi.spec import (
    Arg,
    ArgKind,
    Buffer,
    BufferShape,
    Direction,
    Hcall,
    Level,
    Output,
    address,
)
from hcallproto.render import describe_call, render_call

PASSWORD = b"correct horse battery staple 123"
AUTH = struct.pack(">BB12xH", 1, 3, len(PASSWORD)) + PASSWORD
SED = struct.pack(">8sBBB5x", b"sed-opal", 0, 4, 16) + b"/default/pri\0"
CONTEXT = (0, 2, *range(3, 13), 31)


def registers(hcall: Hcall, *args: int, **others: int) -> dict[int, int]:
    gpr = dict.fromkeys(CONTEXT, 0) | {3: hcall.number}
    gpr |= {4 + n: value for n, value in enumerate(args)}
    return gpr | {int(name[1:]): value for name, value in others.items()}


@pytest.mark.parametrize(
    ("hcall", "args", "more", "line"),
    [
        (
            pks.WRITE_OBJECT,
            (0x1000, 0x2000, 29, 0x0800_0000, 0x1F3A40, 64),
            {
                "buffers": {"auth": AUTH, "label": SED, "data": b"d" * 64},
                "status": 0,
                "duration_ns": 63_999,
                "where": "lpar7 cpu0 #12",
            },
            r'lpar7 cpu0 #12 H_PKS_WRITE_OBJECT(auth=OS+32, label="sed-opal"/"/default/pri\0", '
            "policy=WORLDREADABLE, data=@0x1f3a40 64 bytes) = H_SUCCESS 63us",
        ),
        (
            pks.WRITE_OBJECT,
            (0x1000, 0x2000, 29, 0x0A00_0001, 0x1F3A40, 64),
            {"status": -16, "reason": "an object with this label exists"},
            "H_PKS_WRITE_OBJECT(auth=@0x1000, label=@0x2000 29 bytes, "
            "policy=WORLDREADABLE|TRANSIENT|0x1, data=@0x1f3a40 64 bytes) = H_RESOURCE "
            "-- an object with this label exists",
        ),
        (
            pks.READ_OBJECT,
            (0x1000, 0x2000, 10, 0x3000, 16),
            {
                "buffers": {"auth": AUTH, "label": b"SB_VERSION"},
                "status": 0,
                "outputs": {4: 1, 5: 0x0800_0008},
            },
            'H_PKS_READ_OBJECT(auth=OS+32, label="SB_VERSION", out=@0x3000 16 bytes) = H_SUCCESS '
            "size=1 policy=WORLDREADABLE|HVPROVISIONED",
        ),
        (
            pks.READ_OBJECT,
            (0x1000, 0x2000, 10, 0x3000, 16),
            {"buffers": {"auth": None}, "status": H.TOO_BIG, "outputs": {4: 17, 5: 0}},
            "H_PKS_READ_OBJECT(auth=@0x1000 (not readable), label=@0x2000 10 bytes, "
            "out=@0x3000 16 bytes) = H_TOO_BIG size=17",
        ),
        (
            pks.READ_OBJECT,
            (0x1000, 0x2000, 10, 0x3000, 16),
            {"status": H.AUTHORITY, "outputs": {5: 0x0080_0000}},
            "H_PKS_READ_OBJECT(auth=@0x1000, label=@0x2000 10 bytes, out=@0x3000 16 bytes) "
            "= H_AUTHORITY policy=WRAPPINGKEY",
        ),
        (
            pks.GEN_PASSWORD,
            (3, 0, 0x5000, 32),
            {"status": -77},
            "H_PKS_GEN_PASSWORD(consumer=OS, password=@0x5000 32 bytes) = H_IN_USE",
        ),
        (
            pks.GEN_PASSWORD,
            (9, 7, 0x5000, 32),
            {"status": -4},
            "H_PKS_GEN_PASSWORD(consumer=9, reserved=0x7, password=@0x5000 32 bytes) = H_PARAMETER",
        ),
        (
            pks.CONFIRM_OBJECT_FLUSHED,
            (0x1000, 0x2000, 22),
            {"status": H.NOT_FOUND, "outputs": {4: 1}, "duration_ns": 1_250_000},
            "H_PKS_CONFIRM_OBJECT_FLUSHED(auth=@0x1000, label=@0x2000 22 bytes) = H_NOT_FOUND "
            "flushed=1 1.2ms",
        ),
        (
            pks.SIGNED_UPDATE,
            (0x1000, 0x2000, 20, 0x0100_0000, 1, 0x4008, 2141, 0),
            {"status": 9901, "outputs": {4: 0xABC}, "duration_ns": 2_340_000_000},
            "H_PKS_SIGNED_UPDATE(auth=@0x1000, label=@0x2000 20 bytes, policy=SIGNEDUPDATE, "
            "flags=0x1, in=@0x4008 2141 bytes, token=0) = H_LONG_BUSY_ORDER_10_MSEC token=0xabc "
            "2.34s",
        ),
        (
            pks.GET_CONFIG,
            (0x1000, 520),
            {},
            "H_PKS_GET_CONFIG(buffer=@0x1000 520 bytes)",
        ),
        (
            tpm.TPM_COMM,
            (1, 0x1000, 12, 0x1000, 4096),
            {"status": 0, "outputs": {4: 10}},
            "H_TPM_COMM(operation=EXECUTE, request=@0x1000 12 bytes, response=@0x1000 4096 bytes) "
            "= H_SUCCESS response_size=10",
        ),
        (
            tpm.TPM_COMM,
            (2, 0xDEAD, 0xDEAD, 0xDEAD, 0xDEAD),
            {"status": 0},
            "H_TPM_COMM(operation=CLOSE_SESSION) = H_SUCCESS",
        ),
        (
            svm.PAGE_IN,
            (0x10000, 1, 16),
            {"status": -67},
            "H_SVM_PAGE_IN(gpa=0x10000, flags=SHARED, order=16) = H_UNSUPPORTED",
        ),
        (
            svm.RANDOM,
            (),
            {"status": 0, "outputs": {4: 0x1122334455667788}},
            "H_RANDOM() = H_SUCCESS random=8 bytes",
        ),
        (
            uv.ESM,
            (0x400000, 0x1F00000),
            {"status": 0x1F00000, "outputs": {4: 0x400000, 5: 0}},
            "UV_ESM(kernel=0x400000, fdt=@0x1f00000 40 bytes) = 0x1f00000 device tree address "
            "kernel=0x400000 zero=0",
        ),
        (
            uv.ESM,
            (0x400000, 0x1F00000),
            {"status": -4, "outputs": {4: 1, 5: 2}, "reason": "digest of the kernel differs"},
            "UV_ESM(kernel=0x400000, fdt=@0x1f00000 40 bytes) = U_PARAMETER "
            "-- digest of the kernel differs",
        ),
        (
            uv.ESMB_GET_FILE,
            (23, 0x726F6F7464000000),
            {"status": 23, "outputs": dict.fromkeys(range(4, 12), 0x7365637265740000)},
            'UV_ESMB_GET_FILE(offset=23, name="rootd") = 23 bytes data=64 bytes',
        ),
        (
            uv.ESMB_GET_FILE,
            (0, 0x726F6F7464000000),
            {"status": 1, "outputs": dict.fromkeys(range(4, 12), 0x7300000000000000)},
            # Not U_BUSY, whose number is 1.
            'UV_ESMB_GET_FILE(offset=0, name="rootd") = 1 bytes data=64 bytes',
        ),
        (
            uv.ESMB_GET_FILE,
            (23, 0x726F6F7464000000),
            {"status": 0, "outputs": dict.fromkeys(range(4, 12), 0)},
            'UV_ESMB_GET_FILE(offset=23, name="rootd") = U_SUCCESS',
        ),
        (
            uv.RETURN,
            tuple(range(9)),
            {},
            "UV_RETURN(r4=0, r5=0x1, r6=0x2, r7=0x3, r8=0x4, r9=0x5, r10=0x6, r11=0x7, r12=0x8, "
            "result=0, srr1=0, cookie=0)",
        ),
        (
            sev.LAUNCH_START,
            (0, 0x3701_0005, 0x7FFF_0000_1000, 2084, 0, 0),
            {"status": 0, "outputs": {4: 7}, "where": "sev-1 cpu0 #3"},
            "sev-1 cpu0 #3 KVM_SEV_LAUNCH_START(handle=0, policy=NODBG|ES|0x37010000, "
            "dh_uaddr=@0x7fff00001000 2084 bytes, session_uaddr=@0x0 0 bytes) = SEV_RET_SUCCESS "
            "handle=7",
        ),
        (
            sev.LAUNCH_MEASURE,
            (0, 0),
            {"status": SevCode.INVALID_LEN, "outputs": {5: 48}},
            "KVM_SEV_LAUNCH_MEASURE(uaddr=@0x0 0 bytes) = SEV_RET_INVALID_LEN len=48",
        ),
        (
            sev.LAUNCH_MEASURE,
            (0x1000, 47),
            {"status": SevCode.EFAULT, "outputs": {5: 48}, "reason": "not memory"},
            "KVM_SEV_LAUNCH_MEASURE(uaddr=@0x1000 47 bytes) = EFAULT -- not memory",
        ),
        (
            sev.PLATFORM_STATUS,
            (1, 2, 3),
            {"status": 0, "outputs": {4: 1, 5: 55, 6: 2, 7: 0x101, 8: 21, 9: 1}},
            "SEV_PLATFORM_STATUS() = SEV_RET_SUCCESS api_major=1 api_minor=55 state=WORKING "
            "flags=OWNER|CONFIG_ES build=21 guest_count=1",
        ),
        (
            sev.GET_ID,
            (0x1000,),
            {"status": 25},
            "SEV_GET_ID(data=@0x1000 128 bytes) = 25",
        ),
    ],
)
def test_render_call(hcall: Hcall, args: tuple[int, ...], more: dict[str, Any], line: str):
    assert render_call(hcall, registers(hcall, *args), **more) == line


@pytest.mark.parametrize(
    ("level", "status", "line"),
    [
        (1, -2, "hcall 0x1234(r4=0x1, r5=0xffffffffffffffff) = H_FUNCTION"),
        (1, -999, "hcall 0x1234(r4=0x1, r5=0xffffffffffffffff) = -999"),
        (Level.SC2, -5, "ultracall 0x1234(r4=0x1, r5=0xffffffffffffffff) = U_RETRY"),
        (Level.SC2, None, "ultracall 0x1234(r4=0x1, r5=0xffffffffffffffff)"),
        (Level.COMMAND, 4, "command 0x1234(r4=0x1, r5=0xffffffffffffffff) = SEV_RET_INVALID_LEN"),
        (Level.COMMAND, -16, "command 0x1234(r4=0x1, r5=0xffffffffffffffff) = EBUSY"),
    ],
)
def test_render_unknown_call(level: int, status: int | None, line: str):
    gpr = {3: 0x1234, 4: 1, 5: (1 << 64) - 1}
    assert render_call(None, gpr, level=level, status=status, outputs={4: 1}) == line


def test_render_reason_stays_on_the_line():
    line = render_call(None, {3: 4}, reason="two\nlines\x1b[2J", where="g\r")
    assert line == r"g\u000d hcall 0x4() -- two\u000alines\u001b[2J"


def test_render_of_a_call_that_is_in_no_family():
    hcall = Hcall(
        name="H_PKS_GET_CONFIG",
        number=0x500,
        level=Level.SC1,
        doc="d",
        source="s",
        args=(
            address("a", 4, "d"),
            Arg(name="b", register=5, kind=ArgKind.OPAQUE, doc="d"),
            address("c", 6, "d"),
        ),
        buffers=(
            Buffer(address="a", direction=Direction.IN, shape=BufferShape.FIXED, max_size=8),
            Buffer(
                address="c",
                direction=Direction.IN,
                shape=BufferShape.FIXED,
                max_size=8,
                prefetch=False,
            ),
        ),
        outputs=(
            Output(name="t0", register=4, kind=ArgKind.TEXT, doc="d"),
            Output(name="t1", register=5, kind=ArgKind.TEXT, doc="d"),
        ),
        result="bytes",
    )
    line = render_call(
        hcall,
        registers(hcall, 0x10, 0x20, 0x30),
        buffers={"a": b"contents", "c": None},
        status=2,
        outputs={4: int.from_bytes(b"text con", "big"), 5: int.from_bytes(b"tinued\0\0", "big")},
    )
    assert line == (
        'H_PKS_GET_CONFIG(a=@0x10 8 bytes, b=0x20, c=@0x30 8 bytes) = 2 bytes t="text continued"'
    )


def test_describe_call_is_json():
    described = describe_call(
        pks.WRITE_OBJECT,
        registers(pks.WRITE_OBJECT, 0x1000, 0x2000, 29, 0x0800_0000, 0x1F3A40, 64),
        buffers={"auth": AUTH, "label": SED, "data": None},
        status=H.RESOURCE,
        reason="exists",
        duration_ns=63_000,
    )
    assert json.loads(json.dumps(described)) == {
        "call": "H_PKS_WRITE_OBJECT",
        "number": 0x42C,
        "level": 1,
        "args": {
            "auth": {"gpa": "0x1000", "text": "OS+32"},
            "label": {"gpa": "0x2000", "size": 29, "text": r'"sed-opal"/"/default/pri\0"'},
            "policy": "WORLDREADABLE",
            "data": {"gpa": "0x1f3a40", "size": 64, "readable": False},
        },
        "status": -16,
        "code": "H_RESOURCE",
        "duration_ns": 63_000,
        "reason": "exists",
    }


def test_describe_call_with_outputs():
    described = describe_call(
        pks.READ_OBJECT,
        registers(pks.READ_OBJECT, 0x1000, 0x2000, 10, 0x3000, 16),
        status=0,
        outputs={4: 1, 5: 0},
    )
    assert described["outputs"] == {"size": 1, "policy": "0"}
    assert "duration_ns" not in described
    assert "reason" not in described


def test_describe_unknown_call():
    assert describe_call(None, {3: 0x1234, 4: 1}, level=2) == {
        "call": None,
        "number": 0x1234,
        "level": 2,
        "args": {"r4": "0x1"},
    }


words = st.integers(0, (1 << 64) - 1)
SECRET = b"\xa7s3cr3t!"


@pytest.mark.parametrize("hcall", CALLS, ids=lambda hcall: hcall.name)
@settings(max_examples=20)
@given(data=st.data())
def test_any_call_is_one_printable_line(hcall: Hcall, data: st.DataObject):
    gpr = {register: data.draw(words) for register in CONTEXT}
    contents = st.none() | st.binary(max_size=64)
    buffers = {
        buffer.address: data.draw(contents) for buffer in hcall.buffers if data.draw(st.booleans())
    }
    outputs = {output.register: data.draw(words) for output in hcall.outputs}
    status = data.draw(st.sampled_from([*H, *U, 5, 1 << 62, -(1 << 63)]))
    reason = data.draw(st.text(max_size=20))
    line = render_call(
        hcall, gpr, buffers=buffers, status=status, outputs=outputs, reason=reason, duration_ns=1
    )
    assert line.isprintable()
    assert line.startswith(f"{hcall.name}(")
    described = describe_call(
        hcall, gpr, buffers=buffers, status=status, outputs=outputs, reason=reason, duration_ns=1
    )
    assert json.loads(json.dumps(described)) == described


@pytest.mark.parametrize("hcall", CALLS, ids=lambda hcall: hcall.name)
def test_secrets_are_shown_by_size_only(hcall: Hcall):
    gpr = registers(hcall, 1)
    buffers: dict[str, bytes | None] = {
        buffer.address: AUTH if buffer.describe else SECRET
        for buffer in hcall.buffers
        if buffer.secret
    }
    outputs = {
        output.register: int.from_bytes(SECRET, "big") for output in hcall.outputs if output.secret
    }
    for status in (0, 8):
        shown = render_call(hcall, gpr, buffers=buffers, status=status, outputs=outputs) + str(
            describe_call(hcall, gpr, buffers=buffers, status=status, outputs=outputs)
        )
        for secret in ("s3cr3t", SECRET.hex(), str(int.from_bytes(SECRET, "big")), "horse"):
            assert secret not in shown
