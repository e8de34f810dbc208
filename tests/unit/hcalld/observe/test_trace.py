# SPDX-License-Identifier: Apache-2.0
"""Trace lines: whose call, what it said, what became of it, and never a secret."""

from __future__ import annotations

import io
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcalld.core.answered import Answered
from hcalld.core.errors import HcalldError
from hcalld.core.outcome import Outcome
from hcalld.observe.trace import Trace
from hcalld.testing.pks import build_auth, label
from hcallproto.abi.families import pks
from hcallproto.abi.returns import H, U
from hcallproto.abi.spec import Hcall
from hcallproto.payloads.pks import Policy
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

PASSWORD = b"correct horse battery staple 123"
DATA = b"xyzzy plugh waldo garply thud"


def answered(
    hcall: Hcall | None,
    *arguments: int,
    buffers: dict[str, bytes | None] | None = None,
    outcome: Outcome | None = None,
    notes: tuple[str, ...] = (),
    partition: str = "lpar7",
    level: int = 1,
    number: int = 0,
) -> Answered:
    registers = {
        3: hcall.number if hcall else number,
        **{4 + place: value for place, value in enumerate(arguments)},
    }
    gpr = tuple(registers.get(n, 0) for n in s.REGISTERS)
    return Answered(
        partition,
        f.Call(2, 0, 17, False, level, gpr, 0, 0, 0, 0),
        hcall,
        buffers or {},
        outcome or Outcome(H.SUCCESS),
        notes,
        63_000,
    )


def line(call: Answered) -> str:
    stream = io.StringIO()
    Trace(stream)(call)
    text = stream.getvalue()
    assert text.endswith("\n")
    assert text.count("\n") == 1
    return text[:-1]


def test_line_when_a_call_is_answered_then_it_says_who_what_and_how_long():
    text = line(answered(pks.GEN_PASSWORD, 3, 0, 0x2A60040, 64))
    assert text == (
        "lpar7 cpu2 #17 H_PKS_GEN_PASSWORD(consumer=OS, password=@0x2a60040 64 bytes) "
        "= H_SUCCESS 63us"
    )


def test_line_when_a_call_is_refused_then_the_reason_and_the_notes_follow():
    text = line(
        answered(pks.GET_CONFIG, 0, 8, outcome=Outcome(H.P2, why="too small"), notes=("a", "b"))
    )
    assert text.endswith("= H_P2 63us -- too small; a; b")


def test_line_when_results_come_in_registers_then_they_are_named():
    outcome = Outcome(H.SUCCESS, ((4, 26), (5, Policy.WORLDREADABLE)))
    text = line(answered(pks.READ_OBJECT, 0x1000, 0x2000, 8, 0x3000, 64, outcome=outcome))
    assert "= H_SUCCESS size=26 policy=WORLDREADABLE" in text


@pytest.mark.parametrize(("level", "kind"), [(1, "hcall"), (2, "ultracall")])
def test_line_when_the_number_is_unknown_then_registers_are_shown(level: int, kind: str):
    code = H.FUNCTION if level == 1 else U.FUNCTION
    text = line(answered(None, 1, 2, number=0xBEEC, level=level, outcome=Outcome(code)))
    assert f"{kind} 0xbeec(r4=0x1, r5=0x2" in text
    assert "_FUNCTION" in text


def test_line_when_a_buffer_was_not_readable_then_that_is_said():
    text = line(answered(pks.REMOVE_OBJECT, 0x1000, 0x2000, 8, buffers={"label": None}))
    assert "(not readable)" in text


def write_call(password: bytes, data: bytes) -> Answered:
    return answered(
        pks.WRITE_OBJECT,
        0x1000,
        0x2000,
        len(label("x")),
        0,
        0x3000,
        len(data),
        buffers={"auth": build_auth(3, password), "label": label("x"), "data": data},
    )


def test_line_when_secrets_came_with_a_call_then_only_their_sizes_are_shown():
    text = line(write_call(PASSWORD, DATA))
    assert "auth=OS+32" in text
    assert f"data=@0x3000 {len(DATA)} bytes" in text
    assert "hcalld" in text, "the label's prefix is no secret"
    must_not_tell(text, PASSWORD, DATA)


def test_line_when_a_password_is_set_then_it_is_not_shown():
    text = line(answered(pks.SET_PASSWORD, 3, 0, 0x1000, 32, buffers={"password": PASSWORD}))
    must_not_tell(text, PASSWORD)


def test_line_when_a_reply_carries_secrets_then_they_are_not_shown():
    outcome = Outcome(H.SUCCESS, (), ((0x1000, PASSWORD),))
    must_not_tell(line(answered(pks.GEN_PASSWORD, 3, 0, 0x1000, 32, outcome=outcome)), PASSWORD)
    outcome = Outcome(H.SUCCESS, ((4, len(DATA)), (5, 0)), ((0x3000, DATA),))
    must_not_tell(
        line(answered(pks.READ_OBJECT, 0x1000, 0x2000, 8, 0x3000, 64, outcome=outcome)), DATA
    )
    must_not_tell(repr(outcome), DATA)


def must_not_tell(text: str, *secrets: bytes) -> None:
    """No part of a secret worth guessing from is in it, in any usual spelling."""
    lowered = text.lower()
    for secret in secrets:
        for start in range(len(secret) - 5):
            part = secret[start : start + 6]
            assert part.hex() not in lowered
            assert part.decode("latin-1").lower() not in lowered


@given(password=st.binary(min_size=32, max_size=64), data=st.binary(min_size=32, max_size=200))
def test_line_when_secrets_are_any_bytes_then_the_line_does_not_depend_on_them(
    password: bytes, data: bytes
):
    other = line(write_call(bytes(len(password)), bytes(len(data))))
    assert line(write_call(password, data)) == other


@pytest.mark.parametrize(
    "name", ["evil\nlpar8 cpu0 #1 H_FORGED() = H_SUCCESS", "\x1b[2J", "a\u2028b"]
)
def test_line_when_a_guest_has_a_hostile_name_then_it_stays_one_plain_line(name: str):
    text = line(answered(pks.GET_CONFIG, 0, 32, partition=name))
    assert text.isprintable()


@given(text=st.text())
def test_line_when_a_reason_is_any_text_then_it_stays_one_plain_line(text: str):
    assert line(answered(pks.GET_CONFIG, 0, 32, outcome=Outcome(H.P2, why=text))).isprintable()


def test_trace_when_a_line_is_written_then_it_is_there_at_once(tmp_path: pathlib.Path):
    path = tmp_path / "trace"
    with path.open("w") as stream:
        Trace(stream)(answered(pks.GET_CONFIG, 0, 32))
        assert "H_PKS_GET_CONFIG" in path.read_text()


def test_trace_when_it_cannot_be_written_then_the_error_says_what_to_do():
    class Broken(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(HcalldError, match=r"--trace: cannot write: Broken pipe; .*start again"):
        Trace(Broken())(answered(pks.GET_CONFIG, 0, 32))
