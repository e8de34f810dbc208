# SPDX-License-Identifier: Apache-2.0
"""Test roots, and the files that they are kept in."""

from __future__ import annotations

import base64
import re

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.sev_platform import API, VECTORS, chain, flipped, key, root, verify_chain

from hcalld.crypto.sev.chains import Chain, verify, verify_amd
from hcalld.crypto.sev.errors import KeyFormatError, SignatureError
from hcalld.crypto.sev.roots import MAX_PEM_SIZE, Root
from hcallproto.payloads.sev import CertificateError, Usage, parse_amd_pair

PEM = (VECTORS / "root-2048.pem").read_bytes()


def blocks(pem: bytes) -> list[bytes]:
    """ARK's certificate and key, ASK's certificate and key."""
    found = re.findall(rb"-----BEGIN .*?-----END [A-Z ]+-----\n", pem, re.DOTALL)
    assert len(found) == 4
    return found


def test_root_when_made_then_its_certificates_hold():
    made = Root.generate()
    verify_amd(made.ark, made.ark)
    verify_amd(made.ask, made.ark)
    assert (made.ark.usage, made.ask.usage) == (Usage.ARK, Usage.ASK)
    ids = {made.ark.key_id, made.ask.key_id, root().ark.key_id, root().ask.key_id, bytes(16)}
    assert len(ids) == 5
    assert parse_amd_pair(made.certificates) == (made.ask, made.ark)
    assert len(made.certificates) == 2 * 832
    again = Root.from_pem(made.to_pem().reveal())
    assert (again.ark, again.ask) == (made.ark, made.ask)
    cek = again.make_cek(key("cek").public, API)
    verify_chain(chain()._replace(cek=cek, ask=made.ask, ark=made.ark))


@pytest.mark.parametrize("bits", [0, 1024, 3072, 8192])
def test_root_when_of_another_size_then_refused(bits: int):
    with pytest.raises(ValueError, match=f"{bits} bits, expected 2048 or 4096"):
        Root.generate(bits)


@pytest.mark.parametrize("bits", [2048, 4096])
def test_root_when_it_is_in_a_file_then_used(bits: int):
    data = (VECTORS / f"root-{bits}.pem").read_bytes()
    read = Root.from_pem(data)
    assert read.to_pem().reveal() == data
    assert read.ark.key.size == read.ask_key.key_size == bits
    stored = Chain.parse_export((VECTORS / f"platform-{bits}.cert").read_bytes())
    assert (stored.ask, stored.ark) == (read.ask, read.ark)
    assert verify(read.make_cek(key("cek").public, API), stored.ask) == 0


def test_root_when_its_file_is_read_then_it_says_that_it_is_a_test_root():
    assert b"test root" in PEM.partition(b"-----")[0]
    assert b"not AMD's" in PEM.partition(b"-----")[0]


def test_root_when_blocks_are_in_another_order_then_the_same():
    parts = blocks(PEM)
    for order in (parts[::-1], parts[2:] + parts[:2], [parts[0], parts[3], parts[2], parts[1]]):
        read = Root.from_pem(b"\r\n".join(order).replace(b"\n", b"\r\n"))
        assert (read.ark, read.ask) == (root().ark, root().ask)
        assert read.ark_key.private_numbers() == root().ark_key.private_numbers()


def block(label: str, data: bytes) -> bytes:
    text = base64.encodebytes(data).decode()
    return f"-----BEGIN {label}-----\n{text}-----END {label}-----\n".encode()


OF_EC = ec.derive_private_key(1, ec.SECP384R1()).private_bytes(
    serialization.Encoding.DER,
    serialization.PrivateFormat.PKCS8,
    serialization.NoEncryption(),
)
ARK, ARK_KEY, ASK, ASK_KEY = blocks(PEM)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "0 blocks 'SEV ARK CERTIFICATE', expected 1"),
        (ARK_KEY + ASK + ASK_KEY, "0 blocks 'SEV ARK CERTIFICATE'"),
        (ARK + ARK_KEY + ASK_KEY, "0 blocks 'SEV ASK CERTIFICATE'"),
        (PEM + ARK, "2 blocks 'SEV ARK CERTIFICATE', expected 1"),
        (ARK + ASK + ASK_KEY, "no private key fits the ARK certificate"),
        (ARK + ARK_KEY + ASK, "no private key fits the ASK certificate"),
        (PEM + block("PRIVATE KEY", b"no key"), "a private key that is no PKCS #8"),
        (PEM + block("PRIVATE KEY", OF_EC), "a private key of another kind, expected RSA"),
        (
            ARK_KEY + ASK + ASK_KEY + block("SEV ARK CERTIFICATE", b"")[:-1] + b"\n",
            "0 blocks 'SEV ARK CERTIFICATE'",
        ),
        (
            b"-----BEGIN SEV ARK CERTIFICATE-----\nA\n-----END SEV ARK CERTIFICATE-----\n" + ASK,
            "block 'SEV ARK CERTIFICATE' is no base64",
        ),
        (b" " * (MAX_PEM_SIZE + 1), "65537 bytes, expected at most 65536"),
    ],
)
def test_root_when_its_file_is_another_then_the_error_says_so(data: bytes, text: str):
    with pytest.raises(KeyFormatError) as caught:
        Root.from_pem(data)
    assert str(caught.value).startswith(f"root: {text}")


def test_root_when_its_certificates_are_others_then_refused():
    ask = root().ask.build()
    with pytest.raises(CertificateError, match="SEV ARK CERTIFICATE: usage is ASK, expected ARK"):
        Root.from_pem(block("SEV ARK CERTIFICATE", ask) + ASK + ARK_KEY + ASK_KEY)
    with pytest.raises(CertificateError, match="ARK certificate: length is 831"):
        Root.from_pem(block("SEV ARK CERTIFICATE", ask[:-1]) + ASK + ARK_KEY + ASK_KEY)
    altered = block("SEV ARK CERTIFICATE", flipped(root().ark.build(), 831))
    with pytest.raises(SignatureError, match="ARK certificate: signature of the ARK is wrong"):
        Root.from_pem(altered + ARK_KEY + ASK + ASK_KEY)
    other = root(4096).ask.build()
    with pytest.raises(SignatureError, match="ASK certificate: certifying id is"):
        Root.from_pem(ARK + ARK_KEY + block("SEV ASK CERTIFICATE", other) + ASK_KEY)


def test_root_when_shown_then_without_its_keys():
    assert "key=" not in repr(root()).replace("key=RsaPublicKey", "")
    assert "PrivateKey" not in repr(root())
    secret = str(root().ask_key.private_numbers().d)
    assert secret not in repr(root())
    assert repr(root().to_pem()) == "<secret>"
