# SPDX-License-Identifier: Apache-2.0
"""Records of the keystore: what was written comes back, everything else is refused."""

from __future__ import annotations

import pytest

from hcalld.core.errors import StoreError
from hcalld.core.records import Record
from hcalld.domain import keystore_records as kr
from hcallproto.payloads.pks import Consumer


def record(value: bytes, key: bytes = b"o\x03label") -> Record:
    return Record(kr.NAMESPACE, key, value)


def test_formats_are_the_documented_bytes():
    assert kr.object_key(3, b"name") == b"o\x03name"
    assert kr.password_key(2) == b"p\x02"
    assert kr.encode_object(0x0800_0000, b"data") == b"\x01\0\0\0\x08\0\0\0data"
    assert kr.encode_password(b"pw") == b"\x01\0\0\0pw"


def test_what_was_encoded_is_decoded():
    assert kr.decode_object(record(kr.encode_object(0x0800_0000, b"data"))) == (
        0x0800_0000,
        b"data",
    )
    assert kr.decode_password(record(kr.encode_password(b"pw"))) == b"pw"
    assert kr.split_object_key(kr.object_key(1, b"SB_VERSION")) == (
        Consumer.FIRMWARE,
        b"SB_VERSION",
    )
    assert kr.split_password_key(kr.password_key(3)) is Consumer.OS


@pytest.mark.parametrize(
    "key", [b"", b"o", b"o\x03", b"o\0label", b"o\x04label", b"x\x03label", b"o\x03" + b"l" * 1025]
)
def test_a_malformed_object_key_is_refused(key: bytes):
    with pytest.raises(StoreError, match="malformed"):
        kr.split_object_key(key)


@pytest.mark.parametrize("key", [b"", b"p", b"p\0", b"p\x04", b"o\x03", b"p\x03x"])
def test_a_malformed_password_key_is_refused(key: bytes):
    with pytest.raises(StoreError, match="malformed"):
        kr.split_password_key(key)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\x01",
        b"\x01\0\0\0\x08\0\0",
        b"\x01\0\0\0\x08\0\0\0",  # no data
        b"\0\0\0\0\x08\0\0\0data",
        b"\x01\0\0\x01\x08\0\0\0data",
        b"\x01\0\0\0\x80\0\0\0data",  # undefined policy bit
        b"\x01\0\0\0\0\0\0\0" + bytes(65537),
    ],
)
def test_a_malformed_object_is_refused(value: bytes):
    with pytest.raises(StoreError, match="malformed"):
        kr.decode_object(record(value))


@pytest.mark.parametrize("value", [b"", b"\x01\0\0", b"\x01\0\0\0", b"\x01\0\0\0" + bytes(4081)])
def test_a_malformed_password_is_refused(value: bytes):
    with pytest.raises(StoreError, match="malformed"):
        kr.decode_password(record(value, b"p\x03"))


def test_a_newer_format_says_so():
    with pytest.raises(StoreError, match="format 2, this version knows up to 1"):
        kr.decode_object(record(b"\x02\0\0\0whatever"))
    with pytest.raises(StoreError, match="newer hcalld"):
        kr.decode_password(record(b"\x09"))


def test_messages_hold_no_value():
    with pytest.raises(StoreError) as raised:
        kr.decode_object(record(b"\x01\0\0\x01\x08\0\0\0hunter2"))
    assert "hunter2" not in str(raised.value)
    assert b"hunter2".hex() not in str(raised.value)


def test_a_long_key_is_cut_in_messages():
    with pytest.raises(StoreError) as raised:
        kr.split_object_key(b"o\x03" + b"l" * 5000)
    assert len(str(raised.value)) < 400
