# SPDX-License-Identifier: Apache-2.0
"""UV_ESM of a large guest against hashlib on the same bytes, in one run.

Its TPM time is that of a guest of a few KiB, whose blob takes the same exchange.
"""

from __future__ import annotations

import hashlib
import os
import time

import pytest
from tests.bench.results import Results
from tests.bench.secureshim import RAM_SIZE, SecureShim
from tests.bench.test_sharing import untraced
from tests.e2e.lab import PARTITION, Lab, lab
from tests.esm import CMDLINE, Section, elf

__all__ = ["lab"]

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

SIZE = 64 << 20
ROUNDS = 5
GOAL = 3


def test_large_guest(lab: Lab, results: Results) -> None:
    secure = untraced(lab)
    half = os.urandom(SIZE // 2)

    def made(name: str, data: bytes) -> tuple[bytes, bytes]:
        """A kernel, and an initrd with a blob for both."""
        vmlinux, initrd = secure.folder / f"{name}.elf", secure.folder / f"{name}.initrd"
        vmlinux.write_bytes(elf([Section(0, data)]))
        initrd.write_bytes(data)
        return vmlinux.read_bytes(), secure.blob(vmlinux, initrd, CMDLINE).read_bytes()

    path = secure.daemon.socket

    def enter(guest: tuple[bytes, bytes]) -> float:
        shim = SecureShim(path, PARTITION, *guest, CMDLINE)
        took = shim.enter()
        shim.close()
        return took

    large, small = made("large", half), made("small", half[:4096])
    floors, all_of_it, tpm = [], [], []
    # In turn, so that a machine that gets slower does not decide.
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for data in (half, half):
            hashlib.sha512(data).digest()
        floors.append(time.perf_counter() - start)
        tpm.append(enter(small))
        all_of_it.append(enter(large))
    less = min(all_of_it) - min(tpm)
    each = zip(all_of_it, tpm, floors, strict=True)
    spread = [(whole - its) / floor for whole, its, floor in each]
    print(
        f"\nUV_ESM of {SIZE >> 20} MiB in {RAM_SIZE >> 30} GiB: {min(all_of_it) * 1e3:.0f} ms, "
        f"of a small guest {min(tpm) * 1e3:.0f} ms, SHA-512 {min(floors) * 1e3:.0f} ms; "
        f"ratios {min(spread):.2f} to {max(spread):.2f}",
        end="",
    )
    results.ratio(
        "UV_ESM of 64 MiB in 1 GiB, the TPM's time apart / hashlib", less, min(floors), GOAL
    )
