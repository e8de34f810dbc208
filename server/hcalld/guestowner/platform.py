# SPDX-License-Identifier: Apache-2.0
"""A platform's commands, as its operator and guest owners give them: what ``/dev/sev`` is for."""

from __future__ import annotations

from typing import NamedTuple

from hcalld.guestowner.client import SevClient
from hcallproto.abi.families import sev
from hcallproto.payloads.sev.blobs import PlatformStatus
from hcallproto.payloads.sev.constants import Version


class Export(NamedTuple):
    """What PDH_CERT_EXPORT gives."""

    pdh: bytes
    chain: bytes
    """PEK, OCA, CEK."""

    @property
    def whole(self) -> bytes:
        """All four, in the order of sevctl's files."""
        return self.pdh + self.chain


class Platform:
    """A platform, seen through its device.

    Args:
        client: a connection to its daemon.
    """

    def __init__(self, client: SevClient) -> None:
        self._client = client

    def status(self) -> PlatformStatus:
        """Version, state, owner and number of guests."""
        found = self._client.command(sev.PLATFORM_STATUS)
        return PlatformStatus(
            version=Version(found["api_major"], found["api_minor"], found["build"]),
            state=found["state"],
            flags=found["flags"],
            guest_count=found["guest_count"],
        )

    def ids(self) -> tuple[bytes, ...]:
        """The ids of its sockets, by which AMD's key server finds a CEK."""
        (room,) = self._client.needed(sev.GET_ID2, "length")
        with self._client.memory.placed(bytes(room)) as (address,):
            found = self._client.command(sev.GET_ID2, address=address, length=room)
            data = self._client.memory.read(address, min(room, found["length"]))
        size = sev.CHIP_ID_SIZE
        return tuple(data[start : start + size] for start in range(0, len(data), size))

    def export(self) -> Export:
        """The certificates PDH, PEK, OCA and CEK."""
        memory = self._client.memory
        pdh_size, chain_size = self._client.needed(
            sev.PDH_CERT_EXPORT, "pdh_cert_len", "cert_chain_len"
        )
        with memory.placed(bytes(pdh_size), bytes(chain_size)) as (pdh, chain):
            self._client.command(
                sev.PDH_CERT_EXPORT,
                pdh_cert_address=pdh,
                pdh_cert_len=pdh_size,
                cert_chain_address=chain,
                cert_chain_len=chain_size,
            )
            return Export(memory.read(pdh, pdh_size), memory.read(chain, chain_size))

    def csr(self) -> bytes:
        """The PEK's certificate without signatures, for an owner to sign."""
        (size,) = self._client.needed(sev.PEK_CSR, "length")
        with self._client.memory.placed(bytes(size)) as (address,):
            self._client.command(sev.PEK_CSR, address=address, length=size)
            return self._client.memory.read(address, size)

    def take_owner(self, pek: bytes, oca: bytes) -> None:
        """PEK_CERT_IMPORT: the platform is an owner's from now on.

        Args:
            pek: the PEK's certificate, signed by the owner.
            oca: the owner's certificate.
        """
        with self._client.memory.placed(pek, oca) as (pek_address, oca_address):
            self._client.command(
                sev.PEK_CERT_IMPORT,
                pek_cert_address=pek_address,
                pek_cert_len=len(pek),
                oca_cert_address=oca_address,
                oca_cert_len=len(oca),
            )

    def factory_reset(self) -> None:
        """New OCA, PEK and PDH; no owner."""
        self._client.command(sev.FACTORY_RESET)

    def make_pek(self) -> None:
        """New PEK and PDH."""
        self._client.command(sev.PEK_GEN)

    def make_pdh(self) -> None:
        """New PDH: sessions for the old one open nothing any more."""
        self._client.command(sev.PDH_GEN)
