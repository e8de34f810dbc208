# SPDX-License-Identifier: Apache-2.0
"""Pointers with any of their 64 bits, and questions that nothing else matters to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.unit.hcalld.families.sev.stages import (
    GOOD,
    IN_STATE,
    give,
    host,
    initialized,
    launched,
    measured,
    receiving,
    refused,
    running,
    sending,
)

from hcalld.testing.sev import MEMORY, MEMORY_SIZE, SevClient
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.abi.spec import Hcall
from hcallproto.payloads.sev import GuestState

Stage = Callable[[SevClient], SevClient]

HIGH_BITS = [1 << 47, 1 << 60, 1 << 63, 0xF << 60]
NOWHERE = (1 << 63) + 7

GUEST_MEMORY = [
    (launched, sev.LAUNCH_UPDATE_DATA, "uaddr", "len"),
    (launched, sev.LAUNCH_UPDATE_VMSA, "uaddr", "len"),
    (measured, sev.LAUNCH_SECRET, "guest_uaddr", "guest_len"),
    (sending, sev.SEND_UPDATE_DATA, "guest_uaddr", "guest_len"),
    (receiving, sev.RECEIVE_UPDATE_DATA, "guest_uaddr", "guest_len"),
    (running, sev.DBG_DECRYPT, "src_uaddr", "len"),
    (running, sev.DBG_DECRYPT, "dst_uaddr", "len"),
    (running, sev.DBG_ENCRYPT, "src_uaddr", "len"),
    (running, sev.DBG_ENCRYPT, "dst_uaddr", "len"),
]


@pytest.mark.parametrize(("stage", "hcall", "field", "size"), GUEST_MEMORY)
@pytest.mark.parametrize("bits", HIGH_BITS)
def test_an_address_that_only_looks_like_guest_memory(
    stage: Stage, hcall: Hcall, field: str, size: str, bits: int
) -> None:
    """No bit of a pointer is ignored: it would be other memory that is changed."""
    client = stage(host().connect())
    good = GOOD[hcall.name](client)
    refused(client, hcall, SevCode.EFAULT, **{field: good[field] | bits})


@pytest.mark.parametrize(
    ("stage", "hcall", "field", "size"),
    [entry for entry in GUEST_MEMORY if entry[1] is not sev.LAUNCH_UPDATE_VMSA],
)
def test_guest_memory_does_not_begin_anew_at_zero(
    stage: Stage, hcall: Hcall, field: str, size: str
) -> None:
    """``sev_pin_memory()``: -EINVAL of a range whose end wraps; that of 2^64 is 0."""
    client = stage(host().connect())
    length = GOOD[hcall.name](client)[size]
    end = 1 << 64
    refused(client, hcall, SevCode.EFAULT, **{field: end - length - 16})
    refused(client, hcall, SevCode.EINVAL, **{field: end - length})
    refused(client, hcall, SevCode.EINVAL, **{field: end - length + 16})
    refused(client, hcall, SevCode.EINVAL, **{field: end - 1})


@pytest.mark.parametrize("field", ["dh_uaddr", "session_uaddr"])
@pytest.mark.parametrize("bits", [1 << 60, 1 << 63])
def test_a_pointer_whose_low_bits_are_zero_is_not_absent(field: str, bits: int):
    client = IN_STATE[GuestState.UNINIT](host().connect())
    refused(client, sev.LAUNCH_START, SevCode.EFAULT, **{field: bits})


@pytest.mark.parametrize(
    ("stage", "hcall", "length", "needed"),
    [
        (launched, sev.LAUNCH_MEASURE, "len", {"len": 48}),
        (running, sev.GET_ATTESTATION_REPORT, "len", {"len": 208}),
        (running, sev.SEND_START, "session_len", {"session_len": 128}),
        (sending, sev.SEND_UPDATE_DATA, "hdr_len", {"hdr_len": 52, "trans_len": 4096}),
        (sending, sev.SEND_UPDATE_DATA, "trans_len", {"hdr_len": 52, "trans_len": 4096}),
        (initialized, sev.CERT_EXPORT, "pdh_len", {"pdh_len": 2084, "chain_len": 6252}),
        (initialized, sev.PEK_CSR, "length", {"length": 2084}),
        (initialized, sev.GET_ID2, "length", {"length": 64}),
        (
            initialized,
            sev.PDH_CERT_EXPORT,
            "cert_chain_len",
            {"pdh_cert_len": 2084, "cert_chain_len": 6252},
        ),
    ],
)
def test_a_question_for_lengths_looks_at_nothing_else(
    stage: Stage, hcall: Hcall, length: str, needed: dict[str, int]
) -> None:
    client = stage(host().connect())
    junk = {arg.name: NOWHERE for arg in hcall.args if arg.name.endswith(("addr", "address"))}
    assert refused(client, hcall, SevCode.INVALID_LEN, **junk, **{length: 0}) == needed


def test_the_header_of_a_packet_is_a_blob():
    client = receiving(host().connect())
    refused(client, sev.RECEIVE_UPDATE_DATA, SevCode.EINVAL, hdr_len=sev.BLOB_MAX_SIZE + 1)


def test_memory_up_to_its_last_byte():
    client = launched(host().connect())
    end = MEMORY + MEMORY_SIZE
    assert give(client, sev.LAUNCH_UPDATE_DATA, uaddr=end - 16, len=16)[0] is SevCode.SUCCESS
    refused(client, sev.LAUNCH_UPDATE_DATA, SevCode.EFAULT, uaddr=end - 16, len=32)
