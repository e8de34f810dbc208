# SPDX-License-Identifier: Apache-2.0
"""EFI structures: fast forms against their schemas, every bound, every refusal."""

from __future__ import annotations

import struct

import pytest

from hcallproto.payloads import efi
from hcallproto.payloads.efi import (
    EfiError,
    EfiSizeError,
    EfiTime,
    Signature,
    SignatureList,
    SignedUpdate,
    StoredVariable,
)

TIME = EfiTime(2023, 4, 7, 9, 18, 56)
TIME_BYTES = bytes.fromhex("e7070407091238" + "00" * 9)
PKCS7_GUID = bytes.fromhex("9dd2af4adf68ee498aa9347d375665a7")

TYPES = {
    "X509": "a159c0a5e494a74a87b5ab155c2bf072",
    "SHA1": "12a56c8210cfc94ab187be01496631bd",
    "SHA224": "33526e0b5ca6c9449407d9ab83bfc8bd",
    "SHA256": "2616c4c14c509240aca941f936934328",
    "SHA384": "07533effd09fc94885f18ad56c701e01",
    "SHA512": "ae0f3e09c4a6504f9f1bd41e2b89c19a",
    "X509_SHA256": "92a4d23bc0967940b420fcf98ef103ed",
    "X509_SHA384": "6e877670c280e64eaad228b349a6865b",
    "X509_SHA512": "63bf6d440225da4cbcfa2465d2b0fe9d",
    "SBAT": "50ab5d6046e00043abb63dd810dd8b23",
}


# -- GUIDs ----------------------------------------------------------------------------------


def test_types_when_listed_then_their_bytes_are_those_on_the_wire():
    assert {name: value.hex() for value, name in efi.SIGNATURE_TYPES.items()} == TYPES


@pytest.mark.parametrize(
    ("value", "hexadecimal"),
    [
        (efi.GLOBAL_VARIABLE, "61dfe48bca93d211aa0d00e098032b8c"),
        (efi.IMAGE_SECURITY_DATABASE, "cbb219d73a3d9645a3bcdad00e67656f"),
        (efi.POWER_VENDOR, "8375fd366a98154b8228041664342d51"),
    ],
)
def test_vendors_when_hashed_then_their_bytes_are_known(value: bytes, hexadecimal: str):
    assert value.hex() == hexadecimal


def test_type_name_when_unknown_then_it_is_the_guid():
    assert efi.type_name(efi.SBAT) == "SBAT"
    assert efi.type_name(efi.POWER_VENDOR) == "36fd7583-986a-4b15-8228-041664342d51"


# -- times ----------------------------------------------------------------------------------


def test_time_when_built_then_schema_and_parser_agree():
    assert TIME.build() == TIME_BYTES
    assert efi.parse_time(TIME_BYTES) == TIME
    schema = efi.EFI_TIME.parse(TIME_BYTES)
    assert [schema[name] for name in EfiTime._fields] == list(TIME)
    assert efi.EFI_TIME.sizeof() == efi.EFI_TIME_SIZE
    assert str(TIME) == "2023-04-07 09:18:56"


def test_time_when_fields_are_out_of_range_then_they_are_taken_as_they_are():
    assert efi.parse_time(b"\xff" * 7 + bytes(9)) == EfiTime(65535, 255, 255, 255, 255, 255)


@pytest.mark.parametrize("position", range(7, 16))
def test_time_when_a_reserved_byte_is_set_then_it_is_refused(position: int):
    data = bytearray(TIME_BYTES)
    data[position] = 1
    with pytest.raises(EfiError, match="not 0"):
        efi.parse_time(bytes(data))


@pytest.mark.parametrize("size", [0, 15, 17])
def test_time_when_of_another_size_then_it_is_refused(size: int):
    with pytest.raises(EfiSizeError, match=f"has {size} bytes, expected 16"):
        efi.parse_time(bytes(size))


def test_times_when_compared_then_the_first_field_that_differs_counts():
    assert EfiTime(2023, 12, 31, 23, 59, 59) < EfiTime(2024, 1, 1, 0, 0, 0)
    assert EfiTime(2024, 1, 1, 0, 0, 0) < EfiTime(2024, 1, 1, 0, 0, 1)


# -- updates --------------------------------------------------------------------------------


def head(
    length: int, revision: int = 0x0200, kind: int = 0x0EF1, guid: bytes = PKCS7_GUID
) -> bytes:
    return TIME_BYTES + struct.pack("<IHH16s", length, revision, kind, guid)


def test_update_when_built_then_schema_and_parser_agree():
    update = SignedUpdate(TIME, b"signature", b"lists")
    message = update.build()
    assert message == head(24 + 9) + b"signature" + b"lists"
    assert efi.parse_update(message) == update
    assert efi.UPDATE_HEAD.parse(message).certificate.length == 33
    assert efi.UPDATE_HEAD.sizeof() == efi.UPDATE_HEAD_SIZE


def test_update_when_the_data_are_empty_then_that_is_so():
    assert efi.parse_update(head(25) + b"x") == SignedUpdate(TIME, b"x", b"")


@pytest.mark.parametrize("size", range(40))
def test_update_when_it_ends_within_its_head_then_it_is_refused(size: int):
    with pytest.raises(EfiSizeError, match=f"has {size} bytes, expected at least 40"):
        efi.parse_update(head(25)[:size])


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (head(25, revision=0x0100) + b"x", "revision 0x0100"),
        (head(25, kind=0x0002) + b"x", "type 0x0002"),
        (head(25, guid=efi.POWER_VENDOR) + b"x", "GUID 36fd7583"),
        (head(24) + b"x", "length 24, expected more than 24"),
        (head(0) + b"x", "length 0"),
    ],
)
def test_update_when_a_field_is_wrong_then_it_is_refused(message: bytes, why: str):
    with pytest.raises(EfiError, match=why) as caught:
        efi.parse_update(message)
    assert not isinstance(caught.value, EfiSizeError)


@pytest.mark.parametrize("length", [26, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_update_when_the_signature_goes_beyond_the_end_then_it_is_refused(length: int):
    with pytest.raises(EfiSizeError, match=f"length {length}, but only 25 bytes"):
        efi.parse_update(head(length) + b"x")


# -- stored variables -----------------------------------------------------------------------


def test_stored_when_built_then_schema_and_parser_agree():
    stored = StoredVariable(TIME, b"lists")
    data = stored.build()
    assert data == bytes.fromhex("00e7070407091238") + b"lists"
    assert efi.parse_stored(data) == stored
    schema = efi.STORED_HEAD.parse(data)
    assert [schema[name] for name in EfiTime._fields] == list(TIME)
    assert efi.STORED_HEAD.sizeof() == efi.STORED_HEAD_SIZE


def test_stored_when_it_is_a_head_only_then_the_data_are_empty():
    assert efi.parse_stored(bytes(8)) == StoredVariable(EfiTime(0, 0, 0, 0, 0, 0), b"")


@pytest.mark.parametrize(
    ("data", "why"), [(bytes(7), "7 bytes"), (b"", "0 bytes"), (b"\1" + bytes(7), "version 1")]
)
def test_stored_when_malformed_then_it_is_refused(data: bytes, why: str):
    with pytest.raises(EfiError, match=why):
        efi.parse_stored(data)


# -- lists ----------------------------------------------------------------------------------

OWNER = bytes(range(16))


def raw_list(
    body: bytes, *, list_size: int | None = None, header_size: int = 0, signature_size: int = 20
) -> bytes:
    size = 28 + len(body) if list_size is None else list_size
    return struct.pack("<16sIII", efi.CERT_SHA1, size, header_size, signature_size) + body


def test_lists_when_built_then_schema_and_parser_agree():
    first = SignatureList(
        efi.CERT_SHA1, 20, (Signature(b"abcd", OWNER), Signature(b"efgh")), b"head"
    )
    second = efi.signature_list(efi.SBAT, b"sbat,1\n", b"grub,3\n")
    data = first.build() + second.build()
    assert efi.parse_signature_lists(data) == (first, second)
    assert first.build() == raw_list(b"head" + OWNER + b"abcd" + bytes(16) + b"efgh", header_size=4)
    schema = efi.SIGNATURE_LIST.parse(data)
    assert (schema.type, schema.list_size, schema.header_size, schema.signature_size) == (
        efi.CERT_SHA1,
        28 + 4 + 2 * 20,
        4,
        20,
    )
    assert efi.SIGNATURE_LIST.sizeof() == efi.SIGNATURE_LIST_SIZE


def test_lists_when_there_are_none_or_an_empty_one_then_that_is_so():
    assert efi.parse_signature_lists(b"") == ()
    assert efi.parse_signature_lists(raw_list(b"")) == (SignatureList(efi.CERT_SHA1, 20, ()),)


def test_list_when_a_signature_has_another_size_then_it_is_not_built():
    with pytest.raises(ValueError, match="a signature of 3 bytes in a list of signatures of 4"):
        efi.signature_list(efi.CERT_SHA1, b"abcd", b"efg").build()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (raw_list(b"")[:27], "27 bytes, expected a head of 28"),
        (raw_list(bytes(20)) + b"x", "at byte 48: 1 bytes"),
        (raw_list(bytes(20), list_size=27), "list size 27, expected 28 to 48"),
        (raw_list(bytes(20), list_size=0), "list size 0,"),
        (raw_list(bytes(20), list_size=49), "list size 49,"),
        (raw_list(bytes(20), list_size=0xFFFF_FFFF), "list size 4294967295,"),
        (raw_list(bytes(20), header_size=21), "header size 21, expected at most 20"),
        (raw_list(bytes(20), header_size=0xFFFF_FFFF), "header size 4294967295"),
        (raw_list(bytes(20), signature_size=16), "signature size 16, expected more than 16"),
        (raw_list(bytes(20), signature_size=0), "signature size 0"),
        (raw_list(bytes(20), signature_size=19), "20 bytes of signatures are not a multiple"),
        (raw_list(bytes(20), header_size=1), "19 bytes of signatures are not a multiple"),
        (raw_list(bytes(20), signature_size=0xFFFF_FFFF), "not a multiple"),
    ],
)
def test_lists_when_malformed_then_they_are_refused(data: bytes, why: str):
    with pytest.raises(EfiError, match=why):
        efi.parse_signature_lists(data)


def test_lists_when_the_second_is_malformed_then_the_first_is_given_first():
    lists = efi.each_signature_list(raw_list(bytes(20)) + b"x")
    assert next(lists).signatures == (Signature(bytes(4)),)
    with pytest.raises(EfiError):
        next(lists)
