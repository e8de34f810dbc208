# SPDX-License-Identifier: Apache-2.0
"""The keystore's structures: fast forms against their schemas, and what people see."""

from __future__ import annotations

import dataclasses
import struct

import construct
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcallproto.payloads import pks
from hcallproto.payloads.pks import (
    Auth,
    Config,
    Consumer,
    describe_auth,
    describe_label,
    parse_auth,
)

MAX_PASSWORD = 64

_CONFIG_BITS = {
    "version": 8,
    "flags": 8,
    "objoverhead": 16,
    "maxpwsize": 16,
    "maxobjlabelsize": 16,
    "maxobjsize": 16,
    "totalsize": 32,
    "usedspace": 32,
    "supportedpolicies": 32,
    "maxlargeobjectsize": 32,
    "signedupdatealgorithms": 64,
    "wrappingfeatures": 64,
}
configs = st.builds(
    Config, **{name: st.integers(0, 2**bits - 1) for name, bits in _CONFIG_BITS.items()}
)


def auth_structure(
    *,
    version: int = 1,
    consumer: int = 3,
    reserved: bytes = bytes(12),
    password: bytes = b"",
    size: int | None = None,
) -> bytes:
    head = struct.pack(
        ">BB12sH", version, consumer, reserved, len(password) if size is None else size
    )
    return head + password


def label(name: bytes, *, prefix: bytes = b"", version: int = 0, length: int = 16) -> bytes:
    return struct.pack(">8sBBB5x", prefix, version, 2, length) + name


# -- configuration ----------------------------------------------------------------------


def test_config_fields_are_those_of_the_schema():
    assert [field.name for field in dataclasses.fields(Config)] == list(_CONFIG_BITS)


@given(configs)
def test_config_build_equals_schema(config: Config):
    assert config.build() == pks.CONFIG.build(dataclasses.asdict(config))


@given(configs)
def test_config_parses_back(config: Config):
    parsed = pks.CONFIG.parse(config.build())
    assert {name: parsed[name] for name in _CONFIG_BITS} == dataclasses.asdict(config)


def test_config_build_has_plpks_offsets():
    # plpks.c struct config, offsets counted by hand.
    built = Config(
        version=3,
        flags=0x10,
        objoverhead=8,
        maxpwsize=32,
        maxobjlabelsize=255,
        maxobjsize=0xFFFF,
        totalsize=65536,
        usedspace=0x01020304,
        supportedpolicies=0x7F800008,
        maxlargeobjectsize=65536,
        signedupdatealgorithms=0xC000_0000_0000_0000,
        wrappingfeatures=1,
    ).build()
    assert len(built) == 44
    assert built == bytes.fromhex(
        "03 10 0000 0008 0020 00ff ffff 00010000 01020304 7f800008 00010000"
        "c000000000000000 0000000000000001"
    )


def test_config_build_refuses_what_does_not_fit():
    config = Config(**dict.fromkeys(_CONFIG_BITS, 0) | {"maxpwsize": 65536})
    with pytest.raises(struct.error):
        config.build()


def test_policies_are_those_of_the_header():
    assert sum(pks.Policy) == pks.ALL_POLICIES


@pytest.mark.parametrize(
    ("structure", "size"),
    [
        (pks.AUTH_HEADER, pks.AUTH_HEADER_SIZE),
        (pks.LABEL_ATTRIBUTES, 16),
        (pks.CONFIG, 44),
        (pks.SED_OBJECT, 64),
    ],
)
def test_structure_sizes(structure: construct.Struct, size: int):
    assert structure.sizeof() == size


def test_sed_object_fields_are_where_linux_has_them():
    built = pks.SED_OBJECT.build(
        {"authority": 0x900010001, "range": 0x80200000001, "key_len": 23, "key": b"k" * 32}
    )
    assert struct.unpack(">8xQQI32s4x", built) == (0x900010001, 0x80200000001, 23, b"k" * 32)


# -- authorization structure ------------------------------------------------------------


@pytest.mark.parametrize("consumer", [1, 2, 3])
@pytest.mark.parametrize("size", [0, 1, 32, MAX_PASSWORD])
def test_parse_auth_takes_well_formed(consumer: int, size: int):
    password = bytes(range(size))
    data = auth_structure(consumer=consumer, password=password)
    assert parse_auth(data, MAX_PASSWORD) == Auth(Consumer(consumer), password)


def test_parse_auth_ignores_what_follows_the_password():
    data = auth_structure(password=b"secret") + b"the rest of the page"
    assert parse_auth(data, MAX_PASSWORD).password == b"secret"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "crosses its page"),
        (auth_structure()[:15], "crosses its page"),
        (auth_structure(version=0), "version 0, expected 1"),
        (auth_structure(version=2), "version 2, expected 1"),
        (auth_structure(consumer=0), "consumer 0, expected 1 to 3"),
        (auth_structure(consumer=4), "consumer 4, expected 1 to 3"),
        (auth_structure(reserved=b"\x01" + bytes(11)), "reserved bytes"),
        (auth_structure(reserved=bytes(7) + b"\x01" + bytes(4)), "reserved bytes"),
        (auth_structure(reserved=bytes(8) + b"\x01" + bytes(3)), "reserved bytes"),
        (auth_structure(reserved=bytes(11) + b"\x01"), "reserved bytes"),
        (auth_structure(password=bytes(MAX_PASSWORD + 1)), "password length 65 exceeds 64"),
        (auth_structure(size=0xFFFF), "password length 65535 exceeds 64"),
        (auth_structure(password=bytes(31), size=32), "crosses its page"),
    ],
)
def test_parse_auth_refuses_malformed(data: bytes, why: str):
    with pytest.raises(ValueError, match=why):
        parse_auth(data, MAX_PASSWORD)


@pytest.mark.parametrize("position", range(16))
def test_parse_auth_refuses_any_odd_byte_in_the_head(position: int):
    """Every byte of the head is looked at: 0xee fits nowhere but in a large password size."""
    data = bytearray(auth_structure(password=bytes(MAX_PASSWORD)))
    data[position] = 0xEE
    with pytest.raises(ValueError, match=r"version|consumer|reserved|password length"):
        parse_auth(bytes(data), MAX_PASSWORD)


@given(st.binary(max_size=16 + MAX_PASSWORD + 8))
def test_parse_auth_agrees_with_the_schema(data: bytes):
    try:
        auth = parse_auth(data, MAX_PASSWORD)
    except ValueError:
        try:
            head = pks.AUTH_HEADER.parse(data)
        except construct.ConstructError:
            return
        # What the schema alone cannot say.
        assert (
            not 1 <= head.consumer <= 3
            or head.password_size > MAX_PASSWORD
            or pks.AUTH_HEADER_SIZE + head.password_size > len(data)
        )
    else:
        head = pks.AUTH_HEADER.parse(data)
        assert head.consumer == auth.consumer
        assert head.password_size == len(auth.password)
        assert data[16 : 16 + head.password_size] == auth.password


@given(st.sampled_from(Consumer), st.binary(max_size=MAX_PASSWORD), st.binary(max_size=8))
def test_parse_auth_takes_what_the_schema_builds(consumer: Consumer, password: bytes, rest: bytes):
    head = pks.AUTH_HEADER.build({"consumer": consumer, "password_size": len(password)})
    assert parse_auth(head + password + rest, MAX_PASSWORD) == Auth(consumer, password)


def test_auth_repr_hides_the_password():
    assert "hunter2" not in repr(Auth(Consumer.OS, b"hunter2"))


@given(st.binary(min_size=8, max_size=MAX_PASSWORD), st.integers(0, 255), st.integers(0, 255))
def test_parse_auth_errors_do_not_tell_the_password(password: bytes, version: int, consumer: int):
    data = auth_structure(version=version, consumer=consumer, password=password)
    with pytest.raises(ValueError, match=r".") as caught:
        parse_auth(data, 7)
    assert password not in str(caught.value).encode("latin-1")
    assert password.hex() not in str(caught.value)


# -- for people -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (auth_structure(password=b"x" * 32), "OS+32"),
        (auth_structure(consumer=1), "FIRMWARE+0"),
        (auth_structure(consumer=2, size=7), "BOOTLOADER+7"),
        (auth_structure(consumer=9), "9+0"),
        (auth_structure(version=7), "malformed, version 7"),
        (auth_structure(reserved=b"x" * 12), "malformed, reserved bytes not 0"),
        (b"short", "malformed, 5 bytes"),
    ],
)
def test_describe_auth(data: bytes, text: str):
    assert describe_auth(data) == text


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (label(b"/default/pri\0", prefix=b"sed-opal"), r'"sed-opal"/"/default/pri\0"'),
        (label(b"default-wrapping-key", prefix=b"PLPKSWR"), '"PLPKSWR"/"default-wrapping-key"'),
        (label("grubdb".encode("utf-16le")), 'u"grubdb"'),
        (label(b""), 'u""'),
        (label(b"odd"), '"odd"'),
        (label("ключ".encode("utf-16le")), r'":\x04;\x04N\x04G\x04"'),
        (b"SB_VERSION", '"SB_VERSION"'),
        (b"", '""'),
        # Sixteen bytes and more that are no attributes: a bare name.
        (b"a firmware object's name", '"a firmware object\'s name"'),
        (label(b"x", prefix=b"p", version=1), r'"p\0\0\0\0\0\0\0\x01\x02\x10\0\0\0\0\0x"'),
        (label(b"x", prefix=b"p", length=15), r'"p\0\0\0\0\0\0\0\0\x02\x0f\0\0\0\0\0x"'),
    ],
)
def test_describe_label(data: bytes, text: str):
    assert describe_label(data) == text


@given(st.binary(max_size=300))
def test_descriptions_never_raise_and_are_printable(data: bytes):
    for text in (describe_auth(data), describe_label(data)):
        assert text.isascii()
        assert text.isprintable()
