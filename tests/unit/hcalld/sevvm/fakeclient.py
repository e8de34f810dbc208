# SPDX-License-Identifier: Apache-2.0
"""A platform that says yes, and remembers what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

from hcalld.guestowner.client import CommandRefused, SevClient
from hcalld.guestowner.memory import AddressSpace
from hcalld.sevvm.machine import Machine
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.abi.spec import Hcall
from hcallproto.payloads.sev import PlatformFlag

MEASUREMENT = bytes(range(48))
SESSION = bytes(range(100, 228))
PDH = b"the source's PDH"
CHAIN = b"and its chain"
REPORT = bytes(208)

Answer = Callable[["FakeClient", Mapping[str, int]], dict[str, int]]


class FakeClient(SevClient):
    """Stands where a SevClient would be.

    Args:
        flags: of PLATFORM_STATUS.
        policy: of the guest.
    """

    def __init__(self, *, flags: int = PlatformFlag.CONFIG_ES, policy: int = 0) -> None:
        self.memory = AddressSpace()
        self.flags = flags
        self.policy = policy
        self.asked: list[tuple[str, dict[str, int]]] = []
        self.seen: list[tuple[str, bytes]] = []
        """What the buffers of a command held."""
        self.refusals: dict[str, tuple[SevCode, dict[str, int]]] = {}

    @property
    def names(self) -> list[str]:
        return [name.removeprefix("KVM_SEV_").removeprefix("SEV_") for name, _ in self.asked]

    def refuse(self, hcall: Hcall, code: SevCode, **fields: int) -> None:
        """From now on."""
        self.refusals[hcall.name] = code, fields

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def command(self, hcall: Hcall, **fields: int) -> dict[str, int]:
        self.asked.append((hcall.name, fields))
        for buffer in hcall.buffers:
            size = fields.get(buffer.size or "", 0)
            if size:
                self.seen.append((buffer.address, self.memory.read(fields[buffer.address], size)))
        if hcall.name in self.refusals:
            code, told = self.refusals[hcall.name]
            raise CommandRefused(hcall, code, {**fields, **told})
        answer = _ANSWERS.get(hcall.name)
        return {**fields, **(answer(self, fields) if answer is not None else {})}


def _give(content: bytes, address: str, size: str) -> Answer:
    def answer(client: FakeClient, fields: Mapping[str, int]) -> dict[str, int]:
        if not fields.get(size):
            (hcall,) = (one for one in sev.FAMILY.calls if one.name == client.asked[-1][0])
            raise CommandRefused(hcall, SevCode.INVALID_LEN, {size: len(content)})
        client.memory.write(fields[address], content)
        return {"policy": client.policy}

    return answer


def _status(client: FakeClient, fields: Mapping[str, int]) -> dict[str, int]:
    names = ("api_major", "api_minor", "build", "state", "guest_count")
    return {**dict.fromkeys(names, 1), "flags": client.flags}


def _export(client: FakeClient, fields: Mapping[str, int]) -> dict[str, int]:
    sizes = {"pdh_cert_len": len(PDH), "cert_chain_len": len(CHAIN)}
    if not fields.get("pdh_cert_len"):
        raise CommandRefused(sev.PDH_CERT_EXPORT, SevCode.INVALID_LEN, sizes)
    client.memory.write(fields["pdh_cert_address"], PDH)
    client.memory.write(fields["cert_chain_address"], CHAIN)
    return sizes


def _seal(client: FakeClient, fields: Mapping[str, int]) -> dict[str, int]:
    """A packet whose payload is what lies there, under a header of ones."""
    size = fields["trans_len"]
    plain = client.memory.read(fields["guest_uaddr"], size) if "guest_uaddr" in fields else b"v"
    client.memory.write(fields["hdr_uaddr"], b"\1" * 52)
    client.memory.write(fields["trans_uaddr"], plain.ljust(size, b"v"))
    return {}


def _unseal(client: FakeClient, fields: Mapping[str, int]) -> dict[str, int]:
    payload = client.memory.read(fields["trans_uaddr"], fields["trans_len"])
    client.memory.write(fields["guest_uaddr"], payload)
    return {}


def _copy(client: FakeClient, fields: Mapping[str, int]) -> dict[str, int]:
    """DBG_*: each bit is turned around."""
    data = client.memory.read(fields["src_uaddr"], fields["len"])
    client.memory.write(fields["dst_uaddr"], bytes(byte ^ 0xFF for byte in data))
    return {}


_ANSWERS: Mapping[str, Answer] = {
    sev.PLATFORM_STATUS.name: _status,
    sev.PDH_CERT_EXPORT.name: _export,
    sev.LAUNCH_START.name: lambda client, fields: {"handle": 7},
    sev.RECEIVE_START.name: lambda client, fields: {"handle": 8},
    sev.LAUNCH_MEASURE.name: _give(MEASUREMENT, "uaddr", "len"),
    sev.GET_ATTESTATION_REPORT.name: _give(REPORT, "uaddr", "len"),
    sev.SEND_START.name: _give(SESSION, "session_uaddr", "session_len"),
    sev.GUEST_STATUS.name: lambda client, fields: {
        "handle": 7,
        "policy": client.policy,
        "state": 3,
    },
    sev.SEND_UPDATE_DATA.name: _seal,
    sev.SEND_UPDATE_VMSA.name: _seal,
    sev.RECEIVE_UPDATE_DATA.name: _unseal,
    sev.DBG_DECRYPT.name: _copy,
    sev.DBG_ENCRYPT.name: _copy,
}


def machine_of(client: FakeClient, size: int) -> Machine:
    """A VM on such a platform."""
    return Machine(client, size)
