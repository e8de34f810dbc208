# SPDX-License-Identifier: Apache-2.0
"""Updates and lists that are made here; that they are taken is in ``test_authvar.py``."""

from __future__ import annotations

import pytest

from hcalld.crypto.signing import PrivateKeyError
from hcalld.domain.secvar.authoring import (
    Draft,
    FlagsError,
    UpdateFile,
    certificates_lists,
    digests_list,
    parse_update_file,
    sbat_list,
    stored_object,
    wipe,
)
from hcalld.domain.secvar.authvar import is_wipe_message
from hcalld.testing.secvars import LATER, TIME, identity
from hcallproto.payloads.efi import (
    CERT_SHA256,
    CERT_X509,
    SBAT,
    Signature,
    SignatureList,
    StoredVariable,
    parse_signature_lists,
    parse_update,
)


@pytest.mark.parametrize("is_append", [False, True])
def test_file_when_built_then_its_flags_are_in_front(is_append: bool):
    file = UpdateFile(is_append, b"message")
    assert file.build() == bytes(7) + bytes([is_append]) + b"message"
    assert parse_update_file(file.build()) == file


@pytest.mark.parametrize("size", range(9))
def test_file_when_there_is_no_message_then_it_is_refused(size: int):
    with pytest.raises(FlagsError, match=f"of {size} bytes, expected more than 8"):
        parse_update_file(bytes(size))


@pytest.mark.parametrize("flags", [b"\1" + bytes(7), bytes(7) + b"\2", b"\xff" * 8])
def test_file_when_the_flags_are_others_then_it_is_refused(flags: bytes):
    with pytest.raises(FlagsError, match=f"flags 0x{flags.hex()}"):
        parse_update_file(flags + b"message")


def test_draft_when_signed_elsewhere_then_the_signature_is_taken_as_it_is():
    draft = Draft("db", b"data", LATER, is_append=True)
    file = draft.with_signature(b"pkcs7")
    assert file.is_append
    update = parse_update(file.message)
    assert (update.time, update.pkcs7, update.data) == (LATER, b"pkcs7", b"data")


def test_draft_when_the_key_is_another_then_it_is_not_signed():
    with pytest.raises(PrivateKeyError):
        Draft("db", b"", LATER).sign(identity("one").certificate, identity("two").key)


def test_wipe_when_made_then_it_is_the_message_of_125_bytes():
    draft = wipe(TIME)
    assert (draft.name, len(draft.data), draft.time) == ("PK", 125, TIME)
    assert is_wipe_message(draft.data)


def test_lists_when_made_then_they_hold_what_was_given():
    owner = b"o" * 16
    assert parse_signature_lists(certificates_lists([b"one", b"other"], owner)) == (
        SignatureList(CERT_X509, 19, (Signature(b"one", owner),)),
        SignatureList(CERT_X509, 21, (Signature(b"other", owner),)),
    )
    assert certificates_lists([]) == b""
    assert parse_signature_lists(digests_list(CERT_SHA256, [b"1", b"2", b"1"])) == (
        SignatureList(CERT_SHA256, 17, (Signature(b"1"), Signature(b"2"))),
    )
    assert parse_signature_lists(sbat_list(b"sbat,1\n")) == (
        SignatureList(SBAT, 23, (Signature(b"sbat,1\n"),)),
    )
    assert stored_object(b"data", TIME) == StoredVariable(TIME, b"data").build()
