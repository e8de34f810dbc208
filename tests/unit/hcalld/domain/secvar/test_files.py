# SPDX-License-Identifier: Apache-2.0
"""Files of secure boot's keys, recognized and described."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcalld.domain.secvar.authoring import Draft, sbat_list, stored_object, wipe
from hcalld.domain.secvar.files import Kind, Recognized, describe_lists, recognize
from hcalld.testing.secvars import LATER, TIME, identity
from hcallproto.payloads.efi import CERT_SHA256, CERT_X509, NO_GUID, parse_update, signature_list

PK = identity("pk")
LEAF = identity("leaf", is_ca=False)


@pytest.mark.parametrize("is_append", [False, True])
def test_recognize_when_an_update_then_with_and_without_flags(is_append: bool):
    file = Draft("db", PK.lists, LATER, is_append).sign(PK.certificate, PK.key)
    pkcs7 = parse_update(file.message).pkcs7
    assert recognize(file.build()) == Recognized(Kind.UPDATE, PK.lists, LATER, pkcs7, is_append)
    assert recognize(file.message) == Recognized(Kind.MESSAGE, PK.lists, LATER, pkcs7)


@pytest.mark.parametrize("data", [b"", PK.lists])
def test_recognize_when_a_stored_variable_then_it_is_that(data: bytes):
    assert recognize(stored_object(data, TIME)) == Recognized(Kind.STORED, data, TIME)


@pytest.mark.parametrize("data", [PK.lists, wipe(TIME).data])
def test_recognize_when_lists_then_it_is_that(data: bytes):
    assert recognize(data) == Recognized(Kind.LISTS, data)


@given(st.binary(max_size=100))
def test_recognize_when_random_then_it_is_something_or_refused(content: bytes):
    try:
        found = recognize(content)
    except ValueError:
        return
    assert content.endswith(found.data)


def test_recognize_when_empty_then_it_is_refused():
    with pytest.raises(ValueError, match=r"\(empty\)"):
        recognize(b"")


def test_describe_when_certificates_then_names_keys_and_fingerprints():
    fingerprints = [hashlib.sha256(each.der).hexdigest() for each in (PK, LEAF)]
    assert describe_lists(PK.lists + LEAF.lists) == [
        f"X509 CN=pk, CA, RSA 2048, SHA-256 {fingerprints[0]}",
        f"X509 CN=leaf, RSA 2048, SHA-256 {fingerprints[1]}",
    ]


def test_describe_when_others_then_each_in_its_way():
    lists = signature_list(CERT_SHA256, b"\1" * 32, b"\2" * 32).build()
    lists += signature_list(NO_GUID, b"\3").build() + sbat_list(b"sbat,1\ngrub,2\n", b"o" * 16)
    lists += signature_list(CERT_X509, b"none").build()
    shown = describe_lists(lists)
    assert shown[:3] == [
        "SHA256 " + "01" * 32,
        "SHA256 " + "02" * 32,
        "00000000-0000-0000-0000-000000000000 03",
    ]
    owner = "6f6f6f6f-6f6f-6f6f-6f6f-6f6f6f6f6f6f"
    assert shown[3:5] == [f"SBAT sbat,1, owner {owner}", f"SBAT grub,2, owner {owner}"]
    assert shown[5].startswith("X509 of 4 bytes that cannot be used: not an X.509")
    assert describe_lists(b"") == []


def test_describe_when_the_wipe_message_or_no_lists_then_it_says_so():
    assert describe_lists(wipe(TIME).data) == ["the message that deletes all secure variables"]
    (line,) = describe_lists(b"anything")
    assert line.startswith("8 bytes that are no signature lists: ")


def test_describe_when_bytes_would_steer_a_terminal_then_they_are_escaped():
    evil = identity("evil\x1b[2J\nname")
    lines = describe_lists(evil.lists + sbat_list(b"sbat,1\x1b[2J\xff\r\n"))
    assert all(line.isprintable() for line in lines)
    assert "\\u001b[2J" in lines[0]
