# SPDX-License-Identifier: Apache-2.0
"""The ``openssl`` program against SEV's certificates, reports, sessions and packets.

What it cannot read is turned into what it can by the functions here, from the offsets that
AMD publishes; nothing of the code under test takes part in that.
"""

from __future__ import annotations

import dataclasses
import functools
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import Require
from tests.sev_platform import API, KEYS, VECTORS, chain, flipped, key, root, verify_chain

from hcalld.crypto.sev.certificates import make_csr, public_point
from hcalld.crypto.sev.chains import Chain, verify, verify_amd
from hcalld.crypto.sev.errors import SignatureError
from hcalld.crypto.sev.keys import EcPrivateKey
from hcalld.crypto.sev.packets import Packet, open_secret, open_transport, seal_secret
from hcalld.crypto.sev.reports import make_report, verify_report
from hcalld.crypto.sev.session import unwrap_session, wrap_session
from hcalld.testing.sev import made_up
from hcallproto.payloads.sev import (
    AmdCertificate,
    AttestationReport,
    CertificateError,
    PacketContext,
    PacketHeader,
    Policy,
    Session,
    SevCertificate,
    Slot,
)

Run = Callable[..., bytes]

# -- AMD's layouts, by hand -------------------------------------------------------------------

SIZE = 0x824
BODY_SIZE = 0x414
SLOTS = (0x414, 0x61C)
EC_SPKI = bytes.fromhex("3076301006072a8648ce3d020106052b81040022036200")
RSA_OID = bytes.fromhex("300d06092a864886f70d0101010500")


def der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        head = bytes((size,))
    else:
        digits = size.to_bytes((size.bit_length() + 7) // 8)
        head = bytes((0x80 | len(digits),)) + digits
    return bytes((tag,)) + head + content


def der_number(little: bytes) -> bytes:
    digits = little[::-1].lstrip(b"\0") or b"\0"
    return der(2, b"\0" * (digits[0] >> 7) + digits)


def ec_key(certificate: bytes) -> bytes:
    """SubjectPublicKeyInfo of a certificate's P-384 key."""
    assert certificate[0x10:0x14] == b"\2\0\0\0"
    qx, qy = certificate[0x14 : 0x14 + 48], certificate[0x5C : 0x5C + 48]
    return EC_SPKI + b"\4" + qx[::-1] + qy[::-1]


def ec_signature(at: bytes) -> bytes:
    """DER of the numbers r and s."""
    return der(0x30, der_number(at[:72]) + der_number(at[72:144]))


def amd_parts(certificate: bytes) -> tuple[bytes, bytes, bytes]:
    """SubjectPublicKeyInfo, what is signed, and the signature of an ARK or ASK."""
    size = int.from_bytes(certificate[0x3C:0x40], "little") // 8
    exponent, modulus, signature = (
        certificate[0x40 + n * size : 0x40 + (n + 1) * size] for n in range(3)
    )
    numbers = der(0x30, der_number(modulus) + der_number(exponent))
    spki = der(0x30, RSA_OID + der(3, b"\0" + numbers))
    return spki, certificate[: 0x40 + 2 * size], signature[::-1]


# -- the program ------------------------------------------------------------------------------


@pytest.fixture
def openssl(require: Require, tmp_path: Path) -> Run:
    """Run the program with files of these contents: ``{0}`` in a word is the first's path."""
    program = require("openssl")

    def run(*words: str, files: tuple[bytes, ...] = (), stdin: bytes = b"") -> bytes:
        paths = [tmp_path / f"file{index}" for index in range(len(files))]
        for path, data in zip(paths, files, strict=True):
            path.write_bytes(data)
        command = [word.format(*paths) for word in words]
        done = subprocess.run([program, *command], input=stdin, capture_output=True, check=False)
        if done.returncode:
            raise Refused(done.stdout.decode() + done.stderr.decode())
        return done.stdout

    return run


class Refused(Exception):
    """What the program said."""


PSS = ("-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest")


def is_good(
    openssl: Run, spki: bytes, signed: bytes, signature: bytes, *options: str, digest: str
) -> bool:
    words = ("dgst", f"-{digest}", "-keyform", "DER", "-verify", "{0}", "-signature", "{1}")
    try:
        said = openssl(*words, *options, files=(spki, signature), stdin=signed)
    except Refused as error:
        # Anything else is a mistake in what it was given.
        if "Verification failure" not in str(error):
            raise
        return False
    return said == b"Verified OK\n"


def ec_is_good(openssl: Run, child: bytes, slot: int, parent: bytes) -> bool:
    at = SLOTS[slot]
    signature = ec_signature(child[at + 8 :])
    return is_good(openssl, ec_key(parent), child[:BODY_SIZE], signature, digest="sha256")


def rsa_digest(ask: bytes) -> str:
    return {832: "sha256", 1600: "sha384"}[len(ask)]


def cek_is_good(openssl: Run, cek: bytes, ask: bytes) -> bool:
    size = int.from_bytes(ask[0x3C:0x40], "little") // 8
    signature = cek[0x41C : 0x41C + 512]
    assert not any(signature[size:])
    return is_good(
        openssl,
        amd_parts(ask)[0],
        cek[:BODY_SIZE],
        signature[:size][::-1],
        *PSS,
        digest=rsa_digest(ask),
    )


def amd_is_good(openssl: Run, child: bytes, parent: bytes) -> bool:
    _, signed, signature = amd_parts(child)
    spki = amd_parts(parent)[0]
    return is_good(openssl, spki, signed, signature, *PSS, digest=rsa_digest(parent))


class Exported:
    """Certificates of a stored export, cut by hand."""

    def __init__(self, data: bytes) -> None:
        self.pdh, self.pek, self.oca, self.cek = (data[n * SIZE : (n + 1) * SIZE] for n in range(4))
        amd = data[4 * SIZE :]
        self.ask, self.ark = amd[: len(amd) // 2], amd[len(amd) // 2 :]


@functools.cache
def exported(bits: int) -> Exported:
    return Exported((VECTORS / f"platform-{bits}.cert").read_bytes())


FORMS = [2048, 4096]


# -- whole chains -----------------------------------------------------------------------------


@pytest.mark.parametrize("bits", FORMS)
@pytest.mark.parametrize("is_new", [False, True])
def test_chain_when_openssl_verifies_each_link_then_good(openssl: Run, bits: int, is_new: bool):
    has = Exported(chain(bits).export) if is_new else exported(bits)
    assert amd_is_good(openssl, has.ark, has.ark)
    assert amd_is_good(openssl, has.ask, has.ark)
    assert cek_is_good(openssl, has.cek, has.ask)
    assert ec_is_good(openssl, has.oca, 0, has.oca)
    assert ec_is_good(openssl, has.pek, 0, has.oca)
    assert ec_is_good(openssl, has.pek, 1, has.cek)
    assert ec_is_good(openssl, has.pdh, 0, has.pek)


@pytest.mark.parametrize("bits", FORMS)
def test_chain_when_it_is_stored_then_verified_by_us(bits: int):
    data = (VECTORS / f"platform-{bits}.cert").read_bytes()
    stored = Chain.parse_export(data)
    verify_chain(stored)
    assert stored.export == data
    # Of the whole, only the CEK's signature has a random salt.
    assert stored._replace(cek=chain(bits).cek) == chain(bits)


@pytest.mark.parametrize("bits", FORMS)
def test_link_when_the_signer_is_another_then_openssl_and_we_refuse(openssl: Run, bits: int):
    has, read = exported(bits), Chain.parse_export(chain(bits).export)
    assert not cek_is_good(openssl, has.cek, has.ark)
    assert not amd_is_good(openssl, has.ark, has.ask)
    assert not ec_is_good(openssl, has.pek, 0, has.cek)
    stranger = dataclasses.replace(read.ask, key=read.ark.key)
    with pytest.raises(SignatureError, match="signature of the ASK is wrong"):
        verify(read.cek, stranger)
    with pytest.raises(SignatureError, match="signature of the OCA is wrong"):
        verify(read.pek, dataclasses.replace(read.oca, key=read.cek.key))
    with pytest.raises(SignatureError, match="signature of the ARK is wrong"):
        verify_amd(read.ask, dataclasses.replace(read.ark, key=read.ask.key))


# -- altered bytes ----------------------------------------------------------------------------


def is_ours_good(child: bytes, parent: SevCertificate | AmdCertificate) -> bool:
    try:
        verify(SevCertificate.parse(child), parent)
    except CertificateError:
        return False
    return True


@pytest.mark.parametrize(("child", "parent"), [("pdh", "pek"), ("cek", "ask")])
def test_certificate_when_any_signed_byte_is_altered_then_refused(child: str, parent: str):
    data = getattr(exported(2048), child)
    signer = getattr(Chain.parse_export(chain().export), parent)
    assert is_ours_good(data, signer)
    masks = made_up("masks", BODY_SIZE)
    for offset in range(BODY_SIZE):
        assert not is_ours_good(flipped(data, offset, masks[offset] or 1), signer), hex(offset)


def test_certificate_when_bytes_are_altered_then_openssl_refuses_too(openssl: Run):
    pdh, pek = exported(2048).pdh, exported(2048).pek
    for offset in (0, 4, 6, 8, 0xC, 0x10, 0x14, 0x43, 0x5C, 0x8B, 0xA4, 0x200, 0x413):
        assert not ec_is_good(openssl, flipped(pdh, offset), 0, pek), hex(offset)
    for offset in (0x414 + 8, 0x414 + 8 + 72):
        assert not ec_is_good(openssl, flipped(pdh, offset), 0, pek), hex(offset)


@pytest.mark.parametrize(("child", "parent"), [("pdh", "pek"), ("cek", "ask")])
def test_certificate_when_the_empty_slot_is_altered_then_good(child: str, parent: str):
    data = getattr(exported(2048), child)
    signer = getattr(Chain.parse_export(chain().export), parent)
    for offset in (*range(0x61C, SIZE, 29), SIZE - 1):
        altered = flipped(data, offset, 0xFF)
        assert SevCertificate.parse(altered).build() == altered
        assert is_ours_good(altered, signer), hex(offset)


def test_certificate_when_its_signature_is_altered_then_refused():
    data, signer = exported(2048).pdh, chain().pek
    # What follows r and s is not part of the signature.
    for offset in range(0x414, 0x414 + 8 + 144):
        assert not is_ours_good(flipped(data, offset), signer), hex(offset)
    data, ask = exported(2048).cek, chain().ask
    for offset in range(0x414, 0x61C):
        assert not is_ours_good(flipped(data, offset), ask), hex(offset)


@pytest.mark.parametrize("bits", FORMS)
def test_amd_certificate_when_any_byte_is_altered_then_refused(openssl: Run, bits: int):
    data, parent = exported(bits).ask, chain(bits).ark
    verify_amd(AmdCertificate.parse(data), parent)
    for offset in range(len(data)):
        with pytest.raises(CertificateError):
            verify_amd(AmdCertificate.parse(flipped(data, offset)), parent)
    for offset in (4, 0x20, 0x28, 0x50, len(data) // 2, len(data) - 1):
        altered = flipped(data, offset)
        assert not amd_is_good(openssl, altered, exported(bits).ark), hex(offset)


# -- what openssl makes -----------------------------------------------------------------------


def ec_pem(private: EcPrivateKey) -> bytes:
    """The private key as OpenSSL reads it in DER (RFC 5915), from its number alone."""
    curve = bytes.fromhex("a00706052b81040022")
    return der(0x30, b"\2\1\1" + der(4, private.scalar.reveal()) + curve)


def der_read(data: bytes) -> tuple[bytes, bytes]:
    """The content of the first value, and what follows it; short lengths only."""
    size, at = data[1], 2
    if size == 0x81:
        size, at = data[2], 3
    assert size < 0x100
    return data[at : at + size], data[at + size :]


def openssl_ec_sign(openssl: Run, private: EcPrivateKey, data: bytes) -> tuple[bytes, bytes]:
    """Numbers r and s, 72 bytes each, little-endian."""
    words = ("dgst", "-sha256", "-keyform", "DER", "-sign", "{0}")
    numbers, rest = der_read(openssl(*words, files=(ec_pem(private),), stdin=data))
    assert not rest
    r, numbers = der_read(numbers)
    s, numbers = der_read(numbers)
    return r.lstrip(b"\0")[::-1].ljust(72, b"\0"), s.lstrip(b"\0")[::-1].ljust(72, b"\0")


def test_certificate_when_openssl_signs_it_then_we_accept_it(openssl: Run):
    body = exported(2048).pdh[:BODY_SIZE]
    r, s = openssl_ec_sign(openssl, key("pek"), body)
    empty = b"\0\x10\0\0" + bytes(516)
    slot = b"\2\x10\0\0" + b"\2\0\0\0" + (r + s).ljust(512, b"\0")
    for index, data in enumerate((body + slot + empty, body + empty + slot)):
        assert verify(SevCertificate.parse(data), chain().pek) == index


@pytest.mark.parametrize("bits", FORMS)
def test_cek_when_openssl_signs_it_then_we_accept_it(openssl: Run, bits: int):
    unsigned = make_csr(key("cek"), API)
    pem = (VECTORS / f"root-{bits}.pem").read_text()
    ask_key = "-----BEGIN PRIVATE" + pem.rpartition("-----BEGIN PRIVATE")[2]
    digest = rsa_digest(exported(bits).ask)
    words = ("dgst", f"-{digest}", "-sign", "{0}", *PSS)
    signature = openssl(*words, files=(ask_key.encode(),), stdin=unsigned.signed())
    algorithm = {"sha256": 1, "sha384": 0x101}[digest]
    slot = Slot(0x13, algorithm, signature[::-1].ljust(512, b"\0"))
    signed = dataclasses.replace(unsigned, slots=(slot, unsigned.slots[1]))
    assert verify(SevCertificate.parse(signed.build()), root(bits).ask) == 0
    wrong_salt = ("-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:20")
    words = ("dgst", f"-{digest}", "-sign", "{0}", *wrong_salt)
    signature = openssl(*words, files=(ask_key.encode(),), stdin=unsigned.signed())
    slot = Slot(0x13, algorithm, signature[::-1].ljust(512, b"\0"))
    signed = dataclasses.replace(unsigned, slots=(slot, unsigned.slots[1]))
    with pytest.raises(SignatureError):
        verify(signed, root(bits).ask)


def test_report_when_openssl_verifies_or_signs_it_then_as_we_do(openssl: Run):
    digest = made_up("digest", 32)
    nonce = made_up("nonce", 16)
    made = make_report(key("pek"), mnonce=nonce, launch_digest=digest, policy=Policy(5)).build()
    assert made[:52] == nonce + digest + b"\5\0\0\0"
    pek = exported(2048).pek
    signature = ec_signature(made[64:])
    assert is_good(openssl, ec_key(pek), made[:52], signature, digest="sha256")
    assert not is_good(openssl, ec_key(pek), flipped(made[:52], 51), signature, digest="sha256")
    r, s = openssl_ec_sign(openssl, key("pek"), made[:52])
    theirs = made[:64] + r + s
    assert theirs != made
    verify_report(AttestationReport.parse(theirs), chain().pek)


# -- sessions and packets ---------------------------------------------------------------------


def hmac_of(openssl: Run, secret: bytes, data: bytes) -> bytes:
    words = ("dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{secret.hex()}", "-binary")
    return openssl(*words, stdin=data)


def ctr_of(openssl: Run, secret: bytes, iv: bytes, data: bytes) -> bytes:
    return openssl("enc", "-aes-128-ctr", "-K", secret.hex(), "-iv", iv.hex(), stdin=data)


def derived(openssl: Run, secret: bytes, label: bytes, context: bytes = b"") -> bytes:
    fixed = b"\1\0\0\0" + label + b"\0" + context + b"\x80\0\0\0"
    return hmac_of(openssl, secret, fixed)[:16]


def openssl_session(
    openssl: Run, private: EcPrivateKey, pdh: bytes, keys: bytes, policy: int
) -> bytes:
    """A session blob made by the program, as a guest's owner makes it."""
    nonce, iv = made_up("session nonce", 16), b"\xff" * 16
    words = ("pkeyutl", "-derive", "-keyform", "DER", "-inkey", "{0}")
    peer = ("-peerform", "DER", "-peerkey", "{1}")
    shared = openssl(*words, *peer, files=(ec_pem(private), ec_key(pdh)))
    assert len(shared) == 48
    master = derived(openssl, shared, b"sev-master-secret", nonce)
    kek, kik = (derived(openssl, master, label) for label in (b"sev-kek", b"sev-kik"))
    wrapped = ctr_of(openssl, kek, iv, keys)
    policy_mac = hmac_of(openssl, keys[16:], policy.to_bytes(4, "little"))
    return nonce + wrapped + iv + hmac_of(openssl, kik, wrapped) + policy_mac


def test_session_when_openssl_makes_it_then_we_unwrap_it_and_make_the_same(openssl: Run):
    made = openssl_session(openssl, key("owner"), exported(2048).pdh, KEYS.build(), 0x2010005)
    session = Session.parse(made)
    assert unwrap_session(key("pdh"), key("owner").public, session, 0x2010005) == KEYS
    again = wrap_session(
        key("owner"),
        public_point(chain().pdh),
        KEYS,
        0x2010005,
        nonce=session.nonce,
        iv=session.wrap_iv,
    )
    assert again.build() == made


MEASUREMENT = made_up("measurement", 32)


@pytest.mark.parametrize(
    ("context", "tail"),
    [
        (PacketContext.SECRET, MEASUREMENT),
        (PacketContext.DATA, b""),
        (PacketContext.VMSA, b""),
    ],
)
def test_packet_when_openssl_makes_it_then_we_open_it(
    openssl: Run, context: PacketContext, tail: bytes
):
    data, iv = made_up("page", 4096), b"\xff" * 15 + b"\xfe"
    payload = ctr_of(openssl, KEYS.tek.reveal(), iv, data)
    sizes = (4096).to_bytes(4, "little") * 2
    covered = bytes((context, 0, 0, 0, 0)) + iv + sizes + payload + tail
    tag = hmac_of(openssl, KEYS.tik.reveal(), covered)
    packet = Packet(PacketHeader.parse(bytes(4) + iv + tag), payload)
    if context is PacketContext.SECRET:
        opened = open_secret(KEYS, packet, guest_size=4096, measurement=MEASUREMENT, api=API)
        assert seal_secret(KEYS, data, iv=iv, measurement=MEASUREMENT, api=API) == packet
    else:
        opened = open_transport(KEYS, packet, guest_size=4096, context=context)
    assert opened == data
