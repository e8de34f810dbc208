# SPDX-License-Identifier: Apache-2.0
"""Sessions: what unwraps, and that nothing else does."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sev_platform import KEYS, flipped, key

from hcalld.crypto.sev.errors import MacError
from hcalld.crypto.sev.kdf import TransportKeys
from hcalld.crypto.sev.session import unwrap_session, wrap_session
from hcalld.testing.sev import made_up
from hcallproto.payloads.sev import SESSION_SIZE, CertificateError, EcPublicKey, Policy, Session

NONCE, IV = made_up("nonce", 16), made_up("iv", 16)
POLICIES = st.integers(0, 2**32 - 1)
POLICY = Policy.ES


def wrapped(policy: int = POLICY, keys: TransportKeys = KEYS) -> Session:
    return wrap_session(key("owner"), key("pdh").public, keys, policy, nonce=NONCE, iv=IV)


def unwrapped(session: Session, policy: int = POLICY) -> TransportKeys:
    return unwrap_session(key("pdh"), key("owner").public, session, policy)


@settings(max_examples=30)
@given(keys=st.binary(min_size=32, max_size=32).map(TransportKeys.parse), policy=POLICIES)
def test_session_when_wrapped_then_unwrapped_to_the_same(keys: TransportKeys, policy: int):
    session = wrapped(policy, keys)
    assert (session.nonce, session.wrap_iv) == (NONCE, IV)
    assert unwrapped(Session.parse(session.build()), policy) == keys


def test_session_when_any_bit_is_altered_then_refused():
    data = wrapped().build()
    for bit in range(8 * SESSION_SIZE):
        session = Session.parse(flipped(data, bit // 8, 1 << bit % 8))
        # Under another counter block other keys come out, of which only the second MAC knows.
        second = 48 <= bit // 8 < 64 or bit // 8 >= 96
        with pytest.raises(MacError, match="policy_mac" if second else "wrap_mac"):
            unwrapped(session)


@given(POLICIES)
def test_session_when_the_command_names_another_policy_then_refused(policy: int):
    if policy != POLICY:
        with pytest.raises(MacError, match=f"not made for policy {policy:#x}"):
            unwrapped(wrapped(), policy)


def test_session_when_it_is_for_another_then_refused():
    session = wrapped()
    with pytest.raises(MacError, match="wrap_mac does not fit"):
        unwrap_session(key("other pdh"), key("owner").public, session, POLICY)
    with pytest.raises(MacError, match="wrap_mac does not fit"):
        unwrap_session(key("pdh"), key("other owner").public, session, POLICY)


def test_session_when_the_peers_key_is_no_point_then_refused():
    with pytest.raises(CertificateError, match="no point on P-384"):
        unwrap_session(key("pdh"), EcPublicKey(1, 1), wrapped(), POLICY)
    with pytest.raises(CertificateError, match="no point on P-384"):
        wrap_session(key("owner"), EcPublicKey(1, 1), KEYS, 0, nonce=NONCE, iv=IV)


def test_session_when_refused_then_the_error_tells_no_key():
    for session, policy in (
        (wrapped(), 0),
        (dataclasses.replace(wrapped(), wrap_mac=bytes(32)), POLICY),
    ):
        with pytest.raises(MacError) as caught:
            unwrapped(session, policy)
        text = str(caught.value)
        for secret in (KEYS.tek, KEYS.tik):
            assert secret.reveal().hex() not in text
        assert session.policy_mac.hex() not in text


def test_session_when_wrapped_then_neither_key_is_in_it():
    data = wrapped().build()
    assert KEYS.tek.reveal() not in data
    assert KEYS.tik.reveal() not in data
