# SPDX-License-Identifier: Apache-2.0
"""Policies as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcalld.guestowner.errors import GuestOwnerError
from hcalld.guestowner.policies import describe, parse
from hcallproto.payloads.sev.constants import Api, Policy


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("0", 0),
        ("5", 5),
        ("0x5", 5),
        ("0b101", 5),
        ("0xffffffff", 0xFFFF_FFFF),
        ("none", 0),
        ("nodbg", 1),
        ("NODBG, noks", 3),
        ("es+sev", 0x24),
        ("nodbg,noks,es,nosend,domain,sev", 0x3F),
        ("es,1.51", 0x33010004),
        ("0.24", 0x18000000),
        (" nodbg ", 1),
    ],
)
def test_parse_when_it_is_a_policy_then_its_number(text: str, policy: int):
    assert parse(text) == policy


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the policy is empty"),
        ("nodebug", "'nodebug' is no part of a policy; expected a number, or some of nodbg"),
        ("-1", "does not fit; expected 32 bits"),
        ("0x100000000", "does not fit; expected 32 bits"),
        ("es,256.0", "API version 256.0 does not fit"),
        ("es,1.2.3", "'1.2.3' is no part"),
        ("0x", "'0x' is no part"),
    ],
)
def test_parse_when_it_is_none_then_it_says_what_is_expected(text: str, why: str):
    with pytest.raises(GuestOwnerError, match=why):
        parse(text)


@given(flags=st.integers(0, 0x3F), major=st.integers(0, 255), minor=st.integers(0, 255))
def test_parse_when_flags_and_a_version_are_named_then_the_same_policy(
    flags: int, major: int, minor: int
):
    names = [flag.name.lower() for flag in Policy if flags & flag and flag.name]
    text = ",".join([*names, f"{major}.{minor}"])
    assert parse(text) == Policy.of(flags, Api(major, minor))


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (0, "0x0 (none)"),
        (5, "0x5 (nodbg, es)"),
        (0x33010004, "0x33010004 (es, API 1.51 at least)"),
        (0x7F, "0x7f (nodbg, noks, es, nosend, domain, sev, reserved 0x40)"),
    ],
)
def test_describe_when_a_policy_is_given_then_its_bits_are_named(policy: int, text: str):
    assert describe(policy) == text
