# SPDX-License-Identifier: Apache-2.0
"""A launch: QEMU's commands in QEMU's order, and what is refused before the first."""

from __future__ import annotations

import hashlib
import struct

import pytest
from tests.unit.hcalld.guestowner.images import (
    HASHES,
    HASHES_BASE,
    RESET,
    SECRET,
    SECRET_BASE,
    firmware,
)
from tests.unit.hcalld.sevvm.fakeclient import MEASUREMENT, FakeClient, machine_of

from hcalld.guestowner.errors import GuestOwnerError
from hcalld.guestowner.launch import DumpedProcessors, Kernel
from hcalld.sevvm.errors import SevVmError
from hcalld.sevvm.launching import Plan, launch, secret_address
from hcalld.sevvm.machine import MIB

SIZE = 9 * MIB
IMAGE = firmware()
SMALL_HASHES = (HASHES[0], struct.pack("<II", HASHES_BASE, 175))
KERNEL = Kernel(kernel=hashlib.sha256(b"kernel").digest(), cmdline=b"quiet")
PROCESSORS = DumpedProcessors(count=2, first=b"1" * 4096, others=b"2" * 4096)
MEASURING = ["LAUNCH_MEASURE"] * 2
ES = 4


def test_a_guest_of_sev():
    client = FakeClient()
    machine = machine_of(client, SIZE)
    plan = Plan(firmware=IMAGE, policy=1, kernel=KERNEL, dh=b"owner", session=b"his", handle=3)
    assert launch(machine, plan) == MEASUREMENT
    assert client.names == [
        "PLATFORM_STATUS",
        "INIT",
        "KVM_MEMORY_ENCRYPT_REG_REGION",
        "LAUNCH_START",
        *["LAUNCH_UPDATE_DATA"] * 2,
        *MEASURING,
    ]
    fields = dict(client.asked[3][1])
    assert (fields["policy"], fields["handle"]) == (1, 3)
    assert client.seen[:2] == [("dh_uaddr", b"owner"), ("session_uaddr", b"his")]
    assert client.seen[2:4] == [("uaddr", IMAGE), ("uaddr", KERNEL.table)]
    assert machine.read(SIZE - len(IMAGE), len(IMAGE)) == IMAGE
    assert machine.read(HASHES_BASE, len(KERNEL.table)) == KERNEL.table


def test_a_guest_of_sev_es():
    client = FakeClient()
    plan = Plan(firmware=IMAGE, policy=ES, processors=PROCESSORS)
    launch(machine_of(client, SIZE), plan)
    assert client.names[1] == "ES_INIT"
    assert client.names[3:] == [
        "LAUNCH_START",
        "LAUNCH_UPDATE_DATA",
        "LAUNCH_UPDATE_VMSA",
        *MEASURING,
    ]
    assert client.seen[1] == ("uaddr", b"1" * 4096 + b"2" * 4096)


@pytest.mark.parametrize("policy", [0, ES])
def test_a_new_qemu_has_init2_for_both(policy: int):
    client = FakeClient()
    plan = Plan(firmware=IMAGE, policy=policy, processors=PROCESSORS, by_init2=True)
    launch(machine_of(client, SIZE), plan)
    assert client.names[1] == "INIT2"
    assert ("LAUNCH_UPDATE_VMSA" in client.names) == bool(policy)


@pytest.mark.parametrize(
    ("plan", "size", "flags", "why"),
    [
        (Plan(firmware=IMAGE[1:], policy=0), SIZE, 0x100, "multiple of 16"),
        (Plan(firmware=IMAGE, policy=0), 0x4000, 0x100, "beyond the VM's memory"),
        (Plan(firmware=IMAGE, policy=ES), SIZE, 0, "SEV-ES, which the platform does not have"),
        (
            Plan(firmware=firmware(SECRET), policy=0, kernel=KERNEL),
            SIZE,
            0,
            "no place for",
        ),
        (
            Plan(firmware=firmware(SMALL_HASHES, SECRET), policy=0, kernel=KERNEL),
            SIZE,
            0,
            "no place for",
        ),
    ],
    ids=["odd", "too large", "no ES", "no place", "too small a place"],
)
def test_what_cannot_be_launched_is_not_begun(plan: Plan, size: int, flags: int, why: str):
    client = FakeClient(flags=flags)
    with pytest.raises(GuestOwnerError, match=why):
        launch(machine_of(client, size), plan)
    assert set(client.names) <= {"PLATFORM_STATUS"}


def test_where_a_secret_goes():
    assert secret_address(IMAGE, 0xC00) == SECRET_BASE
    with pytest.raises(SevVmError, match="room for a secret of 3072"):
        secret_address(IMAGE, 0xC01)
    with pytest.raises(SevVmError, match="names no place"):
        secret_address(firmware(HASHES, RESET), 16)
