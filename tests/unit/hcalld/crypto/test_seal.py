# SPDX-License-Identifier: Apache-2.0
"""Sealed values open as what they were, where they were, and not otherwise."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hcalld.core.secret import Secret
from hcalld.crypto.seal import OVERHEAD, Sealer, SealError, derive_key

KEY = Secret(b"k" * 32)
SALT = b"s" * 16


def test_what_was_sealed_opens():
    for size in (0, 1, 100, 65536):
        sealed = Sealer(KEY, SALT).seal(bytes(size), b"identity")
        assert len(sealed) == size + OVERHEAD
        assert Sealer(KEY, b"o" * 16).open(sealed, b"identity") == bytes(size)


def test_the_format_is_the_documented_one():
    sealed = Sealer(KEY, SALT).seal(b"value", b"identity")
    key = HKDF(SHA256(), 32, SALT, b"hcalld:sealed value").derive(b"k" * 32)

    assert sealed[:29] == b"\1" + SALT + bytes(12)
    assert AESGCM(key).decrypt(bytes(12), sealed[29:], b"\1identity") == b"value"


def test_no_nonce_comes_twice():
    sealer = Sealer(KEY, SALT)
    nonces = {sealer.seal(b"", b"")[:29] for _ in range(1000)}

    assert len(nonces) == 1000


def test_every_flipped_byte_is_noticed():
    sealed = Sealer(KEY, SALT).seal(b"value", b"identity")
    for place in range(len(sealed)):
        altered = bytearray(sealed)
        altered[place] ^= 0x01
        with pytest.raises(SealError):
            Sealer(KEY, SALT).open(bytes(altered), b"identity")


def test_every_cut_is_noticed():
    sealed = Sealer(KEY, SALT).seal(b"value", b"identity")
    for size in range(len(sealed)):
        with pytest.raises(SealError):
            Sealer(KEY, SALT).open(sealed[:size], b"identity")
    with pytest.raises(SealError):
        Sealer(KEY, SALT).open(sealed + b"\0", b"identity")


def test_another_identity_or_key_does_not_open():
    sealed = Sealer(KEY, SALT).seal(b"value", b"identity")

    for identity in (b"", b"identit", b"identity\0"):
        with pytest.raises(SealError):
            Sealer(KEY, SALT).open(sealed, identity)
    with pytest.raises(SealError, match="another key"):
        Sealer(Secret(b"K" * 32), SALT).open(sealed, b"identity")


def test_many_keys_are_opened_in_turn():
    values = [Sealer(KEY, bytes([n]) * 16).seal(bytes([n]), b"") for n in range(200)]
    sealer = Sealer(KEY, SALT)

    assert [sealer.open(value, b"") for value in values] == [bytes([n]) for n in range(200)]


@pytest.mark.parametrize(("key_size", "salt_size"), [(31, 16), (33, 16), (32, 15), (32, 17)])
def test_a_key_or_salt_of_a_wrong_size_is_refused(key_size: int, salt_size: int):
    with pytest.raises(ValueError, match="expected 32 and 16"):
        Sealer(Secret(bytes(key_size)), bytes(salt_size))


def test_derived_keys_depend_on_purpose_and_master():
    keys = {
        derive_key(Secret(master), purpose).reveal()
        for master in (b"m" * 32, b"n" * 32)
        for purpose in ("partition a", "partition b")
    }

    assert len(keys) == 4
    assert {len(key) for key in keys} == {32}
