# SPDX-License-Identifier: Apache-2.0
"""Who signed whom: every link, each broken in turn."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from tests.sev_platform import API, chain, flipped, key, root, verify_chain

from hcalld.crypto.sev.certificates import make_csr, make_oca, make_pdh, make_pek, sign
from hcalld.crypto.sev.chains import (
    Chain,
    check_import,
    links,
    verify,
    verify_amd,
)
from hcalld.crypto.sev.errors import SignatureError
from hcallproto.payloads.sev import (
    EMPTY_SLOT,
    Algorithm,
    CertificateError,
    EcPublicKey,
    SevCertificate,
    Usage,
)

FORMS = [2048, 4096]


def broken(found: Chain) -> list[str]:
    """The links that do not hold."""
    return [f"{link.child.name}<-{link.parent.name}" for link in links(found) if link.error]


def swapped(certificate: SevCertificate) -> SevCertificate:
    return dataclasses.replace(certificate, slots=certificate.slots[::-1])


@pytest.mark.parametrize("bits", FORMS)
def test_chain_when_made_then_every_link_holds(bits: int):
    found = chain(bits)
    verify_chain(found)
    assert [str(link) for link in links(found)] == [
        "ARK <- ARK: good",
        "ASK <- ARK: good",
        "CEK <- ASK: good",
        "PEK <- CEK: good",
        "OCA <- OCA: good",
        "PEK <- OCA: good",
        "PDH <- PEK: good",
    ]


def test_chain_when_slots_are_in_another_order_then_every_link_holds():
    found = chain()
    verify_chain(
        found._replace(
            pek=swapped(found.pek),
            pdh=swapped(found.pdh),
            oca=swapped(found.oca),
            cek=swapped(found.cek),
        )
    )
    assert verify(swapped(found.pek), found.oca) == 1
    assert verify(swapped(found.pek), found.cek) == 0


def test_chain_when_parsed_then_the_same():
    found = chain()
    assert Chain.parse(found.pdh.build(), found.platform, found.amd) == found
    assert Chain.parse_export(found.export) == found
    for size in (0, 2083, 2084, 8336, len(found.export) - 1):
        with pytest.raises(CertificateError):
            Chain.parse_export(found.export[:size])


def altered_key(certificate: Any, name: str) -> Any:
    """With the key of another, so that what it signs and its own signature no longer fit."""
    if name in ("ask", "ark"):
        other = root().ark if name == "ask" else root().ask
        return dataclasses.replace(certificate, key=other.key)
    return dataclasses.replace(certificate, key=key("stranger").public)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pdh", ["PDH<-PEK"]),
        ("pek", ["PEK<-CEK", "PEK<-OCA", "PDH<-PEK"]),
        ("oca", ["OCA<-OCA", "PEK<-OCA"]),
        ("cek", ["CEK<-ASK", "PEK<-CEK"]),
        ("ask", ["ASK<-ARK", "CEK<-ASK"]),
        ("ark", ["ARK<-ARK", "ASK<-ARK"]),
    ],
)
def test_chain_when_a_key_is_anothers_then_its_links_are_broken(name: str, expected: list[str]):
    found = chain()
    altered = found._replace(**{name: altered_key(getattr(found, name), name)})
    assert broken(altered) == expected
    with pytest.raises(SignatureError, match=f"signature of the {expected[0][5:]} is wrong"):
        verify_chain(altered)


@pytest.mark.parametrize("name", ["pdh", "pek", "oca", "cek"])
def test_chain_when_a_signature_is_missing_then_the_link_is_broken(name: str):
    found = chain()
    bare = dataclasses.replace(getattr(found, name), slots=(EMPTY_SLOT, EMPTY_SLOT))
    altered = found._replace(**{name: bare})
    assert all(link.startswith(f"{name.upper()}<-") for link in broken(altered))
    with pytest.raises(SignatureError, match=f"{name.upper()} certificate: .* is missing"):
        verify_chain(altered)


@pytest.mark.parametrize(("left", "right"), [("pek", "oca"), ("pdh", "pek"), ("oca", "cek")])
def test_chain_when_certificates_are_exchanged_then_refused_for_their_usage(left: str, right: str):
    found = chain()
    altered = found._replace(**{left: getattr(found, right), right: getattr(found, left)})
    with pytest.raises(CertificateError, match="usage is") as caught:
        verify_chain(altered)
    assert not isinstance(caught.value, SignatureError)


def test_chain_when_roots_are_exchanged_then_refused_for_their_usage():
    found = chain()
    altered = found._replace(ask=found.ark, ark=found.ask)
    with pytest.raises(CertificateError, match="ARK certificate: usage is ASK, expected ARK"):
        verify_chain(altered)


def test_chain_when_the_root_is_another_then_the_ceks_link_is_broken():
    other = chain(4096)
    altered = chain()._replace(ask=other.ask, ark=other.ark)
    assert broken(altered) == ["CEK<-ASK"]


# -- one link ---------------------------------------------------------------------------------


def test_link_when_the_slot_names_another_usage_or_algorithm_then_missing():
    """The signature is good each time, but is not said to be the signer's."""
    pdh, pek = chain().pdh, chain().pek
    slot = pdh.slots[0]
    for altered in (
        dataclasses.replace(slot, usage=Usage.OCA),
        dataclasses.replace(slot, algorithm=Algorithm.ECDSA_SHA384),
        dataclasses.replace(slot, usage=0xFFFF_1002),
    ):
        with pytest.raises(
            SignatureError, match="signature of the PEK is missing, expected one with usage 0x1002"
        ):
            verify(dataclasses.replace(pdh, slots=(altered, EMPTY_SLOT)), pek)


def test_link_when_one_of_two_signatures_is_good_then_that_slot():
    pdh, pek = chain().pdh, chain().pek
    bad = dataclasses.replace(pdh.slots[0], signature=bytes(512))
    assert verify(dataclasses.replace(pdh, slots=(bad, pdh.slots[0])), pek) == 1
    with pytest.raises(SignatureError, match="signature of the PEK is wrong"):
        verify(dataclasses.replace(pdh, slots=(bad, bad)), pek)


def test_link_when_the_signers_key_agrees_on_secrets_then_refused():
    """A PDH's key must not stand for one that signs, even if it did sign."""
    signed = sign(make_csr(key("pek"), API), Usage.PDH, key("pdh"), Algorithm.ECDH_SHA256)
    with pytest.raises(CertificateError, match="PDH certificate: algorithm is ECDH_SHA256"):
        verify(signed, chain().pdh)


def test_link_when_the_signers_key_is_no_point_then_refused():
    bad = dataclasses.replace(chain().pek, key=EcPublicKey(1, 1))
    with pytest.raises(CertificateError, match="PEK certificate: public key is no point"):
        verify(chain().pdh, bad)


def test_amd_link_when_another_is_named_then_refused():
    ask, ark = root().ask, root().ark
    verify_amd(ask, ark)
    other = dataclasses.replace(ark, key_id=bytes(16))
    with pytest.raises(SignatureError, match="ASK certificate: certifying id is"):
        verify_amd(ask, other)


def test_amd_link_when_there_is_no_signature_then_refused():
    bare = dataclasses.replace(root().ark, signature=None)
    with pytest.raises(SignatureError, match="ARK certificate: signature of the ARK is missing"):
        verify_amd(bare, bare)


def test_amd_link_when_the_sizes_differ_then_refused():
    small, large = root(2048), root(4096)
    assert small.ask.signature is not None
    other = dataclasses.replace(large.ark, key_id=small.ark.key_id)
    with pytest.raises(SignatureError, match="is wrong"):
        verify_amd(small.ask, other)


# -- ownership --------------------------------------------------------------------------------

OWNER = key("owner's oca")
OCA = make_oca(OWNER)
CSR = make_csr(key("pek"), API)
PEK = sign(CSR, Usage.OCA, OWNER)
CURRENT = key("pek").public


def test_import_when_an_owner_signed_the_csr_then_taken():
    check_import(PEK, OCA, CURRENT)
    check_import(swapped(PEK), OCA, CURRENT)


def test_import_when_taken_then_the_cek_signs_the_free_slot():
    for pek in (PEK, swapped(PEK)):
        whole = sign(pek, Usage.CEK, key("cek"))
        pdh = make_pdh(key("pdh"), key("pek"), API)
        verify_chain(chain()._replace(pek=whole, oca=OCA, pdh=pdh))


@pytest.mark.parametrize(
    ("pek", "oca", "error", "text"),
    [
        (CSR, OCA, SignatureError, "PEK certificate: signature of the OCA is missing"),
        (
            sign(CSR, Usage.OCA, key("stranger")),
            OCA,
            SignatureError,
            "PEK certificate: signature of the OCA is wrong",
        ),
        (
            sign(make_csr(key("other pek"), API), Usage.OCA, OWNER),
            OCA,
            CertificateError,
            "PEK certificate: public key is another's",
        ),
        (OCA, OCA, CertificateError, "PEK certificate: usage is OCA"),
        (PEK, PEK, CertificateError, "OCA certificate: usage is PEK"),
        (
            make_pek(key("pek"), OWNER, key("cek"), API),
            OCA,
            CertificateError,
            "PEK certificate: signature 2 is in use, expected empty",
        ),
        (
            swapped(make_pek(key("pek"), OWNER, key("cek"), API)),
            OCA,
            CertificateError,
            "PEK certificate: signature 1 is in use, expected empty",
        ),
        (
            PEK,
            dataclasses.replace(OCA, slots=(EMPTY_SLOT, EMPTY_SLOT)),
            SignatureError,
            "OCA certificate: signature of the OCA is missing",
        ),
        (
            PEK,
            SevCertificate.parse(flipped(OCA.build(), 5)),
            SignatureError,
            "OCA certificate: signature of the OCA is wrong",
        ),
        (
            dataclasses.replace(PEK, algorithm=Algorithm.ECDSA_SHA384),
            OCA,
            CertificateError,
            "PEK certificate: algorithm is ECDSA_SHA384, expected ECDSA_SHA256",
        ),
    ],
)
def test_import_when_it_does_not_fit_then_refused(
    pek: SevCertificate, oca: SevCertificate, error: type[CertificateError], text: str
):
    with pytest.raises(CertificateError, match=text) as caught:
        check_import(pek, oca, CURRENT)
    assert type(caught.value) is error
