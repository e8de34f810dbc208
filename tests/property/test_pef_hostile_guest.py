# SPDX-License-Identifier: Apache-2.0
"""UV_ESM of a guest that lies: it is refused and left as it was, at little cost.

What is altered is a guest that would become secure: its device tree, the archive before
its initrd, the blob in it. What it costs is counted in effects (reads of the guest, above
all) and in bytes of the daemon's memory, not in time.
"""

from __future__ import annotations

import functools
import struct
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.esm import INITRD, INITRD_BASE, KERNEL_BASE, boot_tree, private_key
from tests.unit.hcalld.domain.esm.guest import MACHINE
from tests.unit.hcalld.domain.esm.guest import Guest as Booted
from tests.unit.hcalld.domain.esm.guest import blob as good_blob

from hcalld.core.secret import Secret
from hcalld.domain.esm.blob import Blob
from hcalld.domain.esm.errors import KeyUnavailableError
from hcalld.domain.esm.unlock import unlock_with_key
from hcalld.domain.pef.entry import enter
from hcalld.domain.pef.verify import verify
from hcalld.domain.ultravisor.vm_states import VmState
from hcalld.testing.guest import FakeGuest
from hcalld.testing.pef import PefGuest
from hcallproto.abi.returns import U
from hcallproto.payloads import fdt

TREE_GPA = 0x30_0000
RAM = 4 << 20
PAGE = 1 << 16
MAX_EFFECTS = 4 * RAM // PAGE + 200
"""Each byte of RAM may be read a few times, 64 KiB at once."""
MAX_MEMORY = 8 << 20
WORDS = (0, 1, 3, 9, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFC, 0xFFFFFFFF)


@functools.cache
def blob_key() -> Secret:
    return unlock_with_key(good_blob(), private_key(MACHINE)).key


class Guest:
    """A guest that would become secure, to be altered and mended."""

    def __init__(self) -> None:
        self.booted = Booted.make()
        self.machine = PefGuest(guest=FakeGuest([(0, RAM)]))
        self.archive_size = self.booted.tree.initrd.size - len(INITRD)
        self.tree = boot_tree(self.booted.tree.initrd.size).build()
        self.whole = bytearray(self.booted.memory.data)
        self.whole[TREE_GPA : TREE_GPA + len(self.tree)] = self.tree
        self.mend()

    def mend(self) -> None:
        self.machine.reset()
        self.machine.guest.write(0, bytes(self.whole))

    def write(self, gpa: int, data: bytes) -> None:
        self.machine.guest.write(gpa, data)

    def esm(self) -> U:
        """UV_ESM; what it costs is bounded whatever comes of it."""

        async def key(blob: Blob) -> Secret:
            if blob.lockboxes[0].name != "origin-lockbox":
                raise KeyUnavailableError("not for this machine")
            return blob_key()

        before = self.machine.guest.snapshot()
        ranges = self.machine.guest.ram.regions
        call = enter(self.machine.machine, KERNEL_BASE, TREE_GPA, ranges, verify, key)
        tracemalloc.start()
        try:
            outcome = self.machine.run(call)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < MAX_MEMORY
        assert len(self.machine.trail) < MAX_EFFECTS
        assert isinstance(outcome.code, U)
        if outcome.code is U.SUCCESS:
            files = self.machine.machine.ultravisor.vms[1].files.contents
            # What is in a file is protected, what it is called and whether it is there is not.
            for content in files.values():
                assert content is None or content.reveal() in (b"a passphrase", b"")
            return outcome.code
        assert outcome.code is U.PARAMETER
        assert outcome.why
        assert self.machine.guest.snapshot() == before
        assert self.machine.machine.state is VmState.NORMAL
        assert not self.machine.bits()
        assert not self.machine.doom
        return outcome.code


@pytest.fixture(scope="module")
def guest() -> Guest:
    found = Guest()
    assert found.esm() is U.SUCCESS
    return found


def outcomes(guest: Guest, changes: Iterator[tuple[int, bytes]]) -> dict[U, int]:
    """How many changes had which outcome."""
    counts = {U.SUCCESS: 0, U.PARAMETER: 0}
    guest.mend()
    for gpa, data in changes:
        guest.write(gpa, data)
        code = guest.esm()
        counts[code] += 1
        if code is U.SUCCESS:
            guest.mend()
        else:
            guest.write(gpa, bytes(guest.whole[gpa : gpa + len(data)]))
    return counts


def test_any_word_of_the_device_tree(guest: Guest):
    changes = (
        (TREE_GPA + at, struct.pack(">I", word))
        for at in range(0, len(guest.tree) - 3, 4)
        for word in WORDS
        if guest.tree[at : at + 4] != struct.pack(">I", word)
    )
    counts = outcomes(guest, changes)
    # Few words do not matter: where the tree says what nobody asks.
    assert counts[U.PARAMETER] > 5 * counts[U.SUCCESS] > 0


def test_a_device_tree_that_is_cut_off_anywhere(guest: Guest):
    guest.mend()
    for size in range(len(guest.tree)):
        guest.write(TREE_GPA, guest.tree[:size] + bytes(len(guest.tree) - size))
        assert guest.esm() is U.PARAMETER or not any(guest.tree[size:])
        if guest.machine.machine.state is not VmState.NORMAL:
            guest.mend()


def test_any_word_of_the_archive_with_the_blob(guest: Guest):
    """The first of them are the archive's, the others the blob's: every 7th, in turn."""
    words = range(0, guest.archive_size - 3, 4)
    changes = (
        (INITRD_BASE + at, struct.pack(">I", WORDS[n % len(WORDS)]))
        for n, at in enumerate(words)
        if n < 40 or n % 3 == 0
    )
    counts = outcomes(guest, changes)
    # Comments, fingerprints and others' lockboxes are protected by nothing.
    assert counts[U.PARAMETER] > 20


@given(st.data())
def test_any_bytes_in_their_place(data: st.DataObject):
    guest = _shared()
    guest.mend()
    for _ in range(data.draw(st.integers(1, 3))):
        base, size = data.draw(
            st.sampled_from([(TREE_GPA, len(guest.tree)), (INITRD_BASE, guest.archive_size)])
        )
        at = data.draw(st.integers(0, size - 1))
        noise = data.draw(st.binary(min_size=1, max_size=min(16, size - at)))
        guest.write(base + at, noise)
    guest.esm()


@functools.cache
def _shared() -> Guest:
    return Guest()


# -- trees that are large ---------------------------------------------------------------------

Tree = Callable[[int], bytes]


def of_structure(structure: bytes, strings: bytes = b"a\0") -> bytes:
    at = fdt.HEADER_SIZE + 16
    total = at + len(structure) + len(strings)
    fields = (fdt.MAGIC, total, at, at + len(structure), fdt.HEADER_SIZE, 17, 16, 0)
    header = struct.pack(">10I", *fields, len(strings), len(structure))
    return header + bytes(16) + structure + strings


ROOT = struct.pack(">II", fdt.BEGIN_NODE, 0)
END = struct.pack(">II", fdt.END_NODE, fdt.END)


def nops(size: int) -> bytes:
    return of_structure(ROOT + struct.pack(">I", fdt.NOP) * (size // 4) + END)


def wide(size: int) -> bytes:
    nodes = b"".join(
        struct.pack(">I4sII", fdt.BEGIN_NODE, b"%03x" % (n % 4096), 0x41424300, fdt.END_NODE)
        for n in range(size // 16)
    )
    return of_structure(ROOT + nodes + END)


def deep(size: int) -> bytes:
    begin = struct.pack(">I4s", fdt.BEGIN_NODE, b"abc\0") * (size // 12)
    return of_structure(ROOT + begin + struct.pack(">I", fdt.END_NODE) * (size // 12) + END)


def properties(size: int) -> bytes:
    count = size // 16
    strings = b"".join(b"%05x\0" % n for n in range(count))
    tokens = b"".join(
        struct.pack(">III", fdt.PROPERTY, 0, 6 * n) for n in range(min(count, 0x10000))
    )
    return of_structure(ROOT + tokens + END, strings)


def one_name(size: int) -> bytes:
    name = b"x" * (size // 2)
    return of_structure(ROOT + struct.pack(">III", fdt.PROPERTY, 0, 0) * (size // 24) + END, name)


@pytest.mark.parametrize("make", [nops, wide, deep, properties, one_name])
def test_a_large_tree_costs_little(make: Tree):
    """Memory in proportion to the tree, with no more than 64 bytes for each byte."""
    data = make(1 << 17)
    told = ""
    tracemalloc.start()
    try:
        fdt.parse(data)
    except fdt.FdtError as error:
        told = str(error)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * len(data)
    assert len(told) < 1000


@pytest.mark.parametrize("claim", [0, 39, 1 << 20, (1 << 20) + 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_tree_that_claims_a_size(claim: int, guest: Guest):
    """1 MiB is read at most, and nothing of what is not there."""
    guest.mend()
    guest.write(TREE_GPA + 4, struct.pack(">I", claim))
    # As large as may be, it is one, with nothing in its rest.
    assert guest.esm() is (U.SUCCESS if claim == 1 << 20 else U.PARAMETER)
    read = [effect for effect in guest.machine.trail if type(effect).__name__ == "ReadGuest"]
    limit = (1 << 20) + fdt.HEADER_SIZE + (1 << 16)
    assert sum(getattr(effect, "size", 0) for effect in read) <= limit
