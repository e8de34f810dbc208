# SPDX-License-Identifier: Apache-2.0
"""What secure variables may hold, and how appends merge."""

from __future__ import annotations

import time

import pytest

from hcalld.domain.secvar.content import ContentError, check_content, merge
from hcalld.domain.secvar.variables import BY_NAME, OTHER, VARIABLES, Variable
from hcalld.testing.secvars import identity
from hcallproto.payloads import efi
from hcallproto.payloads.efi import (
    CERT_SHA256,
    CERT_X509,
    CERT_X509_SHA256,
    SBAT,
    Signature,
    SignatureList,
    signature_list,
)

PK = identity("pk")
LEAF = identity("leaf", is_ca=False)
ONE, TWO, THREE = (bytes([number]) * 32 for number in (1, 2, 3))


def hashes(*digests: bytes) -> bytes:
    return signature_list(CERT_SHA256, *digests).build()


CERTIFICATE = PK.lists
HASH = hashes(ONE)
CERTIFICATE_HASH = signature_list(CERT_X509_SHA256, ONE).build()
LEVELS = signature_list(SBAT, b"sbat,1,2021030218\ngrub,2\n").build()

HOLDS = {
    "PK": {"certificate"},
    "KEK": {"certificate"},
    "db": {"certificate", "hash"},
    "dbx": {"certificate", "hash", "certificate's hash"},
    "grubdb": {"certificate", "hash"},
    "grubdbx": {"certificate", "hash", "certificate's hash"},
    "sbat": {"levels"},
    "moduledb": {"certificate"},
    "trustedcadb": {"certificate"},
}
KINDS = {
    "certificate": CERTIFICATE,
    "hash": HASH,
    "certificate's hash": CERTIFICATE_HASH,
    "levels": LEVELS,
}


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda v: v.name)
@pytest.mark.parametrize("kind", KINDS)
def test_content_when_of_each_kind_then_a_variable_takes_its_own(variable: Variable, kind: str):
    if kind in HOLDS[variable.name]:
        check_content(variable, KINDS[kind])
        return
    with pytest.raises(ContentError, match=f"{variable.name} has a list of type .*, expected"):
        check_content(variable, KINDS[kind])


def test_content_when_of_another_name_then_nobody_looks():
    check_content(OTHER, b"\xff")


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda v: v.name)
@pytest.mark.parametrize("kind", KINDS)
def test_content_when_malformed_then_no_variable_takes_it(variable: Variable, kind: str):
    with pytest.raises(ContentError, match="signature list at byte"):
        check_content(variable, KINDS[kind][:-1])
    with pytest.raises(ContentError, match="signature list at byte"):
        check_content(variable, KINDS[kind] + b"\0")


@pytest.mark.parametrize(
    ("lists", "count"),
    [
        (CERTIFICATE * 2, "2 lists with 2"),
        (signature_list(CERT_X509, PK.der, PK.der).build(), "1 lists with 2"),
        (SignatureList(CERT_X509, 20, ()).build(), "1 lists with 0"),
    ],
)
def test_pk_when_not_one_certificate_then_it_is_refused(lists: bytes, count: str):
    with pytest.raises(ContentError, match=f"PK has {count} certificates, expected one"):
        check_content(BY_NAME["PK"], lists)


def test_kek_when_several_certificates_then_they_are_taken():
    check_content(BY_NAME["KEK"], CERTIFICATE + LEAF.lists)


@pytest.mark.parametrize("name", ["KEK", "db", "dbx", "sbat"])
def test_content_when_a_list_is_empty_then_it_is_refused(name: str):
    kind = SBAT if name == "sbat" else CERT_X509
    with pytest.raises(ContentError, match="without signatures"):
        check_content(BY_NAME[name], SignatureList(kind, 20, ()).build())


def test_content_when_a_certificate_is_none_then_it_is_refused():
    for name in ("PK", "KEK", "db", "dbx", "moduledb", "trustedcadb"):
        with pytest.raises(ContentError, match=rf"{name}: not an X\.509 certificate"):
            check_content(BY_NAME[name], signature_list(CERT_X509, b"none").build())


def test_trustedcadb_when_a_certificate_is_not_a_cas_then_it_is_refused():
    check_content(BY_NAME["moduledb"], LEAF.lists)
    with pytest.raises(ContentError, match="not a CA's"):
        check_content(BY_NAME["trustedcadb"], CERTIFICATE + LEAF.lists)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        (efi.CERT_SHA1, {20}),
        (efi.CERT_SHA224, {28}),
        (efi.CERT_SHA256, {32}),
        (efi.CERT_SHA384, {48}),
        (efi.CERT_SHA512, {64}),
        (efi.CERT_X509_SHA256, {32, 48}),
        (efi.CERT_X509_SHA384, {48, 64}),
        (efi.CERT_X509_SHA512, {64, 80}),
    ],
    ids=lambda value: efi.type_name(value) if isinstance(value, bytes) else "",
)
def test_dbx_when_a_hash_has_another_size_then_it_is_refused(kind: bytes, sizes: set[int]):
    for size in range(1, 100):
        lists = signature_list(kind, bytes(size)).build()
        if size in sizes:
            check_content(BY_NAME["dbx"], lists)
        else:
            with pytest.raises(ContentError, match=f"of {size} bytes, expected {min(sizes)}"):
                check_content(BY_NAME["dbx"], lists)


@pytest.mark.parametrize(
    "csv",
    [
        b"sbat,1",
        b"sbat,1\n",
        b"sbat,1\ngrub,1\ngrub.ibm.grub,1\ngrub.fedora,1",
        b"grub,3,Free Software Foundation,grub,2.06,https://www.gnu.org/software/grub/\n",
        b"sbat,1,\n",
    ],
)
def test_sbat_when_lines_have_name_and_generation_then_they_are_taken(csv: bytes):
    check_content(BY_NAME["sbat"], signature_list(SBAT, csv).build())


@pytest.mark.parametrize(
    ("csv", "line"),
    [
        (b"\n", 1),
        (b"sbat", 1),
        (b"sbat,", 1),
        (b",1", 1),
        (b"sbat,one", 1),
        (b"sbat,-1", 1),
        (b"sbat,1\n\n", 2),
        (b"sbat,1\n\ngrub,1", 2),
        (b"sbat,1\r\n", 1),
        (b"sbat,1\0", 1),
        (b"sb at,1", 1),
        (b"sbat,1\ngrub,1,\xff", 2),
        (b"sbat,1x", 1),
    ],
)
def test_sbat_when_a_line_is_malformed_then_it_is_named(csv: bytes, line: int):
    with pytest.raises(ContentError, match=f"sbat line {line} is not of the form"):
        check_content(BY_NAME["sbat"], signature_list(SBAT, csv).build())


# -- merging ----------------------------------------------------------------------------------


def test_merge_when_hashes_are_there_then_they_are_not_added_again():
    assert merge(hashes(ONE, TWO), hashes(TWO, THREE)) == hashes(ONE, TWO, THREE)


def test_merge_when_the_owner_is_another_then_it_is_another_signature():
    owned = SignatureList(CERT_SHA256, 48, (Signature(ONE, b"o" * 16),))
    merged = SignatureList(CERT_SHA256, 48, (Signature(ONE), Signature(ONE, b"o" * 16)))
    assert merge(hashes(ONE), owned.build()) == merged.build()


def test_merge_when_two_lists_have_one_type_then_neither_is_lost():
    # The public library loses the second.
    assert merge(hashes(ONE), hashes(TWO) + hashes(THREE)) == hashes(ONE, TWO, THREE)


def test_merge_when_there_are_two_lists_of_the_type_then_both_are_looked_at():
    current = hashes(ONE) + CERTIFICATE + hashes(TWO)
    assert merge(current, hashes(TWO, THREE)) == hashes(ONE, THREE) + CERTIFICATE + hashes(TWO)


def test_merge_when_an_update_repeats_itself_then_it_counts_once():
    assert merge(hashes(ONE), hashes(TWO, TWO)) == hashes(ONE, TWO)


def test_merge_when_certificates_then_only_the_same_list_is_there_already():
    both = signature_list(CERT_X509, PK.der, PK.der).build()
    assert merge(CERTIFICATE, CERTIFICATE) == CERTIFICATE
    assert merge(CERTIFICATE, LEAF.lists) == CERTIFICATE + LEAF.lists
    assert merge(CERTIFICATE, both) == CERTIFICATE + both
    assert merge(CERTIFICATE + LEAF.lists, LEAF.lists + CERTIFICATE) == CERTIFICATE + LEAF.lists


def test_merge_when_sizes_or_headers_differ_then_the_list_is_added():
    other = signature_list(SBAT, b"grub,1\n").build()
    assert merge(LEVELS, other) == LEVELS + other
    headed = SignatureList(CERT_SHA256, 48, (Signature(ONE),), b"head").build()
    assert merge(HASH, headed) == HASH + headed


def test_merge_when_there_is_nothing_then_the_update_is_it():
    assert merge(b"", HASH) == HASH
    assert merge(HASH, b"") == HASH


def test_merge_when_there_are_as_many_lists_as_fit_then_it_takes_no_time():
    # 900 lists of one type on each side took a second: for each, all others were gone through.
    number = 0xFFFF // len(HASH)
    each = [index.to_bytes(32, "big") for index in range(2 * number)]
    current, added = each[:number], each[number:]
    begin = time.process_time()
    merged = merge(b"".join(map(hashes, current)), b"".join(map(hashes, added)))
    assert time.process_time() - begin < 0.2
    assert merged == hashes(current[0], *added) + b"".join(map(hashes, current[1:]))


@pytest.mark.parametrize(("current", "added"), [(HASH[:-1], HASH), (HASH, HASH[:-1])])
def test_merge_when_either_side_is_malformed_then_it_is_refused(current: bytes, added: bytes):
    # The public library drops the error, and the variable with it.
    with pytest.raises(ContentError):
        merge(current, added)
