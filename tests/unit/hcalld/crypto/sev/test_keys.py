# SPDX-License-Identifier: Apache-2.0
"""Keys: made of entropy, and refused when they are none."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sev_platform import key, root

from hcalld.core.secret import Secret
from hcalld.crypto.sev.errors import KeyFormatError
from hcalld.crypto.sev.keys import (
    KEY_ENTROPY_SIZE,
    EcPrivateKey,
    ec_public,
    is_signature,
    rsa_public,
    sign_rsa,
)
from hcallproto.payloads.sev import (
    Algorithm,
    CertificateError,
    Curve,
    EcPublicKey,
    RsaPublicKey,
    Slot,
    Usage,
)

P = 2**384 - 2**128 - 2**96 + 2**32 - 1
N = int(
    "39402006196394479212279040100143613805079739270465446667946905279627659399113263569398956"
    "308152294913554433653942643"
)
"""P-384's field and order (FIPS 186-4, D.1.2.4), the order as NIST prints it."""


@settings(max_examples=20)
@given(st.binary(min_size=KEY_ENTROPY_SIZE, max_size=KEY_ENTROPY_SIZE))
def test_key_when_made_of_entropy_then_the_number_that_fips_says(entropy: bytes):
    made = EcPrivateKey.from_entropy(entropy)
    assert int.from_bytes(made.scalar.reveal()) == int.from_bytes(entropy) % (N - 1) + 1
    assert EcPrivateKey(made.scalar).public == made.public


@pytest.mark.parametrize("value", [0, N - 2, N - 1, 2**448 - 1])
def test_key_when_entropy_is_at_an_end_then_a_key(value: int):
    made = EcPrivateKey.from_entropy(value.to_bytes(KEY_ENTROPY_SIZE))
    assert 0 < int.from_bytes(made.scalar.reveal()) < N


@pytest.mark.parametrize("size", [0, 48, 55, 57])
def test_key_when_entropy_is_of_another_size_then_refused(size: int):
    with pytest.raises(ValueError, match=f"{size} bytes of entropy, expected 56"):
        EcPrivateKey.from_entropy(bytes(size))


@pytest.mark.parametrize(
    "scalar",
    [b"", b"\1" * 47, b"\0" + b"\1" * 48, bytes(48), N.to_bytes(48), (N + 1).to_bytes(48)],
)
def test_key_when_the_number_is_none_then_refused_without_it(scalar: bytes):
    with pytest.raises(KeyFormatError) as caught:
        EcPrivateKey(Secret(scalar))
    assert scalar.hex()[:16] not in str(caught.value) or not scalar
    assert str(int.from_bytes(scalar)) not in str(caught.value).replace("384", "").replace("48", "")


def test_key_when_shown_then_nothing_is_seen():
    made = key("pdh")
    shown = repr(made) + str(made)
    assert made.scalar.reveal().hex() not in shown
    assert str(int.from_bytes(made.scalar.reveal())) not in shown


def test_exchange_when_done_from_both_sides_then_the_same_48_bytes():
    left, right = key("left"), key("right")
    shared = left.exchange(right.public)
    assert shared == right.exchange(left.public)
    assert len(shared) == 48


G = ec.derive_private_key(1, ec.SECP384R1()).public_key().public_numbers()


@pytest.mark.parametrize(
    ("point", "text"),
    [
        (EcPublicKey(0, 0), "public key is no point on P-384"),
        (EcPublicKey(G.x, G.y ^ 1), "public key is no point on P-384"),
        (EcPublicKey(G.x + P, G.y), "public key is no point on P-384"),
        (EcPublicKey(G.x, G.y + P), "public key is no point on P-384"),
        (EcPublicKey(2**576 - 1, 2**576 - 1), "public key is no point on P-384"),
        (EcPublicKey(G.x, G.y, Curve.P256), r"curve is 1, expected 2 \(P-384\)"),
        (EcPublicKey(G.x, G.y, 7), "curve is 7"),
    ],
)
def test_point_when_it_is_none_then_refused(point: EcPublicKey, text: str):
    with pytest.raises(CertificateError, match=f"peer's key: {text}"):
        key("pdh").exchange(point)
    with pytest.raises(CertificateError, match=f"X: {text}"):
        ec_public(point, "X")


def test_point_when_it_is_one_then_taken():
    assert ec_public(EcPublicKey(G.x, G.y), "X").public_numbers() == G


def test_signature_when_made_twice_then_the_same():
    assert key("pek").sign(b"data") == key("pek").sign(b"data")
    assert key("pek").sign(b"data") != key("pek").sign(b"date")


def test_signature_when_made_then_as_rfc_6979_has_it():
    """A.2.6, P-384 with SHA-256 and SHA-384, message "sample"."""
    private = EcPrivateKey(
        Secret(
            bytes.fromhex(
                "6B9D3DAD2E1B8C1C05B19875B6659F4DE23C3B667BF297BA9AA47740787137D8"
                "96D5724E4C70A825F872C9EA60D2EDF5"
            )
        )
    )
    assert private.sign(b"sample", Algorithm.ECDSA_SHA256) == (
        0x21B13D1E013C7FA1392D03C5F99AF8B30C570C6F98D4EA8E354B63A21D3DAA33BDE1E888E63355D92FA2B3C36D8FB2CD,
        0xF3AA443FB107745BF4BD77CB3891674632068A10CA67E3D45DB2266FA7D1FEEBEFDC63ECCD1AC42EC0CB8668A4FA0AB0,
    )
    assert private.sign(b"sample", Algorithm.ECDSA_SHA384) == (
        0x94EDBB92A5ECB8AAD4736E56C691916B3F88140666CE9FA73D64C4EA95AD133C81A648152E44ACF96E36DD1E80FABE46,
        0x99EF4AEB15F178CEA1FE40DB2603138F130E740A19624526203B6351D0A3A94FA329C145786E679E7B82C71A38628AC8,
    )


@pytest.mark.parametrize("algorithm", [Algorithm.ECDSA_SHA256, Algorithm.ECDSA_SHA384])
def test_signature_when_it_is_an_ec_keys_then_only_with_its_hash(algorithm: Algorithm):
    private = key("pek")
    slot = Slot.of_ec(Usage.PEK, algorithm, *private.sign(b"data", algorithm))
    assert is_signature(private.public, algorithm, slot, b"data", "PEK")
    assert not is_signature(private.public, algorithm, slot, b"date", "PEK")
    other = Algorithm.ECDSA_SHA256 + Algorithm.ECDSA_SHA384 - algorithm
    assert not is_signature(private.public, Algorithm(other), slot, b"data", "PEK")
    assert not is_signature(key("oca").public, algorithm, slot, b"data", "PEK")


@pytest.mark.parametrize(("r", "s"), [(0, 0), (0, 1), (1, 0), (N, 1), (1, N), (2**576 - 1,) * 2])
def test_signature_when_its_numbers_are_out_of_range_then_none(r: int, s: int):
    slot = Slot.of_ec(Usage.PEK, Algorithm.ECDSA_SHA256, r, s)
    assert not is_signature(key("pek").public, Algorithm.ECDSA_SHA256, slot, b"data", "PEK")


@pytest.mark.parametrize("bits", [2048, 4096])
def test_signature_when_it_is_an_rsa_keys_then_only_with_its_hash(bits: int):
    algorithm = root(bits).ask.algorithm
    number = sign_rsa(root(bits).ask_key, b"data", algorithm)
    public = root(bits).ask.key
    slot = Slot.of_rsa(Usage.ASK, algorithm, number)
    assert is_signature(public, algorithm, slot, b"data", "ASK")
    assert not is_signature(public, algorithm, slot, b"date", "ASK")
    other = Algorithm(Algorithm.RSA_SHA256 + Algorithm.RSA_SHA384 - algorithm)
    assert not is_signature(public, other, slot, b"data", "ASK")
    for wrong in (0, 1, public.modulus, 2**4096 - 1):
        slot = Slot.of_rsa(Usage.ASK, algorithm, wrong)
        assert not is_signature(public, algorithm, slot, b"data", "ASK")


def test_rsa_key_when_it_is_none_then_refused():
    good = root().ask.key
    assert rsa_public(good, "ASK").key_size == 2048
    for bad, text in (
        (RsaPublicKey(good.modulus >> 1, 65537, 2048), "modulus is of 2047 bits"),
        (RsaPublicKey(good.modulus, 65537, 4096), "modulus is of 2048 bits, expected 4096 bits"),
        (RsaPublicKey(good.modulus, 2**64, 2048), "exponent is of 65 bits, expected at most 64"),
        (RsaPublicKey(good.modulus, 2, 2048), "public key is no RSA key"),
        (RsaPublicKey(good.modulus, 0, 2048), "public key is no RSA key"),
        (RsaPublicKey(good.modulus & ~1, 65537, 2048), "public key is no RSA key"),
    ):
        with pytest.raises(CertificateError, match=f"ASK: {text}"):
            rsa_public(bad, "ASK")
