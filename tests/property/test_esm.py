# SPDX-License-Identifier: Apache-2.0
"""Whatever a guest has where its blob should be: it is refused, and soon."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st
from tests.esm import INITRD_BASE, Memory, boot_tree

from hcalld.crypto.tpm_session import run
from hcalld.domain.esm import blob, digests
from hcalld.domain.esm.boot_tree import read_boot_tree
from hcalld.domain.esm.errors import BlobError, EsmError
from hcalld.domain.esm.locate import locate
from hcallproto.payloads import cpio, fdt
from hcallproto.payloads.fdt import HEADER_SIZE, FdtError
from hcallproto.payloads.tpm import Cc, Response, TpmError, parse_public, parse_response

TOKENS = st.one_of(
    st.sampled_from([1, 2, 3, 4, 9]).map(lambda token: struct.pack(">I", token)),
    st.sampled_from([b"\0\0\0\0", b"ab\0\0", b"\xff\xff\xff\xff", b"\0\0\0\1"]),
    st.binary(min_size=4, max_size=4),
)
STRUCTURES = st.lists(TOKENS, max_size=60).map(b"".join)


def tree(structure: bytes, strings: bytes) -> bytes:
    """A tree whose header is right."""
    at = HEADER_SIZE + 16
    total = at + len(structure) + len(strings)
    fields = (fdt.MAGIC, total, at, at + len(structure), HEADER_SIZE, 17, 16, 0)
    header = struct.pack(">10I", *fields, len(strings), len(structure))
    return header + bytes(16) + structure + strings


@given(STRUCTURES, st.binary(max_size=20))
def test_tree_when_it_is_anything_then_taken_or_refused(structure: bytes, strings: bytes):
    # Begun and ended as it should be, so that more is looked at.
    for content in (structure, bytes.fromhex("0000000100000000") + structure):
        data = tree(content, b"ab\0" + strings)
        try:
            found = fdt.parse(data)
        except FdtError:
            continue
        # What was taken is what will be written.
        assert fdt.parse(found.build()) == found


@given(st.binary(max_size=200))
def test_parsers_when_given_noise_then_refused(data: bytes):
    for parse, error in (
        (fdt.parse, FdtError),
        (blob.parse, BlobError),
        (blob.parse_files, BlobError),
        (digests.parse, BlobError),
        (parse_public, TpmError),
    ):
        try:
            parse(data)
        except error:
            continue
        raise AssertionError(f"{parse} took {data!r}")


@given(st.binary(max_size=120), st.booleans(), st.sampled_from(Cc))
def test_response_when_it_is_anything_then_taken_or_refused(data: bytes, has: bool, code: Cc):
    sized = data[:2] + struct.pack(">I", len(data)) + bytes(4) + data[10:]
    for response in (data, sized):
        try:
            assert isinstance(parse_response(response, code, has_session=has), Response)
        except TpmError:
            continue


PIECES = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.just(struct.pack(">I", fdt.MAGIC)),
        st.tuples(st.sampled_from(["opt/ibm/pef/b", "a", "b"]), st.binary(max_size=200)).map(
            lambda file: cpio.build([file])
        ),
        st.integers(0, 0xFFFFFFFF).map(lambda size: b"070701" + b"%08X" % size * 13),
    ),
    max_size=6,
).map(b"".join)


@given(PIECES, st.integers(0, 3))
def test_initrd_when_it_is_anything_then_refused_after_little_reading(data: bytes, shift: int):
    memory = Memory(INITRD_BASE + 0x4000)
    memory.put(INITRD_BASE + shift, data)
    found = read_boot_tree(boot_tree(len(data) + shift + 1))
    try:
        run(locate(memory.read, found))
    except EsmError:
        pass
    else:
        raise AssertionError("there is no whole blob in it")
    assert memory.reads < 200
