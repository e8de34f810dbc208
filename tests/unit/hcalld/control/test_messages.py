# SPDX-License-Identifier: Apache-2.0
"""What passes over the control socket."""

from __future__ import annotations

import collections.abc
import enum
import json
import pathlib
import types
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcalld.control import commands
from hcalld.control.messages import (
    BY_NAME,
    COMMANDS,
    MAX_REASON_SIZE,
    MAX_REQUEST_SIZE,
    Failure,
    Greeting,
    Kind,
    ListGuests,
    MalformedRequest,
    PageOut,
    Reply,
    decode_request,
    encode,
    name_of,
    reply_of,
    shape_of,
)

ROOT = pathlib.Path(__file__).resolve().parents[4]


def refused(line: bytes) -> MalformedRequest:
    with pytest.raises(MalformedRequest) as raised:
        decode_request(line)
    assert len(str(raised.value)) < MAX_REASON_SIZE + 300
    return raised.value


# -- the table ------------------------------------------------------------------------------


def test_commands_when_they_are_declared_then_each_has_a_function_and_no_other():
    assert set(commands.FUNCTIONS) == set(COMMANDS)
    assert len(BY_NAME) == len(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=name_of)
def test_function_when_it_is_registered_then_it_gives_the_declared_reply(command: Any):
    hints = typing.get_type_hints(commands.FUNCTIONS[command], vars(commands))
    assert hints["request"] is command
    assert hints["return"] is reply_of(command)


def plain(kind: Any) -> bool:
    """A number, a text, or what is made of them: nothing else can be in a message."""
    if kind in (int, float, str, bool, types.NoneType):
        return True
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return plain(typing.get_args(kind)[0])
    if origin is typing.Literal:
        return all(type(value) is str for value in typing.get_args(kind))
    if origin in (list, dict, tuple, collections.abc.Mapping, typing.Union, types.UnionType):
        return all(map(plain, typing.get_args(kind)))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return all(type(member.value) is str for member in kind)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return all(map(plain, typing.get_type_hints(kind, include_extras=True).values()))
    return False


@pytest.mark.parametrize(
    "message", [Greeting, Failure, *COMMANDS, *map(reply_of, COMMANDS)], ids=lambda m: m.__name__
)
def test_messages_when_their_members_are_looked_at_then_none_can_hold_a_secret(message: Any):
    assert plain(message)


def test_plain_when_a_member_is_bytes_then_it_is_not():
    class Leaky(msgspec.Struct):
        key: bytes | None

    assert not plain(Leaky)


def test_documents_when_there_is_a_command_then_the_user_guide_has_its_row():
    text = (ROOT / "docs" / "using.md").read_text("utf-8")
    for command in COMMANDS:
        row = f"| `{shape_of(command)}` | `{reply_of(command).__struct_config__.tag}` |"
        assert row in text


# -- requests -------------------------------------------------------------------------------


def test_requests_when_they_are_well_formed_then_they_are_what_they_say():
    assert decode_request(b'{"command":"guests"}\r') == ListGuests()
    assert decode_request(b'{"partition":"a","command":"page-out"}') == PageOut(partition="a")
    for request in (ListGuests(), PageOut(partition="lpar7", pages=3), PageOut(partition="\u20ac")):
        line = encode(request)
        assert line.count(b"\n") == 1
        assert decode_request(line) == request


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"", "truncated"),
        (b"guests", "malformed"),
        (b"GET / HTTP/1.1\r", "malformed"),
        (b"{}", "`command`"),
        (b"[]", "Expected `object`"),
        (b'{"command": 5}', "Expected `str`"),
        (b'{"command": null}', "Expected `str`"),
        (b'{"command": ["guests"]}', "Expected `str`"),
        (b"\xff\xfe\x00", "malformed"),
        (b'{"command": "\xff"}', "utf-8"),
        (b'{"command": "\\ud800"}', "not a request"),
        (b'{"command": "guests"} {}', "malformed"),
        (b'{"command": "guests", "all": true}', "unknown field `all`"),
        (b'{"command": "page-out"}', "`partition`"),
        (b'{"command": "page-out", "partition": 7}', "Expected `str`"),
        (b'{"command": "page-out", "partition": ""}', "length"),
        (b'{"command": "page-out", "partition": "a", "pages": 0}', ">= 1"),
        (b'{"command": "page-out", "partition": "a", "pages": -1}', ">= 1"),
        (b'{"command": "page-out", "partition": "a", "pages": 1.5}', "Expected `int"),
        (b'{"command": "page-out", "partition": "a", "pages": true}', "Expected `int"),
        (b'{"command": "page-out", "partition": "a", "pages": "8"}', "Expected `int"),
        (b'{"command": "page-out", "partition": "a", "pages": 1e999}', "out of range"),
        (b'{"command": "guests", "command": "page-out"}', "command"),
    ],
)
def test_requests_when_they_are_malformed_then_it_is_said_why(line: bytes, told: str):
    error = refused(line)
    assert error.kind is Kind.MALFORMED
    assert told in str(error)
    assert "expected {" in str(error)


@pytest.mark.parametrize(
    "line",
    [
        b"[" * MAX_REQUEST_SIZE,
        b'{"x":' + b"[" * (MAX_REQUEST_SIZE - 100),
        b'{"command":"guests","x":' + b'{"x":' * 10_000,
        b'{"command":"page-out","partition":"a","pages":' + b"9" * 60_000 + b"}",
        b'{"command":"guests","' + b"a" * 60_000 + b'":1}',
    ],
)
def test_requests_when_they_are_bombs_then_they_are_refused_in_few_words(line: bytes):
    assert refused(line).kind is Kind.MALFORMED


def test_command_when_it_is_unknown_then_those_that_are_known_are_named():
    error = refused(b'{"command": "capture", "on": true}')
    assert error.kind is Kind.UNKNOWN_COMMAND
    known = ", ".join(sorted(BY_NAME))
    assert str(error) == f"no command 'capture'; this hcalld has: {known}"
    assert refused(b'{"command": "' + b"a" * 60_000 + b'"}').kind is Kind.UNKNOWN_COMMAND


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(
    st.binary(max_size=60)
    | st.builds(
        lambda members, name: json.dumps({**members, "command": name}).encode(),
        st.dictionaries(st.sampled_from(["partition", "pages", "x"]), JSON, max_size=3),
        st.sampled_from([*BY_NAME, "nonsense"]) | JSON,
    )
)
def test_requests_when_they_are_random_then_they_are_requests_or_refused(line: bytes):
    try:
        request = decode_request(line)
    except MalformedRequest:
        return
    assert decode_request(encode(request)) == request


# -- replies --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS, ids=name_of)
def test_replies_when_they_grow_then_older_clients_understand_them(command: Any):
    reply: type[Reply] = reply_of(command)
    assert not reply.__struct_config__.forbid_unknown_fields
    assert reply.__struct_config__.tag_field == "reply"
