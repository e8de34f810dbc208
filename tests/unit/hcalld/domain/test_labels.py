# SPDX-License-Identifier: Apache-2.0
"""Labels and objects that Linux knows."""

from __future__ import annotations

import pytest

from hcalld.domain.labels import (
    OS_COMMON,
    SED_LABEL,
    os_label,
    sed_object,
    split_os_label,
)
from hcallproto.payloads.pks import LABEL_ATTRIBUTES


def test_the_sed_label_is_what_linux_asks_for():
    assert len(SED_LABEL) == 29
    assert SED_LABEL == b"sed-opal" + b"\0\x04\x10\0\0\0\0\0" + b"/default/pri\0"


def test_a_short_prefix_is_padded():
    assert os_label(b"PLPKSWR", b"default-wrapping-key") == (
        b"PLPKSWR\0" + b"\0\x02\x10\0\0\0\0\0" + b"default-wrapping-key"
    )


def test_a_label_splits_into_its_parts():
    assert split_os_label(os_label(b"abc", b"name", 7)) == (b"abc", 7, b"name")
    assert split_os_label(os_label(b"", b"")) == (b"", 2, b"")
    assert split_os_label(SED_LABEL) == (b"sed-opal", OS_COMMON, b"/default/pri\0")


@pytest.mark.parametrize("place", [8, 10, 11, 15])
def test_other_bytes_are_no_os_label(place: int):
    label = bytearray(SED_LABEL)
    label[place] ^= 1

    assert split_os_label(bytes(label)) is None


def test_a_short_label_is_no_os_label():
    assert split_os_label(b"SB_VERSION") is None


def test_a_long_prefix_or_a_big_number_is_refused():
    with pytest.raises(ValueError, match="at most 8"):
        os_label(b"123456789", b"")
    with pytest.raises(ValueError, match="0x100"):
        os_label(b"", b"", 0x100)


def test_the_sed_object_has_the_fields_of_linuxs_structure():
    data = sed_object(b"k" * 23)

    assert len(data) == 64
    assert data[:8] == bytes(8)
    assert data[8:16].hex() == "0000000900010001"
    assert data[16:24].hex() == "0000080200000001"
    assert int.from_bytes(data[24:28], "big") == 23
    assert data[28:60] == (b"k" * 23).ljust(32, b"\0")
    assert data[60:] == bytes(4)


@pytest.mark.parametrize("size", [0, 33])
def test_a_sed_key_has_1_to_32_bytes(size: int):
    with pytest.raises(ValueError, match=f"{size} bytes"):
        sed_object(bytes(size))
    sed_object(bytes(min(max(size, 1), 32)))


@pytest.mark.parametrize("prefix", [b"", b"abc", b"12345678"])
@pytest.mark.parametrize("os", [0, OS_COMMON, 0xFF])
def test_a_label_begins_as_the_schema_says(prefix: bytes, os: int):
    built = LABEL_ATTRIBUTES.build({"prefix": prefix.ljust(8, b"\0"), "os": os})
    assert os_label(prefix, b"name", os) == built + b"name"
