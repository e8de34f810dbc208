# SPDX-License-Identifier: Apache-2.0
"""Clients whose guests are in any state, and arguments that each command takes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final

from tests.sev_platform import root

from hcalld.crypto.sev.packets import seal_secret, seal_transport
from hcalld.domain.sev.settings import Memory, SevSettings
from hcalld.testing.sev import MEMORY, SevClient, SevHost, made_up
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.abi.spec import Hcall
from hcallproto.payloads.sev import Api, GuestState, PacketContext, Policy

ES: Final = int(Policy.ES)
NODBG: Final = int(Policy.NODBG)
OK: Final = SevCode.SUCCESS
PAGE: Final = made_up("a page", 4096)
VMSA: Final = made_up("a save area", 4096)
ENCRYPTED: Final = SevSettings(memory=Memory.ENCRYPTED)
CALLS: Final = {hcall.name: hcall for hcall in sev.FAMILY.calls}


def host(
    settings: SevSettings | None = None, *, bits: int = 2048, name: str = "platform"
) -> SevHost:
    """A host whose root is one of the tests'."""
    return SevHost(settings, root=root(bits), name=name)


def succeed(client: SevClient, hcall: Hcall, **fields: int) -> dict[str, int]:
    """Give a command that is not refused."""
    answer = client.command(hcall, **fields)
    assert answer.code is OK, f"{hcall.name}: {answer.why}"
    return answer.fields


def launched(client: SevClient, policy: int = ES, *, init: Hcall = sev.ES_INIT) -> SevClient:
    """LUPDATE, with a page and a save area measured."""
    succeed(client, init)
    assert client.launch_start(policy).code is OK
    assert client.launch_update(PAGE).code is OK
    if policy & ES:
        succeed(client, sev.LAUNCH_UPDATE_VMSA, uaddr=client.put(VMSA), len=4096)
    return client


def measured(client: SevClient, policy: int = ES) -> SevClient:
    """LSECRET."""
    launched(client, policy).launch_measure()
    return client


def running(client: SevClient, policy: int = ES) -> SevClient:
    """RUNNING."""
    succeed(measured(client, policy), sev.LAUNCH_FINISH)
    return client


def sending(client: SevClient, policy: int = ES) -> SevClient:
    """SUPDATE, to a host that nobody hears of again."""
    answer, _ = running(client, policy).send_start(_target())
    assert answer.code is OK, answer.why
    return client


@functools.cache
def _target() -> SevHost:
    return host(name="target")


def sent(client: SevClient) -> SevClient:
    """SENT."""
    succeed(sending(client), sev.SEND_FINISH)
    return client


def receiving(client: SevClient, policy: int = ES) -> SevClient:
    """RUPDATE; the transport keys become those of ``client.keys``."""
    source = host(name="source").connect()
    answer, session = running(source, policy).send_start(client.host)
    assert answer.code is OK, answer.why
    succeed(client, sev.ES_INIT)
    assert client.receive_start(source.host, policy, session).code is OK
    assert client.vm.guest is not None
    assert client.vm.guest.keys is not None
    client.keys = client.vm.guest.keys
    return client


def initialized(client: SevClient) -> SevClient:
    """UNINIT: the VM has no guest."""
    succeed(client, sev.ES_INIT)
    return client


IN_STATE: Final[dict[GuestState, Callable[[SevClient], SevClient]]] = {
    GuestState.UNINIT: initialized,
    GuestState.LUPDATE: launched,
    GuestState.LSECRET: measured,
    GuestState.RUNNING: running,
    GuestState.SUPDATE: sending,
    GuestState.RUPDATE: receiving,
    GuestState.SENT: sent,
}


def secret(client: SevClient, data: bytes, *, name: str = "secret") -> tuple[bytes, bytes]:
    """A packet of LAUNCH_SECRET: header and payload."""
    guest = client.vm.guest
    header, payload = seal_secret(
        client.keys,
        data,
        iv=made_up(name, 16),
        measurement=guest.measurement if guest else bytes(32),
        api=Api(1, 55),
    )
    return header.build(), payload


def packet(
    client: SevClient, data: bytes, context: PacketContext = PacketContext.DATA
) -> tuple[bytes, bytes]:
    """A packet of RECEIVE_UPDATE_*: header and payload."""
    header, payload = seal_transport(client.keys, data, iv=made_up("packet", 16), context=context)
    return header.build(), payload


def _packet_fields(client: SevClient, header: bytes, payload: bytes) -> dict[str, int]:
    return {
        "hdr_uaddr": client.put(header),
        "hdr_len": len(header),
        "trans_uaddr": client.put(payload),
        "trans_len": len(payload),
    }


def _room_for_packet(client: SevClient) -> dict[str, int]:
    return _packet_fields(client, bytes(52), bytes(4096))


def _at_guest(client: SevClient, size: int = 4096) -> dict[str, int]:
    return {"guest_uaddr": MEMORY + 4096, "guest_len": size}


def _start(client: SevClient) -> dict[str, int]:
    certificate, session = client.certificate(), client.session(ES)
    return {
        "policy": ES,
        "dh_uaddr": client.put(certificate),
        "dh_len": len(certificate),
        "session_uaddr": client.put(session),
        "session_len": len(session),
    }


def _receive(client: SevClient) -> dict[str, int]:
    fields = _start(client)
    return {name.replace("dh_", "pdh_"): value for name, value in fields.items()}


def _send(client: SevClient) -> dict[str, int]:
    identity = _target().platform.identity
    return {
        "pdh_cert_uaddr": client.put(identity.pdh),
        "pdh_cert_len": len(identity.pdh),
        "plat_certs_uaddr": client.put(identity.chain),
        "plat_certs_len": len(identity.chain),
        "amd_certs_uaddr": client.put(identity.roots),
        "amd_certs_len": len(identity.roots),
        "session_uaddr": client.room(128),
        "session_len": 128,
    }


def _copy(client: SevClient) -> dict[str, int]:
    return {"src_uaddr": MEMORY, "dst_uaddr": MEMORY + 8192, "len": 33}


def _nothing(client: SevClient) -> dict[str, int]:
    return {}


GOOD: Final[dict[str, Callable[[SevClient], dict[str, int]]]] = {
    hcall.name: fields
    for hcall, fields in (
        (sev.INIT, _nothing),
        (sev.ES_INIT, _nothing),
        (sev.INIT2, _nothing),
        (sev.LAUNCH_START, _start),
        (sev.LAUNCH_UPDATE_DATA, lambda client: {"uaddr": MEMORY, "len": 4096}),
        (sev.LAUNCH_UPDATE_VMSA, lambda client: {"uaddr": client.put(VMSA), "len": 4096}),
        (
            sev.LAUNCH_SECRET,
            lambda client: (
                _packet_fields(client, *secret(client, b"open sesame 1234")) | _at_guest(client, 16)
            ),
        ),
        (sev.LAUNCH_MEASURE, lambda client: {"uaddr": client.room(48), "len": 48}),
        (sev.LAUNCH_FINISH, _nothing),
        (sev.SEND_START, _send),
        (sev.SEND_UPDATE_DATA, lambda client: _room_for_packet(client) | _at_guest(client)),
        (sev.SEND_UPDATE_VMSA, _room_for_packet),
        (sev.SEND_FINISH, _nothing),
        (sev.SEND_CANCEL, _nothing),
        (sev.RECEIVE_START, _receive),
        (
            sev.RECEIVE_UPDATE_DATA,
            lambda client: _packet_fields(client, *packet(client, PAGE)) | _at_guest(client),
        ),
        (
            sev.RECEIVE_UPDATE_VMSA,
            lambda client: _packet_fields(client, *packet(client, VMSA, PacketContext.VMSA)),
        ),
        (sev.RECEIVE_FINISH, _nothing),
        (sev.GUEST_STATUS, _nothing),
        (sev.DBG_DECRYPT, _copy),
        (sev.DBG_ENCRYPT, _copy),
        (
            sev.CERT_EXPORT,
            lambda client: {
                "pdh_addr": client.room(2084),
                "pdh_len": 2084,
                "chain_addr": client.room(6252),
                "chain_len": 6252,
            },
        ),
        (sev.GET_ATTESTATION_REPORT, lambda client: {"uaddr": client.room(208), "len": 208}),
        (sev.REG_REGION, lambda client: {"addr": MEMORY, "size": 4096}),
        (sev.UNREG_REGION, lambda client: {"addr": MEMORY, "size": 4096}),
        (sev.FACTORY_RESET, _nothing),
        (sev.PLATFORM_STATUS, _nothing),
        (sev.PEK_GEN, _nothing),
        (sev.PEK_CSR, lambda client: {"address": client.room(2084), "length": 2084}),
        (sev.PDH_GEN, _nothing),
        (
            sev.PDH_CERT_EXPORT,
            lambda client: {
                "pdh_cert_address": client.room(2084),
                "pdh_cert_len": 2084,
                "cert_chain_address": client.room(6252),
                "cert_chain_len": 6252,
            },
        ),
        (sev.GET_ID, lambda client: {"data": client.room(128)}),
        (sev.GET_ID2, lambda client: {"address": client.room(64), "length": 64}),
    )
}
"""By command, arguments that nothing but a state refuses. PEK_CERT_IMPORT needs an owner."""


def give(client: SevClient, hcall: Hcall, **changed: int) -> tuple[SevCode, dict[str, int], str]:
    """Give a command its good arguments, but for some."""
    return client.command(hcall, **(GOOD[hcall.name](client) | changed))


def refused(client: SevClient, hcall: Hcall, code: SevCode, **changed: int) -> dict[str, int]:
    """Give a command that must be refused, and must leave everything as it was.

    Returns:
        The fields that came back in spite of it.
    """
    fields = GOOD[hcall.name](client) | changed
    before = client.snapshot()
    answer = client.command(hcall, **fields)
    assert answer.code is code, f"{hcall.name}: {answer.code!r}, {answer.why}"
    assert client.snapshot() == before, f"{hcall.name} was refused and has changed something"
    return answer.fields
