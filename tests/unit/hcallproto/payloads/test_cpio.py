# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from hcallproto.payloads import cpio
from hcallproto.payloads.cpio import HEAD, HEAD_SIZE, CpioError, Head

ARCHIVE = cpio.build([("opt/ibm/pef/blob", b"abcde"), ("opt/ibm/other", b"")])


def entries(archive: bytes) -> list[tuple[bytes, bytes]]:
    found = []
    offset = 0
    while True:
        head = cpio.parse_head(archive[offset:])
        name = cpio.parse_name(archive[offset + HEAD_SIZE :][: head.name_size])
        found.append((name, archive[offset + head.data_offset :][: head.file_size]))
        offset += head.end_offset
        if name == cpio.TRAILER:
            assert not archive[offset:].strip(b"\0")
            return found


def test_build_when_parsed_then_files_come_after_their_directories():
    assert entries(ARCHIVE) == [
        (b"opt", b""),
        (b"opt/ibm", b""),
        (b"opt/ibm/pef", b""),
        (b"opt/ibm/pef/blob", b"abcde"),
        (b"opt/ibm/other", b""),
        (b"TRAILER!!!", b""),
    ]
    assert len(ARCHIVE) % 512 == 0


def test_head_when_the_schema_reads_it_then_it_agrees():
    assert HEAD.sizeof() == HEAD_SIZE
    shown = HEAD.parse(ARCHIVE)
    assert Head(int(shown.name_size, 16), int(shown.file_size, 16)) == cpio.parse_head(ARCHIVE)


@pytest.mark.parametrize("path", ["/a", "a//b", "../a", "a/./b", "", "a\0b"])
def test_build_when_a_path_leads_elsewhere_then_refused(path: str):
    with pytest.raises(CpioError, match="relative path"):
        cpio.build([(path, b"")])


def test_build_when_a_path_is_there_then_refused():
    with pytest.raises(CpioError, match="there twice"):
        cpio.build([("a", b""), ("a", b"")])
    with pytest.raises(CpioError, match="there twice"):
        cpio.build([("a/b", b""), ("a", b"")])


def changed(offset: int, data: bytes) -> bytes:
    return ARCHIVE[:offset] + data + ARCHIVE[offset + len(data) : HEAD_SIZE]


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (ARCHIVE[: HEAD_SIZE - 1], "109 bytes"),
        (b"", "0 bytes"),
        (changed(5, b"2"), "magic"),
        (changed(54, b"+0000001"), "hexadecimal"),
        (changed(54, b"0x000001"), "hexadecimal"),
        (changed(94, b"00_00001"), "hexadecimal"),
        (changed(94, b" 0000001"), "hexadecimal"),
        (changed(94, b"00000000"), "name of 0 bytes"),
        (changed(94, b"00001001"), "name of 4097 bytes"),
    ],
)
def test_head_when_it_is_wrong_then_refused(head: bytes, why: str):
    with pytest.raises(CpioError, match=why):
        cpio.parse_head(head)


@pytest.mark.parametrize("name", [b"", b"a", b"a\0b", b"a\0\0"])
def test_name_when_its_nul_is_elsewhere_then_refused(name: bytes):
    with pytest.raises(CpioError, match="NUL"):
        cpio.parse_name(name)
