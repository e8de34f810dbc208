# SPDX-License-Identifier: Apache-2.0
"""The VM: its memory, and the commands that KVM takes for it."""

from __future__ import annotations

from typing import Final, NamedTuple

from hcalld.guestowner.client import SevClient, field_names
from hcalld.sevvm.errors import SevVmError
from hcallproto.abi.families import sev
from hcallproto.abi.spec import Hcall
from hcallproto.payloads.sev.blobs import (
    ATTESTATION_REPORT_SIZE,
    NONCE_SIZE,
    PACKET_HEADER_SIZE,
)
from hcallproto.payloads.sev.constants import PAGE_SIZE, GuestState
from hcallproto.payloads.sev.stream import TransportPacket

MIB: Final = 1 << 20
DEBUG_SIZE: Final = 4 * MIB
"""Bytes of one DBG_DECRYPT; the daemon takes some more."""

_NONCE_HALF: Final = NONCE_SIZE // 2


class GuestStatus(NamedTuple):
    """What GUEST_STATUS tells."""

    handle: int
    policy: int
    state: GuestState


class Target(NamedTuple):
    """Certificates of the platform that a guest is sent to."""

    pdh: bytes
    chain: bytes
    """PEK, OCA, CEK."""
    roots: bytes
    """ASK, ARK. The kernel demands some bytes, whatever the policy asks for."""


class Machine:
    """A VM on a daemon's platform. Its memory is one range, from 0 on.

    Each method is one command; what it raises is ``CommandRefused``.

    Args:
        client: a connection of its own.
        size: bytes of memory, whole pages.
    """

    def __init__(self, client: SevClient, size: int) -> None:
        if not size or size % PAGE_SIZE:
            raise ValueError(f"{size} bytes of memory, expected whole pages")
        self.client = client
        self.size = size
        self._base = client.memory.place(bytes(size))

    # -- memory -------------------------------------------------------------------------------

    def address(self, gpa: int, size: int) -> int:
        """Where guest memory is in this process.

        Raises:
            SevVmError: the VM has no such memory.
        """
        if gpa < 0 or size < 0 or gpa + size > self.size:
            raise SevVmError(
                f"{size} bytes at 0x{gpa:x} are beyond the VM's memory of {self.size} bytes; "
                "expected a smaller address, or more memory"
            )
        return self._base + gpa

    def read(self, gpa: int, size: int) -> bytes:
        """Memory as it lies there: encrypted, if the platform encrypts."""
        return self.client.memory.read(self.address(gpa, size), size)

    def write(self, gpa: int, content: bytes) -> None:
        """Change memory as a device does: past the encryption."""
        self.client.memory.write(self.address(gpa, len(content)), content)

    def read_decrypted(self, gpa: int, size: int) -> bytes:
        """Memory as the guest has it (DBG_DECRYPT)."""
        parts = []
        for start in range(gpa, gpa + size, DEBUG_SIZE):
            length = min(DEBUG_SIZE, gpa + size - start)
            with self.client.memory.placed(bytes(length)) as (target,):
                self.client.command(
                    sev.DBG_DECRYPT,
                    src_uaddr=self.address(start, length),
                    dst_uaddr=target,
                    len=length,
                )
                parts.append(self.client.memory.read(target, length))
        return b"".join(parts)

    def write_encrypted(self, gpa: int, content: bytes) -> None:
        """Change memory as the guest does (DBG_ENCRYPT)."""
        for start in range(0, len(content), DEBUG_SIZE):
            part = content[start : start + DEBUG_SIZE]
            with self.client.memory.placed(part) as (source,):
                self.client.command(
                    sev.DBG_ENCRYPT,
                    src_uaddr=source,
                    dst_uaddr=self.address(gpa + start, len(part)),
                    len=len(part),
                )

    # -- launch -------------------------------------------------------------------------------

    def init(self, command: Hcall) -> None:
        """Make the VM one of SEV by INIT, ES_INIT or INIT2; say where encrypted memory may be."""
        self.client.command(command)
        self.client.command(sev.REG_REGION, addr=self._base, size=self.size)

    def launch_start(
        self, policy: int, dh: bytes = b"", session: bytes = b"", *, handle: int = 0
    ) -> int:
        """Begin a guest.

        Args:
            policy: its policy.
            dh: its owner's certificate.
            session: its owner's session.
            handle: of a guest whose key it shares.

        Returns:
            Its handle.
        """
        return self._begin_guest(sev.LAUNCH_START, handle, policy, dh, session)

    def _begin_guest(
        self, command: Hcall, handle: int, policy: int, certificate: bytes, session: bytes
    ) -> int:
        """LAUNCH_START or RECEIVE_START, which call the certificate by other names."""
        with self.client.memory.placed(certificate, session) as (at, session_at):
            values = (handle, policy, at, len(certificate), session_at, len(session))
            names = field_names(command)
            return self.client.command(command, **dict(zip(names, values, strict=True)))["handle"]

    def launch_update_data(self, gpa: int, content: bytes) -> None:
        """Put something into memory, and have it measured."""
        self.write(gpa, content)
        address = self.address(gpa, len(content))
        self.client.command(sev.LAUNCH_UPDATE_DATA, uaddr=address, len=len(content))

    def launch_update_vmsas(self, pages: tuple[bytes, ...]) -> None:
        """Have the processors' save areas measured."""
        areas = b"".join(pages)
        with self.client.memory.placed(areas) as (address,):
            self.client.command(sev.LAUNCH_UPDATE_VMSA, uaddr=address, len=len(areas))

    def launch_measure(self) -> bytes:
        """The measurement with its nonce; asks for the length first, as QEMU does."""
        (size,) = self.client.needed(sev.LAUNCH_MEASURE, "len")
        with self.client.memory.placed(bytes(size)) as (address,):
            self.client.command(sev.LAUNCH_MEASURE, uaddr=address, len=size)
            return self.client.memory.read(address, size)

    def launch_secret(self, gpa: int, header: bytes, payload: bytes) -> None:
        """Have a packet's secret put into memory."""
        address = self.address(gpa, len(payload))
        with self.client.memory.placed(header, payload) as (header_address, payload_address):
            self.client.command(
                sev.LAUNCH_SECRET,
                hdr_uaddr=header_address,
                hdr_len=len(header),
                guest_uaddr=address,
                guest_len=len(payload),
                trans_uaddr=payload_address,
                trans_len=len(payload),
            )

    def launch_finish(self) -> None:
        """Let the guest run."""
        self.client.command(sev.LAUNCH_FINISH)

    # -- what is said of it -------------------------------------------------------------------

    def status(self) -> GuestStatus:
        """Handle, policy and state.

        Raises:
            SevVmError: there is no such state.
        """
        found = self.client.command(sev.GUEST_STATUS)
        try:
            state = GuestState(found["state"])
        except ValueError:
            raise SevVmError(
                f"the platform tells of a guest in state {found['state']}; expected 0 to "
                f"{max(GuestState)}"
            ) from None
        return GuestStatus(found["handle"], found["policy"], state)

    def report(self, mnonce: bytes) -> bytes:
        """An attestation report with a nonce of 16 bytes."""
        halves = (mnonce[:_NONCE_HALF], mnonce[_NONCE_HALF:])
        low, high = (int.from_bytes(half, "little") for half in halves)
        with self.client.memory.placed(bytes(ATTESTATION_REPORT_SIZE)) as (address,):
            self.client.command(
                sev.GET_ATTESTATION_REPORT,
                mnonce_low=low,
                mnonce_high=high,
                uaddr=address,
                len=ATTESTATION_REPORT_SIZE,
            )
            return self.client.memory.read(address, ATTESTATION_REPORT_SIZE)

    # -- sending ------------------------------------------------------------------------------

    def send_start(self, target: Target) -> tuple[int, bytes]:
        """Begin to send the guest; gives its policy and the session for the target."""
        (size,) = self.client.needed(sev.SEND_START, "session_len")
        with self.client.memory.placed(*target, bytes(size)) as (pdh, chain, roots, session):
            found = self.client.command(
                sev.SEND_START,
                pdh_cert_uaddr=pdh,
                pdh_cert_len=len(target.pdh),
                plat_certs_uaddr=chain,
                plat_certs_len=len(target.chain),
                amd_certs_uaddr=roots,
                amd_certs_len=len(target.roots),
                session_uaddr=session,
                session_len=size,
            )
            return found["policy"], self.client.memory.read(session, size)

    def send_update_data(self, gpa: int, size: int) -> TransportPacket:
        """A packet of memory."""
        with self.client.memory.placed(bytes(PACKET_HEADER_SIZE), bytes(size)) as (header, payload):
            self.client.command(
                sev.SEND_UPDATE_DATA,
                hdr_uaddr=header,
                hdr_len=PACKET_HEADER_SIZE,
                guest_uaddr=self.address(gpa, size),
                guest_len=size,
                trans_uaddr=payload,
                trans_len=size,
            )
            return self._packet(header, payload, size)

    def send_update_vmsa(self, vcpu: int) -> TransportPacket:
        """A packet of a processor's save area."""
        with self.client.memory.placed(bytes(PACKET_HEADER_SIZE), bytes(sev.VMSA_SIZE)) as (
            header,
            payload,
        ):
            self.client.command(
                sev.SEND_UPDATE_VMSA,
                vcpu_id=vcpu,
                hdr_uaddr=header,
                hdr_len=PACKET_HEADER_SIZE,
                trans_uaddr=payload,
                trans_len=sev.VMSA_SIZE,
            )
            return self._packet(header, payload, sev.VMSA_SIZE)

    def _packet(self, header: int, payload: int, size: int) -> TransportPacket:
        read = self.client.memory.read
        return TransportPacket(read(header, PACKET_HEADER_SIZE), read(payload, size))

    def send_finish(self) -> None:
        """The guest is elsewhere now."""
        self.client.command(sev.SEND_FINISH)

    def send_cancel(self) -> None:
        """It stays."""
        self.client.command(sev.SEND_CANCEL)

    # -- receiving ----------------------------------------------------------------------------

    def receive_start(self, policy: int, pdh: bytes, session: bytes, *, handle: int = 0) -> int:
        """Begin to receive a guest; gives its handle.

        Args:
            policy: its policy.
            pdh: the source's certificate.
            session: what the source's ``send_start`` gave.
            handle: of a guest whose key it shares.
        """
        return self._begin_guest(sev.RECEIVE_START, handle, policy, pdh, session)

    def receive_update_data(self, gpa: int, packet: TransportPacket) -> None:
        """Have a packet put into memory."""
        address = self.address(gpa, len(packet.payload))
        with self.client.memory.placed(*packet) as (header, payload):
            self.client.command(
                sev.RECEIVE_UPDATE_DATA,
                hdr_uaddr=header,
                hdr_len=len(packet.header),
                guest_uaddr=address,
                guest_len=len(packet.payload),
                trans_uaddr=payload,
                trans_len=len(packet.payload),
            )

    def receive_update_vmsa(self, vcpu: int, packet: TransportPacket) -> None:
        """Have a processor's save area taken from a packet."""
        with self.client.memory.placed(*packet) as (header, payload):
            self.client.command(
                sev.RECEIVE_UPDATE_VMSA,
                vcpu_id=vcpu,
                hdr_uaddr=header,
                hdr_len=len(packet.header),
                trans_uaddr=payload,
                trans_len=len(packet.payload),
            )

    def receive_finish(self) -> None:
        """The guest is whole."""
        self.client.command(sev.RECEIVE_FINISH)
