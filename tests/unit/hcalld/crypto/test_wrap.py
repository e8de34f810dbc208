# SPDX-License-Identifier: Apache-2.0
"""Wrapped objects: what opens, and that nothing else does."""

from __future__ import annotations

import dataclasses
import struct

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode
from hypothesis import given
from hypothesis import strategies as st

from hcalld.core.secret import Secret
from hcalld.crypto import wrap
from hcallproto.payloads.pks import WRAP_OVERHEAD, WrapFlag

KEY = Secret(b"k" * 32)
OTHER_KEY = Secret(b"k" * 31 + b"l")
SALT = bytes(range(32))
LABEL = b"PLPKSWR\0\0\2\x10\0\0\0\0\0default-wrapping-key"
FLAGS = int(WrapFlag.PASSWORD | WrapFlag.AES_GCM_256)
DATA = b"attack at dawn, thirty-two bytes"
BLOB = wrap.wrap(KEY, SALT, 3, LABEL, FLAGS, DATA)

REFUSED = (wrap.WrapFormatError, wrap.WrapDataError)


def opened(blob: bytes, key: Secret = KEY) -> bytes:
    return wrap.unwrap(key, wrap.parse(blob))


def test_the_format_is_the_documented_bytes():
    """Put together once more by hand, from the module's own words."""
    head = b"".join(
        (
            *(b"hcwrap\r\n", bytes((1, 1, 3, 0)), struct.pack(">I", len(DATA))),
            *(struct.pack(">Q", FLAGS), SALT, struct.pack(">H", len(LABEL)), LABEL),
        )
    ).ljust(1008, b"\0")
    derivation = KBKDFHMAC(
        algorithm=SHA256(),
        mode=Mode.CounterMode,
        length=32,
        rlen=4,
        llen=4,
        location=CounterLocation.BeforeFixed,
        label=b"hcalld:wrapped object",
        context=SALT,
        fixed=None,
    )
    key = derivation.derive(b"k" * 32)
    expected = head + AESGCM(key).encrypt(bytes(12), DATA, head)

    assert expected == BLOB


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 32, 128, 4096, 65535, 65536])
def test_a_wrapped_object_has_1024_bytes_more_and_opens(size: int):
    data = bytes(i * 7 & 0xFF for i in range(size))
    blob = wrap.wrap(KEY, SALT, 3, LABEL, FLAGS, data)

    assert len(blob) == size + WRAP_OVERHEAD == size + 1024
    assert opened(blob) == data


@given(
    data=st.binary(max_size=300),
    label=st.binary(min_size=1, max_size=512),
    consumer=st.integers(0, 255),
    flags=st.integers(0, (1 << 64) - 1),
    salt=st.binary(min_size=32, max_size=32),
)
def test_what_goes_in_comes_out(data: bytes, label: bytes, consumer: int, flags: int, salt: bytes):
    blob = wrap.wrap(KEY, salt, consumer, label, flags, data)
    parsed = wrap.parse(blob)

    assert (parsed.consumer, parsed.label, parsed.flags) == (consumer, label, flags)
    assert (parsed.size, parsed.salt) == (len(data), salt)
    assert wrap.unwrap(KEY, parsed) == data


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_every_byte_counts(mask: int):
    """Those of the padding too: a wrapped object has one form only."""
    for place in range(len(BLOB)):
        altered = bytearray(BLOB)
        altered[place] ^= mask
        with pytest.raises(REFUSED):
            opened(bytes(altered))


def test_every_bit_of_the_first_bytes_counts():
    for bit in range(wrap.HEAD.size * 8):
        altered = bytearray(BLOB)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(REFUSED):
            opened(bytes(altered))


@pytest.mark.parametrize("size", [0, 1, 16, 1007, 1008, 1023])
def test_what_is_shorter_than_the_overhead_is_no_wrapped_object(size: int):
    with pytest.raises(wrap.WrapDataError, match=f"{size} bytes, expected at least 1024"):
        wrap.parse(BLOB[:size])


def test_every_other_length_is_refused():
    for size in range(1024, len(BLOB)):
        with pytest.raises(wrap.WrapDataError):
            opened(BLOB[:size])
    for more in (1, 16, 1024):
        with pytest.raises(wrap.WrapDataError):
            opened(BLOB + bytes(more))


def test_a_length_that_is_made_to_fit_is_refused_all_the_same():
    """Cut or grown, with the size in the head set right: then the tag is wrong."""
    for cut in (BLOB[:-1], BLOB + b"\0", BLOB[: wrap.HEAD_SIZE] + BLOB[wrap.HEAD_SIZE + 1 :]):
        forged = bytearray(cut)
        struct.pack_into(">I", forged, 12, len(cut) - 1024)
        with pytest.raises(wrap.WrapDataError, match="altered"):
            opened(bytes(forged))


def test_another_key_does_not_open_it():
    for key in (OTHER_KEY, Secret(b"k" * 31), Secret(b"k" * 33), Secret(bytes(32))):
        with pytest.raises(wrap.WrapDataError, match="altered, or wrapped with another key"):
            opened(BLOB, key)


@pytest.mark.parametrize("place", [8, 9])
@pytest.mark.parametrize("value", [0, 2, 255])
def test_another_format_or_algorithm_is_said_to_be_that(place: int, value: int):
    altered = bytearray(BLOB)
    altered[place] = value
    with pytest.raises(wrap.WrapFormatError, match="expected 1 with 1"):
        wrap.parse(bytes(altered))


@pytest.mark.parametrize("size", [0, 513, 0xFFFF])
def test_an_impossible_label_size_is_refused_before_it_is_used(size: int):
    altered = bytearray(BLOB)
    struct.pack_into(">H", altered, 56, size)
    with pytest.raises(wrap.WrapDataError, match=f"{size} of label"):
        wrap.parse(bytes(altered))


def test_a_shorter_label_size_names_another_key_and_is_refused_by_the_tag():
    altered = bytearray(BLOB)
    struct.pack_into(">H", altered, 56, len(LABEL) - 1)
    parsed = wrap.parse(bytes(altered))

    assert parsed.label == LABEL[:-1]
    with pytest.raises(wrap.WrapDataError):
        wrap.unwrap(KEY, parsed)


@pytest.mark.parametrize(
    "changes",
    [{"consumer": 1}, {"label": b"other"}, {"flags": 0}, {"size": 1}, {"salt": bytes(32)}],
)
def test_what_is_proven_is_what_the_bytes_say(changes: dict[str, object]):
    """The parsed fields carry no authority of their own: the salt alone is used."""
    parsed = dataclasses.replace(wrap.parse(BLOB), **changes)  # type: ignore[arg-type]
    if "salt" in changes:
        with pytest.raises(wrap.WrapDataError):
            wrap.unwrap(KEY, parsed)
    else:
        assert wrap.unwrap(KEY, parsed) == DATA


@given(blob=st.binary(min_size=1000, max_size=1100))
def test_noise_never_opens(blob: bytes):
    with pytest.raises(REFUSED):
        opened(blob)


@given(rest=st.binary(min_size=1000, max_size=1100))
def test_noise_behind_the_magic_never_opens(rest: bytes):
    with pytest.raises(REFUSED):
        opened(wrap.MAGIC + bytes((wrap.VERSION, wrap.ALGORITHM)) + rest)


def test_two_salts_share_no_key_stream():
    zeros = bytes(64)
    one = wrap.wrap(KEY, SALT, 3, LABEL, FLAGS, zeros)
    two = wrap.wrap(KEY, SALT[::-1], 3, LABEL, FLAGS, zeros)
    first, second = (blob[wrap.HEAD_SIZE :] for blob in (one, two))

    assert not any(first[i : i + 8] == second[i : i + 8] for i in range(len(first) - 8))


def test_data_and_key_are_in_no_repr_or_reason():
    parsed = wrap.parse(BLOB)
    with pytest.raises(wrap.WrapDataError) as raised:
        wrap.unwrap(OTHER_KEY, parsed)

    assert "blob" not in repr(parsed)
    assert "attack" not in repr(parsed) + str(raised.value)
    assert DATA not in BLOB
