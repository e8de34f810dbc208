# SPDX-License-Identifier: Apache-2.0
"""OpenSSL, efitools and sbsigntool against this project's updates, in both directions.

They make what hcalld judges, and read what hcalld makes. A program that is not installed is
a failure. Where their formats do not meet the firmware's, the tests say in what.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from tests.vectors.authvar_tools import (
    Pair,
    attempt,
    cms_sign,
    cms_verifies,
    make_pair,
    run,
    sign_efi_sig_list,
)

from hcalld.crypto.certificates import load_certificate
from hcalld.crypto.cms import CmsError, parse_signed_data
from hcalld.domain.secvar.answers import Accepted, Authority, Reason, Store, UpdateRefused
from hcalld.domain.secvar.authoring import (
    Draft,
    certificates_lists,
    digests_list,
    sbat_list,
    stored_object,
)
from hcalld.domain.secvar.authvar import evaluate
from hcalld.domain.secvar.variables import VARIABLES, Variable, encode_name
from hcalld.testing.secvars import LATER, TIME, identity
from hcallproto.payloads.efi import (
    CERT_SHA256,
    NO_GUID,
    EfiTime,
    guid,
    guid_text,
    parse_signature_lists,
    parse_update,
)

DIGEST = hashlib.sha256(b"image").digest()
OWNER = "01020304-0506-0708-090a-0b0c0d0e0f10"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("authvar")


@pytest.fixture(scope="module")
def pk(folder: Path) -> Pair:
    return make_pair(folder, "PK")


@pytest.fixture(scope="module")
def kek(folder: Path) -> Pair:
    return make_pair(folder, "KEK", 4096)


@pytest.fixture(scope="module")
def stored(pk: Pair, kek: Pair) -> dict[bytes, bytes]:
    return {
        encode_name(name): stored_object(certificates_lists([pair.der]), TIME)
        for name, pair in (("PK", pk), ("KEK", kek))
    }


def judge(
    name: str, message: bytes, stored: dict[bytes, bytes], *, is_append: bool = False
) -> Accepted:
    return evaluate(
        encode_name(name),
        message,
        is_append=is_append,
        lookup=stored.get,
        without_verification=False,
    )


def refusal(
    name: str, message: bytes, stored: dict[bytes, bytes], *, is_append: bool = False
) -> UpdateRefused:
    with pytest.raises(UpdateRefused) as caught:
        judge(name, message, stored, is_append=is_append)
    return caught.value


def content_of(name: str, pair: Pair) -> bytes:
    """Data that the variable takes."""
    if name == "sbat":
        return sbat_list(b"sbat,1\ngrub,2\n")
    return certificates_lists([pair.der])


# -- OpenSSL signs ----------------------------------------------------------------------------

OPTIONS = [
    ("cms", "-noattr", "-md", "sha256"),
    ("cms", "-noattr", "-md", "sha256", "-nocerts"),
    ("cms", "-noattr", "-md", "sha256", "-keyid"),
    ("cms", "-noattr", "-md", "sha256", "-nodetach"),
    ("smime", "-noattr", "-md", "sha256"),
]


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
@pytest.mark.parametrize("name", [variable.name for variable in VARIABLES])
def test_an_update_that_openssl_signs_is_taken(
    name: str, options: tuple[str, ...], pk: Pair, stored: dict[bytes, bytes]
):
    draft = Draft(name, content_of(name, pk), LATER)
    program, *words = options
    pkcs7 = cms_sign(draft.to_be_signed(), pk, *words, program=program)
    accepted = judge(name, draft.with_signature(pkcs7).message, stored)
    assert accepted == Accepted(Store(stored_object(draft.data, LATER)), Authority.PK)


def test_an_update_that_openssl_signs_with_two_keys_is_taken_for_one(
    pk: Pair, kek: Pair, folder: Path, stored: dict[bytes, bytes]
):
    stranger = make_pair(folder, "stranger")
    draft = Draft("db", digests_list(CERT_SHA256, [DIGEST]), LATER)
    also = ("-signer", str(kek.pem), "-inkey", str(kek.key))
    pkcs7 = cms_sign(draft.to_be_signed(), stranger, "-noattr", "-md", "sha256", *also)
    assert len(parse_signed_data(pkcs7).signatures) == 2
    accepted = judge("db", draft.with_signature(pkcs7).message, stored)
    assert accepted.authority is Authority.KEK


def test_an_append_that_openssl_signs_is_merged(kek: Pair, stored: dict[bytes, bytes]):
    current = digests_list(CERT_SHA256, [DIGEST])
    other = hashlib.sha256(b"other").digest()
    draft = Draft("dbx", digests_list(CERT_SHA256, [other, DIGEST]), LATER, is_append=True)
    pkcs7 = cms_sign(draft.to_be_signed(), kek, "-noattr", "-md", "sha256")
    now = stored | {encode_name("dbx"): stored_object(current, TIME)}
    accepted = judge("dbx", draft.with_signature(pkcs7).message, now, is_append=True)
    both = digests_list(CERT_SHA256, [DIGEST, other])
    assert accepted.change == Store(stored_object(both, LATER))


def test_signed_attributes_and_other_hashes_of_openssl_are_refused(
    pk: Pair, stored: dict[bytes, bytes]
):
    draft = Draft("db", certificates_lists([pk.der]), LATER)
    attributes = cms_sign(draft.to_be_signed(), pk, "-md", "sha256")
    refused = refusal("db", draft.with_signature(attributes).message, stored)
    assert refused.reason is Reason.AUTHORITY
    assert "signed attributes" in refused.why
    sha512 = cms_sign(draft.to_be_signed(), pk, "-noattr", "-md", "sha512")
    refused = refusal("db", draft.with_signature(sha512).message, stored)
    assert refused.reason is Reason.CONTENT
    assert "SHA-256" in refused.why
    pss = cms_sign(
        draft.to_be_signed(), pk, "-noattr", "-md", "sha256", "-keyopt", "rsa_padding_mode:pss"
    )
    refused = refusal("db", draft.with_signature(pss).message, stored)
    assert refused.reason is Reason.AUTHORITY


def test_a_stream_of_openssl_is_not_der_and_refused(pk: Pair):
    pkcs7 = cms_sign(b"data", pk, "-noattr", "-md", "sha256", "-stream", "-nodetach")
    with pytest.raises(CmsError, match="not SignedData in DER"):
        parse_signed_data(pkcs7)


# -- OpenSSL verifies -------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["cms", "smime"])
@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_openssl_verifies_what_is_signed_here(program: str, bits: int, folder: Path):
    signer = identity(f"vector{bits}", bits)
    pair = Pair(folder, f"vector{bits}")
    pair.path.write_bytes(signer.der)
    run("openssl", "x509", "-inform", "DER", "-in", pair.path, "-out", pair.pem)
    draft = Draft("db", signer.lists, LATER)
    pkcs7 = parse_update(draft.sign(signer.certificate, signer.key).message).pkcs7
    covered = draft.to_be_signed()
    assert cms_verifies(pkcs7, covered, pair, program)
    assert not cms_verifies(pkcs7, covered + b"\0", pair, program)
    for other in (
        Draft("dbx", draft.data, LATER),
        Draft("db", draft.data, TIME),
        Draft("db", draft.data, LATER, is_append=True),
    ):
        assert not cms_verifies(pkcs7, other.to_be_signed(), pair, program)


def test_openssl_and_the_rules_agree_about_altered_signatures(pk: Pair, stored: dict[bytes, bytes]):
    """What only the rules refuse is not DER; what only OpenSSL refuses is never looked at."""
    draft = Draft("db", certificates_lists([pk.der]), LATER)
    pkcs7 = bytearray(cms_sign(draft.to_be_signed(), pk, "-noattr", "-md", "sha256", "-nocerts"))
    for position in range(len(pkcs7) - 256, len(pkcs7), 32):
        altered = bytearray(pkcs7)
        altered[position] ^= 1
        assert not cms_verifies(bytes(altered), draft.to_be_signed(), pk)
        message = draft.with_signature(bytes(altered)).message
        assert refusal("db", message, stored).reason is Reason.AUTHORITY


@pytest.mark.parametrize(("extension", "is_ca"), [("TRUE", True), ("FALSE", False)])
def test_openssl_and_the_rules_agree_who_is_a_ca(folder: Path, extension: str, is_ca: bool):
    pair = Pair(folder, f"ca-{extension}")
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=ca", "-outform", "DER"]
    # Without OpenSSL's own configuration, which would add CA:TRUE to any.
    empty = folder / "empty.cnf"
    empty.write_text("[req]\ndistinguished_name = dn\n[dn]\n")
    constraints = ["-config", str(empty), "-addext", f"basicConstraints=critical,CA:{extension}"]
    run("openssl", *words, *constraints, "-keyout", pair.key, "-out", pair.path)
    shown = run("openssl", "x509", "-inform", "DER", "-in", pair.path, "-noout", "-purpose")
    assert (b"SSL server CA : Yes" in shown) is is_ca
    assert load_certificate(pair.der).is_ca() is is_ca


# -- efitools ---------------------------------------------------------------------------------


def test_lists_of_certificates_are_efitools_lists(pk: Pair, folder: Path):
    out = folder / "efitools.esl"
    run("cert-to-efi-sig-list", pk.pem, out)
    assert out.read_bytes() == certificates_lists([pk.der])
    run("cert-to-efi-sig-list", "-g", OWNER, pk.pem, out)
    assert out.read_bytes() == certificates_lists([pk.der], guid(OWNER))


def test_lists_of_hashes_are_efitools_lists(folder: Path):
    images = sorted(Path("/usr/lib/efitools").glob("*/H*.efi"))
    assert len(images) >= 2, "efitools has no EFI images in /usr/lib/efitools"
    out = folder / "hashes.esl"
    run("hash-to-efi-sig-list", *images, out)
    (found,) = parse_signature_lists(out.read_bytes())
    digests = [signature.data for signature in found.signatures]
    assert len(digests) == len(images)
    (owner,) = {signature.owner for signature in found.signatures}
    assert out.read_bytes() == digests_list(CERT_SHA256, digests, owner)


def test_efitools_reads_lists_that_are_made_here(pk: Pair, kek: Pair, folder: Path):
    lists = folder / "both.esl"
    lists.write_bytes(certificates_lists([pk.der, kek.der], guid(OWNER)))
    shown = run("sig-list-to-certs", lists, folder / "both")
    assert shown.count(OWNER.encode()) == 2
    assert (folder / "both-0.der").read_bytes() == pk.der
    assert (folder / "both-1.der").read_bytes() == kek.der


EFITOOLS_DEFAULTS = {"PK", "KEK", "db", "dbx"}
"""Names whose vendor ``sign-efi-sig-list`` knows; it takes others to be global."""


@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable.name)
def test_an_update_that_efitools_signs_is_taken(
    variable: Variable, append: bool, pk: Pair, folder: Path, stored: dict[bytes, bytes]
):
    if append and variable.name == "PK":
        return  # PK cannot be appended to: test_authvar.py
    lists = folder / "update.esl"
    lists.write_bytes(content_of(variable.name, pk))
    options = ["-a"] * append
    if variable.name not in EFITOOLS_DEFAULTS:
        options += ["-g", guid_text(variable.vendor)]
    time = EfiTime(2030, 12, 31, 23, 59, 58)
    message = sign_efi_sig_list(variable.name, lists, pk, time, folder / "update.auth", *options)
    update = parse_update(message)
    assert (update.time, update.data) == (time, lists.read_bytes())
    accepted = judge(variable.name, message, stored, is_append=append)
    assert accepted.authority is Authority.PK
    wrong_flag = refusal(variable.name, message, stored, is_append=not append)
    assert wrong_flag.reason in (Reason.AUTHORITY, Reason.FLAGS)


def test_efitools_default_vendor_for_powers_own_names_is_another(
    pk: Pair, folder: Path, stored: dict[bytes, bytes]
):
    lists = folder / "vendor.esl"
    lists.write_bytes(certificates_lists([pk.der]))
    message = sign_efi_sig_list("moduledb", lists, pk, LATER, folder / "vendor.auth")
    assert refusal("moduledb", message, stored).reason is Reason.AUTHORITY


@pytest.mark.parametrize("append", [False, True])
def test_efitools_has_the_same_bytes_signed(append: bool, pk: Pair, folder: Path):
    lists, bundle = folder / "bundle.esl", folder / "bundle"
    lists.write_bytes(certificates_lists([pk.der]))
    run(
        *("sign-efi-sig-list", "-o", *["-a"] * append, "-t", str(LATER)),
        *("-c", pk.pem, "-k", pk.key, "db", lists, bundle),
    )
    draft = Draft("db", lists.read_bytes(), LATER, append)
    assert bundle.read_bytes() == draft.to_be_signed()


def test_efitools_assembles_the_same_update_from_a_signature_made_here(
    folder: Path, stored: dict[bytes, bytes]
):
    signer = identity("vector2048")
    lists, out, pkcs7 = folder / "split.esl", folder / "split.auth", folder / "split.p7s"
    lists.write_bytes(signer.lists)
    file = Draft("db", signer.lists, LATER).sign(signer.certificate, signer.key)
    # Its manual asks for PEM, but it copies what it is given: DER is what works.
    pkcs7.write_bytes(parse_update(file.message).pkcs7)
    run("sign-efi-sig-list", "-i", pkcs7, "-t", str(LATER), "db", lists, out)
    assert out.read_bytes() == file.message
    enrolled = stored | {encode_name("PK"): signer.stored}
    assert judge("db", out.read_bytes(), enrolled).authority is Authority.PK


# -- sbsigntool -------------------------------------------------------------------------------


@pytest.mark.parametrize("owner", [OWNER, guid_text(NO_GUID)])
def test_lists_are_sbsigntools_lists(owner: str, pk: Pair, folder: Path):
    out, digest = folder / "sb.esl", folder / "digest"
    digest.write_bytes(DIGEST)
    run("sbsiglist", "--owner", owner, "--type", "x509", "--output", out, pk.path)
    assert out.read_bytes() == certificates_lists([pk.der], guid(owner))
    run("sbsiglist", "--owner", owner, "--type", "sha256", "--output", out, digest)
    assert out.read_bytes() == digests_list(CERT_SHA256, [DIGEST], guid(owner))


@pytest.mark.parametrize(
    ("attributes", "append"),
    [
        ("NON_VOLATILE,BOOTSERVICE_ACCESS,RUNTIME_ACCESS", False),
        ("NON_VOLATILE,BOOTSERVICE_ACCESS,RUNTIME_ACCESS,APPEND_WRITE", True),
    ],
)
def test_sbvarsign_signs_the_same_bytes_but_in_attributes(
    attributes: str, append: bool, pk: Pair, folder: Path, stored: dict[bytes, bytes]
):
    """Its hash is the firmware's, in a signed attribute; so OpenSSL verifies it, we do not."""
    lists, out = folder / "sbvarsign.esl", folder / "sbvarsign.auth"
    lists.write_bytes(certificates_lists([pk.der]))
    run(
        *("sbvarsign", "--key", pk.key, "--cert", pk.pem, "--attr", attributes),
        *("--output", out, "db", lists),
    )
    update = parse_update(out.read_bytes())
    assert update.data == lists.read_bytes()
    assert 0 <= update.time.month <= 11  # it counts months from 0
    covered = Draft("db", update.data, update.time, append).to_be_signed()
    assert cms_verifies(update.pkcs7, covered, pk)
    other = Draft("db", update.data, update.time, not append).to_be_signed()
    assert not cms_verifies(update.pkcs7, other, pk)
    refused = refusal("db", out.read_bytes(), stored, is_append=append)
    assert refused.reason is Reason.AUTHORITY
    assert "signed attributes" in refused.why


# -- the programs themselves ------------------------------------------------------------------


def test_a_program_that_is_not_installed_is_a_failure(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FileNotFoundError, match="apt-get install efitools"):
        attempt("sign-efi-sig-list")


def test_a_program_that_fails_is_a_failure(folder: Path):
    with pytest.raises(AssertionError, match="openssl failed"):
        run("openssl", "x509", "-in", folder / "nothing")
