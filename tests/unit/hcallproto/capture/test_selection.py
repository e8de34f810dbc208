# SPDX-License-Identifier: Apache-2.0
"""Calls of a capture are chosen by guest, call, code and time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.unit.hcallproto.capture.sample import call

from hcallproto.abi.families import pks, sev, uv
from hcallproto.abi.registry import CALLS, FAMILY_OF
from hcallproto.abi.returns import SevCode
from hcallproto.abi.spec import Hcall
from hcallproto.capture.exchanges import Exchange, Fate
from hcallproto.capture.selection import Selection, SelectionError, parse_calls, parse_returns
from hcallproto.wire import frames as f


def made(status: int | None = 0, hcall: Hcall = pks.READ_OBJECT) -> Exchange:
    reply = None if status is None else f.Reply(3, 0, 1, status)
    return Exchange(call(hcall, 1), hcall, 1000, fate=Fate.ANSWERED, reply=reply, end_ns=2000)


@pytest.mark.parametrize(
    ("selection", "is_wanted"),
    [
        (Selection(), True),
        (Selection(guests=frozenset({"lpar7"})), True),
        (Selection(guests=frozenset({"lpar8"})), False),
        (Selection(calls=parse_calls(["H_PKS_READ_OBJECT"])), True),
        (Selection(calls=parse_calls(["uv_"])), False),
        (Selection(returns=parse_returns(["h_success"])), True),
        (Selection(returns=parse_returns(["U_SUCCESS"])), False),
        (Selection(returns=parse_returns(["0x0"])), True),
        (Selection(returns=parse_returns(["-7"])), False),
        (Selection(since_ns=2000), True),
        (Selection(since_ns=2001), False),
        (Selection(until_ns=1000), True),
        (Selection(until_ns=999), False),
        (Selection(vcpus=frozenset({3})), True),
        (Selection(vcpus=frozenset({0, 4})), False),
        (Selection(is_refused=True), False),
        (Selection(calls=parse_calls(["PKS"])), True),
        (Selection(calls=parse_calls(["svm"])), False),
        (Selection(calls=parse_calls([hex(pks.READ_OBJECT.number)])), True),
        (Selection(calls=parse_calls(["4711"])), False),
    ],
)
def test_wants(selection: Selection, is_wanted: bool):
    assert selection.wants("lpar7", made()) is is_wanted


def test_a_call_without_a_reply_has_no_code():
    assert not Selection(returns=parse_returns(["0"])).wants("lpar7", made(None))


def test_calls_with_an_error_code_are_refused_and_no_others():
    """H_BUSY is positive: the guest calls again."""
    refused = [
        status for status in (0, 1, -7, None) if Selection(is_refused=True).wants("a", made(status))
    ]
    assert refused == [-7]


def test_questions_for_lengths_are_not_refused():
    wanted = Selection(is_refused=True).wants
    assert not wanted("a", made(SevCode.INVALID_LEN, sev.LAUNCH_MEASURE))
    assert wanted("a", made(SevCode.INVALID_GUEST_STATE, sev.LAUNCH_MEASURE))


def test_a_familys_name_is_all_its_calls_and_no_others():
    assert parse_calls(["svm"]) == {
        (one.level, one.number) for one in CALLS if FAMILY_OF[one.name].name == "svm"
    }


def test_codes_of_ultracalls_are_their_own():
    assert Selection(returns=parse_returns(["U_P2"])).wants("lpar7", made(-55, uv.SHARE_PAGE))
    assert not Selection(returns=parse_returns(["H_P2"])).wants("lpar7", made(-55, uv.SHARE_PAGE))


def test_parts_of_names_find_all_that_have_them():
    of_uv = {(one.level, one.number) for one in CALLS if FAMILY_OF[one.name].name == "uv"}
    assert parse_calls(["uv_"]) >= of_uv - {(3, 1), (3, 2)}
    assert parse_calls(["read_object", "write_object"]) == {
        (1, pks.READ_OBJECT.number),
        (1, pks.WRITE_OBJECT.number),
    }


@pytest.mark.parametrize("parse", [parse_calls, parse_returns])
def test_a_name_that_nothing_has_is_refused(parse: Callable[[list[str]], object]):
    with pytest.raises(SelectionError, match="'nonsense'"):
        parse(["nonsense"])
