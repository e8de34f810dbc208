# SPDX-License-Identifier: Apache-2.0
"""Tables that SEV's firmware does not parse: hashes, secrets, the footer of an image."""

from __future__ import annotations

import hashlib
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcallproto.abi.families.sev import BLOB_MAX_SIZE
from hcallproto.payloads.sev import (
    HashesTable,
    SecretEntry,
    SevFormatError,
    build_secrets,
    parse_footer,
    parse_secrets,
)
from hcallproto.payloads.sev.footer import (
    FOOTER_GUID,
    HASHES_AREA_GUID,
    RESET_BLOCK_GUID,
    SECRET_AREA_GUID,
    Area,
)
from hcallproto.payloads.sev.tables import HASHES_GUID, SECRETS_GUID

# -- hashes -----------------------------------------------------------------------------------

DIGESTS = [hashlib.sha256(data).digest() for data in (b"quiet\0", b"initrd", b"kernel")]
TABLE = HashesTable(cmdline=DIGESTS[0], initrd=DIGESTS[1], kernel=DIGESTS[2])


def test_hashes_when_built_then_qemus_table():
    built = TABLE.build()
    assert len(built) == 176
    assert built[:18] == HASHES_GUID.bytes_le + b"\xa8\0"
    assert built[34:36] == built[84:86] == built[134:136] == b"\x32\0"
    assert [built[36:68], built[86:118], built[136:168]] == DIGESTS
    assert built[168:] == bytes(8)
    assert HashesTable.parse(built) == TABLE


@pytest.mark.parametrize("offset", [0, 16, 18, 34, 68, 84, 118, 134, 168, 175])
def test_hashes_when_what_is_fixed_is_altered_then_refused(offset: int):
    built = bytearray(TABLE.build())
    built[offset] ^= 1
    with pytest.raises(SevFormatError, match="hashes table"):
        HashesTable.parse(bytes(built))


@pytest.mark.parametrize("size", [0, 168, 175, 177])
def test_hashes_when_the_size_is_another_then_refused(size: int):
    with pytest.raises(SevFormatError, match=f"length is {size}, expected 176"):
        HashesTable.parse(bytes(size))


# -- secrets ----------------------------------------------------------------------------------

ENTRIES = st.lists(st.builds(SecretEntry, st.uuids(), st.binary(max_size=100)), max_size=5)


@given(ENTRIES)
def test_secrets_when_built_then_parsed_to_the_same(entries: list[SecretEntry]):
    built = build_secrets(entries)
    assert len(built) % 16 == 0
    assert parse_secrets(built) == tuple(entries)
    assert parse_secrets(built + b"whatever") == tuple(entries)


def test_secrets_when_built_then_each_field_at_its_place():
    guid = uuid.UUID("e6f5a162-d67f-4750-a67c-5d065f2a9910")
    built = build_secrets([SecretEntry(guid, b"key")])
    assert built == (
        SECRETS_GUID.bytes_le + b"\x2b\0\0\0" + guid.bytes_le + b"\x17\0\0\0" + b"key" + bytes(5)
    )


def test_secrets_when_shown_then_without_their_values():
    assert "attack" not in repr(SecretEntry(SECRETS_GUID, b"attack at dawn"))


def test_secrets_when_they_are_many_then_refused():
    room = BLOB_MAX_SIZE - 40
    assert len(build_secrets([SecretEntry(SECRETS_GUID, bytes(room))])) == BLOB_MAX_SIZE
    with pytest.raises(SevFormatError, match="expected at most 16384"):
        build_secrets([SecretEntry(SECRETS_GUID, bytes(room + 1))])


def head(guid: uuid.UUID, size: int) -> bytes:
    return guid.bytes_le + size.to_bytes(4, "little")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "secrets table: length is 0, expected at least 20"),
        (bytes(19), "secrets table: length is 19"),
        (head(SECRETS_GUID, 19), "secrets table: length is 19, expected 20 to 20"),
        (head(SECRETS_GUID, 21), "secrets table: length is 21, expected 20 to 20"),
        (head(HASHES_GUID, 20), f"secrets table: GUID is {HASHES_GUID}"),
        (head(SECRETS_GUID, 39) + bytes(19), "secrets table, entry 0: length is 19"),
        (
            head(SECRETS_GUID, 40) + head(HASHES_GUID, 21) + b"x",
            "secrets table, entry 0: length is 21, expected 20 to 20",
        ),
        (
            head(SECRETS_GUID, 60) + head(HASHES_GUID, 20) + head(HASHES_GUID, 0),
            "secrets table, entry 1: length is 0",
        ),
        (head(SECRETS_GUID, 0xFFFFFFFF) + bytes(64), "secrets table: length is 4294967295"),
    ],
)
def test_secrets_when_malformed_then_the_error_says_so(data: bytes, text: str):
    with pytest.raises(SevFormatError) as caught:
        parse_secrets(data)
    assert str(caught.value).startswith(text)


# -- the footer -------------------------------------------------------------------------------


def image(entries: list[tuple[uuid.UUID, bytes]], total: int | None = None) -> bytes:
    table = b"".join(
        data + (len(data) + 18).to_bytes(2, "little") + guid.bytes_le for guid, data in entries
    )
    size = len(table) + 18 if total is None else total
    return b"code" * 64 + table + size.to_bytes(2, "little") + FOOTER_GUID.bytes_le + bytes(32)


def test_footer_when_there_is_one_then_its_areas():
    footer = parse_footer(
        image(
            [
                (SECRET_AREA_GUID, bytes.fromhex("00c08000 00040000")),
                (HASHES_AREA_GUID, bytes.fromhex("00108000 00080000")),
                (RESET_BLOCK_GUID, bytes.fromhex("04b08000")),
            ]
        )
    )
    assert footer is not None
    assert footer.secret_area == Area(0x80C000, 0x400)
    assert footer.hashes_area == Area(0x801000, 0x800)
    assert footer.reset_address == 0x80B004


def test_footer_when_areas_are_zero_or_absent_then_none():
    """As in Debian's OVMF."""
    footer = parse_footer(
        image([(SECRET_AREA_GUID, bytes(8)), (HASHES_AREA_GUID, bytes(7)), (RESET_BLOCK_GUID, b"")])
    )
    assert footer is not None
    assert (footer.secret_area, footer.hashes_area, footer.reset_address) == (None, None, None)
    for half in ("00c08000 00000000", "00000000 00040000"):
        footer = parse_footer(image([(SECRET_AREA_GUID, bytes.fromhex(half))]))
        assert footer is not None
        assert footer.secret_area is None
    empty = parse_footer(image([]))
    assert empty is not None
    assert empty.entries == {}
    assert (empty.secret_area, empty.reset_address) == (None, None)


@pytest.mark.parametrize("data", [b"", bytes(49), bytes(50), bytes(4096), image([])[:-1]])
def test_footer_when_there_is_none_then_none(data: bytes):
    assert parse_footer(data) is None


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (image([], total=17), "length is 17"),
        (image([], total=0), "length is 0"),
        (image([], total=0xFFFF), "length is 65535"),
        (image([(RESET_BLOCK_GUID, b"")], total=18 + 17), "rest is 17"),
        (image([(RESET_BLOCK_GUID, b"1234")], total=18 + 21), "entry length is 22"),
        (
            image([(RESET_BLOCK_GUID, b"\x11\0" + FOOTER_GUID.bytes_le)], total=18 + 19),
            "entry length is 36",
        ),
    ],
)
def test_footer_when_malformed_then_the_error_says_so(data: bytes, text: str):
    with pytest.raises(SevFormatError, match=f"firmware footer: {text}"):
        parse_footer(data)


def test_footer_when_an_entrys_length_is_too_small_then_refused():
    made = bytearray(image([(RESET_BLOCK_GUID, b"1234")]))
    at = len(made) - 32 - 18 - 18
    assert made[at] == 22
    made[at] = 17
    with pytest.raises(SevFormatError, match="entry length is 17, expected 18 to 22"):
        parse_footer(bytes(made))


@given(st.binary(max_size=64), st.integers(0, 0xFFFF))
def test_footer_when_it_is_noise_then_parsed_or_refused(noise: bytes, total: int):
    data = noise + total.to_bytes(2, "little") + FOOTER_GUID.bytes_le + bytes(32)
    try:
        footer = parse_footer(data)
    except SevFormatError:
        return
    assert footer is not None
    # Each entry takes its own bytes.
    taken = sum(len(entry) + 18 for entry in footer.entries.values())
    assert taken <= len(noise)
