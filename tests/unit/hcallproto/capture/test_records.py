# SPDX-License-Identifier: Apache-2.0
"""The records of captures, and their versions."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest

from hcallproto.capture.records import (
    CONVERTERS,
    VERSION,
    Dropped,
    Key,
    Record,
    Records,
    Sealed,
    Start,
    Stop,
    encode,
)
from hcallproto.errors import CaptureError

START = Start(program="hcalld 0", partition="lpar7", profile={"secure_boot": "2"})


def started() -> Records:
    records = Records()
    records.decode(encode(START))
    return records


def started_as_1(*converters: Any) -> Records:
    """With other converters, and records of the version before them all."""
    records = Records(converters)
    with contextlib.suppress(CaptureError):
        records.decode(b'{"kind": "start", "version": 1}')
    return records


@pytest.mark.parametrize(
    "record",
    [
        START,
        Stop(why="ended"),
        Dropped(frames=3, entries=1),
        Key(lock={"type": "scrypt", "log_n": 17}, check=bytes(16), salt=bytes(16)),
        Sealed(number=7, data=b"\0\xff"),
    ],
)
def test_a_record_is_read_as_it_was_written(record: Record):
    assert started().decode(encode(record)) == record


def test_what_a_reader_does_not_know_is_passed_over():
    assert started().decode(b'{"kind": "later"}') is None
    assert started().decode(b'{"kind": "stop", "why": "x", "more": 1}') == Stop(why="x")


def test_there_is_a_converter_for_each_step():
    assert len(CONVERTERS) == VERSION - 1


def test_an_older_record_is_converted_step_by_step():
    def first(fields: dict[str, Any]) -> dict[str, Any]:
        return {**fields, "why": fields.pop("reason", "?"), "steps": ["first"]}

    def second(fields: dict[str, Any]) -> dict[str, Any]:
        return {**fields, "why": fields["why"] + "".join(fields["steps"])}

    records = started_as_1(first, second)
    assert records.decode(b'{"kind": "stop", "reason": "x"}') == Stop(why="xfirst")


def test_the_version_is_written():
    assert b'"version":%d' % VERSION in encode(START)


OLD_START = b"""{"kind": "start", "version": 1, "program": "hcalld 0", "partition": "lpar7",
"profile": {"secure_boot": "2"}, "has_secrets": true}"""


def test_version_1_does_not_say_what_was_asked():
    """Of version 2 on each answer does."""
    records = Records()
    assert records.decode(OLD_START) == msgspec.structs.replace(
        START, has_secrets=True, says_asked=False
    )
    assert records.decode(encode(Sealed(number=0, data=b"x"))) == Sealed(number=0, data=b"x")
    again = Records()
    assert again.decode(OLD_START.replace(b"1", b"2", 1)) == msgspec.structs.replace(
        START, has_secrets=True
    )


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\xff", "a malformed record"),
        (b"[]", "a malformed record"),
        (b'{"kind": "stop"}', "a malformed record"),
        (b'{"kind": "stop", "why": 1}', "a malformed record"),
        (b'{"kind": "start", "version": "1"}', "version '1', expected 1 to 2"),
        (b'{"kind": "start", "version": 0}', "version 0, expected 1 to 2"),
        (b'{"kind": "start", "version": true}', "version True, expected 1 to 2"),
        (b'{"kind": "start", "version": 3}', "version 3, this hcalld reads up to 2"),
        (b'{"kind":' + b'{"a":' * 100_000, "a malformed record"),
    ],
)
def test_what_is_malformed_or_newer_is_refused(data: bytes, why: str):
    with pytest.raises(CaptureError, match=why):
        started().decode(data)


def test_a_record_before_the_start_is_refused():
    with pytest.raises(CaptureError, match="before the first 'start'"):
        Records().decode(encode(Stop(why="x")))


@pytest.mark.parametrize(
    "data",
    [
        b'{"kind": ["dropped"], "frames": 1}',
        b'{"kind": {"a": 1}}',
        b'{"kind": "dropped", "missing": 1}',
    ],
)
def test_a_record_of_any_shape_is_malformed_and_nothing_worse(data: bytes):
    """Converters may take an older record for what it must be."""

    def renamed(fields: dict[str, Any]) -> dict[str, Any]:
        if fields["kind"] == "start":
            return fields
        return {**fields, "frames": fields["frames"]}

    records = started_as_1(renamed)
    with pytest.raises(CaptureError, match="a malformed record"):
        records.decode(data)
