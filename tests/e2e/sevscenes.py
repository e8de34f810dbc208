# SPDX-License-Identifier: Apache-2.0
"""VMs over the wire in any state of their guest, with what each command takes there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from tests.e2e.patience import wait_until
from tests.e2e.sevhosts import Host, Pair

from hcalld.crypto.sev.packets import Packet, seal_secret
from hcalld.guestowner.client import CommandRefused, SevClient
from hcalld.guestowner.platform import Platform
from hcalld.guestowner.sessions import NewSession, make_session
from hcalld.sevvm.machine import Machine, Target
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.abi.spec import Hcall
from hcallproto.payloads.sev import (
    GuestState,
    MeasurementBlob,
    PacketHeader,
    Policy,
    SevCertificate,
)

PAGE: Final = bytes(range(256)) * 16
AREA: Final = b"save area of a vCPU, 32 bytes.. " * 128
SECRET: Final = b"open sesame 1234" * 4
ES: Final = int(Policy.ES)
SIZE: Final = 1 << 16
CODE_AT, SECRET_AT, FREE_AT = 0, 0x4000, 0x8000

G = GuestState


class Scene:
    """A VM on a platform, its owner, and another host that it may go to or come from.

    Args:
        pair: the hosts.
        stack: ends the VMs.
        state: what its guest is to be; None: the VM is none of SEV.
        platform: on which of PROFILES.
        policy: the guest's; with ES, so that every command is one for it.
    """

    def __init__(
        self,
        pair: Pair,
        stack: contextlib.ExitStack,
        state: GuestState | None,
        *,
        platform: str = "encrypted",
        policy: int = ES,
    ) -> None:
        self.host = pair.source(platform)
        self.peer = pair.target(platform)
        self.policy = policy
        self._stack = stack
        self._placed: list[tuple[int, int]] = []
        self.machine: Machine = stack.enter_context(self.host.machine(SIZE))
        self.client: SevClient = self.machine.client
        self.operator = Platform(stack.enter_context(self.host.client()))
        self.owner = session_for(self.operator, policy)
        self.keys = self.owner.keys
        self.measurement = bytes(32)
        self.packets: dict[str, Packet] = {}
        self.target: Target | None = None
        if state is not None:
            self._enter(state)

    # -- getting there ------------------------------------------------------------------------

    def _enter(self, state: GuestState) -> None:
        machine = self.machine
        if state is G.RUPDATE:
            self._receive()
            return
        machine.init(sev.ES_INIT if self.policy & ES else sev.INIT)
        machine.write(CODE_AT, PAGE)
        for step, reached in (
            (self._start, G.LUPDATE),
            (self._measure, G.LSECRET),
            (machine.launch_finish, G.RUNNING),
            (lambda: machine.send_start(self.sent_to()), G.SUPDATE),
            (machine.send_finish, G.SENT),
        ):
            if state is G.UNINIT:
                return
            step()
            if reached is state:
                return

    def _start(self) -> None:
        machine = self.machine
        machine.launch_start(
            self.policy, self.owner.certificate.build(), self.owner.session.build()
        )
        machine.launch_update_data(CODE_AT, PAGE)
        if self.policy & ES:
            machine.launch_update_vmsas((AREA,))

    def _measure(self) -> None:
        self.measurement = MeasurementBlob.parse(self.machine.launch_measure()).measurement

    def _receive(self) -> None:
        source = self._stack.enter_context(self.peer.machine(SIZE))
        start_plain(source, self.policy)
        _, session = source.send_start(_target(self.host))
        header, payload = source.send_update_data(CODE_AT, len(PAGE))
        self.packets["page"] = raw_packet(header, payload)
        if self.policy & ES:
            self.packets["area"] = raw_packet(*source.send_update_vmsa(0))
        self.machine.init(sev.ES_INIT if self.policy & ES else sev.INIT)
        with self.peer.platform() as platform:
            pdh = platform.export().pdh
        self.machine.receive_start(self.policy, pdh, session)

    def sent_to(self) -> Target:
        """Certificates of the other host."""
        if self.target is None:
            self.target = _target(self.peer)
        return self.target

    # -- commands -----------------------------------------------------------------------------

    def put(self, data: bytes) -> int:
        """Put a buffer into the client's memory."""
        address = self.client.memory.place(data)
        self._placed.append((address, len(data)))
        return address

    def give(self, hcall: Hcall, **fields: int) -> tuple[SevCode, Mapping[str, int]]:
        """Give a command; its code and fields come back."""
        try:
            return SevCode.SUCCESS, self.client.command(hcall, **fields)
        except CommandRefused as refused:
            return SevCode(refused.status), refused.fields

    def good(self, hcall: Hcall) -> dict[str, int]:
        """Fields that nothing but a state refuses."""
        make = _GOOD.get(hcall.name)
        return {} if make is None else make(self)

    def must_refuse(self, hcall: Hcall, code: SevCode, **changed: int) -> Mapping[str, int]:
        """See a command refused, with nothing changed."""
        fields = self.good(hcall) | changed
        before = self.snapshot()
        found, written = self.give(hcall, **fields)
        assert found is code, f"{hcall.name} {changed}: {found.name}, expected {code.name}"
        assert self.snapshot() == before, f"{hcall.name} was refused and has changed something"
        return written

    def snapshot(self) -> tuple[Any, ...]:
        """All that a client can see: the guest, the platform, its own memory."""
        read = self.client.memory.read
        return (
            self.give(sev.GUEST_STATUS),
            self.operator.status(),
            self.operator.export(),
            self.machine.read(0, SIZE),
            [read(address, size) for address, size in self._placed],
        )

    def secret(self, data: bytes = SECRET) -> Packet:
        """A packet of the owner's."""
        return seal_secret(
            self.keys,
            data,
            iv=os.urandom(16),
            measurement=self.measurement,
            api=self.operator.status().version.api,
        )

    def fields_of(self, packet: tuple[bytes, bytes], at: int | None = None) -> dict[str, int]:
        """A packet as a command takes it."""
        header, payload = packet
        fields = {
            "hdr_uaddr": self.put(header),
            "hdr_len": len(header),
            "trans_uaddr": self.put(payload),
            "trans_len": len(payload),
        }
        if at is not None:
            fields |= {"guest_uaddr": self.machine.address(at, 1), "guest_len": len(payload)}
        return fields


@contextlib.contextmanager
def quiet(pair: Pair) -> Iterator[contextlib.ExitStack]:
    """A stack for scenes, once the guests of earlier tests have ended: they are counted."""
    hosts = pair.source("encrypted"), pair.target("encrypted")
    wait_until(
        lambda: not any(host.status().guest_count for host in hosts), "the end of earlier guests"
    )
    with contextlib.ExitStack() as stack:
        yield stack


def raw_packet(header: bytes, payload: bytes) -> Packet:
    """A packet's bytes as a value."""
    return Packet(PacketHeader.parse(header), payload)


def session_for(platform: Platform, policy: int) -> NewSession:
    """A session of a new owner for a platform."""
    return make_session(SevCertificate.parse(platform.export().pdh), policy, os.urandom)


_targets: dict[tuple[object, str], Target] = {}


def _target(host: Host) -> Target:
    """Certificates of one of PROFILES, which nobody changes; its root is read out of a store."""
    key = host.daemon.socket, host.name
    if key not in _targets:
        _targets[key] = host.target()
    return _targets[key]


def start_plain(machine: Machine, policy: int) -> None:
    """A guest that runs, with a page and a save area."""
    machine.init(sev.ES_INIT if policy & ES else sev.INIT)
    machine.launch_start(policy)
    machine.launch_update_data(CODE_AT, PAGE)
    if policy & ES:
        machine.launch_update_vmsas((AREA,))
    machine.launch_measure()
    machine.launch_finish()


def _start_fields(scene: Scene) -> dict[str, int]:
    certificate, session = scene.owner.certificate.build(), scene.owner.session.build()
    return {
        "policy": scene.policy,
        "dh_uaddr": scene.put(certificate),
        "dh_len": len(certificate),
        "session_uaddr": scene.put(session),
        "session_len": len(session),
    }


def _send_fields(scene: Scene) -> dict[str, int]:
    target = scene.sent_to()
    return {
        "pdh_cert_uaddr": scene.put(target.pdh),
        "pdh_cert_len": len(target.pdh),
        "plat_certs_uaddr": scene.put(target.chain),
        "plat_certs_len": len(target.chain),
        "amd_certs_uaddr": scene.put(target.roots),
        "amd_certs_len": len(target.roots),
        "session_uaddr": scene.put(bytes(128)),
        "session_len": 128,
    }


def _built(packet: Packet) -> tuple[bytes, bytes]:
    return packet.header.build(), packet.payload


def _packet_of(scene: Scene, name: str, size: int) -> tuple[bytes, bytes]:
    known = scene.packets.get(name)
    return (bytes(52), bytes(size)) if known is None else _built(known)


def _room(scene: Scene, size: int) -> dict[str, int]:
    return {"uaddr": scene.put(bytes(size)), "len": size}


_GOOD: Final[Mapping[str, Callable[[Scene], dict[str, int]]]] = {
    hcall.name: make
    for hcall, make in (
        (sev.LAUNCH_START, _start_fields),
        (
            sev.RECEIVE_START,
            lambda scene: {
                name.replace("dh_", "pdh_"): value for name, value in _start_fields(scene).items()
            },
        ),
        (
            sev.LAUNCH_UPDATE_DATA,
            lambda scene: {"uaddr": scene.machine.address(FREE_AT, 1), "len": 4096},
        ),
        (sev.LAUNCH_UPDATE_VMSA, lambda scene: {"uaddr": scene.put(AREA), "len": len(AREA)}),
        (
            sev.LAUNCH_SECRET,
            lambda scene: scene.fields_of(_built(scene.secret()), SECRET_AT),
        ),
        (sev.LAUNCH_MEASURE, lambda scene: _room(scene, 48)),
        (sev.GET_ATTESTATION_REPORT, lambda scene: _room(scene, 208)),
        (sev.SEND_START, _send_fields),
        (
            sev.SEND_UPDATE_DATA,
            lambda scene: scene.fields_of((bytes(52), bytes(4096)), CODE_AT),
        ),
        (sev.SEND_UPDATE_VMSA, lambda scene: scene.fields_of((bytes(52), bytes(4096)))),
        (
            sev.RECEIVE_UPDATE_DATA,
            lambda scene: scene.fields_of(_packet_of(scene, "page", 4096), CODE_AT),
        ),
        (
            sev.RECEIVE_UPDATE_VMSA,
            lambda scene: scene.fields_of(_packet_of(scene, "area", 4096)),
        ),
        (
            sev.DBG_DECRYPT,
            lambda scene: {
                "src_uaddr": scene.machine.address(CODE_AT, 1),
                "dst_uaddr": scene.put(bytes(4096)),
                "len": 4096,
            },
        ),
        (
            sev.DBG_ENCRYPT,
            lambda scene: {
                "src_uaddr": scene.put(PAGE),
                "dst_uaddr": scene.machine.address(FREE_AT, 1),
                "len": 4096,
            },
        ),
        (
            sev.CERT_EXPORT,
            lambda scene: {
                "pdh_addr": scene.put(bytes(2084)),
                "pdh_len": 2084,
                "chain_addr": scene.put(bytes(6252)),
                "chain_len": 6252,
            },
        ),
        (sev.REG_REGION, lambda scene: {"addr": scene.machine.address(0, 1), "size": SIZE}),
        (sev.UNREG_REGION, lambda scene: {"addr": scene.machine.address(0, 1), "size": SIZE}),
    )
}
