# SPDX-License-Identifier: Apache-2.0
"""The VM without a processor: its memory, and how its commands are asked."""

from __future__ import annotations

import pytest
from tests.unit.hcalld.sevvm.fakeclient import MEASUREMENT, FakeClient, machine_of

from hcalld.guestowner.client import CommandRefused
from hcalld.guestowner.errors import GuestOwnerError
from hcalld.sevvm.errors import SevVmError
from hcalld.sevvm.machine import DEBUG_SIZE, MIB
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.payloads.sev import GuestState
from hcallproto.payloads.sev.constants import PAGE_SIZE
from hcallproto.payloads.sev.stream import TransportPacket


@pytest.mark.parametrize("size", [0, 1, PAGE_SIZE + 1])
def test_memory_is_whole_pages(size: int):
    with pytest.raises(ValueError, match="whole pages"):
        machine_of(FakeClient(), size)


def test_memory_ends_where_it_ends():
    machine = machine_of(FakeClient(), PAGE_SIZE)
    machine.write(PAGE_SIZE - 4, b"last")
    assert machine.read(PAGE_SIZE - 4, 4) == b"last"
    for gpa, size in ((PAGE_SIZE - 3, 4), (-1, 1), (PAGE_SIZE, 1), (0, -1), (1 << 64, 1)):
        with pytest.raises(SevVmError, match="beyond the VM's memory"):
            machine.read(gpa, size)
    with pytest.raises(SevVmError, match=f"4 bytes at 0x{PAGE_SIZE - 3:x} are beyond"):
        machine.write(PAGE_SIZE - 3, b"last")


def test_debugging_goes_in_pieces():
    client = FakeClient()
    machine = machine_of(client, DEBUG_SIZE + MIB)
    content = bytes(range(256)) * (machine.size // 256)
    machine.write(0, content)
    turned = bytes(byte ^ 0xFF for byte in content)
    assert machine.read_decrypted(16, DEBUG_SIZE + 16) == turned[16 : DEBUG_SIZE + 32]
    machine.write_encrypted(32, content[: DEBUG_SIZE + 48])
    assert machine.read(32, DEBUG_SIZE + 48) == turned[: DEBUG_SIZE + 48]
    assert client.names == ["DBG_DECRYPT"] * 2 + ["DBG_ENCRYPT"] * 2
    assert [fields["len"] for _, fields in client.asked] == [DEBUG_SIZE, 16, DEBUG_SIZE, 48]


def test_no_buffer_is_left_behind():
    """What a command points to is gone after it, refused ones too."""
    client = FakeClient()
    machine = machine_of(client, PAGE_SIZE)
    machine.launch_start(0, b"certificate", b"session")
    machine.launch_measure()
    machine.send_update_data(0, 16)
    client.refuse(sev.LAUNCH_SECRET, SevCode.BAD_MEASUREMENT)
    with pytest.raises(CommandRefused):
        machine.launch_secret(0, b"header", b"payload")
    pointers = {
        value for _, fields in client.asked for name, value in fields.items() if "uaddr" in name
    }
    own = {machine.address(0, 1)}
    assert len(pointers - own) > 4
    assert [one for one in pointers - own if client.memory.contains(one, 1)] == []


def test_a_blob_that_is_absent_has_no_address():
    client = FakeClient()
    machine_of(client, PAGE_SIZE).launch_start(5, handle=3)
    ((_, fields),) = client.asked
    assert fields == {
        "handle": 3,
        "policy": 5,
        "dh_uaddr": 0,
        "dh_len": 0,
        "session_uaddr": 0,
        "session_len": 0,
    }


def test_lengths_are_asked_for_first():
    client = FakeClient()
    assert machine_of(client, PAGE_SIZE).launch_measure() == MEASUREMENT
    assert client.names == ["LAUNCH_MEASURE"] * 2
    assert client.asked[1][1]["len"] == 48


@pytest.mark.parametrize("size", [0, 1 << 31])
def test_a_length_that_makes_no_sense_is_not_believed(size: int):
    client = FakeClient()
    client.refuse(sev.LAUNCH_MEASURE, SevCode.INVALID_LEN, len=size)
    with pytest.raises(GuestOwnerError, match=f"asks for room of {size} bytes for len"):
        machine_of(client, PAGE_SIZE).launch_measure()


def test_another_refusal_of_a_question_is_what_it_is():
    client = FakeClient()
    client.refuse(sev.LAUNCH_MEASURE, SevCode.INVALID_GUEST_STATE)
    with pytest.raises(CommandRefused) as raised:
        machine_of(client, PAGE_SIZE).launch_measure()
    assert raised.value.status == SevCode.INVALID_GUEST_STATE


def test_a_report_has_the_nonce_in_two_halves():
    client = FakeClient()
    assert len(machine_of(client, PAGE_SIZE).report(bytes(range(16)))) == 208
    ((_, fields),) = client.asked
    assert fields["mnonce_low"] == int.from_bytes(bytes(range(8)), "little")
    assert fields["mnonce_high"] == int.from_bytes(bytes(range(8, 16)), "little")


def test_status_is_told():
    assert machine_of(FakeClient(policy=5), PAGE_SIZE).status() == (7, 5, GuestState.RUNNING)


@pytest.mark.parametrize("state", [len(GuestState), 1 << 63])
def test_a_state_that_there_is_not_is_not_believed(monkeypatch: pytest.MonkeyPatch, state: int):
    client = FakeClient()
    told = {"handle": 7, "policy": 0, "state": state}
    monkeypatch.setattr(client, "command", lambda _: told)
    with pytest.raises(SevVmError, match=f"a guest in state {state}; expected 0 to 6"):
        machine_of(client, PAGE_SIZE).status()


def test_packets_go_where_they_are_said_to_go():
    client = FakeClient()
    machine = machine_of(client, 2 * PAGE_SIZE)
    packet = TransportPacket(b"h" * 52, b"payload of packet" * 16)
    machine.receive_update_data(PAGE_SIZE, packet)
    assert machine.read(PAGE_SIZE, len(packet.payload)) == packet.payload
    with pytest.raises(SevVmError, match="beyond"):
        machine.receive_update_data(2 * PAGE_SIZE - 16, packet)
    assert client.names == ["RECEIVE_UPDATE_DATA"]
