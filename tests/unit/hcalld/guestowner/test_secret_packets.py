# SPDX-License-Identifier: Apache-2.0
"""Secrets for a launch, against the packets of virt-qemu-sev-validate."""

from __future__ import annotations

import base64
import pathlib
from uuid import UUID

import pytest
from tests.conftest import Require
from tests.sev_platform import KEYS, VERSION
from tests.unit.hcalld.guestowner.images import firmware
from tests.unit.hcalld.guestowner.oracles import LOOKS_GOOD, validate

from hcalld.crypto.sev.errors import MacError
from hcalld.crypto.sev.kdf import aes_ctr
from hcalld.crypto.sev.packets import Packet, open_secret
from hcalld.guestowner.errors import GuestOwnerError
from hcalld.guestowner.launch import Launch
from hcalld.guestowner.secret_packets import guid_of, pack
from hcalld.guestowner.validation import Claim
from hcalld.testing.sev import made_up
from hcallproto.payloads.sev.blobs import MeasurementBlob, PacketHeader
from hcallproto.payloads.sev.tables import LUKS_KEY_GUID, SecretEntry

MNONCE = bytes(range(16))
POLICY = 1
FIRMWARE = firmware()
CLAIM = Claim(version=VERSION, policy=POLICY, digest=Launch(FIRMWARE).digest)
MEASUREMENT = CLAIM.measurement(KEYS.tik, MNONCE)
GUID = UUID("e6f5a162-d67f-4750-a67c-5d065f2a9910")


def packed(*entries: SecretEntry) -> Packet:
    return pack(
        entries,
        KEYS,
        measurement=MEASUREMENT,
        version=VERSION,
        entropy=lambda size: made_up("iv", size),
    )


def opened(packet: Packet, measurement: bytes = MEASUREMENT) -> bytes:
    return open_secret(
        KEYS,
        packet,
        guest_size=len(packet.payload),
        measurement=measurement,
        api=VERSION.api,
    )


@pytest.mark.parametrize("size", [1, 15, 16, 200])
def test_pack_when_the_program_packs_the_same_then_only_iv_and_mac_differ(
    require: Require, tmp_path: pathlib.Path, size: int
):
    values = {"luks-key": made_up("a", size), str(GUID): made_up("b", 20)}
    (tmp_path / "fw").write_bytes(FIRMWARE)
    (tmp_path / "tk").write_bytes(KEYS.build())
    words = []
    for number, (name, value) in enumerate(values.items()):
        (tmp_path / f"s{number}").write_bytes(value)
        words.append(f"--inject-secret={name}:s{number}")
    blob = MeasurementBlob(measurement=MEASUREMENT, mnonce=MNONCE).build()
    done = validate(
        require,
        tmp_path,
        f"--measurement={base64.b64encode(blob).decode()}",
        f"--api-major={VERSION.api_major}",
        f"--api-minor={VERSION.api_minor}",
        f"--build-id={VERSION.build}",
        f"--policy={POLICY}",
        *("--firmware=fw", "--tk=tk", "--secret-header=header", "--secret-payload=payload"),
        *words,
    )
    assert done.stdout == f"{LOOKS_GOOD}OK: Injected 2 secrets\n", done.stderr
    header, payload = (
        base64.b64decode((tmp_path / name).read_bytes()) for name in ("header", "payload")
    )
    theirs = Packet(PacketHeader.parse(header), payload)
    ours = packed(*[SecretEntry(guid_of(name), value) for name, value in values.items()])
    # Theirs has a block of zeros more, if the last one was full.
    table = opened(theirs)
    assert table.removesuffix(bytes(16)) in (opened(ours), opened(ours).removesuffix(bytes(16)))
    assert len(ours.header.build()) == len(header)
    # What is theirs under our IV is ours, block for block.
    assert aes_ctr(KEYS.tek, ours.header.iv, table)[: len(ours.payload)] == ours.payload


def test_pack_when_another_launch_opens_it_then_it_is_refused():
    packet = packed(SecretEntry(LUKS_KEY_GUID, b"secret"))
    assert b"secret" in opened(packet)
    with pytest.raises(MacError):
        opened(packet, bytes(32))


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([], "no secret to pack"),
        ([SecretEntry(GUID, b"a"), SecretEntry(GUID, b"b")], "two secrets have one GUID"),
        ([SecretEntry(GUID, bytes(16384))], "at most 16384; give the guest a key"),
    ],
)
def test_pack_when_there_is_nothing_or_too_much_then_it_is_refused(
    entries: list[SecretEntry], why: str
):
    with pytest.raises(GuestOwnerError, match=why):
        packed(*entries)


def test_pack_when_a_packet_is_full_then_it_is_made():
    assert len(packed(SecretEntry(GUID, bytes(16384 - 40))).payload) == 16384


def test_guid_of_when_it_is_a_name_or_a_guid_then_that_one():
    assert guid_of("luks-key") == LUKS_KEY_GUID
    assert guid_of(str(GUID).upper()) == GUID


@pytest.mark.parametrize("name", ["", "luks", str(GUID)[1:], f"{{{GUID}}}", GUID.hex])
def test_guid_of_when_it_is_neither_then_it_says_what_is_expected(name: str):
    with pytest.raises(GuestOwnerError, match="expected a GUID, or luks-key"):
        guid_of(name)
