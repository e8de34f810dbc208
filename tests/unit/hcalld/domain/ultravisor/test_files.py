# SPDX-License-Identifier: Apache-2.0
"""Files of a blob: names, pieces, and who may read on."""

from __future__ import annotations

import pytest

from hcalld.core.errors import HcallError
from hcalld.core.secret import Secret
from hcalld.domain.ultravisor.files import MAX_READERS, Files, Reader, file_name, pack_chunk
from hcallproto.abi.returns import U

ROOTD = b"01234567890123456789012"


def registers(name: bytes) -> list[int]:
    padded = name.ljust(64, b"\0")
    return [int.from_bytes(padded[at : at + 8], "big") for at in range(0, 64, 8)]


def make(**contents: bytes) -> Files:
    return Files({name.encode(): Secret(content) for name, content in contents.items()})


def refused(files: Files, name: bytes, offset: int, pidr: int = 1) -> str:
    with pytest.raises(HcallError) as raised:
        files.read(name, offset, pidr)
    assert raised.value.code is U.PARAMETER
    return raised.value.why


@pytest.mark.parametrize("name", [b"rootd", b"a", b"x" * 8, b"n" * 64, b"\xff", b"a b"])
def test_names_come_out_of_registers(name: bytes):
    assert file_name(registers(name)) == name


def test_the_example_of_the_tools():
    assert registers(b"rootd")[0] == 0x726F6F7464000000
    assert pack_chunk(ROOTD)[:3] == (
        int.from_bytes(ROOTD[:8], "big"),
        int.from_bytes(ROOTD[8:16], "big"),
        int.from_bytes(ROOTD[16:] + b"\0", "big"),
    )
    assert pack_chunk(ROOTD)[3:] == (0, 0, 0, 0, 0)
    assert pack_chunk(b"") == (0,) * 8


@pytest.mark.parametrize("name", [b"", b"/", b"a/b", b"a\0b", b"\0a"])
def test_what_is_no_name(name: bytes):
    with pytest.raises(HcallError) as raised:
        file_name(registers(name))
    assert raised.value.code is U.PARAMETER


def test_a_file_is_read_once_and_forward():
    content = bytes(range(200))
    files = make(a=content)
    assert files.read(b"a", 0, 1) == content[:64]
    assert "already" in refused(files, b"a", 0)
    assert "already" in refused(files, b"a", 63)
    assert files.read(b"a", 100, 1) == content[100:164]
    assert files.read(b"a", 164, 1) == content[164:]
    assert files.read(b"a", 200, 1) == b""
    assert files.read(b"a", 65535, 1) == b""
    assert "offset" in refused(files, b"a", 65536)
    assert files.readers == {b"a": Reader(1, 200)}


def test_another_process_gets_nothing_for_ever():
    files = make(a=b"x", b=b"y")
    files.read(b"a", 0, 1)
    assert "another process" in refused(files, b"a", 1, pidr=2)
    assert files.read(b"b", 0, 2) == b"y"
    assert "another process" in refused(files, b"b", 1, pidr=1)


def test_a_failed_look_up_counts_as_the_first():
    files = make()
    assert "no file" in refused(files, b"a", 0, pidr=1)
    assert "another process" in refused(files, b"a", 0, pidr=2)


def test_a_file_that_cannot_be_decrypted():
    files = Files({b"a": None})
    assert "decrypted" in refused(files, b"a", 0)


def test_readers_are_bounded():
    files = make(a=b"x")
    for number in range(MAX_READERS):
        refused(files, f"f{number}".encode(), 0)
    assert "names" in refused(files, b"a", 0)
    assert len(files.readers) == MAX_READERS
