# SPDX-License-Identifier: Apache-2.0
"""DBG_DECRYPT and DBG_ENCRYPT, with the sizes of the kernel's selftest ``sev_dbg_test.c``."""

from __future__ import annotations

import functools

import pytest
from tests.unit.hcalld.families.sev.stages import (
    ENCRYPTED,
    ES,
    NODBG,
    host,
    measured,
    refused,
    running,
    sending,
    succeed,
)

from hcalld.core.effects import GuestMemoryError, WriteGuest
from hcalld.domain.sev.settings import PIECE_SIZE, SevSettings
from hcalld.testing.guest import FakeGuest
from hcalld.testing.sev import MEMORY, SevClient, made_up
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.abi.spec import Hcall

SMALL = (1, 8, 15, 16, 17, 23, 32, 33)
SIZES = (*SMALL, *(4096 - size for size in SMALL), 4096, *(4096 + size for size in SMALL))
OFFSETS = (0, 1, 8, 15, 16, 17, 4096 - 17, 4096 - 1)
BOTH = pytest.mark.parametrize("settings", [SevSettings(), ENCRYPTED], ids=["plain", "encrypted"])
SOURCE, TARGET = MEMORY + 0x10000, MEMORY + 0x20000
CONTENT = made_up("content", 0x8000)


def client_of(settings: SevSettings, policy: int = ES) -> SevClient:
    client = running(host(settings).connect(), policy)
    client.memory.write(SOURCE, CONTENT)
    return client


@functools.cache
def any_client(settings: SevSettings) -> SevClient:
    """For tests that change memory alone."""
    return client_of(settings)


def guest_view(client: SevClient, address: int, size: int) -> bytes:
    """What the guest has in whole blocks."""
    data = client.memory.read(address, size)
    assert client.vm.guest is not None
    memory = client.vm.guest.memory
    return data if memory is None else memory.decrypt(address, data)


@BOTH
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("size", SIZES)
def test_encrypt_changes_what_the_guest_has_and_nothing_around(
    settings: SevSettings, offset: int, size: int
):
    client = any_client(settings)
    before = guest_view(client, TARGET, 0x4000)
    succeed(client, sev.DBG_ENCRYPT, src_uaddr=SOURCE + 3, dst_uaddr=TARGET + offset, len=size)
    expected = bytearray(before)
    expected[offset : offset + size] = CONTENT[3 : 3 + size]
    assert guest_view(client, TARGET, 0x4000) == expected
    assert client.memory.read(SOURCE, len(CONTENT)) == CONTENT


@BOTH
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("size", SIZES)
def test_decrypt_copies_what_the_guest_has_and_nothing_around(
    settings: SevSettings, offset: int, size: int
):
    client = any_client(settings)
    expected = bytearray(client.memory.read(TARGET, 0x4000))
    expected[5 : 5 + size] = guest_view(client, SOURCE, len(CONTENT))[offset : offset + size]
    succeed(client, sev.DBG_DECRYPT, src_uaddr=SOURCE + offset, dst_uaddr=TARGET + 5, len=size)
    assert client.memory.read(TARGET, 0x4000) == expected


@BOTH
def test_there_and_back_across_pieces(settings: SevSettings):
    client = running(host(settings).connect(FakeGuest([(MEMORY, 8 << 20)])))
    size = 2 * PIECE_SIZE + 77
    content = made_up("large", size)
    source, guest, target = MEMORY + 1, MEMORY + (3 << 20) + 9, MEMORY + (6 << 20) + 3
    client.memory.write(source, content)
    succeed(client, sev.DBG_ENCRYPT, src_uaddr=source, dst_uaddr=guest, len=size)
    assert (client.memory.read(guest, size) == content) is (settings is not ENCRYPTED)
    succeed(client, sev.DBG_DECRYPT, src_uaddr=guest, dst_uaddr=target, len=size)
    assert client.memory.read(target, size) == content
    assert max(len(e.data) for e in client.trail if isinstance(e, WriteGuest)) <= PIECE_SIZE


@pytest.mark.parametrize("hcall", [sev.DBG_DECRYPT, sev.DBG_ENCRYPT], ids=lambda h: h.name)
def test_nodbg_forbids_it(hcall: Hcall):
    refused(client_of(ENCRYPTED, ES | NODBG), hcall, SevCode.POLICY_FAILURE)
    refused(client_of(SevSettings(), ES | NODBG), hcall, SevCode.POLICY_FAILURE)


@pytest.mark.parametrize("hcall", [sev.DBG_DECRYPT, sev.DBG_ENCRYPT], ids=lambda h: h.name)
def test_a_guest_that_is_sent_can_be_looked_at_and_one_that_is_launched_not(hcall: Hcall):
    fields = {"src_uaddr": SOURCE, "dst_uaddr": TARGET, "len": 16}
    succeed(sending(host().connect()), hcall, **fields)
    refused(measured(host().connect()), hcall, SevCode.INVALID_GUEST_STATE)


class ReadOnly(FakeGuest):
    """Memory of which what follows an address cannot be written."""

    first = MEMORY + (16 << 20)

    def write(self, gpa: int, content: bytes) -> None:
        if gpa + len(content) > self.first:
            raise GuestMemoryError(gpa, len(content), "read-only")
        super().write(gpa, content)


@pytest.mark.parametrize("hcall", [sev.DBG_DECRYPT, sev.DBG_ENCRYPT], ids=lambda h: h.name)
def test_memory_that_cannot_be_written_is_left_as_it_was(hcall: Hcall):
    memory = ReadOnly([(MEMORY, 8 << 20)])
    client = running(host(ENCRYPTED).connect(memory))
    memory.write(MEMORY, made_up("old", 6 << 20))
    target = MEMORY + (3 << 20)
    memory.first = target + 2 * PIECE_SIZE + 16
    refused(
        client,
        hcall,
        SevCode.EFAULT,
        src_uaddr=MEMORY + (1 << 20),
        dst_uaddr=target,
        len=2 * PIECE_SIZE + 100,
    )
