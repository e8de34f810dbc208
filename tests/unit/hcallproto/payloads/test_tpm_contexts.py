# SPDX-License-Identifier: Apache-2.0
"""The daemon's own TPM commands, byte for byte, and the head of a response."""

from __future__ import annotations

import pytest

from hcallproto.payloads import tpm_contexts as tpm


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (tpm.STARTUP_CLEAR, "80010000000c000001440000"),
        (tpm.SHUTDOWN_CLEAR, "80010000000c000001450000"),
        (
            tpm.get_handles(tpm.HandleType.TRANSIENT),
            "8001000000160000017a0000000180000000000000fe",
        ),
        (tpm.flush_context(0x03000001), "80010000000e0000016503000001"),
    ],
)
def test_commands(made: bytes, expected: str):
    assert made.hex() == expected


@pytest.mark.parametrize("size", [10, 11, 4096])
def test_a_size_that_may_be(size: int):
    head = bytes.fromhex("8001") + size.to_bytes(4, "big") + bytes(4)
    assert tpm.response_size(head) == size


@pytest.mark.parametrize("size", [0, 9, 4097, 1 << 31, (1 << 32) - 1])
def test_a_size_that_may_not_be(size: int):
    head = bytes.fromhex("8001") + size.to_bytes(4, "big") + bytes(4)
    with pytest.raises(ValueError, match=f"claims {size} bytes"):
        tpm.response_size(head)


def test_code():
    assert tpm.response_code(bytes.fromhex("80010000000a00000142")) == 0x142


def test_handles():
    listed = bytes.fromhex("80010000001b00000000 00 00000001 00000002 80000000 80000001")
    assert tpm.parse_handles(listed) == [0x80000000, 0x80000001]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("80010000000a00000101", "0x101"),
        ("80010000000a00000000", "cut short"),
        ("80010000001300000000 00 00000001 00000001", "cut short"),
        ("80010000001300000000 00 00000001 ffffffff", "cut short"),
        ("80010000001300000000 00 00000006 00000000", "capability 6"),
    ],
)
def test_no_handles(text: str, said: str):
    with pytest.raises(ValueError, match=said):
        tpm.parse_handles(bytes.fromhex(text))
