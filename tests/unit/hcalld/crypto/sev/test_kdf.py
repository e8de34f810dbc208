# SPDX-License-Identifier: Apache-2.0
"""Keys derived from keys, against another implementation of SP 800-108."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode
from hypothesis import given
from hypothesis import strategies as st
from tests.sev_platform import KEYS

from hcalld.core.secret import Secret
from hcalld.crypto.sev.kdf import TransportKeys, WrappingKeys, aes_ctr, kdf, master_secret
from hcalld.testing.sev import made_up

LABELS = st.text(st.characters(min_codepoint=1, max_codepoint=127), min_size=1, max_size=20)


@given(
    key=st.binary(min_size=1, max_size=64),
    label=LABELS,
    context=st.binary(max_size=40),
    size=st.integers(1, 200),
)
def test_kdf_when_another_computes_it_then_the_same(
    key: bytes, label: str, context: bytes, size: int
):
    """Its counter of one byte and three zeros are a little-endian counter of four."""
    fixed = bytes(3) + label.encode() + b"\0" + context + (8 * size).to_bytes(4, "little")
    theirs = KBKDFHMAC(
        algorithm=SHA256(),
        mode=Mode.CounterMode,
        length=size,
        rlen=1,
        llen=None,
        location=CounterLocation.BeforeFixed,
        label=None,
        context=None,
        fixed=fixed,
    )
    assert kdf(key, label, context, size) == theirs.derive(key)


def test_keys_when_derived_then_with_labels_and_contexts_of_their_own():
    shared, nonce = Secret(b"z" * 48), b"n" * 16
    master = master_secret(shared, nonce)
    assert master == Secret(kdf(b"z" * 48, "sev-master-secret", nonce, 16))
    keys = WrappingKeys.of(master)
    assert keys.kek == Secret(kdf(master.reveal(), "sev-kek", b"", 16))
    assert keys.kik == Secret(kdf(master.reveal(), "sev-kik", b"", 16))
    assert len({master.reveal(), keys.kek.reveal(), keys.kik.reveal()}) == 3


def test_transport_keys_when_parsed_then_tek_first():
    data = bytes(range(32))
    keys = TransportKeys.parse(data)
    assert (keys.tek.reveal(), keys.tik.reveal()) == (data[:16], data[16:])
    assert keys.build() == data


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_transport_keys_when_of_another_size_then_refused(size: int):
    with pytest.raises(ValueError, match=f"{size} bytes, expected 32"):
        TransportKeys.parse(bytes(size))


def test_keys_when_shown_then_nothing_is_seen():
    shown = repr(KEYS) + repr(WrappingKeys.of(Secret(bytes(16))))
    for part in (KEYS.tek, KEYS.tik):
        assert part.reveal().hex() not in shown
        assert repr(part.reveal()) not in shown
    assert shown.count("<secret>") == 4


def test_ctr_when_the_counter_overflows_then_it_goes_on_at_zero():
    """From the last block on; ``test_openssl.py`` compares with the program."""
    stream = aes_ctr(KEYS.tek, b"\xff" * 16, bytes(32))
    assert stream[16:] == aes_ctr(KEYS.tek, bytes(16), bytes(16))


@given(st.binary(max_size=100))
def test_ctr_when_done_twice_then_as_before(data: bytes):
    iv = made_up("iv", 16)
    assert aes_ctr(KEYS.tek, iv, aes_ctr(KEYS.tek, iv, data)) == data
