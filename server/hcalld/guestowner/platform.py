# SPDX-License-Identifier: Apache-2.0
"""A platform's commands, as its operator and guest owners give them: what ``/dev/sev`` is for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final, NamedTuple

from hcalld.guestowner.client import CommandRefused, SevClient
from hcalld.guestowner.errors import GuestOwnerError
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.abi.spec import Hcall
from hcallproto.payloads.sev.blobs import PlatformStatus
from hcallproto.payloads.sev.constants import Version

MAX_ANSWER_SIZE: Final = 1 << 20
"""More than any answer has; a daemon that asks for more room has a bug."""


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
        room = self._needed(sev.GET_ID2, "length")["length"]
        with self._buffer(room) as address:
            found = self._client.command(sev.GET_ID2, address=address, length=room)
            data = self._client.memory.read(address, min(room, found["length"]))
        size = sev.CHIP_ID_SIZE
        return tuple(data[start : start + size] for start in range(0, len(data), size))

    def export(self) -> Export:
        """The certificates PDH, PEK, OCA and CEK."""
        sizes = self._needed(sev.PDH_CERT_EXPORT, "pdh_cert_len", "cert_chain_len")
        pdh_size, chain_size = sizes["pdh_cert_len"], sizes["cert_chain_len"]
        with self._buffer(pdh_size) as pdh, self._buffer(chain_size) as chain:
            self._client.command(
                sev.PDH_CERT_EXPORT,
                pdh_cert_address=pdh,
                pdh_cert_len=pdh_size,
                cert_chain_address=chain,
                cert_chain_len=chain_size,
            )
            memory = self._client.memory
            return Export(memory.read(pdh, pdh_size), memory.read(chain, chain_size))

    def csr(self) -> bytes:
        """The PEK's certificate without signatures, for an owner to sign."""
        size = self._needed(sev.PEK_CSR, "length")["length"]
        with self._buffer(size) as address:
            self._client.command(sev.PEK_CSR, address=address, length=size)
            return self._client.memory.read(address, size)

    def take_owner(self, pek: bytes, oca: bytes) -> None:
        """PEK_CERT_IMPORT: the platform is an owner's from now on.

        Args:
            pek: the PEK's certificate, signed by the owner.
            oca: the owner's certificate.
        """
        place = self._client.memory.place
        self._client.command(
            sev.PEK_CERT_IMPORT,
            pek_cert_address=place(pek),
            pek_cert_len=len(pek),
            oca_cert_address=place(oca),
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

    def _needed(self, hcall: Hcall, *lengths: str) -> dict[str, int]:
        """Ask how much room an answer needs: with none, the platform says INVALID_LEN."""
        try:
            found = self._client.command(hcall)
        except CommandRefused as refused:
            if refused.status != SevCode.INVALID_LEN:
                raise
            found = dict(refused.fields)
        for name in lengths:
            if not 0 < found[name] <= MAX_ANSWER_SIZE:
                raise GuestOwnerError(
                    f"{hcall.name}: the platform asks for room of {found[name]} bytes for {name}; "
                    f"expected 1 to {MAX_ANSWER_SIZE}"
                )
        return {name: found[name] for name in lengths}

    @contextlib.contextmanager
    def _buffer(self, size: int) -> Iterator[int]:
        address = self._client.memory.place(bytes(size))
        try:
            yield address
        finally:
            self._client.memory.remove(address)
