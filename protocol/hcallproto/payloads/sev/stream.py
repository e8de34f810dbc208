# SPDX-License-Identifier: Apache-2.0
"""A guest on its way between platforms, as one file.

The layout is the migration stream of AMD's QEMU branch, as far as it is public (PSPReverse,
``amd-sev-migration-attack``): lengths and the policy in it are big-endian. The policy, the
source's PDH certificate and the session come first, then each page in order, as a header and
a payload. Nothing in it says where a page goes, nor that it has ended.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from construct import Bytes, Const, GreedyBytes, GreedyRange, Int32ub, Prefixed, Struct
from construct.core import ConstructError

from hcallproto.payloads.sev.blobs import PACKET_HEADER_SIZE, SESSION_SIZE
from hcallproto.payloads.sev.constants import Policy
from hcallproto.payloads.sev.errors import SevFormatError

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
_STREAM = Struct("head" / STREAM_HEAD, "packets" / GreedyRange(STREAM_PACKET), "rest" / GreedyBytes)


class TransportPacket(NamedTuple):
    """A page, encrypted: what SEND_UPDATE_DATA gives and RECEIVE_UPDATE_DATA takes."""

    header: bytes
    payload: bytes


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MigrationStream:
    """A whole stream; nothing of it is proven."""

    policy: Policy
    pdh: bytes
    session: bytes
    packets: tuple[TransportPacket, ...]

    @classmethod
    def parse(cls, data: bytes) -> MigrationStream:
        """From a whole file.

        Raises:
            SevFormatError: malformed, or cut off.
        """
        what = "migration stream"
        try:
            read = _STREAM.parse(data)
        except ConstructError as error:
            why = str(error).partition("\n")[0]
            raise SevFormatError(what, "head", "malformed", f"another: {why}") from None
        if read.rest:
            raise SevFormatError(
                what, f"packet {len(read.packets)}", "malformed", "a header and a payload"
            )
        packets = tuple(TransportPacket(packet.header, packet.payload) for packet in read.packets)
        head = read.head
        return cls(policy=Policy(head.policy), pdh=head.pdh, session=head.session, packets=packets)

    def build(self) -> bytes:
        """The file."""
        head = {"policy": self.policy, "pdh": self.pdh, "session": self.session}
        packets = [packet._asdict() for packet in self.packets]
        return _STREAM.build({"head": head, "packets": packets, "rest": b""})
