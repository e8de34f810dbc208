# SPDX-License-Identifier: Apache-2.0
"""SEV's certificates as bytes: what is where, what is refused and in which words."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcallproto.payloads import sev
from hcallproto.payloads.sev import (
    AMD_CERTIFICATE_SIZES,
    CERTIFICATE_SIZE,
    EMPTY_SLOT,
    Algorithm,
    AmdCertificate,
    Api,
    CertificateError,
    Curve,
    EcPublicKey,
    RsaPublicKey,
    SevCertificate,
    Slot,
    Usage,
    build_amd_pair,
    build_chain,
    parse_amd_pair,
    parse_chain,
)

PEK = SevCertificate(
    api=Api(1, 55),
    usage=Usage.PEK,
    algorithm=Algorithm.ECDSA_SHA256,
    key=EcPublicKey(0x1122, 0x3344),
    slots=(Slot.of_ec(Usage.OCA, Algorithm.ECDSA_SHA256, 0x55, 0x66), EMPTY_SLOT),
)
DATA = PEK.build()


def put(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


# -- a platform's -----------------------------------------------------------------------------


def test_certificate_when_built_then_each_field_at_its_place():
    expected = struct.pack("<IBBHII", 1, 1, 55, 0, 0x1002, 2)
    expected += u32(2) + b"\x22\x11".ljust(72, b"\0") + b"\x44\x33".ljust(72, b"\0")
    expected = expected.ljust(0x414, b"\0")
    assert PEK.signed() == expected
    expected += struct.pack("<II", 0x1001, 2) + b"\x55".ljust(72, b"\0") + b"\x66"
    expected = expected.ljust(0x61C, b"\0") + struct.pack("<II", 0x1000, 0)
    assert expected.ljust(0x824, b"\0") == DATA
    assert sev.SEV_CERTIFICATE.sizeof() == len(DATA) == CERTIFICATE_SIZE


def test_certificate_when_it_has_an_rsa_key_then_each_field_at_its_place():
    key = RsaPublicKey(0xC1 << 2040 | 1, 65537, 2048)
    oca = SevCertificate(
        api=Api(0, 0),
        usage=Usage.OCA,
        algorithm=Algorithm.RSA_SHA256,
        key=key,
        slots=(Slot.of_rsa(Usage.OCA, Algorithm.RSA_SHA256, 0xABCD), EMPTY_SLOT),
    )
    built = oca.build()
    assert built[0x10:0x414] == (
        u32(2048) + b"\1\0\1".ljust(512, b"\0") + (b"\1" + bytes(254) + b"\xc1").ljust(512, b"\0")
    )
    assert built[0x41C:0x61C] == b"\xcd\xab".ljust(512, b"\0")
    assert SevCertificate.parse(built) == oca
    assert oca.slots[0].rsa_signature() == 0xABCD


@pytest.mark.parametrize(
    ("offset", "value", "text"),
    [
        (0, u32(2), "version is 2, expected 1"),
        (0, u32(0), "version is 0, expected 1"),
        (6, b"\1\0", "reserved field is 0x1, expected 0"),
        (8, u32(0x1005), "usage is 0x1005, expected one of 0x0 ARK"),
        (8, u32(0x1234_1002), "usage is 0x12341002"),
        (0xC, u32(4), "algorithm is 0x4, expected one of"),
        (0xC, u32(0), "algorithm is 0x0 INVALID, expected that of a key"),
        (0x10, u32(0), "curve is 0x0, expected one of 0x1 P256, 0x2 P384"),
        (0x10, u32(3), "curve is 0x3"),
        (0xA4, b"\1", "rest of the public key is not zero, expected zero"),
        (0x413, b"\x80", "rest of the public key is not zero"),
    ],
)
def test_certificate_when_a_field_is_wrong_then_the_error_says_so(
    offset: int, value: bytes, text: str
):
    with pytest.raises(CertificateError) as caught:
        SevCertificate.parse(put(DATA, offset, value), "PEK certificate")
    assert str(caught.value).startswith(f"PEK certificate: {text}")


@pytest.mark.parametrize("bits", [0, 1024, 2047, 3072, 0x1000_0800])
def test_certificate_when_an_rsa_key_has_an_odd_size_then_refused(bits: int):
    data = put(put(DATA, 0xC, u32(Algorithm.RSA_SHA256)), 0x10, u32(bits))
    with pytest.raises(CertificateError, match=f"modulus size is {bits}, expected 2048 or 4096"):
        SevCertificate.parse(data)


@pytest.mark.parametrize("size", [0, 1, CERTIFICATE_SIZE - 1, CERTIFICATE_SIZE + 1, 6252])
def test_certificate_when_its_size_is_another_then_refused(size: int):
    with pytest.raises(CertificateError, match=f"length is {size}, expected 2084"):
        SevCertificate.parse(DATA.ljust(size, b"\0")[:size])


@given(
    slots=st.tuples(*(st.binary(min_size=520, max_size=520),) * 2),
    point=st.tuples(*(st.integers(0, 2**576 - 1),) * 2),
    api=st.tuples(st.integers(0, 255), st.integers(0, 255)),
    curve=st.sampled_from(Curve),
)
def test_certificate_when_parsed_then_builds_the_same(
    slots: Any, point: tuple[int, int], api: tuple[int, int], curve: Curve
):
    x, y = (value.to_bytes(72, "little") for value in point)
    data = put(DATA, 4, bytes(api))
    data = put(data, 0x10, u32(curve) + x + y)
    data = data[:0x414] + b"".join(slots)
    parsed = SevCertificate.parse(data)
    assert parsed.build() == data
    assert parsed.key == EcPublicKey(*point, curve)


@given(st.binary(max_size=CERTIFICATE_SIZE + 8))
def test_certificate_when_it_is_noise_then_a_certificate_error(data: bytes):
    with pytest.raises(CertificateError):
        SevCertificate.parse(b"\xff" + data)
    with pytest.raises(CertificateError):
        SevCertificate.parse((b"\xff" + data).ljust(CERTIFICATE_SIZE, b"\0")[:CERTIFICATE_SIZE])


def test_slot_when_it_holds_numbers_then_they_come_out():
    top = 2**576 - 1
    slot = Slot.of_ec(Usage.PEK, Algorithm.ECDSA_SHA256, top, 1)
    assert slot.ec_signature() == (top, 1)
    assert not slot.is_empty
    assert Slot().is_empty
    assert not Slot(signature=b"\1".ljust(512, b"\0")).is_empty


# -- chains -----------------------------------------------------------------------------------


def of(usage: Usage) -> SevCertificate:
    key = EcPublicKey(int(usage), 1)
    return SevCertificate(api=Api(0, 0), usage=usage, algorithm=Algorithm.ECDSA_SHA256, key=key)


def test_chain_when_built_then_pek_oca_cek():
    pek, oca, cek = (of(usage) for usage in (Usage.PEK, Usage.OCA, Usage.CEK))
    built = build_chain(pek, oca, cek)
    assert built == pek.build() + oca.build() + cek.build()
    assert len(built) == sev.CHAIN_SIZE == 6252
    assert parse_chain(built) == (pek, oca, cek)


def test_chain_when_another_certificate_is_there_then_refused():
    pek, oca, cek = (of(usage) for usage in (Usage.PEK, Usage.OCA, Usage.CEK))
    with pytest.raises(CertificateError, match="OCA certificate: usage is CEK, expected OCA"):
        parse_chain(build_chain(pek, cek, oca))
    with pytest.raises(CertificateError, match="certificate chain: length is 6251"):
        parse_chain(build_chain(pek, oca, cek)[:-1])
    with pytest.raises(CertificateError, match="CEK certificate: version is 2"):
        parse_chain(put(build_chain(pek, oca, cek), 2 * 2084, u32(2)))


# -- AMD's ------------------------------------------------------------------------------------


def amd(usage: Usage, bits: int, signature: int | None = 0x77) -> AmdCertificate:
    return AmdCertificate(
        key_id=b"k" * 16,
        certifying_id=b"c" * 16,
        usage=usage,
        key=RsaPublicKey(0xAB, 65537, bits),
        signature=signature,
    )


@pytest.mark.parametrize(("bits", "size"), AMD_CERTIFICATE_SIZES.items())
def test_amd_certificate_when_built_then_each_field_at_its_place(bits: int, size: int):
    built = amd(Usage.ASK, bits).build()
    expected = u32(1) + b"k" * 16 + b"c" * 16 + u32(0x13) + bytes(16) + u32(bits) * 2
    expected += b"".join(value.ljust(bits // 8, b"\0") for value in (b"\1\0\1", b"\xab", b"\x77"))
    assert built == expected
    assert len(built) == size
    assert AmdCertificate.parse(built) == amd(Usage.ASK, bits)
    assert amd(Usage.ASK, bits).signed() == expected[: size - bits // 8]


def test_amd_certificate_when_it_has_no_signature_then_parsed():
    """AMD's first Naples ARK."""
    built = amd(Usage.ARK, 2048, None).build()
    assert len(built) == 576
    assert AmdCertificate.parse(built).signature is None
    assert AmdCertificate.parse(built).build() == built


def test_amd_certificate_when_asked_then_its_algorithm_is_that_of_its_size():
    assert amd(Usage.ASK, 2048).algorithm is Algorithm.RSA_SHA256
    assert amd(Usage.ASK, 4096).algorithm is Algorithm.RSA_SHA384


@pytest.mark.parametrize(
    ("offset", "value", "text"),
    [
        (0, u32(2), "version is 2, expected 1"),
        (0x24, u32(0x1004), "usage is 0x1004, expected 0x0 ARK or 0x13 ASK"),
        (0x38, u32(4096), "exponent size is 4096, expected 2048 bits for 832 bytes"),
        (0x3C, u32(0xFFFFFFF8), "modulus size is 4294967288, expected 2048 bits"),
        (0x3C, u32(0), "modulus size is 0, expected 2048 bits"),
    ],
)
def test_amd_certificate_when_a_field_is_wrong_then_the_error_says_so(
    offset: int, value: bytes, text: str
):
    with pytest.raises(CertificateError) as caught:
        AmdCertificate.parse(put(amd(Usage.ARK, 2048).build(), offset, value), "ARK certificate")
    assert str(caught.value).startswith(f"ARK certificate: {text}")


@pytest.mark.parametrize("size", [0, 0x3C, 64, 575, 577, 831, 833, 1599, 1601])
def test_amd_certificate_when_its_size_is_another_then_refused(size: int):
    with pytest.raises(CertificateError, match=f"length is {size}, expected one of 576, 832"):
        AmdCertificate.parse(amd(Usage.ARK, 4096).build().ljust(size, b"\0")[:size])


@given(st.data())
def test_amd_certificate_when_parsed_then_builds_the_same(data: Any):
    bits = data.draw(st.sampled_from(sorted(AMD_CERTIFICATE_SIZES)))
    raw = bytearray(amd(Usage.ASK, bits).build())
    raw[4:0x24] = data.draw(st.binary(min_size=32, max_size=32))
    raw[0x28:0x38] = data.draw(st.binary(min_size=16, max_size=16))
    rest = len(raw) - 0x40
    raw[0x40:] = data.draw(st.binary(min_size=rest, max_size=rest))
    assert AmdCertificate.parse(bytes(raw)).build() == raw


@pytest.mark.parametrize("bits", AMD_CERTIFICATE_SIZES)
def test_amd_pair_when_built_then_ask_and_ark(bits: int):
    ask, ark = amd(Usage.ASK, bits), amd(Usage.ARK, bits)
    built = build_amd_pair(ask, ark)
    assert built == ask.build() + ark.build()
    assert parse_amd_pair(built) == (ask, ark)
    with pytest.raises(CertificateError, match="ASK certificate: usage is ARK, expected ASK"):
        parse_amd_pair(build_amd_pair(ark, ask))
    with pytest.raises(CertificateError, match="ARK certificate: length is"):
        parse_amd_pair(built + b"\0")
    for size, field in ((0, "modulus size is 0"), (0x3F, "length is 63")):
        with pytest.raises(CertificateError, match=field):
            parse_amd_pair(built[:size])


def test_amd_pair_when_the_ark_has_no_signature_then_parsed():
    ask, ark = amd(Usage.ASK, 2048), amd(Usage.ARK, 2048, None)
    assert parse_amd_pair(build_amd_pair(ask, ark)) == (ask, ark)
