# SPDX-License-Identifier: Apache-2.0
"""What is a refusal, what asks for the call again, and what only told lengths."""

from __future__ import annotations

import pytest
from tests.unit.hcallproto.capture.sample import call

from hcallproto.abi.families import pks, sev, uv
from hcallproto.abi.registry import CALLS
from hcallproto.abi.returns import AGAIN, CODE_SETS, Code, H, SevCode, U, code_name
from hcallproto.abi.spec import Hcall
from hcallproto.abi.verdicts import Verdict, is_query, verdict

DONE, REFUSED = Verdict.DONE, Verdict.REFUSED
QUERIES = [hcall for hcall in CALLS if hcall.query is not None]


def of(hcall: Hcall, status: int, **args: int) -> Verdict:
    return verdict(status, hcall.return_codes, hcall, call(hcall, 1, **args).by_number())


@pytest.mark.parametrize(
    ("hcall", "status", "expected"),
    [
        (pks.READ_OBJECT, H.SUCCESS, DONE),
        (pks.READ_OBJECT, H.NOT_FOUND, REFUSED),
        (pks.WRAP_OBJECT, H.BUSY, Verdict.AGAIN),
        (pks.WRAP_OBJECT, H.LONG_BUSY_ORDER_100_SEC, Verdict.AGAIN),
        (uv.SHARE_PAGE, U.RETRY, Verdict.AGAIN),
        (uv.SHARE_PAGE, U.P2, REFUSED),
        # Where the kernel goes on, with a number of its own; U_BUSY is none of this call's codes.
        (uv.ESM, 1, DONE),
        (uv.ESM, U.P2, REFUSED),
        (pks.READ_OBJECT, 4711, DONE),
        (pks.READ_OBJECT, -4711, REFUSED),
        (sev.FACTORY_RESET, SevCode.EBUSY, REFUSED),
        (sev.LAUNCH_FINISH, SevCode.INVALID_LEN, REFUSED),
        (sev.LAUNCH_FINISH, 4711, REFUSED),
    ],
)
def test_verdict_of_a_status(hcall: Hcall, status: int, expected: Verdict):
    assert of(hcall, status) is expected


@pytest.mark.parametrize("codes", CODE_SETS, ids=lambda codes: codes.__name__)
def test_verdict_when_the_call_is_in_no_table_then_its_code_says_it(codes: type[Code]):
    for code in codes:
        found = verdict(code, codes, None, ())
        again = {"BUSY", "RETRY"} & set(code_name(code).split("_")[1:])
        assert (found is Verdict.AGAIN) == bool(again) == (code in AGAIN[codes])
        assert (found is DONE) == (not again and (code == 0 or (codes is not SevCode and code > 0)))


@pytest.mark.parametrize("hcall", QUERIES, ids=lambda hcall: hcall.name)
def test_verdict_when_lengths_are_asked_for_then_they_are_the_answer(hcall: Hcall):
    assert hcall.query is not None
    long = {arg.name: 1 << 20 for arg in hcall.args}
    assert of(hcall, hcall.query.code, **long) is REFUSED, "a length that is wrong"
    assert not is_query(hcall, call(hcall, 1, **long).by_number())
    for name in hcall.query.asks:
        asking = long | {name: 0}
        assert is_query(hcall, call(hcall, 1, **asking).by_number())
        assert of(hcall, hcall.query.code, **asking) is DONE
        assert of(hcall, SevCode.INVALID_GUEST_STATE, **asking) is REFUSED
        assert of(hcall, SevCode.EINVAL, **asking) is REFUSED


def test_every_length_that_comes_back_with_its_code_can_be_asked_for():
    # The outputs' own declaration of it, which the shim's C is made from.
    for hcall in CALLS:
        told = {one.name for one in hcall.outputs if SevCode.INVALID_LEN in one.also_with}
        asked = set() if hcall.query is None else {name for name, _ in hcall.query.lengths}
        assert asked == told, hcall.name
