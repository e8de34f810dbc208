# SPDX-License-Identifier: Apache-2.0
"""A guest goes from one daemon's platform to another's: whole, and where its policy lets it."""

from __future__ import annotations

import io
import random
import threading
from pathlib import Path

import pytest
from tests.conftest import Require
from tests.e2e import sevopened
from tests.e2e.patience import wait_until
from tests.e2e.sevhosts import Host, Pair, refused, sending, start
from tests.sev_platform import flipped, key

from hcalld.crypto.sev.certificates import make_oca
from hcalld.guestowner.client import CommandRefused
from hcalld.guestowner.owning import sign_csr
from hcalld.guestowner.platform import Platform
from hcalld.sevvm.errors import SevVmError
from hcalld.sevvm.machine import MIB, Machine, Target
from hcalld.sevvm.moving import NO_ROOTS, receive, send
from hcalld.sevvm.streams import StreamReader, StreamWriter, incoming, outgoing
from hcallproto.abi.families import sev
from hcallproto.abi.families.sev import PACKET_MAX_SIZE, VMSA_SIZE
from hcallproto.abi.returns import SevCode
from hcallproto.payloads.sev import Api, GuestState, Policy, SevCertificate
from hcallproto.payloads.sev.constants import PAGE_SIZE
from hcallproto.payloads.sev.stream import TransportPacket

SIZE = 3 * MIB
CHANCE = random.Random(7)
CONTENT = CHANCE.randbytes(SIZE)
VMSAS = tuple(CHANCE.randbytes(VMSA_SIZE) for _ in range(2))


def stream_of(
    machine: Machine, target: Host, *, vcpus: int = 0, packet: int = PACKET_MAX_SIZE
) -> bytes:
    """A guest as it is sent; it is gone afterwards."""
    file = io.BytesIO()
    send(machine, StreamWriter(file), target.target(), packet_size=packet, vcpus=vcpus)
    return file.getvalue()


def arrive(machine: Machine, stream: bytes, *, vcpus: int = 1) -> int:
    return receive(machine, StreamReader(io.BytesIO(stream)), vcpus=vcpus)


# -- it arrives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["file", "socket"])
@pytest.mark.parametrize("memory", ["plain", "encrypted"])
def test_a_guest_arrives_byte_for_byte(
    memory: str, way: str, pair: Pair, tmp_path: Path, socket_dir: Path
) -> None:
    source, target = pair.source(memory), pair.target(memory)
    name = str(tmp_path / "guest") if way == "file" else f"unix:{socket_dir / 'guest'}"
    counts: list[int] = []
    with source.machine(SIZE) as here, target.machine(SIZE) as there:
        start(here, 0, CONTENT)
        lies = here.read(0, SIZE)
        assert (lies == CONTENT) == (memory == "plain")

        def receiving() -> None:
            with incoming(name) as reader:
                counts.append(receive(there, reader))

        def sending_there() -> None:
            with outgoing(name) as writer:
                counts.append(send(here, writer, target.target(), packet_size=PACKET_MAX_SIZE))

        if way == "file":
            sending_there()
            receiving()
        else:
            thread = threading.Thread(target=receiving)
            thread.start()
            while not Path(name.removeprefix("unix:")).exists():
                assert thread.is_alive()
            sending_there()
            thread.join()
        assert counts == [SIZE // PACKET_MAX_SIZE] * 2
        assert here.status().state is GuestState.SENT
        status = there.status()
        assert (status.state, status.policy) == (GuestState.RUNNING, 0)
        assert there.read_decrypted(0, SIZE) == CONTENT
        if memory == "plain":
            assert there.read(0, SIZE) == CONTENT
        else:
            # Each platform has a key of its own; what differs is every block.
            arrived = there.read(0, SIZE)
            same = [at for at in range(0, SIZE, 16) if arrived[at : at + 16] == lies[at : at + 16]]
            assert same == []
        assert here.read(0, SIZE) == lies


def test_an_independent_reader_opens_the_stream(pair: Pair, require: Require) -> None:
    """With the target's PDH, read out of its store: memory and save areas are what they were."""
    program = require("openssl")
    source, target = pair.source(), pair.target()
    size = MIB // 4
    with source.machine(size) as here:
        here.init(sev.ES_INIT)
        here.launch_start(Policy.ES)
        here.launch_update_data(0, CONTENT[:size])
        here.launch_update_vmsas(VMSAS)
        here.launch_measure()
        here.launch_finish()
        stream = sevopened.parse_stream(stream_of(here, target, vcpus=2))
    with source.platform() as platform:
        assert stream.pdh == platform.export().pdh
    scalar = target.identity().pdh_scalar
    policy, pdh, session = stream.policy, stream.pdh, stream.session
    assert policy == Policy.ES
    keys = sevopened.open_session(program, scalar, pdh, session, policy)
    contexts = [2] * (size // PACKET_MAX_SIZE) + [3, 3]
    assert len(stream.packets) == len(contexts)
    opened = [
        sevopened.open_packet(program, keys, header, payload, context)
        for (header, payload), context in zip(stream.packets, contexts, strict=True)
    ]
    assert b"".join(opened) == CONTENT[:size] + b"".join(VMSAS)
    ivs = {header[4:20] for header, _ in stream.packets}
    assert len(ivs) == len(stream.packets)


def test_a_guest_of_sev_es_comes_back(pair: Pair, require: Require) -> None:
    """There and back again: what a platform received, save areas too, it sends."""
    program = require("openssl")
    source, target = pair.source(), pair.target()
    with source.machine(MIB) as here, target.machine(MIB) as there:
        here.init(sev.ES_INIT)
        here.launch_start(Policy.ES)
        here.launch_update_data(0, CONTENT[:MIB])
        here.launch_update_vmsas(VMSAS)
        here.launch_measure()
        here.launch_finish()
        assert arrive(there, stream_of(here, target, vcpus=2), vcpus=2) == 16 + 2
        back = stream_of(there, source, vcpus=2)
    with source.machine(MIB) as again:
        assert arrive(again, back, vcpus=2) == 16 + 2
        assert again.read_decrypted(0, MIB) == CONTENT[:MIB]
    stream = sevopened.parse_stream(back)
    keys = sevopened.open_session(
        program, source.identity().pdh_scalar, stream.pdh, stream.session, Policy.ES
    )
    areas = [sevopened.open_packet(program, keys, *packet, 3) for packet in stream.packets[-2:]]
    assert tuple(areas) == VMSAS


def test_packets_of_one_page_are_mainlines(pair: Pair) -> None:
    """A strict platform takes and gives them, and no others; nor does it know VMSA packets."""
    strict = pair.source("strict")
    with sending(strict, pair.target("strict"), CONTENT[: 8 * PAGE_SIZE]) as (here, there):
        with refused(SevCode.EINVAL):
            here.send_update_data(0, 2 * PAGE_SIZE)
        with refused(SevCode.EINVAL):
            here.send_update_data(PAGE_SIZE - 16, 32)
        for gpa in range(0, here.size, PAGE_SIZE):
            packet = here.send_update_data(gpa, PAGE_SIZE)
            with refused(SevCode.EINVAL):
                there.receive_update_data((gpa + 16) % (4 * PAGE_SIZE), packet)
            there.receive_update_data(gpa, packet)
        there.receive_finish()
        assert there.read_decrypted(0, there.size) == CONTENT[: there.size]
    with strict.machine() as machine:
        start(machine, Policy.ES)
        machine.send_start(pair.target("strict").target())
        with refused(SevCode.EINVAL):
            machine.send_update_vmsa(0)


# -- it was altered -----------------------------------------------------------------------------


def must_refuse(there: Machine, packet: TransportPacket, code: SevCode, what: object) -> None:
    with pytest.raises(CommandRefused) as raised:
        there.receive_update_data(0, packet)
    assert SevCode(raised.value.status) is code, f"{what}: {raised.value}"


def flag_code(bit: int) -> SevCode:
    """What becomes of a packet with a flag: compressed ones are not opened, others not known."""
    return SevCode.UNSUPPORTED if bit == 0 else SevCode.INVALID_PARAM


def test_an_altered_packet_is_refused(pair: Pair) -> None:
    """Each bit of its header, some of its payload; memory stays as it was."""
    with sending(pair.source(), pair.target(), CONTENT[:MIB]) as (here, there):
        before = there.read(0, there.size)
        for gpa in (0, MIB - PACKET_MAX_SIZE):
            packet = here.send_update_data(gpa, PACKET_MAX_SIZE)
            for bit in range(8 * len(packet.header)):
                header = flipped(packet.header, bit // 8, 1 << bit % 8)
                code = flag_code(bit) if bit < 32 else SevCode.BAD_MEASUREMENT
                must_refuse(there, packet._replace(header=header), code, f"header bit {bit}")
            last = 8 * PACKET_MAX_SIZE - 1
            for bit in [0, last, *CHANCE.sample(range(last), 30)]:
                payload = flipped(packet.payload, bit // 8, 1 << bit % 8)
                altered = packet._replace(payload=payload)
                must_refuse(there, altered, SevCode.BAD_MEASUREMENT, f"payload bit {bit}")
            assert there.read(0, there.size) == before
            assert there.status().state is GuestState.RUPDATE
            there.receive_update_data(gpa, packet)
            before = there.read(0, there.size)
        there.receive_finish()
        assert there.read_decrypted(0, PACKET_MAX_SIZE) == CONTENT[:PACKET_MAX_SIZE]


def test_a_cut_packet_is_refused(pair: Pair) -> None:
    with sending(pair.source(), pair.target(), CONTENT[:MIB]) as (here, there):
        packet = here.send_update_data(0, PAGE_SIZE)
        before = there.read(0, there.size)
        for size in (16, PAGE_SIZE - 16):
            cut = packet._replace(payload=packet.payload[:size])
            must_refuse(there, cut, SevCode.BAD_MEASUREMENT, size)
        longer = packet._replace(payload=packet.payload + bytes(16))
        must_refuse(there, longer, SevCode.BAD_MEASUREMENT, "longer")
        for size in (1, 15, PAGE_SIZE - 1):
            cut = packet._replace(payload=packet.payload[:size])
            must_refuse(there, cut, SevCode.INVALID_LEN, size)
        for size in (1, 51):
            cut = packet._replace(header=packet.header[:size])
            must_refuse(there, cut, SevCode.INVALID_LEN, size)
        assert there.read(0, there.size) == before
        there.receive_update_data(0, packet)


def test_an_altered_session_is_refused(pair: Pair) -> None:
    """A bit of each byte, and each of the policy's; no guest comes of it."""
    source, target = pair.source(), pair.hosts.fresh(pair.right)
    with source.machine() as here, target.machine() as there:
        start(here, 0)
        pdh = Platform(here.client).export().pdh
        policy, session = here.send_start(target.target())
        there.init(sev.INIT)
        for byte in range(len(session)):
            with refused(SevCode.BAD_MEASUREMENT):
                there.receive_start(policy, pdh, flipped(session, byte, 1 << byte % 8))
        for bit in range(32):
            # The platform is younger than 1.55 demands in bits 16 on, which is looked at first.
            with pytest.raises(CommandRefused) as raised:
                there.receive_start(policy ^ 1 << bit, pdh, session)
            allowed = {SevCode.BAD_MEASUREMENT}
            if bit >= 16:
                allowed.add(SevCode.POLICY_FAILURE)
            if 1 << bit == Policy.ES:
                allowed.add(SevCode.INVALID_CONFIG)
            assert raised.value.status in allowed, (bit, raised.value)
        with refused(SevCode.INVALID_GUEST):
            there.status()
        assert target.status().guest_count == 0
        there.receive_start(policy, pdh, session)


def test_what_the_protocol_does_not_see(pair: Pair) -> None:
    """A packet proves its content and session: not its place, nor that all come, and once.

    AMD's has no more than that; whoever needs more hashes the guest's memory.
    """
    with sending(pair.source(), pair.target(), CONTENT[: 4 * PAGE_SIZE]) as (here, there):
        pages = [here.send_update_data(gpa, PAGE_SIZE) for gpa in range(0, here.size, PAGE_SIZE)]
        there.receive_update_data(0, pages[2])
        there.receive_update_data(PAGE_SIZE, pages[0])
        there.receive_update_data(PAGE_SIZE, pages[0])
        there.receive_update_data(2 * PAGE_SIZE, pages[0])
        there.receive_finish()
        plain = [CONTENT[at : at + PAGE_SIZE] for at in range(0, here.size, PAGE_SIZE)]
        arrived = there.read_decrypted(0, 3 * PAGE_SIZE)
        assert arrived == plain[2] + plain[0] + plain[0]
        with refused(SevCode.INVALID_GUEST_STATE):
            there.receive_update_data(0, pages[1])


def test_a_packet_of_another_session_or_kind_is_refused(pair: Pair) -> None:
    with (
        sending(pair.source(), pair.target(), CONTENT[:MIB]) as (here, there),
        sending(pair.source(), pair.target(), CONTENT[:MIB]) as (other, elsewhere),
    ):
        packet = here.send_update_data(0, PAGE_SIZE)
        must_refuse(elsewhere, packet, SevCode.BAD_MEASUREMENT, "another session's")
        elsewhere.receive_update_data(0, other.send_update_data(0, PAGE_SIZE))
        there.receive_update_data(0, packet)
    source, target = pair.source(), pair.target()
    with source.machine() as here, target.machine() as there:
        here.init(sev.ES_INIT)
        here.launch_start(Policy.ES)
        here.launch_update_vmsas(VMSAS)
        here.launch_measure()
        here.launch_finish()
        pdh = Platform(here.client).export().pdh
        policy, session = here.send_start(target.target())
        there.init(sev.ES_INIT)
        there.receive_start(policy, pdh, session)
        area, page = here.send_update_vmsa(1), here.send_update_data(0, PAGE_SIZE)
        must_refuse(there, area, SevCode.BAD_MEASUREMENT, "a save area as memory")
        with refused(SevCode.BAD_MEASUREMENT):
            there.receive_update_vmsa(0, page)
        with refused(SevCode.INVALID_PARAM):
            here.send_update_vmsa(2)
        for bit in range(8 * len(area.header)):
            with refused(flag_code(bit) if bit < 32 else SevCode.BAD_MEASUREMENT):
                there.receive_update_vmsa(
                    0, area._replace(header=flipped(area.header, bit // 8, 1 << bit % 8))
                )
        there.receive_update_vmsa(1, area)


PLACES = {
    "in the policy": 2,
    "in the certificate": 100,
    "in the session": 4 + 4 + 2084 + 4 + 100,
    "before the first packet": 4 + 4 + 2084 + 4 + 128,
    "in a header": 4 + 4 + 2084 + 4 + 128 + 30,
    "in a payload": 4 + 4 + 2084 + 4 + 128 + 4 + 52 + 4 + 1000,
    "between packets": 4 + 4 + 2084 + 4 + 128 + 4 + 52 + 4 + PACKET_MAX_SIZE,
    "before the last byte": -1,
}


def test_a_stream_that_is_cut_off_makes_no_guest(pair: Pair) -> None:
    size = MIB // 4
    with pair.source().machine(size) as here:
        start(here, 0, CONTENT[:size])
        stream = stream_of(here, pair.target())
    for place, end in PLACES.items():
        with pair.target().machine(size) as there:
            with pytest.raises(SevVmError, match="cut off"):
                arrive(there, stream[:end])
            # Nothing runs: a guest is on its way, or there is none.
            with pytest.raises(CommandRefused):
                there.launch_finish()
            if place.startswith("in the"):
                with pytest.raises(CommandRefused):
                    there.status()
            else:
                assert there.status().state is GuestState.RUPDATE
    with (
        pair.target().machine(size // 2) as there,
        pytest.raises(SevVmError, match="goes on after"),
    ):
        arrive(there, stream)
    with pair.target().machine(size) as there:
        assert arrive(there, stream) == 4


def test_a_target_that_fails_leaves_the_guest_where_it_is(pair: Pair, socket_dir: Path) -> None:
    """Over a socket the source waits until the guest has arrived: here is too little memory."""
    path = socket_dir / "guest"
    errors: list[Exception] = []
    with pair.source().machine(MIB) as here, pair.target().machine(MIB // 2) as there:
        start(here, 0, CONTENT[:MIB])

        def receiving() -> None:
            try:
                with incoming(f"unix:{path}") as reader:
                    receive(there, reader)
            except SevVmError as error:
                errors.append(error)

        thread = threading.Thread(target=receiving)
        thread.start()
        while not path.exists():
            assert thread.is_alive()
        with pytest.raises(SevVmError), outgoing(f"unix:{path}") as writer:
            send(here, writer, pair.target().target(), packet_size=PACKET_MAX_SIZE)
        thread.join()
        assert "goes on after" in str(errors)
        assert here.status().state is GuestState.RUNNING
        assert here.read_decrypted(0, MIB) == CONTENT[:MIB]


# -- policies -----------------------------------------------------------------------------------


def test_nosend_keeps_a_guest(pair: Pair) -> None:
    with pair.source().machine() as machine:
        start(machine, Policy.NOSEND)
        with refused(SevCode.POLICY_FAILURE):
            machine.send_start(pair.target().target())
        assert machine.status().state is GuestState.RUNNING


def test_sev_lets_a_guest_go_only_to_platforms_of_the_root(pair: Pair) -> None:
    genuine, other = pair.target().target(), pair.target("elsewhere").target()
    with pair.source().machine() as machine:
        start(machine, Policy.SEV)
        with refused(SevCode.POLICY_FAILURE):
            machine.send_start(other)
        with refused(SevCode.INVALID_CERTIFICATE):
            machine.send_start(genuine._replace(roots=NO_ROOTS))
        # The root that is trusted, above a platform that is not of it.
        with refused(SevCode.BAD_SIGNATURE):
            machine.send_start(other._replace(roots=genuine.roots))
        assert machine.status().state is GuestState.RUNNING
        machine.send_start(genuine)
    for policy in (0, Policy.NOKS):
        with pair.source().machine() as machine:
            start(machine, policy)
            machine.send_start(other)


def test_sev_looks_at_each_link(pair: Pair) -> None:
    """One byte of each signature on the way from the root; the owner's matters to DOMAIN only."""
    pdh, chain, roots = pair.target().target()
    cert, slot = 2084, (0x41C, 0x61C + 8)
    forged = {
        "PDH by PEK": Target(flipped(pdh, slot[0]), chain, roots),
        "PEK by CEK": Target(pdh, flipped(chain, _signed_by(chain[:cert], 0x1004)), roots),
        "CEK by ASK": Target(pdh, flipped(chain, 2 * cert + slot[0]), roots),
        "ASK by ARK": Target(pdh, chain, flipped(roots, 0x40 + 2 * 256)),
    }
    with pair.source().machine() as machine:
        start(machine, Policy.SEV)
        for what, target in forged.items():
            with pytest.raises(CommandRefused) as raised:
                machine.send_start(target)
            assert raised.value.status == SevCode.BAD_SIGNATURE, what
        with refused(SevCode.POLICY_FAILURE):
            machine.send_start(Target(pdh, chain, flipped(roots, len(roots) - 1)))
        machine.send_start(Target(pdh, flipped(chain, _signed_by(chain[:cert], 0x1001)), roots))


def _signed_by(certificate: bytes, usage: int) -> int:
    """Where a certificate's signature by a key of this usage begins."""
    (at,) = (at for at in (0x414, 0x61C) if certificate[at : at + 4] == usage.to_bytes(4, "little"))
    return at + 8


def test_api_of_the_policy_is_demanded_of_the_target(pair: Pair) -> None:
    """The target's PEK says which version it has."""
    for bits in (0, Policy.SEV):
        with pair.source().machine() as machine:
            start(machine, Policy.of(bits, Api(1, 52)))
            with refused(SevCode.POLICY_FAILURE):
                machine.send_start(pair.target("old").target())
            machine.send_start(pair.target().target())
        with pair.source().machine() as machine:
            start(machine, Policy.of(bits, Api(1, 51)))
            machine.send_start(pair.target("old").target())
    with pair.source().machine() as machine:
        machine.init(sev.INIT)
        with refused(SevCode.POLICY_FAILURE):
            machine.launch_start(Policy.of(0, Api(1, 56)))
        machine.launch_start(Policy.of(0, Api(1, 55)))


def own(host: Host, name: str) -> None:
    """Give a platform an owner, as its operator does."""
    wait_until(lambda: not host.status().guest_count, "the end of all guests")
    oca = key(name)
    certificate = make_oca(oca, Api(1, 55))
    with host.platform() as platform:
        csr = SevCertificate.parse(platform.csr(), "request")
        platform.take_owner(sign_csr(csr, certificate, oca).build(), certificate.build())


def test_domain_lets_a_guest_go_only_to_platforms_of_its_owner(pair: Pair) -> None:
    source, friend, stranger = (
        pair.hosts.fresh(daemon) for daemon in (pair.left, pair.right, pair.right)
    )
    with source.machine() as machine:
        start(machine, Policy.DOMAIN)
        with refused(SevCode.POLICY_FAILURE):
            machine.send_start(friend.target())
    for host, name in ((source, "owner"), (friend, "owner"), (stranger, "another owner")):
        own(host, name)
        assert host.status().flags & 1
    with source.machine(MIB // 4) as here, friend.machine(MIB // 4) as there:
        start(here, Policy.DOMAIN, CONTENT[: here.size])
        with refused(SevCode.POLICY_FAILURE):
            here.send_start(stranger.target())
        # The owner's signature, but of another platform's PEK: it did not sign this PDH.
        with refused(SevCode.BAD_SIGNATURE):
            here.send_start(friend.target()._replace(pdh=stranger.target().pdh))
        assert arrive(there, stream_of(here, friend)) == 4
        assert there.read(0, there.size) == CONTENT[: here.size]
    wait_until(lambda: not source.status().guest_count, "the end of all guests")
    with source.platform() as platform, refused(SevCode.ALREADY_OWNED):
        platform.take_owner(*[platform.export().chain[:2084]] * 2)


# -- the source's states ------------------------------------------------------------------------


def test_a_guest_that_stays_is_sent_with_other_keys(pair: Pair) -> None:
    source, target = pair.source(), pair.target()
    with source.machine() as here, target.machine() as there:
        start(here, 0, CONTENT[:MIB])
        pdh = Platform(here.client).export().pdh
        policy, first = here.send_start(target.target())
        assert here.status().state is GuestState.SUPDATE
        packet = here.send_update_data(0, PAGE_SIZE)
        with refused(SevCode.INVALID_GUEST_STATE):
            here.send_start(target.target())
        here.send_cancel()
        assert here.status().state is GuestState.RUNNING
        with refused(SevCode.INVALID_GUEST_STATE):
            here.send_update_data(0, PAGE_SIZE)
        assert here.read_decrypted(0, MIB) == CONTENT[:MIB]
        _, second = here.send_start(target.target())
        parts = [(first[at : at + 16], second[at : at + 16]) for at in range(0, 128, 16)]
        assert [one for one, other in parts if one == other] == []
        there.init(sev.INIT)
        there.receive_start(policy, pdh, second)
        must_refuse(there, packet, SevCode.BAD_MEASUREMENT, "of the session that was given up")
        there.receive_update_data(0, here.send_update_data(0, PAGE_SIZE))


def test_a_guest_that_was_sent_does_nothing_any_more(pair: Pair) -> None:
    with pair.source().machine(MIB // 4) as here:
        start(here, 0, CONTENT[: here.size])
        stream_of(here, pair.target())
        assert here.status().state is GuestState.SENT
        target = pair.target().target()
        for again in (
            lambda: here.send_start(target),
            lambda: here.send_update_data(0, PAGE_SIZE),
            here.send_finish,
            here.send_cancel,
            here.launch_finish,
            here.receive_finish,
            lambda: here.read_decrypted(0, 16),
            lambda: here.report(bytes(16)),
        ):
            with refused(SevCode.INVALID_GUEST_STATE):
                again()
        with refused(SevCode.ASID_OWNED):
            here.launch_start(0)


def test_a_session_is_for_one_pdh(pair: Pair) -> None:
    """PDH_GEN of the target between export and arrival."""
    target = pair.hosts.fresh(pair.right)
    with pair.source().machine(MIB // 4) as here, target.machine(MIB // 4) as there:
        start(here, 0)
        old = stream_of(here, target)
        with target.platform() as platform:
            platform.make_pdh()
        with refused(SevCode.BAD_MEASUREMENT):
            arrive(there, old)
    with pair.source().machine(MIB // 4) as here, target.machine(MIB // 4) as there:
        start(here, 0)
        arrive(there, stream_of(here, target))
