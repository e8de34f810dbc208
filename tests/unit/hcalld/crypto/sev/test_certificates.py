# SPDX-License-Identifier: Apache-2.0
"""Certificates as they are made, and what is looked at before one is used."""

from __future__ import annotations

import dataclasses

import pytest
from tests.sev_platform import API, chain, key, root

from hcalld.crypto.sev.certificates import (
    check_key,
    check_role,
    make_csr,
    make_oca,
    make_owner_dh,
    parse_owner_dh,
    public_point,
    sign,
)
from hcalld.crypto.sev.chains import verify
from hcallproto.payloads.sev import (
    EMPTY_SLOT,
    Algorithm,
    Api,
    CertificateError,
    Curve,
    EcPublicKey,
    RsaPublicKey,
    SevCertificate,
    Usage,
)

MADE = {
    "pdh": (Usage.PDH, 3, [(0x1002, 2), (0x1000, 0)]),
    "pek": (Usage.PEK, 2, [(0x1001, 2), (0x1004, 2)]),
    "oca": (Usage.OCA, 2, [(0x1001, 2), (0x1000, 0)]),
    "cek": (Usage.CEK, 2, [(0x13, 1), (0x1000, 0)]),
}


@pytest.mark.parametrize("name", MADE)
def test_certificate_when_made_then_as_amds_are(name: str):
    usage, algorithm, slots = MADE[name]
    made: SevCertificate = getattr(chain(), name)
    assert (made.usage, made.algorithm, made.api) == (usage, algorithm, API)
    assert made.key == key(name).public
    assert [(slot.usage, slot.algorithm) for slot in made.slots] == slots
    assert SevCertificate.parse(made.build()) == made


def test_cek_when_the_root_is_of_rome_then_signed_with_sha_384():
    assert chain(4096).cek.slots[0].algorithm == Algorithm.RSA_SHA384


def test_csr_when_made_then_nobody_signed_it():
    csr = make_csr(key("pek"), API)
    assert csr == dataclasses.replace(chain().pek, slots=(EMPTY_SLOT, EMPTY_SLOT))
    assert not any(csr.build()[0x41C:0x61C])


def test_oca_when_made_by_an_owner_then_of_no_version():
    assert make_oca(key("owner's oca")).api == Api(0, 0)


def test_sign_when_the_second_slot_is_in_use_then_in_the_first():
    pek = chain().pek
    only_cek = dataclasses.replace(pek, slots=(EMPTY_SLOT, pek.slots[1]))
    assert sign(only_cek, Usage.OCA, key("oca")) == pek


def test_sign_when_both_slots_are_in_use_then_refused():
    with pytest.raises(ValueError, match="PEK certificate: both signature slots are in use"):
        sign(chain().pek, Usage.OCA, key("oca"))


def test_sign_when_with_sha_384_then_verified_with_it():
    oca = dataclasses.replace(make_csr(key("oca"), API), usage=Usage.OCA)
    oca = dataclasses.replace(oca, algorithm=Algorithm.ECDSA_SHA384)
    signed = sign(oca, Usage.OCA, key("oca"), Algorithm.ECDSA_SHA384)
    assert verify(signed, signed) == 0


# -- a guest owner's ----------------------------------------------------------------------------


@pytest.mark.parametrize("is_self_signed", [False, True])
def test_owner_dh_when_made_then_parsed(is_self_signed: bool):
    made = make_owner_dh(key("owner"), is_self_signed=is_self_signed)
    assert (made.usage, made.algorithm) == (Usage.PDH, Algorithm.ECDH_SHA256)
    assert made.slots[0].is_empty is not is_self_signed
    assert parse_owner_dh(made.build()) == made
    assert parse_owner_dh(made.build() + b"what follows") == made
    assert public_point(made) == key("owner").public


def test_owner_dh_when_self_signed_then_as_sev_tool_does():
    made = make_owner_dh(key("owner"), is_self_signed=True)
    claimed = dataclasses.replace(make_csr(key("owner"), API))
    assert verify(made, claimed) == 0


DH = make_owner_dh(key("owner"))


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"usage": Usage.PEK}, "usage is PEK, expected PDH"),
        ({"algorithm": Algorithm.ECDSA_SHA256}, "algorithm is ECDSA_SHA256, expected ECDH_SHA256"),
        ({"key": EcPublicKey(1, 1)}, "public key is no point on P-384"),
        ({"key": EcPublicKey(1, 1, Curve.P256)}, "curve is 1, expected 2"),
        (
            {"key": root().ask.key, "algorithm": Algorithm.RSA_SHA256},
            "algorithm is RSA_SHA256, expected ECDH",
        ),
    ],
)
def test_owner_dh_when_it_is_another_then_refused(changed: dict[str, object], text: str):
    data = dataclasses.replace(DH, **changed).build()  # type: ignore[arg-type]
    with pytest.raises(CertificateError, match=f"guest owner's certificate: {text}"):
        parse_owner_dh(data)


def test_owner_dh_when_it_is_cut_off_then_refused():
    for size in (0, 2083):
        with pytest.raises(CertificateError, match=f"length is {size}, expected 2084"):
            parse_owner_dh(DH.build()[:size])


def test_owner_dh_when_its_key_has_sha_384_then_taken():
    other = dataclasses.replace(DH, algorithm=Algorithm.ECDH_SHA384)
    assert parse_owner_dh(other.build()) == other


# -- roles ------------------------------------------------------------------------------------

ROLES = {"pdh": Usage.PDH, "pek": Usage.PEK, "oca": Usage.OCA, "cek": Usage.CEK}


@pytest.mark.parametrize("name", ROLES)
@pytest.mark.parametrize("usage", ROLES.values())
def test_role_when_a_certificate_has_another_then_refused(name: str, usage: Usage):
    certificate = getattr(chain(), name)
    if usage is ROLES[name]:
        check_role(certificate, usage)
    else:
        with pytest.raises(CertificateError, match=f"{usage.name} certificate: usage is"):
            check_role(certificate, usage)


@pytest.mark.parametrize(
    ("usage", "algorithm", "is_good"),
    [
        (Usage.PEK, Algorithm.ECDSA_SHA384, True),
        (Usage.PEK, Algorithm.ECDH_SHA256, False),
        (Usage.OCA, Algorithm.ECDSA_SHA384, True),
        (Usage.OCA, Algorithm.ECDH_SHA256, False),
        (Usage.CEK, Algorithm.ECDH_SHA384, False),
        (Usage.PDH, Algorithm.ECDSA_SHA256, False),
    ],
)
def test_role_when_the_key_is_for_something_else_then_refused(
    usage: Usage, algorithm: Algorithm, is_good: bool
):
    certificate = dataclasses.replace(chain().pek, usage=usage, algorithm=algorithm)
    if is_good:
        check_role(certificate, usage)
    else:
        with pytest.raises(CertificateError, match=f"algorithm is {algorithm.name}, expected"):
            check_role(certificate, usage)


def test_role_when_an_owner_has_an_rsa_key_then_taken():
    rsa = dataclasses.replace(chain().oca, algorithm=Algorithm.RSA_SHA256, key=root().ark.key)
    check_role(rsa, Usage.OCA)
    with pytest.raises(CertificateError, match="OCA certificate: public key is an RSA key"):
        public_point(rsa)


def test_key_when_it_cannot_be_used_then_refused():
    check_key(root().ask, "ASK")
    bad = dataclasses.replace(root().ask, key=RsaPublicKey(3, 65537, 2048))
    with pytest.raises(CertificateError, match="ASK: modulus is of 2 bits"):
        check_key(bad, "ASK")
