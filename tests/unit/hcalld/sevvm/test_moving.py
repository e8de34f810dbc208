# SPDX-License-Identifier: Apache-2.0
"""A guest's way: whole or not at all, and whoever fails leaves it where it is."""

from __future__ import annotations

import io

import pytest
from tests.sev_platform import chain
from tests.unit.hcalld.sevvm.fakeclient import PDH, SESSION, FakeClient, machine_of

from hcalld.guestowner.chain_files import PlatformFile
from hcalld.guestowner.client import CommandRefused
from hcalld.sevvm.errors import SevVmError
from hcalld.sevvm.machine import Target
from hcalld.sevvm.moving import NO_ROOTS, receive, send, target_of
from hcalld.sevvm.streams import StreamHead, StreamReader, StreamWriter
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.payloads.sev.constants import PAGE_SIZE

TARGET = Target(b"pdh", b"chain", b"roots")
SIZE = 5 * PAGE_SIZE
CONTENT = b"".join(bytes((n,)) * PAGE_SIZE for n in range(1, 6))
ES, SEV = 4, 32


def sent(client: FakeClient, *, packet_size: int = 2 * PAGE_SIZE, vcpus: int = 0) -> bytes:
    machine = machine_of(client, SIZE)
    machine.write(0, CONTENT)
    file = io.BytesIO()
    send(machine, StreamWriter(file), TARGET, packet_size=packet_size, vcpus=vcpus)
    return file.getvalue()


def test_memory_comes_first_and_then_the_processors():
    client = FakeClient(policy=ES)
    reader = StreamReader(io.BytesIO(sent(client, vcpus=2)))
    assert reader.head() == StreamHead(ES, PDH, SESSION)
    payloads = []
    while (packet := reader.packet()) is not None:
        payloads.append(packet.payload)
    assert [len(one) // PAGE_SIZE for one in payloads] == [2, 2, 1, 1, 1]
    assert b"".join(payloads[:3]) == CONTENT
    assert client.names[-7:] == [
        "SEND_START",
        *["SEND_UPDATE_DATA"] * 3,
        *["SEND_UPDATE_VMSA"] * 2,
        "SEND_FINISH",
    ]


def test_a_guest_of_sev_has_no_processors_to_send():
    client = FakeClient()
    sent(client, vcpus=2)
    assert "SEND_UPDATE_VMSA" not in client.names


class Full(io.BytesIO):
    def write(self, data: object, /) -> int:
        raise OSError(28, "No space left on device")


def test_a_guest_that_cannot_be_sent_stays():
    client = FakeClient()
    with pytest.raises(OSError, match="No space"):
        send(machine_of(client, SIZE), StreamWriter(Full()), TARGET, packet_size=PAGE_SIZE)
    assert client.names[-2:] == ["SEND_START", "SEND_CANCEL"]
    client = FakeClient()
    client.refuse(sev.SEND_UPDATE_DATA, SevCode.EINVAL)
    client.refuse(sev.SEND_CANCEL, SevCode.INVALID_GUEST_STATE)
    with pytest.raises(CommandRefused) as raised:
        sent(client)
    assert raised.value.name == sev.SEND_UPDATE_DATA.name
    assert client.names[-1] == "SEND_CANCEL"


def test_nothing_is_cancelled_that_was_not_begun():
    client = FakeClient()
    client.refuse(sev.SEND_START, SevCode.POLICY_FAILURE)
    with pytest.raises(CommandRefused):
        sent(client)
    assert "SEND_CANCEL" not in client.names


@pytest.mark.parametrize("size", [0, 1, 4095, 65536 + 4096])
def test_a_packet_is_of_pages(size: int):
    with pytest.raises(ValueError, match="expected pages"):
        sent(FakeClient(), packet_size=size)


def test_a_policy_with_sev_needs_the_targets_root():
    client = FakeClient(policy=SEV)
    with pytest.raises(SevVmError, match="export --full"):
        send(
            machine_of(client, SIZE),
            StreamWriter(io.BytesIO()),
            TARGET._replace(roots=NO_ROOTS),
            packet_size=PAGE_SIZE,
        )
    assert client.names == ["GUEST_STATUS"]


def test_a_platforms_file_is_a_target():
    parts = chain()
    found = PlatformFile(parts.pdh, parts.pek, parts.oca, parts.cek, (parts.ask, parts.ark))
    certificates = b"".join(one.build() for one in (parts.pek, parts.oca, parts.cek))
    roots = parts.ask.build() + parts.ark.build()
    assert target_of(found) == (parts.pdh.build(), certificates, roots)
    assert target_of(found._replace(amd=None)).roots == NO_ROOTS


# -- receiving ----------------------------------------------------------------------------------


def received(stream: bytes, *, size: int = SIZE, vcpus: int = 1) -> tuple[FakeClient, int, bytes]:
    client = FakeClient()
    machine = machine_of(client, size)
    count = receive(machine, StreamReader(io.BytesIO(stream)), vcpus=vcpus)
    return client, count, machine.read(0, size)


def test_what_was_sent_arrives():
    client, count, memory = received(sent(FakeClient()))
    assert (count, memory) == (3, CONTENT)
    assert client.names == [
        "INIT",
        "KVM_MEMORY_ENCRYPT_REG_REGION",
        "RECEIVE_START",
        *["RECEIVE_UPDATE_DATA"] * 3,
        "RECEIVE_FINISH",
    ]
    assert client.seen[:2] == [("pdh_uaddr", PDH), ("session_uaddr", SESSION)]


def test_processors_arrive_too():
    client, count, memory = received(sent(FakeClient(policy=ES), vcpus=2), vcpus=2)
    assert (count, memory) == (5, CONTENT)
    assert client.names[0] == "ES_INIT"
    ids = [fields["vcpu_id"] for name, fields in client.asked if name.endswith("UPDATE_VMSA")]
    assert ids == [0, 1]


CASES = {
    "more memory than was sent": (0, 0, SIZE + PAGE_SIZE, 1, "ends with 20480 bytes of memory"),
    "less": (0, 0, SIZE - 2 * PAGE_SIZE, 1, "beyond the VM's memory"),
    "less by whole packets": (0, 0, 4 * PAGE_SIZE, 1, "goes on after 16384 bytes of memory"),
    "more processors": (ES, 2, SIZE, 3, "memory and 2 processors; expected 20480 and 3"),
    "fewer": (ES, 2, SIZE, 1, "goes on after 20480 bytes of memory and 1 processors"),
}


@pytest.mark.parametrize("case", CASES)
def test_another_vm_than_the_sources_does_not_run(case: str):
    policy, areas, size, vcpus, why = CASES[case]
    stream = sent(FakeClient(policy=policy), vcpus=areas)
    client = FakeClient()
    with pytest.raises(SevVmError, match=why):
        receive(machine_of(client, size), StreamReader(io.BytesIO(stream)), vcpus=vcpus)
    assert "RECEIVE_FINISH" not in client.names


def test_a_packet_larger_than_a_save_area_is_not_one():
    stream = sent(FakeClient(policy=ES), packet_size=2 * PAGE_SIZE, vcpus=1)
    client = FakeClient()
    with pytest.raises(SevVmError, match="goes on after 8192"):
        receive(machine_of(client, 2 * PAGE_SIZE), StreamReader(io.BytesIO(stream)), vcpus=1)
    assert "RECEIVE_UPDATE_VMSA" not in client.names
