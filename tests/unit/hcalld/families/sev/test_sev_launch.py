# SPDX-License-Identifier: Apache-2.0
"""Launches: sessions, what is measured, what is encrypted, secrets, reports, shared keys."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import struct
from collections.abc import Callable

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
    launched,
    measured,
    refused,
    running,
    secret,
    succeed,
)

from hcalld.core.effects import GuestMemoryError, ReadGuest, ReadPlatform, WriteGuest
from hcalld.crypto.sev.certificates import make_csr, make_owner_dh, make_pdh
from hcalld.crypto.sev.kdf import TransportKeys
from hcalld.crypto.sev.packets import seal_secret
from hcalld.crypto.sev.reports import verify_report
from hcalld.domain.sev.settings import MAX_HELD, PIECE_SIZE, SevSettings
from hcalld.testing.guest import FakeGuest
from hcalld.testing.sev import MEMORY, SevClient, made_up
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.payloads.sev import (
    Api,
    AttestationReport,
    Curve,
    PacketHeader,
    Policy,
    SevCertificate,
)

BAD_MEASUREMENT = SevCode.BAD_MEASUREMENT
NOKS = int(Policy.NOKS)


# -- sessions ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "offset", [0, 15, 16, 47, 48, 63, 64, 95, 96, 127], ids=lambda at: f"byte {at}"
)
def test_a_session_with_one_bit_altered(offset: int):
    """Nonce, wrapped keys, IV, and both MACs."""
    client = initialized(host().connect())
    session = client.put(flipped(client.session(ES), offset))
    refused(client, sev.LAUNCH_START, BAD_MEASUREMENT, session_uaddr=session)
    assert client.host.platform.guests == ()


def test_a_session_for_another_policy():
    client = initialized(host().connect())
    refused(client, sev.LAUNCH_START, BAD_MEASUREMENT, policy=ES | 1)


def test_reserved_bits_of_a_policy_are_proven_and_mean_nothing():
    client = initialized(host().connect())
    policy = ES | 0xFFC0
    assert client.launch_start(policy).code is OK
    assert succeed(client, sev.GUEST_STATUS)["policy"] == policy
    refused(initialized(host().connect()), sev.LAUNCH_START, BAD_MEASUREMENT, policy=policy)


def test_a_session_for_another_platform():
    other = host(name="other").connect()
    client = initialized(host().connect())
    client_session = other.session(ES)
    refused(client, sev.LAUNCH_START, BAD_MEASUREMENT, session_uaddr=client.put(client_session))


def test_a_session_with_another_owner_s_certificate():
    client = initialized(host().connect())
    certificate = make_owner_dh(key("somebody")).build()
    refused(client, sev.LAUNCH_START, BAD_MEASUREMENT, dh_uaddr=client.put(certificate))


def test_a_session_for_a_pdh_that_is_gone():
    client = initialized(host().connect())
    session = client.session(ES)
    succeed(client.host.connect(), sev.PDH_GEN)
    refused(client, sev.LAUNCH_START, BAD_MEASUREMENT, session_uaddr=client.put(session))
    assert give(client, sev.LAUNCH_START)[0] is OK


POINT = 0x14
BAD_CERTIFICATES = {
    "version": lambda data: flipped(data, 0, 2),
    "reserved": lambda data: flipped(data, 6),
    "usage": lambda data: flipped(data, 8, 4),
    "no usage": lambda data: flipped(data, 9, 0x70),
    "algorithm": lambda data: flipped(data, 12),
    "no algorithm": lambda data: flipped(data, 12, 0xF0),
    "curve": lambda data: flipped(data, 16, Curve.P384 ^ Curve.P256),
    "no curve": lambda data: flipped(data, 16, 0x80),
    "x": lambda data: flipped(data, POINT),
    "y": lambda data: flipped(data, POINT + 72),
    "x is too large": lambda data: flipped(data, POINT + 71),
    "rest of the key": lambda data: flipped(data, 0x413),
}


@pytest.mark.parametrize("what", BAD_CERTIFICATES)
def test_a_certificate_that_is_none(what: str):
    client = initialized(host().connect())
    data = BAD_CERTIFICATES[what](client.certificate())
    address = client.put(data)
    refused(client, sev.LAUNCH_START, SevCode.INVALID_CERTIFICATE, dh_uaddr=address)
    refused(client, sev.RECEIVE_START, SevCode.INVALID_CERTIFICATE, pdh_uaddr=address)


def test_a_certificate_for_another_use():
    client = initialized(host().connect())
    pek = make_csr(client.owner, Api(0, 0)).build()
    refused(client, sev.LAUNCH_START, SevCode.INVALID_CERTIFICATE, dh_uaddr=client.put(pek))


def test_nobody_looks_at_the_signature_of_an_owner_s_certificate():
    client = initialized(host().connect())
    for data in (
        make_owner_dh(client.owner, is_self_signed=True).build(),
        make_pdh(client.owner, key("anybody"), Api(9, 9)).build(),
        flipped(client.certificate(), 0x414),
    ):
        other = client.host.connect()
        other.owner = client.owner
        succeed(other, sev.ES_INIT)
        assert give(other, sev.LAUNCH_START, dh_uaddr=other.put(data))[0] is OK


def test_without_a_certificate_nobody_knows_the_keys():
    client = initialized(host().connect())
    session = client.put(bytes(128))
    succeed(client, sev.LAUNCH_START, policy=0, session_uaddr=session, session_len=128)
    other = initialized(client.host.connect())
    succeed(other, sev.LAUNCH_START)
    assert client.vm.guest is not None
    assert other.vm.guest is not None
    assert client.vm.guest.keys is not None
    assert client.vm.guest.keys != other.vm.guest.keys
    assert client.entry.vek != other.entry.vek


def test_a_certificate_without_a_session():
    client = initialized(host().connect())
    refused(client, sev.LAUNCH_START, SevCode.INVALID_LEN, session_uaddr=0, session_len=0)


@pytest.mark.parametrize(
    ("api", "is_allowed"),
    [
        ((0, 0), True),
        ((0, 255), True),
        ((1, 54), True),
        ((1, 55), True),
        ((1, 56), False),
        ((2, 0), False),
        ((255, 255), False),
    ],
)
def test_the_least_version_that_a_policy_allows(api: tuple[int, int], is_allowed: bool):
    policy = int(Policy.of(0, Api(*api)))
    client = initialized(host().connect())
    if is_allowed:
        assert client.launch_start(policy).code is OK
    else:
        refused(client, sev.LAUNCH_START, SevCode.POLICY_FAILURE, policy=policy)
        refused(client, sev.RECEIVE_START, SevCode.POLICY_FAILURE, policy=policy)


# -- shared keys ------------------------------------------------------------------------


def test_a_shared_key_shows_the_other_s_memory():
    made = host(ENCRYPTED)
    first = launched(made.connect(), 0, init=sev.INIT)
    second = made.connect(first.memory)
    succeed(second, sev.INIT)
    assert second.launch_start(0, handle=1).fields == {"handle": 2}
    third = made.connect(first.memory)
    succeed(third, sev.INIT)
    assert third.launch_start(0).code is OK
    seen = []
    for client in (second, third):
        client.launch_measure()
        succeed(client, sev.LAUNCH_FINISH)
        succeed(client, sev.DBG_DECRYPT, src_uaddr=MEMORY, dst_uaddr=MEMORY + 8192, len=4096)
        seen.append(client.memory.read(MEMORY + 8192, 4096))
    assert seen[0] == PAGE
    assert seen[1] != PAGE


def test_what_forbids_to_share_a_key():
    made = host()
    running(made.connect(), ES)
    client = initialized(made.connect())
    refused(client, sev.LAUNCH_START, SevCode.INVALID_GUEST, handle=2)
    refused(client, sev.LAUNCH_START, SevCode.POLICY_FAILURE, handle=1, policy=ES | 1)
    refused(client, sev.LAUNCH_START, SevCode.POLICY_FAILURE, handle=1, policy=ES | NOKS)
    refused(client, sev.RECEIVE_START, SevCode.POLICY_FAILURE, handle=1, policy=ES | NOKS)
    running(made.connect(), ES | NOKS)
    refused(client, sev.LAUNCH_START, SevCode.POLICY_FAILURE, handle=2, policy=ES | NOKS)
    assert client.launch_start(ES, handle=1).code is OK


def test_the_handle_of_a_guest_that_is_gone():
    made = host()
    first = running(made.connect())
    first.close()
    client = initialized(made.connect())
    refused(client, sev.LAUNCH_START, SevCode.INVALID_GUEST, handle=1)


# -- what is measured -------------------------------------------------------------------


def digest_of(client: SevClient) -> bytes:
    client.launch_measure()
    assert client.vm.guest is not None
    return client.vm.guest.launch_digest


def test_the_digest_is_that_of_all_data_in_order():
    client = launched(host().connect(), init=sev.ES_INIT)
    assert digest_of(client) == hashlib.sha256(PAGE + VMSA).digest()


@pytest.mark.parametrize("cut", [16, 1024, 4080])
def test_chunks_and_addresses_do_not_matter_and_order_does(cut: int):
    def launch(*parts: bytes, at: int = MEMORY) -> bytes:
        client = host().connect()
        succeed(client, sev.INIT)
        assert client.launch_start(0).code is OK
        for part in parts:
            assert client.launch_update(part, at).code is OK
        return digest_of(client)

    whole = launch(PAGE)
    assert launch(PAGE[:cut], PAGE[cut:], at=MEMORY + 4096) == whole
    assert launch(PAGE[cut:], PAGE[:cut]) != whole
    assert whole == hashlib.sha256(PAGE).digest()


def test_the_measurement_is_what_the_owner_expects():
    client = launched(host().connect())
    blob = client.launch_measure()
    message = struct.pack("<BBBBI", 4, 1, 55, 21, ES) + hashlib.sha256(PAGE + VMSA).digest()
    tik = client.keys.tik.reveal()
    assert blob[:32] == hmac.digest(tik, message + blob[32:], "sha256")


def test_a_measurement_before_api_0_17():
    client = launched(host(SevSettings(api_major=0, api_minor=16)).connect())
    blob = client.launch_measure()
    message = struct.pack("<I", ES) + hashlib.sha256(PAGE + VMSA).digest()
    tik = client.keys.tik.reveal()
    assert blob[:32] == hmac.digest(tik, message + blob[32:], "sha256")


def test_two_launches_have_other_nonces():
    made = host()
    first, second = launched(made.connect()), launched(made.connect())
    second.keys = first.keys
    blobs = first.launch_measure(), second.launch_measure()
    assert blobs[0][:32] != blobs[1][:32]
    assert blobs[0][32:] != blobs[1][32:]
    assert first.vm.guest is not None
    assert second.vm.guest is not None
    assert first.vm.guest.launch_digest == second.vm.guest.launch_digest


def test_a_measurement_needs_nothing_of_the_platform():
    client = launched(host().connect())
    client.launch_measure()
    assert not any(isinstance(effect, ReadPlatform) for effect in client.trail)


def test_memory_is_left_plain_or_encrypted():
    plain = launched(host().connect())
    assert plain.memory.read(MEMORY, 4096) == PAGE
    clients = [launched(host(ENCRYPTED, name=name).connect()) for name in ("one", "two")]
    seen = {client.memory.read(MEMORY, 4096) for client in clients}
    assert len(seen) == 2
    assert PAGE not in seen


def test_the_same_page_at_two_addresses_is_not_the_same():
    client = launched(host(ENCRYPTED).connect())
    assert client.launch_update(PAGE, MEMORY + 4096).code is OK
    assert client.memory.read(MEMORY, 4096) != client.memory.read(MEMORY + 4096, 4096)


def test_save_areas_of_more_vcpus():
    client = launched(host().connect())
    succeed(client, sev.LAUNCH_UPDATE_VMSA, uaddr=client.put(PAGE + VMSA), len=8192)
    assert client.vm.guest is not None
    assert client.vm.guest.vmsas == {0: VMSA, 1: PAGE, 2: VMSA}
    assert digest_of(client) == hashlib.sha256(PAGE + VMSA + PAGE + VMSA).digest()


def test_save_areas_need_a_policy_with_es():
    client = initialized(host().connect())
    assert client.launch_start(0).code is OK
    refused(client, sev.LAUNCH_UPDATE_VMSA, SevCode.POLICY_FAILURE)


# -- large memory -----------------------------------------------------------------------


class Trap(FakeGuest):
    """Memory of which a page disappears when it is its turn."""

    def __init__(self, *, reads: int | None = None, writes: int | None = None) -> None:
        super().__init__([(MEMORY, 4 << 20)])
        self.reads, self.writes = reads, writes

    def read(self, gpa: int, size: int) -> bytes:
        if self.reads is not None and size > 4096:
            self.reads -= 1
            if self.reads < 0:
                raise GuestMemoryError(gpa, size, "gone")
        return super().read(gpa, size)

    def write(self, gpa: int, content: bytes) -> None:
        if self.writes is not None and len(content) > 4096:
            self.writes -= 1
            if self.writes < 0:
                self.writes = None
                raise GuestMemoryError(gpa, len(content), "cannot be written")
        super().write(gpa, content)


LARGE = 2 * PIECE_SIZE + 48


@pytest.mark.parametrize("settings", [SevSettings(), ENCRYPTED], ids=["plain", "encrypted"])
def test_large_memory_is_read_in_pieces(settings: SevSettings):
    data = made_up("large", LARGE)
    client = host(settings).connect(FakeGuest([(MEMORY, 4 << 20)]))
    succeed(client, sev.INIT)
    assert client.launch_start(0).code is OK
    assert client.launch_update(data, MEMORY + 16).code is OK
    sizes = [effect.size for effect in client.trail if isinstance(effect, ReadGuest)]
    assert sum(sizes) == LARGE
    assert max(sizes) <= PIECE_SIZE
    written = [effect for effect in client.trail if isinstance(effect, WriteGuest)]
    assert sum(len(effect.data) for effect in written) == (LARGE if settings is ENCRYPTED else 0)
    assert digest_of(client) == hashlib.sha256(data).digest()
    succeed(client, sev.LAUNCH_FINISH)
    if settings is ENCRYPTED:
        assert client.memory.read(MEMORY + 16, LARGE) != data
    for at in (0, PIECE_SIZE - 40, LARGE - 100):
        target = MEMORY + (3 << 20)
        succeed(client, sev.DBG_DECRYPT, src_uaddr=MEMORY + 16 + at, dst_uaddr=target, len=100)
        assert client.memory.read(target, 100) == data[at : at + 100]


@pytest.mark.parametrize(
    "trap", [{"reads": 1}, {"reads": 2}, {"writes": 0}, {"writes": 2}], ids=str
)
def test_memory_that_disappears_while_it_is_measured(trap: dict[str, int]):
    memory = Trap()
    client = host(ENCRYPTED).connect(memory)
    succeed(client, sev.INIT)
    assert client.launch_start(0).code is OK
    memory.write(MEMORY, made_up("large", LARGE))
    memory.reads, memory.writes = trap.get("reads"), trap.get("writes")
    refused(client, sev.LAUNCH_UPDATE_DATA, SevCode.EFAULT, len=LARGE)


def test_more_than_can_be_held_at_once():
    client = launched(host(ENCRYPTED).connect())
    refused(client, sev.LAUNCH_UPDATE_DATA, SevCode.EINVAL, len=MAX_HELD + 16)
    client = launched(host().connect())
    refused(client, sev.LAUNCH_UPDATE_DATA, SevCode.EFAULT, len=MAX_HELD + 16)


# -- secrets ----------------------------------------------------------------------------

TEXT = b"open sesame 1234"


@pytest.mark.parametrize("settings", [SevSettings(), ENCRYPTED], ids=["plain", "encrypted"])
def test_a_secret_is_put_into_memory(settings: SevSettings):
    client = measured(host(settings).connect())
    address = MEMORY + 0x2000
    for name in ("one", "another"):
        packet = secret(client, TEXT, name=name)
        assert client.take_packet(sev.LAUNCH_SECRET, *packet, address).code is OK
    assert (client.memory.read(address, 16) == TEXT) is (settings is not ENCRYPTED)
    succeed(client, sev.LAUNCH_FINISH)
    succeed(client, sev.DBG_DECRYPT, src_uaddr=address, dst_uaddr=MEMORY, len=16)
    assert client.memory.read(MEMORY, 16) == TEXT


@pytest.mark.parametrize("offset", [4, 19, 20, 51])
def test_a_secret_s_header_with_one_bit_altered(offset: int):
    client = measured(host().connect())
    header, _ = secret(client, TEXT)
    address = client.put(flipped(header, offset))
    before = client.snapshot()
    _, payload = secret(client, TEXT)
    answer = client.take_packet(
        sev.LAUNCH_SECRET, flipped(header, offset), payload, MEMORY, hdr_uaddr=address
    )
    assert answer.code is BAD_MEASUREMENT
    assert client.vm.guest is not None
    assert client.memory.read(MEMORY, 4096) == PAGE
    assert client.snapshot()[:-1] == before[:-1]


@pytest.mark.parametrize("offset", [0, 15])
def test_a_secret_s_payload_with_one_bit_altered(offset: int):
    client = measured(host().connect())
    header, payload = secret(client, TEXT)
    answer = client.take_packet(sev.LAUNCH_SECRET, header, flipped(payload, offset), MEMORY)
    assert answer.code is BAD_MEASUREMENT
    assert client.memory.read(MEMORY, 4096) == PAGE


@pytest.mark.parametrize(
    ("flags", "code"),
    [(1, SevCode.UNSUPPORTED), (2, SevCode.INVALID_PARAM), (1 << 31, SevCode.INVALID_PARAM)],
)
def test_flags_of_a_packet(flags: int, code: SevCode):
    client = measured(host().connect())
    header, _ = secret(client, TEXT)
    changed = dataclasses.replace(PacketHeader.parse(header), flags=flags)
    refused(client, sev.LAUNCH_SECRET, code, hdr_uaddr=client.put(changed.build()))


def test_a_secret_of_another_launch():
    made = host()
    first, second = measured(made.connect()), measured(made.connect())
    packet = secret(first, TEXT)
    assert second.vm.guest is not None
    second.vm.guest.keys = first.keys
    assert second.take_packet(sev.LAUNCH_SECRET, *packet, MEMORY).code is BAD_MEASUREMENT
    assert first.take_packet(sev.LAUNCH_SECRET, *packet, MEMORY).code is OK


def test_a_secret_of_another_owner():
    client = measured(host().connect())
    client.keys = TransportKeys.parse(made_up("somebody", TransportKeys.SIZE))
    refused(client, sev.LAUNCH_SECRET, BAD_MEASUREMENT)


def test_a_secret_before_api_0_17_is_of_no_measurement():
    client = measured(host(SevSettings(api_major=0, api_minor=16)).connect())
    header, payload = seal_secret(client.keys, TEXT, iv=bytes(16), measurement=b"", api=Api(0, 16))
    assert client.take_packet(sev.LAUNCH_SECRET, header.build(), payload, MEMORY).code is OK


@pytest.mark.parametrize("size", [16, 16384])
def test_sizes_of_secrets(size: int):
    client = measured(host().connect())
    packet = secret(client, made_up("long", size))
    assert client.take_packet(sev.LAUNCH_SECRET, *packet, MEMORY).code is OK
    assert client.memory.read(MEMORY, size) == made_up("long", size)


def test_a_launch_ends_what_was_shared_with_the_owner():
    client = measured(host().connect())
    packet = secret(client, TEXT)
    succeed(client, sev.LAUNCH_FINISH)
    assert client.vm.guest is not None
    assert client.vm.guest.keys is None
    assert client.vm.guest.measurement == b""
    answer = client.take_packet(sev.LAUNCH_SECRET, *packet, MEMORY)
    assert answer.code is SevCode.INVALID_GUEST_STATE


# -- reports ----------------------------------------------------------------------------


@pytest.mark.parametrize("prepare", [measured, running])
def test_a_report_is_signed_by_the_platform(prepare: Callable[[SevClient], SevClient]):
    client = prepare(host().connect())
    room = client.put(b"\xff" * 256)
    assert succeed(
        client, sev.GET_ATTESTATION_REPORT, mnonce_low=1, mnonce_high=2, uaddr=room, len=240
    ) == {"len": 208}
    data = client.memory.read(room, 256)
    report = AttestationReport.parse(data[:208])
    verify_report(report, SevCertificate.parse(client.host.platform.identity.pek))
    assert report.mnonce == struct.pack("<QQ", 1, 2)
    assert report.launch_digest == hashlib.sha256(PAGE + VMSA).digest()
    assert report.policy == ES
    assert data[208:] == bytes(32) + b"\xff" * 16


# -- what is written to nobody ----------------------------------------------------------


def test_reasons_and_representations_hold_no_secret():
    client = measured(host(ENCRYPTED).connect())
    guest = client.vm.guest
    assert guest is not None
    assert guest.keys is not None
    shown = repr(client.vm) + repr(client.trail) + repr(client.host.platform.guests)
    shown += repr(client.host.platform.identity)
    for value in (client.entry.vek, guest.keys.tek.reveal(), guest.keys.tik.reveal()):
        assert value.hex() not in shown
        assert repr(value)[2:-1] not in shown


def test_the_same_entropy_and_frames_give_the_same_bytes():
    """But for a root's signature of a CEK, which no command makes."""
    source, target = host(ENCRYPTED), host(name="target")

    def run() -> tuple[object, ...]:
        made = host(ENCRYPTED)
        made.records = dict(source.records)
        made.restart()
        client = running(made.connect())
        answer, session = client.send_start(target)
        assert answer.code is OK
        packet = client.send_update(MEMORY, 4096)
        operator = made.connect()
        client.close()
        for hcall in (sev.PEK_GEN, sev.PDH_GEN, sev.FACTORY_RESET):
            succeed(operator, hcall)
        return client.snapshot(), session, packet

    assert run() == run()
