# SPDX-License-Identifier: Apache-2.0
"""Pages that leave: what comes back is the last content, or nothing."""

from __future__ import annotations

import dataclasses

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hcalld.core.secret import Secret
from hcalld.domain.ultravisor.sealing import Sealed, Sealer, SealError

PAGE = 0x10000
KEY = Secret(bytes(range(32)))
DATA = bytes(range(256)) * 256
ME = b"this VM's id....."[:16]


def sealer(identity: bytes = ME, key: Secret = KEY) -> Sealer:
    return Sealer(identity, key)


def test_what_leaves_comes_back():
    ciphertext, kept = sealer().seal(3 * PAGE, DATA, b"salt", 7)
    assert len(ciphertext) == PAGE
    assert kept.nonce == b"salt" + (7).to_bytes(8, "big")
    assert sealer().open(3 * PAGE, ciphertext, kept) == DATA


def test_it_is_aes_256_gcm_as_documented():
    ciphertext, kept = sealer().seal(3 * PAGE, DATA, b"salt", 7)
    associated = b"uv page\0" + ME + (3).to_bytes(8, "big") + (7).to_bytes(8, "big")
    plain = AESGCM(KEY.reveal()).decrypt(kept.nonce, ciphertext + kept.tag, associated)
    assert plain == DATA


def test_the_same_page_never_looks_the_same():
    seen = {sealer().seal(0, DATA, b"salt", version)[0] for version in range(1, 5)}
    assert len(seen) == 4


@pytest.mark.parametrize("position", [0, 1, 4096, PAGE - 1])
def test_one_altered_bit_is_refused(position: int):
    ciphertext, kept = sealer().seal(0, DATA, b"salt", 1)
    altered = bytearray(ciphertext)
    altered[position] ^= 0x10
    with pytest.raises(SealError):
        sealer().open(0, bytes(altered), kept)


def test_swapped_replayed_or_foreign_is_refused():
    ours = sealer()
    first, old = ours.seal(0, DATA, b"salt", 1)
    second, new = ours.seal(0, DATA, b"salt", 2)
    other, beside = ours.seal(PAGE, DATA, b"salt", 3)
    for gpa, ciphertext, kept in [
        (0, first, new),
        (0, second, old),
        (0, other, new),
        (PAGE, first, beside),
        (PAGE, other, new),
        (PAGE, first, old),
        (0, first, old._replace(version=2)),
        (0, first, old._replace(nonce=bytes(12))),
    ]:
        with pytest.raises(SealError):
            ours.open(gpa, ciphertext, kept)
    with pytest.raises(SealError):
        sealer(identity=bytes(16)).open(0, first, old)
    with pytest.raises(SealError):
        sealer(key=Secret(bytes(32))).open(0, first, old)


@pytest.mark.parametrize("size", [0, 1, PAGE - 1, PAGE + 1])
def test_sizes_are_exact(size: int):
    _, kept = sealer().seal(0, DATA, b"salt", 1)
    with pytest.raises(SealError):
        sealer().open(0, bytes(size), kept)
    with pytest.raises(ValueError, match="page of"):
        sealer().seal(0, bytes(size), b"salt", 1)


def test_a_key_has_32_bytes():
    with pytest.raises(ValueError, match="16 bytes"):
        sealer(key=Secret(bytes(16)))


def test_a_sealer_shows_no_key():
    assert KEY.reveal().hex() not in repr(sealer())
    assert dataclasses.is_dataclass(Sealed) is False
