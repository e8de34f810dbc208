# SPDX-License-Identifier: Apache-2.0
"""Numbers of SEV: policies with their versions, kinds of algorithms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcallproto.payloads.sev import Algorithm, Api, Policy, Usage, Version


def test_policy_when_it_has_a_version_then_where_amd_puts_it():
    policy = Policy.of(Policy.NODBG | Policy.ES, Api(1, 55))
    assert policy == 0x37010005
    assert policy.api == Api(1, 55)
    assert policy.flags == Policy.NODBG | Policy.ES


@given(st.integers(0, 2**32 - 1))
def test_policy_when_bits_are_reserved_then_they_are_kept(value: int):
    policy = Policy(value)
    assert int(policy) == value
    assert Policy.of(policy.flags, policy.api) == value
    assert policy.flags == value & 0xFFFF


def test_policy_when_no_version_is_asked_then_any_will_do():
    assert Policy.of(Policy.NOKS).api == Api(0, 0)


@pytest.mark.parametrize(
    ("left", "right"),
    [(Api(0, 17), Api(0, 18)), (Api(0, 255), Api(1, 0)), (Api(1, 0), Api(1, 1))],
)
def test_api_when_compared_then_major_before_minor(left: Api, right: Api):
    assert left < right
    assert not right < left


def test_version_when_shown_then_with_its_build():
    assert str(Version(1, 55, 21)) == "1.55 build 21"
    assert Version(1, 55, 21).api == Api(1, 55)


KINDS = {
    Algorithm.INVALID: (False, False, False),
    Algorithm.RSA_SHA256: (True, False, False),
    Algorithm.ECDSA_SHA256: (False, False, False),
    Algorithm.ECDH_SHA256: (False, True, False),
    Algorithm.RSA_SHA384: (True, False, True),
    Algorithm.ECDSA_SHA384: (False, False, True),
    Algorithm.ECDH_SHA384: (False, True, True),
}


@pytest.mark.parametrize("algorithm", Algorithm)
def test_algorithm_when_asked_then_its_kind(algorithm: Algorithm):
    assert (algorithm.is_rsa, algorithm.is_ecdh, algorithm.is_sha384) == KINDS[algorithm]


def test_usages_are_amds():
    numbers = {usage.name: int(usage) for usage in Usage}
    assert numbers == {
        "ARK": 0,
        "ASK": 0x13,
        "INVALID": 0x1000,
        "OCA": 0x1001,
        "PEK": 0x1002,
        "PDH": 0x1003,
        "CEK": 0x1004,
    }
