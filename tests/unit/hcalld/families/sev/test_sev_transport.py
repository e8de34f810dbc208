# SPDX-License-Identifier: Apache-2.0
"""Guests that go from one platform to another: who may receive them, what is altered."""

from __future__ import annotations

import dataclasses
import struct

import pytest
from tests.sev_platform import flipped, key
from tests.unit.hcalld.families.sev.stages import (
    ENCRYPTED,
    ES,
    OK,
    PAGE,
    VMSA,
    give,
    host,
    initialized,
    packet,
    receiving,
    refused,
    running,
    sending,
    succeed,
)

from hcalld.crypto.sev.certificates import make_csr, make_oca, sign
from hcalld.crypto.sev.kdf import aes_ctr
from hcalld.domain.sev.settings import SevSettings
from hcalld.testing.guest import FakeGuest
from hcalld.testing.sev import MEMORY, SevClient, SevHost, made_up
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.abi.spec import Hcall
from hcallproto.payloads.sev import (
    Api,
    GuestState,
    PacketContext,
    PacketHeader,
    Policy,
    SevCertificate,
    Usage,
)

BAD_MEASUREMENT = SevCode.BAD_MEASUREMENT
POLICY_FAILURE = SevCode.POLICY_FAILURE
DOMAIN, SEV, NOSEND = int(Policy.DOMAIN), int(Policy.SEV), int(Policy.NOSEND)


def own(made: SevHost, owner: str = "owner") -> None:
    """PEK_CERT_IMPORT."""
    operator = made.connect()
    room = operator.room(2084)
    succeed(operator, sev.PEK_CSR, address=room, length=2084)
    csr = SevCertificate.parse(operator.memory.read(room, 2084))
    oca = key(owner)
    succeed(
        operator,
        sev.PEK_CERT_IMPORT,
        pek_cert_address=operator.put(sign(csr, Usage.OCA, oca).build()),
        pek_cert_len=2084,
        oca_cert_address=operator.put(make_oca(oca).build()),
        oca_cert_len=2084,
    )


# -- the whole way ----------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2048, 4096])
@pytest.mark.parametrize("policy", [ES, ES | SEV], ids=["any", "genuine"])
def test_a_guest_goes_to_a_platform_of_the_same_root(bits: int, policy: int):
    source, target = host(ENCRYPTED, bits=bits), host(ENCRYPTED, bits=bits, name="target")
    memory = FakeGuest([(MEMORY, 1 << 20)])
    sender, receiver = running(source.connect(), policy), target.connect(memory)
    answer, session = sender.send_start(target)
    assert (answer.code, answer.fields) == (OK, {"policy": policy, "session_len": 128})
    succeed(receiver, sev.ES_INIT)
    assert receiver.receive_start(source, policy, session).fields == {"handle": 1}
    sender.memory.write(MEMORY + 4096, made_up("not the guest's", 4096))
    for at in range(MEMORY, MEMORY + 0x4000, 0x1000):
        packet = sender.send_update(at, 4096)
        answer = receiver.take_packet(sev.RECEIVE_UPDATE_DATA, *packet, at)
        assert answer.code is OK
    room = sender.room(4096)
    fields = {"hdr_uaddr": sender.room(52), "hdr_len": 52, "trans_uaddr": room, "trans_len": 4096}
    succeed(sender, sev.SEND_UPDATE_VMSA, **fields)
    header, payload = sender.memory.read(fields["hdr_uaddr"], 52), sender.memory.read(room, 4096)
    succeed(
        receiver,
        sev.RECEIVE_UPDATE_VMSA,
        hdr_uaddr=receiver.put(header),
        hdr_len=52,
        trans_uaddr=receiver.put(payload),
        trans_len=4096,
    )
    succeed(sender, sev.SEND_FINISH)
    succeed(receiver, sev.RECEIVE_FINISH)
    assert sender.vm.guest is not None
    assert receiver.vm.guest is not None
    for at in range(MEMORY, MEMORY + 0x4000, 0x1000):
        here, there = (
            guest.memory.decrypt(at, client.memory.read(at, 4096))
            for client in (sender, receiver)
            for guest in [client.vm.guest]
            if guest is not None and guest.memory is not None
        )
        assert here == there
    assert receiver.vm.guest.memory is not None
    assert receiver.vm.guest.memory.decrypt(MEMORY, receiver.memory.read(MEMORY, 4096)) == PAGE
    assert receiver.vm.guest.vmsas == {0: VMSA}
    assert receiver.entry.vek != sender.entry.vek
    assert succeed(receiver, sev.GUEST_STATUS)["state"] == GuestState.RUNNING
    assert (sender.vm.guest.keys, receiver.vm.guest.keys) == (None, None)


def test_64_kib_in_one_packet():
    client = sending(host(ENCRYPTED).connect())
    header, payload = client.send_update(MEMORY, 65536)
    other = receiving(host(name="target").connect())
    assert other.vm.guest is not None
    assert client.vm.guest is not None
    other.vm.guest.keys = client.vm.guest.keys
    assert other.take_packet(sev.RECEIVE_UPDATE_DATA, header, payload, MEMORY + 16).code is OK
    assert other.memory.read(MEMORY + 16, 4096) == PAGE


def test_a_packet_is_what_the_specification_says():
    client = sending(host(ENCRYPTED).connect())
    assert client.vm.guest is not None
    assert client.vm.guest.keys is not None
    header, payload = client.send_update(MEMORY, 4096)
    parsed = PacketHeader.parse(header)
    assert aes_ctr(client.vm.guest.keys.tek, parsed.iv, payload) == PAGE
    assert client.send_update(MEMORY, 4096)[1] != payload


def test_room_of_a_packet_beyond_it_is_left_as_it_was():
    client = sending(host().connect())
    header, payload = client.put(b"\xff" * 64), client.put(b"\xff" * 64)
    succeed(
        client,
        sev.SEND_UPDATE_DATA,
        hdr_uaddr=header,
        hdr_len=64,
        guest_uaddr=MEMORY,
        guest_len=32,
        trans_uaddr=payload,
        trans_len=64,
    )
    assert client.memory.read(header + 52, 12) == b"\xff" * 12
    assert client.memory.read(payload + 32, 32) == b"\xff" * 32
    assert client.memory.read(payload, 32) != b"\xff" * 32


def test_a_payload_needs_room():
    client = sending(host().connect())
    assert refused(client, sev.SEND_UPDATE_DATA, SevCode.INVALID_LEN, trans_len=4095) == {}
    assert refused(client, sev.SEND_UPDATE_VMSA, SevCode.INVALID_LEN, trans_len=4095) == {}


def test_sending_that_is_given_up_begins_anew_with_other_keys():
    client = sending(host().connect())
    assert client.vm.guest is not None
    keys = client.vm.guest.keys
    succeed(client, sev.SEND_CANCEL)
    assert client.vm.guest.keys is None
    answer, _ = client.send_start(host(name="target"))
    assert answer.code is OK
    assert client.vm.guest.keys not in (None, keys)


# -- who may receive --------------------------------------------------------------------


def other_root(name: str = "target") -> SevHost:
    return host(bits=4096, name=name)


def test_another_root_matters_with_sev_alone():
    client = running(host().connect(), ES | SEV)
    before = client.snapshot()[:-1]
    answer, _ = client.send_start(other_root())
    assert answer.code is POLICY_FAILURE
    assert "ARK" in answer.why
    assert client.snapshot()[:-1] == before
    assert running(host().connect()).send_start(other_root())[0].code is OK


def test_nosend_forbids_to_send():
    client = running(host().connect(), ES | NOSEND)
    refused(client, sev.SEND_START, POLICY_FAILURE)
    refused(client, sev.SEND_START, POLICY_FAILURE, session_len=0)


def test_domain_demands_the_same_owner():
    made = host()
    own(made)
    mine, others, nobodys = (host(name=name) for name in ("mine", "theirs", "nobody's"))
    own(mine)
    own(others, "another owner")
    client = running(made.connect(), ES | DOMAIN)
    for target in (others, nobodys):
        answer, _ = client.send_start(target)
        assert answer.code is POLICY_FAILURE
        assert "owner" in answer.why
    assert client.send_start(mine)[0].code is OK


def test_domain_does_not_care_for_the_root_nor_sev_for_the_owner():
    made, target = host(), other_root()
    own(made)
    own(target)
    assert running(made.connect(), ES | DOMAIN).send_start(target)[0].code is OK
    assert running(made.connect(), ES | SEV).send_start(host(name="other"))[0].code is OK
    both = running(made.connect(), ES | SEV | DOMAIN)
    assert both.send_start(target)[0].code is POLICY_FAILURE
    assert both.send_start(host(name="other"))[0].code is POLICY_FAILURE
    mine = host(name="mine")
    own(mine)
    assert both.send_start(mine)[0].code is OK


def test_a_pek_that_no_owner_signed_is_genuine_all_the_same():
    made, target = host(), host(name="target")
    own(target)
    succeed(target.connect(), sev.PEK_GEN)
    assert running(made.connect(), ES | SEV).send_start(target)[0].code is OK


@pytest.mark.parametrize(
    ("least", "is_allowed"), [((1, 51), True), ((1, 52), True), ((1, 53), False)]
)
def test_the_least_version_holds_for_the_target_too(least: tuple[int, int], is_allowed: bool):
    target = host(SevSettings(api_minor=52), name="target")
    client = running(host().connect(), int(Policy.of(ES, Api(*least))))
    answer, _ = client.send_start(target)
    assert answer.code is (OK if is_allowed else POLICY_FAILURE)


SIZE = 2084


@pytest.mark.parametrize(
    ("field", "offset", "code"),
    [
        ("pdh_cert_uaddr", 0, SevCode.INVALID_CERTIFICATE),
        ("pdh_cert_uaddr", 4, SevCode.BAD_SIGNATURE),
        ("pdh_cert_uaddr", 8, SevCode.INVALID_CERTIFICATE),
        ("pdh_cert_uaddr", 0x14, SevCode.INVALID_CERTIFICATE),
        ("pdh_cert_uaddr", 0x414, SevCode.BAD_SIGNATURE),
        ("pdh_cert_uaddr", 0x41C, SevCode.BAD_SIGNATURE),
        ("plat_certs_uaddr", 4, SevCode.POLICY_FAILURE),
        ("plat_certs_uaddr", 0x41C, None),
        ("plat_certs_uaddr", 0x624, SevCode.BAD_SIGNATURE),
        ("plat_certs_uaddr", 2 * SIZE + 5, SevCode.BAD_SIGNATURE),
        ("plat_certs_uaddr", 2 * SIZE + 8, SevCode.INVALID_CERTIFICATE),
        ("plat_certs_uaddr", 2 * SIZE + 0x41C, SevCode.BAD_SIGNATURE),
        ("amd_certs_uaddr", 0, SevCode.INVALID_CERTIFICATE),
        ("amd_certs_uaddr", 0x40, SevCode.INVALID_CERTIFICATE),
        ("amd_certs_uaddr", 0x150, SevCode.BAD_SIGNATURE),
        ("amd_certs_uaddr", 0x240, SevCode.BAD_SIGNATURE),
        ("amd_certs_uaddr", 832 + 0x240, SevCode.POLICY_FAILURE),
    ],
)
def test_a_chain_with_one_byte_altered(field: str, offset: int, code: SevCode | None):
    """With SEV. That a PEK is too old is said before its signature is looked at."""
    target = host(name="target")
    identity = target.platform.identity
    whole = {
        "pdh_cert_uaddr": identity.pdh,
        "plat_certs_uaddr": identity.chain,
        "amd_certs_uaddr": identity.roots,
    }[field]
    client = running(host().connect(), int(Policy.of(ES | SEV, Api(1, 55))))
    if code is None:
        # The owner's signature, which SEV does not ask for.
        answer = give(client, sev.SEND_START, **_of(client, target, field, whole, offset))
        assert answer[0] is OK
        return
    refused(client, sev.SEND_START, code, **_of(client, target, field, whole, offset))


def _of(
    client: SevClient, target: SevHost, field: str, whole: bytes, offset: int
) -> dict[str, int]:
    identity = target.platform.identity
    return {
        "pdh_cert_uaddr": client.put(identity.pdh),
        "plat_certs_uaddr": client.put(identity.chain),
        "amd_certs_uaddr": client.put(identity.roots),
        field: client.put(flipped(whole, offset)),
    }


def test_certificates_that_the_policy_does_not_ask_for_are_not_looked_at():
    client = running(host().connect())
    target = host(name="target")
    rubbish = client.put(bytes(6252))
    answer, _ = client.send_start(target, plat_certs_uaddr=rubbish, amd_certs_uaddr=rubbish)
    assert answer.code is OK


@pytest.mark.parametrize("policy", [ES, ES | SEV, ES | DOMAIN])
def test_a_target_that_is_no_pdh(policy: int):
    client = running(host().connect(), policy)
    csr = make_csr(key("pek"), Api(1, 55)).build()
    refused(client, sev.SEND_START, SevCode.INVALID_CERTIFICATE, pdh_cert_uaddr=client.put(csr))


def test_another_platform_s_pdh():
    """DOMAIN alone looks at the PDH's signature too."""
    made, target = host(), host(name="target")
    own(made)
    own(target)
    client = running(made.connect(), ES | DOMAIN)
    pdh = client.put(host(name="third").platform.identity.pdh)
    answer, _ = client.send_start(target, pdh_cert_uaddr=pdh)
    assert answer.code is SevCode.BAD_SIGNATURE


# -- sessions ---------------------------------------------------------------------------


def sent_to(target: SevHost, policy: int = ES) -> tuple[SevHost, bytes]:
    source = host(name="source")
    answer, session = running(source.connect(), policy).send_start(target)
    assert answer.code is OK
    return source, session


@pytest.mark.parametrize("offset", [0, 16, 47, 48, 64, 95, 96, 127])
def test_a_session_with_one_bit_altered(offset: int):
    target = host()
    source, session = sent_to(target)
    client = initialized(target.connect())
    before = client.snapshot()[:-1]
    answer = client.receive_start(source, ES, flipped(session, offset))
    assert answer.code is BAD_MEASUREMENT
    assert client.snapshot()[:-1] == before


def test_a_session_for_another_policy_target_or_source():
    target = host()
    source, session = sent_to(target)
    client = initialized(target.connect())
    assert client.receive_start(source, ES | 1, session).code is BAD_MEASUREMENT
    assert client.receive_start(target, ES, session).code is BAD_MEASUREMENT
    elsewhere = initialized(host(name="elsewhere").connect())
    assert elsewhere.receive_start(source, ES, session).code is BAD_MEASUREMENT
    assert client.receive_start(source, ES, session).code is OK


# -- packets ----------------------------------------------------------------------------


@pytest.mark.parametrize("offset", range(4, 52, 3))
def test_a_header_with_one_bit_altered(offset: int):
    client = receiving(host(ENCRYPTED).connect())
    header, payload = packet(client, PAGE)
    before = client.memory.read(MEMORY, 4096)
    answer = client.take_packet(
        sev.RECEIVE_UPDATE_DATA, flipped(header, offset, 0x80), payload, MEMORY
    )
    assert answer.code is BAD_MEASUREMENT
    assert client.memory.read(MEMORY, 4096) == before


@pytest.mark.parametrize("bit", range(0, 4096 * 8, 1111))
def test_a_payload_with_one_bit_altered(bit: int):
    client = receiving(host().connect())
    header, payload = packet(client, PAGE)
    altered = client.put(flipped(payload, bit // 8, 1 << bit % 8))
    fields = {"hdr_uaddr": client.put(header), "trans_uaddr": altered}
    refused(client, sev.RECEIVE_UPDATE_DATA, BAD_MEASUREMENT, **fields)


@pytest.mark.parametrize(
    ("flags", "code"),
    [(1, SevCode.UNSUPPORTED), (3, SevCode.UNSUPPORTED), (2, SevCode.INVALID_PARAM)],
)
@pytest.mark.parametrize("hcall", [sev.RECEIVE_UPDATE_DATA, sev.RECEIVE_UPDATE_VMSA])
def test_flags_of_a_packet(hcall: Hcall, flags: int, code: SevCode):
    client = receiving(host().connect())
    header = dataclasses.replace(PacketHeader(iv=bytes(16), mac=bytes(32)), flags=flags)
    refused(client, hcall, code, hdr_uaddr=client.put(header.build()))


def test_a_packet_that_is_cut():
    client = receiving(host().connect())
    header, payload = packet(client, PAGE)
    for size in (16, 4080):
        answer = client.take_packet(sev.RECEIVE_UPDATE_DATA, header, payload[:size], MEMORY)
        assert answer.code is BAD_MEASUREMENT
        answer = client.take_packet(
            sev.RECEIVE_UPDATE_DATA, header, payload, MEMORY, guest_len=size
        )
        assert answer.code is SevCode.INVALID_LEN


def test_a_packet_of_another_kind():
    """A page is no save area, nor a save area a page."""
    client = receiving(host().connect())
    header, payload = packet(client, PAGE, PacketContext.VMSA)
    answer = client.take_packet(sev.RECEIVE_UPDATE_DATA, header, payload, MEMORY)
    assert answer.code is BAD_MEASUREMENT
    header, payload = packet(client, VMSA)
    fields = {"hdr_uaddr": client.put(header), "trans_uaddr": client.put(payload)}
    refused(client, sev.RECEIVE_UPDATE_VMSA, BAD_MEASUREMENT, **fields)


def test_a_packet_of_an_earlier_session():
    client = sending(host().connect())
    old = client.send_update(MEMORY, 4096)
    succeed(client, sev.SEND_CANCEL)
    target = host(name="target")
    answer, session = client.send_start(target)
    assert answer.code is OK
    receiver = initialized(target.connect())
    assert receiver.receive_start(client.host, ES, session).code is OK
    assert receiver.take_packet(sev.RECEIVE_UPDATE_DATA, *old, MEMORY).code is BAD_MEASUREMENT
    new = client.send_update(MEMORY, 4096)
    for _ in range(2):
        # The same packet again is the same page again: nothing in it says which one it is.
        assert receiver.take_packet(sev.RECEIVE_UPDATE_DATA, *new, MEMORY).code is OK


def test_a_guest_that_was_received_has_no_launch():
    client = receiving(host().connect())
    succeed(client, sev.RECEIVE_FINISH)
    room = client.room(208)
    succeed(client, sev.GET_ATTESTATION_REPORT, uaddr=room, len=208)
    assert client.memory.read(room + 16, 32) == bytes(32)
    assert struct.unpack("<I", client.memory.read(room + 48, 4)) == (ES,)
