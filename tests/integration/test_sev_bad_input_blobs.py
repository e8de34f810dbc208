# SPDX-License-Identifier: Apache-2.0
"""Certificates, sessions and packets that are not what they must be, over the wire."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator

import pytest
from tests.e2e.sevhosts import ROOT, Host, Hosts, Pair, refused, start
from tests.e2e.sevscenes import CODE_AT, ES, PAGE, SECRET, SECRET_AT, Scene, quiet, session_for
from tests.sev_platform import flipped

from hcalld.crypto.sev.certificates import make_oca, make_owner_dh, sign
from hcalld.crypto.sev.keys import KEY_ENTROPY_SIZE, EcPrivateKey
from hcalld.crypto.sev.packets import seal_secret
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.payloads.sev import (
    Api,
    GuestState,
    MeasurementBlob,
    Policy,
    SevCertificate,
    Usage,
)

G = GuestState
CERTIFICATE, SESSION = 2084, 128
KEY_END = 0x14 + 2 * 72
"""Of a certificate: where the reserved part of its key begins."""
SIGNED_END = 0x414


@pytest.fixture
def stack(pair: Pair) -> Iterator[contextlib.ExitStack]:
    with quiet(pair) as stack:
        yield stack


# -- what LAUNCH_START takes ----------------------------------------------------------------


def launch(scene: Scene, certificate: bytes, session: bytes, **more: int) -> SevCode:
    """LAUNCH_START with these; anything but success must leave all as it was."""
    before = scene.snapshot()
    fields = {
        "policy": scene.policy,
        "dh_uaddr": scene.put(certificate),
        "dh_len": len(certificate),
        "session_uaddr": scene.put(session),
        "session_len": len(session),
    } | more
    code, _ = scene.give(sev.LAUNCH_START, **fields)
    if code:
        assert scene.snapshot()[:4] == before[:4]
    return code


CERTIFICATE_PARTS = [
    ("version", range(4), SevCode.INVALID_CERTIFICATE),
    ("reserved", range(6, 8), SevCode.INVALID_CERTIFICATE),
    ("usage", range(8, 12), SevCode.INVALID_CERTIFICATE),
    ("curve", range(0x10, 0x14), SevCode.INVALID_CERTIFICATE),
    ("point", range(0x14, KEY_END, 7), SevCode.INVALID_CERTIFICATE),
    ("rest of the key", range(KEY_END, SIGNED_END, 97), SevCode.INVALID_CERTIFICATE),
]
"""Bytes of an owner's certificate of which each must be as it is."""


@pytest.mark.parametrize(
    ("offsets", "code"),
    [part[1:] for part in CERTIFICATE_PARTS],
    ids=[p[0] for p in CERTIFICATE_PARTS],
)
def test_an_owners_certificate_with_a_flipped_byte(
    pair: Pair, stack: contextlib.ExitStack, offsets: range, code: SevCode
) -> None:
    scene = Scene(pair, stack, G.UNINIT)
    certificate, session = scene.owner.certificate.build(), scene.owner.session.build()
    for offset in offsets:
        found = launch(scene, flipped(certificate, offset), session)
        assert found is code, f"byte 0x{offset:x}: {found.name}"
    assert launch(scene, certificate, session) is SevCode.SUCCESS


@pytest.mark.parametrize(
    "offset",
    [4, 5, SIGNED_END, SIGNED_END + 8, 0x61B, 0x61C, CERTIFICATE - 1],
)
def test_bytes_of_an_owners_certificate_that_nobody_looks_at(
    pair: Pair, stack: contextlib.ExitStack, offset: int
) -> None:
    """Its version, and its signatures: sev-tool claims to be a PEK, sevctl has none."""
    scene = Scene(pair, stack, G.UNINIT)
    certificate = flipped(scene.owner.certificate.build(), offset, 0xFF)
    assert launch(scene, certificate, scene.owner.session.build()) is SevCode.SUCCESS


@pytest.mark.parametrize(("algorithm", "code"), [(3, 0), (0x103, 0), (2, 6), (0x102, 6), (1, 6)])
def test_algorithms_of_an_owners_certificate(
    pair: Pair, stack: contextlib.ExitStack, algorithm: int, code: int
) -> None:
    scene = Scene(pair, stack, G.UNINIT)
    built = scene.owner.certificate.build()
    certificate = built[:12] + algorithm.to_bytes(4, "little") + built[16:]
    assert launch(scene, certificate, scene.owner.session.build()) == code


def test_an_owners_point_at_infinity_or_beyond_the_field(
    pair: Pair, stack: contextlib.ExitStack
) -> None:
    scene = Scene(pair, stack, G.UNINIT)
    built, session = scene.owner.certificate.build(), scene.owner.session.build()
    for point in (bytes(144), b"\xff" * 144, b"\1" + bytes(143)):
        certificate = built[:0x14] + point + built[KEY_END:]
        assert launch(scene, certificate, session) is SevCode.INVALID_CERTIFICATE


def test_another_owners_certificate(pair: Pair, stack: contextlib.ExitStack) -> None:
    """Well-formed, and not whose session it is."""
    scene = Scene(pair, stack, G.UNINIT)
    other = make_owner_dh(EcPrivateKey.from_entropy(os.urandom(KEY_ENTROPY_SIZE)))
    found = launch(scene, other.build(), scene.owner.session.build())
    assert found is SevCode.BAD_MEASUREMENT


@pytest.mark.parametrize("offset", [0, 15, 16, 31, 32, 47, 48, 63, 64, 95, 96, 127])
def test_a_session_with_a_flipped_byte(
    pair: Pair, stack: contextlib.ExitStack, offset: int
) -> None:
    """Nonce, wrapped keys, IV and both MACs, each at both ends."""
    scene = Scene(pair, stack, G.UNINIT)
    certificate, session = scene.owner.certificate.build(), scene.owner.session.build()
    for mask in (1, 0x80):
        found = launch(scene, certificate, flipped(session, offset, mask))
        assert found is SevCode.BAD_MEASUREMENT, found.name
    assert launch(scene, certificate, session) is SevCode.SUCCESS


@pytest.mark.parametrize("bit", range(16))
def test_a_session_for_another_policy(pair: Pair, stack: contextlib.ExitStack, bit: int) -> None:
    """Each bit counts, reserved ones too; those of a version are in the tests of versions."""
    scene = Scene(pair, stack, G.UNINIT)
    certificate, session = scene.owner.certificate.build(), scene.owner.session.build()
    found = launch(scene, certificate, session, policy=scene.policy ^ 1 << bit)
    assert found is SevCode.BAD_MEASUREMENT


def test_a_session_for_another_platform(pair: Pair, stack: contextlib.ExitStack) -> None:
    scene = Scene(pair, stack, G.UNINIT)
    for host in (scene.peer, pair.source("plain")):
        with host.platform() as platform:
            owner = session_for(platform, scene.policy)
        found = launch(scene, owner.certificate.build(), owner.session.build())
        assert found is SevCode.BAD_MEASUREMENT


def test_a_session_for_an_older_pdh(hosts: Hosts) -> None:
    daemon = hosts.daemon("own", mine=f'[sev]\nroot = "{ROOT}"\n')
    host = Host(daemon, "mine")
    with host.platform() as platform, host.machine() as machine:
        owner = session_for(platform, 0)
        platform.make_pdh()
        machine.init(sev.INIT)
        with refused(SevCode.BAD_MEASUREMENT):
            machine.launch_start(0, owner.certificate.build(), owner.session.build())
        again = session_for(platform, 0)
        machine.launch_start(0, again.certificate.build(), again.session.build())


@pytest.mark.parametrize(
    ("certificate_size", "session_size", "code"),
    [
        (CERTIFICATE - 1, SESSION, SevCode.INVALID_LEN),
        (CERTIFICATE, SESSION - 1, SevCode.INVALID_LEN),
        (1, SESSION, SevCode.INVALID_LEN),
        (CERTIFICATE, 1, SevCode.INVALID_LEN),
        (CERTIFICATE + 1, SESSION + 1, SevCode.SUCCESS),
        (16384, 16384, SevCode.SUCCESS),
        (16385, SESSION, SevCode.EINVAL),
        (CERTIFICATE, 16385, SevCode.EINVAL),
    ],
)
def test_lengths_of_what_launch_start_takes(
    pair: Pair,
    stack: contextlib.ExitStack,
    certificate_size: int,
    session_size: int,
    code: SevCode,
) -> None:
    scene = Scene(pair, stack, G.UNINIT)
    certificate = scene.owner.certificate.build().ljust(certificate_size, b"\xff")
    session = scene.owner.session.build().ljust(session_size, b"\xff")
    assert launch(scene, certificate[:certificate_size], session[:session_size]) is code


def test_a_length_of_nothing(pair: Pair, stack: contextlib.ExitStack) -> None:
    """An address with no bytes at it is the kernel's to refuse."""
    scene = Scene(pair, stack, G.UNINIT)
    for field in ("dh_len", "session_len"):
        scene.must_refuse(sev.LAUNCH_START, SevCode.EINVAL, **{field: 0})


# -- policies -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "code"),
    [
        ((0, 0), SevCode.SUCCESS),
        ((1, 55), SevCode.SUCCESS),
        ((1, 54), SevCode.SUCCESS),
        ((0, 255), SevCode.SUCCESS),
        ((1, 56), SevCode.POLICY_FAILURE),
        ((2, 0), SevCode.POLICY_FAILURE),
        ((255, 255), SevCode.POLICY_FAILURE),
    ],
)
def test_the_least_version_of_a_policy(
    pair: Pair, stack: contextlib.ExitStack, version: tuple[int, int], code: SevCode
) -> None:
    policy = int(Policy.of(ES, Api(*version)))
    scene = Scene(pair, stack, G.UNINIT, policy=policy)
    found = launch(scene, scene.owner.certificate.build(), scene.owner.session.build())
    assert found is code


def test_a_key_is_shared_by_guests_of_one_policy(pair: Pair, stack: contextlib.ExitStack) -> None:
    first = Scene(pair, stack, G.RUNNING)
    handle = first.machine.status().handle
    for policy, code in (
        (ES | Policy.NOKS, SevCode.POLICY_FAILURE),
        (ES | Policy.NODBG, SevCode.POLICY_FAILURE),
        (ES | 1 << 9, SevCode.POLICY_FAILURE),
        (ES, SevCode.SUCCESS),
    ):
        other = Scene(pair, stack, G.UNINIT, policy=int(policy))
        certificate, session = other.owner.certificate.build(), other.owner.session.build()
        assert launch(other, certificate, session, handle=handle) is code
    late = Scene(pair, stack, G.UNINIT)
    late.must_refuse(sev.LAUNCH_START, SevCode.INVALID_GUEST, handle=0xFFFFFFFF)
    late.must_refuse(sev.RECEIVE_START, SevCode.INVALID_GUEST, handle=0xFFFFFFFF)


@pytest.mark.parametrize(
    ("policy", "hcall"),
    [
        (Policy.NODBG, sev.DBG_DECRYPT),
        (Policy.NODBG, sev.DBG_ENCRYPT),
        (Policy.NOSEND, sev.SEND_START),
    ],
    ids=str,
)
def test_what_a_policy_forbids(
    pair: Pair, stack: contextlib.ExitStack, policy: Policy, hcall: object
) -> None:
    name = getattr(hcall, "name", "").removeprefix("KVM_SEV_")
    scene = Scene(pair, stack, G.RUNNING, policy=int(ES | policy))
    scene.must_refuse(getattr(sev, name), SevCode.POLICY_FAILURE)
    others = {sev.DBG_DECRYPT, sev.DBG_ENCRYPT, sev.SEND_START}
    forbidden = {sev.SEND_START} if policy is Policy.NOSEND else others - {sev.SEND_START}
    for other in others - forbidden:
        assert scene.give(other, **scene.good(other))[0] is SevCode.SUCCESS


def test_the_save_areas_of_a_guest_whose_policy_has_none(
    pair: Pair, stack: contextlib.ExitStack
) -> None:
    scene = Scene(pair, stack, None, policy=0)
    scene.machine.init(sev.ES_INIT)
    scene.machine.launch_start(0)
    scene.must_refuse(sev.LAUNCH_UPDATE_VMSA, SevCode.POLICY_FAILURE)


# -- SEND_START's target --------------------------------------------------------------------


SIGNED = [
    ("PDH", "pdh", 0, SevCode.BAD_SIGNATURE),
    ("PEK", "chain", 0, SevCode.BAD_SIGNATURE),
    ("CEK", "chain", 2 * CERTIFICATE, SevCode.BAD_SIGNATURE),
]


@pytest.mark.parametrize(("blob", "base"), [one[1:3] for one in SIGNED], ids=[s[0] for s in SIGNED])
@pytest.mark.parametrize("offset", [0, 4, 6, 8, 12, 16, 0x14, 0x60, KEY_END, SIGNED_END - 1])
def test_a_flipped_byte_of_what_is_signed_in_a_targets_certificate(
    pair: Pair, stack: contextlib.ExitStack, blob: str, base: int, offset: int
) -> None:
    scene = Scene(pair, stack, G.RUNNING, policy=int(ES | Policy.SEV))
    target = scene.sent_to()
    changed = flipped(getattr(target, blob), base + offset)
    scene.target = target._replace(**{blob: changed})
    found = scene.give(sev.SEND_START, **scene.good(sev.SEND_START))[0]
    # Well-formed, and the signature wrong: only of the version. All else is malformed.
    expected = SevCode.BAD_SIGNATURE if offset == 4 else SevCode.INVALID_CERTIFICATE
    assert found is expected, found.name
    assert scene.machine.status().state is G.RUNNING


@pytest.mark.parametrize(
    ("blob", "offset", "code"),
    [
        ("pdh", 0x414 + 8, SevCode.BAD_SIGNATURE),
        ("pdh", 0x414, SevCode.BAD_SIGNATURE),
        ("pdh", 0x61C, SevCode.SUCCESS),
        ("chain", 0x414 + 8, SevCode.SUCCESS),  # the owner's, which SEV does not ask for
        ("chain", 0x61C + 8, SevCode.BAD_SIGNATURE),
        ("chain", 2 * CERTIFICATE + 0x41C, SevCode.BAD_SIGNATURE),
        ("chain", 2 * CERTIFICATE + 0x61C, SevCode.SUCCESS),
        ("roots", 0x04, SevCode.BAD_SIGNATURE),
        ("roots", 0x14, SevCode.BAD_SIGNATURE),
        ("roots", 0x24, SevCode.INVALID_CERTIFICATE),
        ("roots", 0x38, SevCode.INVALID_CERTIFICATE),
        ("roots", 0x40 + 256 + 5, SevCode.BAD_SIGNATURE),
        ("roots", 831, SevCode.BAD_SIGNATURE),
        ("roots", 832 + 4, SevCode.POLICY_FAILURE),
        ("roots", 832 + 831, SevCode.POLICY_FAILURE),
    ],
)
def test_a_flipped_byte_elsewhere_in_a_targets_chain(
    pair: Pair, stack: contextlib.ExitStack, blob: str, offset: int, code: SevCode
) -> None:
    scene = Scene(pair, stack, G.RUNNING, policy=int(ES | Policy.SEV))
    target = scene.sent_to()
    scene.target = target._replace(**{blob: flipped(getattr(target, blob), offset)})
    found = scene.give(sev.SEND_START, **scene.good(sev.SEND_START))[0]
    assert found is code, found.name
    assert scene.machine.status().state is (G.RUNNING if code else G.SUPDATE)


@pytest.mark.parametrize(
    ("flag", "platform", "code"),
    [
        (Policy.SEV, "encrypted", SevCode.SUCCESS),
        (Policy.SEV, "elsewhere", SevCode.POLICY_FAILURE),
        (Policy.DOMAIN, "encrypted", SevCode.POLICY_FAILURE),
        (Policy(0), "elsewhere", SevCode.SUCCESS),
    ],
)
def test_where_a_policy_lets_a_guest_go(
    pair: Pair, stack: contextlib.ExitStack, flag: Policy, platform: str, code: SevCode
) -> None:
    scene = Scene(pair, stack, G.RUNNING, policy=int(ES | flag))
    scene.target = pair.target(platform).target()
    found = scene.give(sev.SEND_START, **scene.good(sev.SEND_START))[0]
    assert found is code
    assert scene.machine.status().state is (G.RUNNING if code else G.SUPDATE)


@pytest.mark.parametrize(
    ("offset", "code"),
    [
        (4, SevCode.POLICY_FAILURE),
        (8, SevCode.INVALID_CERTIFICATE),
        (12, SevCode.INVALID_CERTIFICATE),
        (0x14, SevCode.INVALID_CERTIFICATE),
        (0x41C, SevCode.SUCCESS),
    ],
)
def test_a_target_whose_version_alone_matters(
    pair: Pair, stack: contextlib.ExitStack, offset: int, code: SevCode
) -> None:
    """Its PEK must be one, though nobody asks who signed it."""
    scene = Scene(pair, stack, G.RUNNING, policy=int(Policy.of(ES, Api(1, 55))))
    target = scene.sent_to()
    scene.target = target._replace(chain=flipped(target.chain, offset))
    found = scene.give(sev.SEND_START, **scene.good(sev.SEND_START))[0]
    assert found is code, found.name
    assert scene.machine.status().state is (G.RUNNING if code else G.SUPDATE)


def test_a_target_that_is_itself(pair: Pair, stack: contextlib.ExitStack) -> None:
    """Of its own owner, and of a root that it trusts: every demand holds."""
    scene = Scene(pair, stack, G.RUNNING, policy=int(ES | Policy.SEV | Policy.DOMAIN))
    scene.target = scene.host.target()
    assert scene.give(sev.SEND_START, **scene.good(sev.SEND_START))[0] is SevCode.SUCCESS


# -- packets --------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [4, 19, 20, 51, 52, 52 + len(SECRET) - 1])
def test_a_secret_with_a_flipped_byte(pair: Pair, stack: contextlib.ExitStack, offset: int) -> None:
    """IV, MAC and payload, each at both ends."""
    scene = Scene(pair, stack, G.LSECRET)
    header, payload = scene.secret()
    data = flipped(header.build() + payload, offset)
    fields = scene.fields_of((data[:52], data[52:]), SECRET_AT)
    scene.must_refuse(sev.LAUNCH_SECRET, SevCode.BAD_MEASUREMENT, **fields)
    scene.must_refuse(
        sev.LAUNCH_SECRET,
        SevCode.UNSUPPORTED,
        **scene.fields_of((flipped(header.build(), 0, 1), payload), SECRET_AT),
    )
    for byte, mask in ((0, 2), (1, 1), (3, 0x80)):
        fields = scene.fields_of((flipped(header.build(), byte, mask), payload), SECRET_AT)
        scene.must_refuse(sev.LAUNCH_SECRET, SevCode.INVALID_PARAM, **fields)
    good = scene.fields_of((header.build(), payload), SECRET_AT)
    assert scene.give(sev.LAUNCH_SECRET, **good)[0] is SevCode.SUCCESS


def test_a_secret_of_another_launch_of_the_same_owner(
    pair: Pair, stack: contextlib.ExitStack
) -> None:
    """Same session, keys, digest and platform: only the nonce of the measurement differs."""
    first, second = (Scene(pair, stack, G.UNINIT) for _ in range(2))
    second.owner, second.keys = first.owner, first.keys
    for scene in (first, second):
        scene._start()
        scene._measure()
    assert first.measurement != second.measurement
    header, payload = first.secret()
    packet = header.build(), payload
    second.must_refuse(
        sev.LAUNCH_SECRET, SevCode.BAD_MEASUREMENT, **second.fields_of(packet, SECRET_AT)
    )
    good = first.fields_of(packet, SECRET_AT)
    assert first.give(sev.LAUNCH_SECRET, **good)[0] is SevCode.SUCCESS


@pytest.mark.parametrize(
    ("size", "code"),
    [
        (8, SevCode.INVALID_LEN),
        (15, SevCode.INVALID_LEN),
        (16, SevCode.SUCCESS),
        (17, SevCode.INVALID_LEN),
        (4080, SevCode.SUCCESS),
        (4096, SevCode.SUCCESS),
        (4104, SevCode.INVALID_LEN),
        (16368, SevCode.SUCCESS),
        (16384, SevCode.SUCCESS),
        (16385, SevCode.EINVAL),
        (16400, SevCode.EINVAL),
    ],
)
def test_lengths_of_a_secret(
    pair: Pair, stack: contextlib.ExitStack, size: int, code: SevCode
) -> None:
    scene = Scene(pair, stack, G.LSECRET)
    header, payload = seal_secret(
        scene.keys, bytes(size), iv=bytes(16), measurement=scene.measurement, api=Api(1, 55)
    )
    fields = scene.fields_of((header.build(), payload), SECRET_AT)
    if code:
        scene.must_refuse(sev.LAUNCH_SECRET, code, **fields)
    else:
        assert scene.give(sev.LAUNCH_SECRET, **fields)[0] is code


def test_a_secret_for_other_lengths(pair: Pair, stack: contextlib.ExitStack) -> None:
    """What is cut or lengthened: both lengths are in the MAC, and must be the same."""
    scene = Scene(pair, stack, G.LSECRET)
    header, payload = scene.secret()
    for cut in (16, 48, len(payload) - 16):
        fields = scene.fields_of((header.build(), payload[:cut]), SECRET_AT)
        scene.must_refuse(sev.LAUNCH_SECRET, SevCode.BAD_MEASUREMENT, **fields)
        fields["guest_len"] = len(payload)
        scene.must_refuse(sev.LAUNCH_SECRET, SevCode.INVALID_LEN, **fields)
    fields = scene.fields_of((header.build(), payload + bytes(16)), SECRET_AT)
    scene.must_refuse(sev.LAUNCH_SECRET, SevCode.BAD_MEASUREMENT, **fields)
    good = scene.fields_of((header.build(), payload), SECRET_AT)
    scene.must_refuse(sev.LAUNCH_SECRET, SevCode.INVALID_LEN, **good | {"hdr_len": 51})
    for address, code in (
        (good["guest_uaddr"] + 1, SevCode.INVALID_ADDRESS),
        (good["guest_uaddr"] + 8, SevCode.INVALID_ADDRESS),
    ):
        scene.must_refuse(sev.LAUNCH_SECRET, code, **good | {"guest_uaddr": address})
    # Lengths come first, then the address, then what is in the packet.
    compressed = scene.fields_of((flipped(header.build(), 0), payload), SECRET_AT)
    compressed["guest_uaddr"] += 8
    scene.must_refuse(sev.LAUNCH_SECRET, SevCode.INVALID_ADDRESS, **compressed)
    compressed["guest_len"] -= 8
    scene.must_refuse(sev.LAUNCH_SECRET, SevCode.INVALID_LEN, **compressed)


@pytest.mark.parametrize("offset", [4, 19, 20, 51, 52, 52 + 4095])
def test_a_page_on_its_way_with_a_flipped_byte(
    pair: Pair, stack: contextlib.ExitStack, offset: int
) -> None:
    scene = Scene(pair, stack, G.RUPDATE)
    for name, hcall, at in (
        ("page", sev.RECEIVE_UPDATE_DATA, CODE_AT),
        ("area", sev.RECEIVE_UPDATE_VMSA, None),
    ):
        header, payload = scene.packets[name]
        data = flipped(header.build() + payload, offset)
        fields = scene.fields_of((data[:52], data[52:]), at)
        scene.must_refuse(hcall, SevCode.BAD_MEASUREMENT, **fields)
        fields = scene.fields_of((flipped(header.build(), 0), payload), at)
        scene.must_refuse(hcall, SevCode.UNSUPPORTED, **fields)
        fields = scene.fields_of((flipped(header.build(), 2), payload), at)
        scene.must_refuse(hcall, SevCode.INVALID_PARAM, **fields)


def test_packets_in_each_others_place(pair: Pair, stack: contextlib.ExitStack) -> None:
    """A page is no save area, and no secret; nor of another session."""
    scene, other = (Scene(pair, stack, G.RUPDATE) for _ in range(2))
    page, area = ((packet.header.build(), packet.payload) for packet in scene.packets.values())
    bad = SevCode.BAD_MEASUREMENT
    scene.must_refuse(sev.RECEIVE_UPDATE_VMSA, bad, **scene.fields_of(page))
    scene.must_refuse(sev.RECEIVE_UPDATE_DATA, bad, **scene.fields_of(area, CODE_AT))
    other.must_refuse(sev.RECEIVE_UPDATE_DATA, bad, **other.fields_of(page, CODE_AT))
    other.must_refuse(sev.RECEIVE_UPDATE_VMSA, bad, **other.fields_of(area))
    assert scene.give(sev.RECEIVE_UPDATE_DATA, **scene.fields_of(page, CODE_AT))[0] == 0
    scene.machine.receive_finish()
    assert scene.machine.read_decrypted(CODE_AT, len(PAGE)) == PAGE


def test_a_session_of_a_source_is_for_one_target(pair: Pair, stack: contextlib.ExitStack) -> None:
    source = Scene(pair, stack, G.RUNNING)
    policy, session = source.machine.send_start(source.sent_to())
    with source.host.platform() as platform:
        pdh = platform.export().pdh
    for host in (source.host, pair.target("plain")):
        machine = stack.enter_context(host.machine())
        machine.init(sev.ES_INIT)
        with refused(SevCode.BAD_MEASUREMENT):
            machine.receive_start(policy, pdh, session)
    machine = stack.enter_context(source.peer.machine())
    machine.init(sev.ES_INIT)
    for wrong in (policy ^ 1, policy ^ 1 << 5):
        with refused(SevCode.BAD_MEASUREMENT):
            machine.receive_start(wrong, pdh, session)
    for offset in (0, 16, 48, 64, 96, 127):
        with refused(SevCode.BAD_MEASUREMENT):
            machine.receive_start(policy, pdh, flipped(session, offset))
    with refused(SevCode.INVALID_LEN):
        machine.receive_start(policy, pdh, session[:-1])
    machine.receive_start(policy, pdh, session)


def test_keys_of_a_cancelled_way_open_nothing_later(
    pair: Pair, stack: contextlib.ExitStack
) -> None:
    source = Scene(pair, stack, G.SUPDATE)
    old = source.machine.send_update_data(CODE_AT, 4096)
    source.machine.send_cancel()
    _, session = source.machine.send_start(source.sent_to())
    new = source.machine.send_update_data(CODE_AT, 4096)
    machine = stack.enter_context(source.peer.machine())
    machine.init(sev.ES_INIT)
    with source.host.platform() as platform:
        machine.receive_start(source.policy, platform.export().pdh, session)
    with refused(SevCode.BAD_MEASUREMENT):
        machine.receive_update_data(CODE_AT, old)
    machine.receive_update_data(CODE_AT, new)


# -- owners of a platform -------------------------------------------------------------------


class Imports:
    """A platform that gets an owner."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.oca_key = EcPrivateKey.from_entropy(os.urandom(KEY_ENTROPY_SIZE))
        self.oca = make_oca(self.oca_key)
        with host.platform() as platform:
            self.csr = SevCertificate.parse(platform.csr())

    @property
    def pek(self) -> SevCertificate:
        return sign(self.csr, Usage.OCA, self.oca_key)

    def must_refuse(self, pek: bytes, oca: bytes, code: SevCode) -> None:
        before = self.host.chain(), self.host.status()
        with self.host.platform() as platform, refused(code):
            platform.take_owner(pek, oca)
        assert (self.host.chain(), self.host.status()) == before


def test_owners_that_a_platform_does_not_take(hosts: Hosts) -> None:
    daemon = hosts.daemon("own", mine=f'[sev]\nroot = "{ROOT}"\n')
    host = Host(daemon, "mine")
    imports = Imports(host)
    pek, oca = imports.pek.build(), imports.oca.build()
    bad_signature, bad = SevCode.BAD_SIGNATURE, SevCode.INVALID_CERTIFICATE
    with host.machine() as machine:
        start(machine, 0)
        imports.must_refuse(pek, oca, SevCode.INVALID_PLATFORM_STATE)
    # Malformed or another key; then what is signed; then the signature, and its slot.
    for offset, code in (
        (0, bad),
        (6, bad),
        (8, bad),
        (12, bad),
        (0x10, bad),
        (0x14, bad),
        (0x60, bad),
        (SIGNED_END - 1, bad),
        (4, bad_signature),
        (0x414, bad_signature),
        (0x418, bad_signature),
        (0x41C, bad_signature),
        (0x41C + 72, bad_signature),
        (0x61C, bad),  # not empty: there is no place for the CEK's signature
        (0x61C + 8, bad),
    ):
        imports.must_refuse(flipped(pek, offset), oca, code)
    for offset, code in (
        (0, bad),
        (8, bad),
        (0x14, bad),
        (4, bad_signature),
        (0x41C, bad_signature),
    ):
        imports.must_refuse(pek, flipped(oca, offset), code)
    imports.must_refuse(imports.csr.build(), oca, bad_signature)
    another = make_oca(EcPrivateKey.from_entropy(os.urandom(KEY_ENTROPY_SIZE)))
    imports.must_refuse(pek, another.build(), bad_signature)
    imports.must_refuse(oca, pek, bad)
    as_pek = dataclasses.replace(imports.oca, usage=Usage.PEK)
    imports.must_refuse(pek, as_pek.build(), bad)
    imports.must_refuse(pek[:-1], oca, SevCode.INVALID_LEN)
    imports.must_refuse(pek, oca[:-1], SevCode.INVALID_LEN)
    with host.platform() as platform:
        platform.take_owner(pek, oca)
    imports.must_refuse(pek, oca, SevCode.ALREADY_OWNED)
    assert host.status().flags & 1


def test_measurements_are_bound_to_the_launch(pair: Pair, stack: contextlib.ExitStack) -> None:
    """Two launches of the same bytes: other nonces, other measurements."""
    blobs = {
        MeasurementBlob.parse(Scene(pair, stack, G.LUPDATE).machine.launch_measure())
        for _ in range(2)
    }
    assert len({blob.mnonce for blob in blobs}) == 2
    assert len({blob.measurement for blob in blobs}) == 2
