# SPDX-License-Identifier: Apache-2.0
"""A guest with a real blob enters secure mode, and one that is changed does not."""

from __future__ import annotations

import pytest
from tests.esm import CMDLINE, INITRD, INITRD_BASE, KERNEL_BASE, RTAS_BASE, boot_tree, private_key
from tests.unit.hcalld.domain.esm.guest import MACHINE, STRANGER
from tests.unit.hcalld.domain.esm.guest import Guest as Booted

from hcalld.core.effects import TpmClose, TpmTransmit
from hcalld.core.errors import BackendUnavailable
from hcalld.core.outcome import Outcome
from hcalld.core.secret import Secret
from hcalld.crypto.wrapping_key import NAME_SIZE, PASSWORD_SIZE, WrappingKey
from hcalld.domain.esm.blob import Blob
from hcalld.domain.esm.key_record import to_record
from hcalld.domain.esm.unlock import unlock_with_key
from hcalld.domain.pef.entry import enter
from hcalld.domain.pef.machine import PefMachine
from hcalld.domain.pef.verify import Key, verify
from hcalld.testing.guest import FakeGuest
from hcalld.testing.pef import SECURE_USER, PefGuest
from hcallproto.abi.families import uv
from hcallproto.abi.returns import U

TREE_GPA = 0x30_0000


def booted(cmdline: str = CMDLINE) -> PefGuest:
    """A guest just before its UV_ESM."""
    made = Booted.make()
    guest = PefGuest(guest=FakeGuest([(0, made.memory.size)]))
    guest.guest.write(0, bytes(made.memory.data))
    size = made.tree.initrd.size
    guest.guest.write(TREE_GPA, boot_tree(size, cmdline).build())
    return guest


def key(number: int = MACHINE) -> Key:
    async def opened(blob: Blob) -> Secret:
        return unlock_with_key(blob, private_key(number)).key

    return opened


def esm(guest: PefGuest, with_key: Key | None = None) -> Outcome:
    return guest.run(
        enter(
            guest.machine, KERNEL_BASE, TREE_GPA, guest.guest.ram.regions, verify, with_key or key()
        )
    )


def read_file(guest: PefGuest, name: bytes, offset: int = 0, pidr: int = 7) -> Outcome:
    padded = name.ljust(64, b"\0")
    names = [int.from_bytes(padded[at : at + 8], "big") for at in range(0, 64, 8)]
    return guest.call(uv.ESMB_GET_FILE, offset, *names, msr=SECURE_USER, pidr=pidr)


def test_a_good_guest_becomes_secure_and_reads_its_file():
    guest = booted()
    before = guest.guest.snapshot()[0]
    outcome = esm(guest)
    assert (outcome.code, outcome.why) == (U.SUCCESS, "")
    after = guest.guest.snapshot()[0]
    kernel = slice(KERNEL_BASE, KERNEL_BASE + 0x2000)
    assert after[kernel] == before[kernel]
    assert after[RTAS_BASE : RTAS_BASE + 20] == before[RTAS_BASE : RTAS_BASE + 20]
    # Linux would unpack the blob's archive too, and whoever made it names its files.
    end = INITRD_BASE + Booted.make().tree.initrd.size
    assert after[INITRD_BASE:end] == INITRD.rjust(end - INITRD_BASE, b"\0")
    outcome = read_file(guest, b"rootd")
    assert outcome.result == len(b"a passphrase")
    assert outcome.registers[0] == (4, int.from_bytes(b"a passph", "big"))
    assert read_file(guest, b"rootd", outcome.result).result == 0
    assert read_file(guest, b"rootd", 12, pidr=8).code is U.PARAMETER
    assert read_file(guest, b"empty").result == 0
    assert read_file(guest, b"other").code is U.PARAMETER


def test_files_are_for_a_secure_vm():
    guest = booted()
    assert read_file(guest, b"rootd").code is U.PARAMETER
    assert esm(guest).code is U.SUCCESS
    assert read_file(guest, b"rootd").result == 12


@pytest.mark.parametrize(
    ("gpa", "what"),
    [(KERNEL_BASE + 77, "kernel"), (RTAS_BASE + 3, "rtas"), (None, "initrd")],
)
def test_one_flipped_bit(gpa: int | None, what: str):
    guest = booted()
    if gpa is None:
        gpa = INITRD_BASE + Booted.make().tree.initrd.size - 1
    guest.guest.write(gpa, bytes((guest.guest.read(gpa, 1)[0] ^ 1,)))
    before = guest.guest.snapshot()
    outcome = esm(guest)
    assert outcome.code is U.PARAMETER
    assert f"{what}: " in outcome.why
    assert guest.guest.snapshot() == before


def test_another_command_line():
    outcome = esm(booted(CMDLINE + " "))
    assert outcome.code is U.PARAMETER
    assert "bootargs: " in outcome.why


def test_another_machines_key():
    outcome = esm(booted(), key(STRANGER))
    assert outcome.code is U.PARAMETER
    assert "key unavailable" in outcome.why


def test_a_device_tree_that_is_none():
    guest = booted()
    guest.guest.write(TREE_GPA + 24, b"\xff\xff\xff\xff")
    outcome = esm(guest)
    assert outcome.code is U.PARAMETER
    assert "device tree" in outcome.why


# -- the TPM -------------------------------------------------------------------------------------

WRAPPING = WrappingKey(Secret(b"p" * PASSWORD_SIZE), b"\0\x0b" + bytes(NAME_SIZE - 2))


def with_tpm(guest: PefGuest) -> PefMachine:
    guest.machine = PefMachine(stored=[to_record(WRAPPING)])
    return guest.machine


def test_without_a_wrapping_key():
    guest = booted()
    outcome = esm(guest, guest.machine.key)
    assert outcome.code is U.PARAMETER
    assert "no wrapping key" in outcome.why


def test_a_tpm_that_refuses_is_closed():
    guest = booted()
    guest.tpm = lambda command: bytes.fromhex("80010000000a0000018b")
    outcome = esm(guest, with_tpm(guest).key)
    assert outcome.code is U.PARAMETER
    assert "key unavailable" in outcome.why
    kinds = [type(effect) for effect in guest.trail]
    assert kinds.index(TpmTransmit) < kinds.index(TpmClose)


def test_a_tpm_that_is_not_there():
    guest = booted()

    def gone(command: bytes) -> bytes:
        raise BackendUnavailable("swtpm does not answer")

    guest.tpm = gone
    outcome = esm(guest, with_tpm(guest).key)
    assert outcome.code is U.PARAMETER
    assert "swtpm does not answer" in outcome.why
