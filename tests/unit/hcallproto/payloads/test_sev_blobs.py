# SPDX-License-Identifier: Apache-2.0
"""SEV's structures of fixed size: each field where it must be, and nothing else accepted."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcallproto.payloads import sev
from hcallproto.payloads.sev import (
    AttestationReport,
    MeasurementBlob,
    PacketHeader,
    Policy,
    Session,
    SevFormatError,
)

KINDS: list[tuple[Any, Any, int]] = [
    (Session, sev.SESSION, sev.SESSION_SIZE),
    (PacketHeader, sev.PACKET_HEADER, sev.PACKET_HEADER_SIZE),
    (MeasurementBlob, sev.MEASUREMENT_BLOB, sev.MEASUREMENT_BLOB_SIZE),
    (AttestationReport, sev.ATTESTATION_REPORT, sev.ATTESTATION_REPORT_SIZE),
]


@pytest.mark.parametrize(("kind", "layout", "size"), KINDS)
def test_structure_when_its_size_is_asked_then_the_layouts(kind: Any, layout: Any, size: int):
    assert layout.sizeof() == size


@pytest.mark.parametrize(("kind", "layout", "size"), KINDS)
def test_structure_when_its_size_is_another_then_refused(kind: Any, layout: Any, size: int):
    for wrong in (0, size - 1, size + 1):
        with pytest.raises(SevFormatError, match=f"length is {wrong}, expected {size}"):
            kind.parse(bytes(wrong))


@pytest.mark.parametrize(("kind", "layout", "size"), KINDS)
@given(data=st.data())
def test_structure_when_parsed_then_builds_the_same(kind: Any, layout: Any, size: int, data: Any):
    raw = bytearray(data.draw(st.binary(min_size=size, max_size=size)))
    if kind is AttestationReport:
        raw[60:64] = bytes(4)
    assert kind.parse(bytes(raw)).build() == raw


def test_session_when_built_then_each_field_at_its_place():
    parts = (b"n" * 16, b"t" * 32, b"i" * 16, b"m" * 32, b"p" * 32)
    names = ("nonce", "wrap_tk", "wrap_iv", "wrap_mac", "policy_mac")
    assert Session(**dict(zip(names, parts, strict=True))).build() == b"".join(parts)


def test_packet_header_when_built_then_each_field_at_its_place():
    header = PacketHeader(flags=0x80000001, iv=b"i" * 16, mac=b"m" * 32)
    assert header.build() == struct.pack("<I", 0x80000001) + b"i" * 16 + b"m" * 32
    assert header.is_compressed
    assert header.reserved_flags == 0x80000000
    plain = PacketHeader(iv=bytes(16), mac=bytes(32))
    assert (plain.is_compressed, plain.reserved_flags) == (False, 0)


def test_measurement_when_built_then_its_nonce_is_last():
    assert MeasurementBlob(measurement=b"m" * 32, mnonce=b"n" * 16).build() == (
        b"m" * 32 + b"n" * 16
    )


def test_report_when_built_then_each_field_at_its_place():
    report = AttestationReport(
        mnonce=b"n" * 16, launch_digest=b"d" * 32, policy=Policy(5), sig_r=1, sig_s=2
    )
    built = report.build()
    assert built[:52] == b"n" * 16 + b"d" * 32 + struct.pack("<I", 5) == report.signed()
    assert built[52:64] == struct.pack("<III", 0x1002, 2, 0)
    assert built[64:136] == b"\1" + bytes(71)
    assert built[136:] == b"\2" + bytes(71)
