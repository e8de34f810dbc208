# SPDX-License-Identifier: Apache-2.0
"""A guest on its way between platforms, as one file.

The layout is the migration stream of AMD's QEMU branch, as far as it is public (PSPReverse,
``amd-sev-migration-attack``): lengths and the policy in it are big-endian. The policy, the
source's PDH certificate and the session come first, then each page in order, as a header and
a payload. Nothing in it says where a page goes, nor that it has ended.
"""

from __future__ import annotations

from typing import NamedTuple

from construct import Bytes, Const, GreedyBytes, Int32ub, Prefixed, Struct

from hcallproto.payloads.sev.blobs import PACKET_HEADER_SIZE, SESSION_SIZE

STREAM_HEAD = Struct(
    "policy" / Int32ub,
    "pdh" / Prefixed(Int32ub, GreedyBytes) * "the source's PDH certificate",
    "session_size" / Const(SESSION_SIZE, Int32ub),
    "session" / Bytes(SESSION_SIZE),
)
STREAM_PACKET = Struct(
    "header_size" / Const(PACKET_HEADER_SIZE, Int32ub),
    "header" / Bytes(PACKET_HEADER_SIZE),
    "payload" / Prefixed(Int32ub, GreedyBytes),
)


class TransportPacket(NamedTuple):
    """A page, encrypted: what SEND_UPDATE_DATA gives and RECEIVE_UPDATE_DATA takes."""

    header: bytes
    payload: bytes
