# SPDX-License-Identifier: Apache-2.0
"""Millions of random calls in one process: nothing is raised, and nothing grows.

``HCALLD_RANDOM_CALLS`` says how many, ``HCALLD_RANDOM_SEED`` from where.
"""

from __future__ import annotations

import os
import random
import resource
import sys
import time
from pathlib import Path

import pytest
from tests.property.random_guest import RandomGuest, unreached

COUNT = int(os.environ.get("HCALLD_RANDOM_CALLS", "1000000"))
CHECK_EVERY = 50_000
WARM_UP = 100_000
"""Calls after which caches are full."""
MOST_GROWTH = 8 << 20
"""Bytes: an arena or two of the allocator, and not a byte a call."""


def resident_size() -> int:
    """Bytes of memory that the process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_millions_of_random_calls_raise_and_leak_nothing(capfd: pytest.CaptureFixture[str]):
    chosen = os.environ.get("HCALLD_RANDOM_SEED")
    seed = int(chosen) if chosen else random.SystemRandom().getrandbits(32)
    guest = RandomGuest(seed)
    started = time.monotonic()
    warm = peak = 0
    for count in range(1, COUNT + 1):
        try:
            guest.step()
        except BaseException as error:
            error.add_note(f"call {count} of HCALLD_RANDOM_SEED={seed}")
            raise
        if count % CHECK_EVERY and count != COUNT:
            continue
        guest.check()
        size = resident_size()
        if count <= WARM_UP:
            warm = size
        peak = max(peak, size)
        rate = count / (time.monotonic() - started)
        with capfd.disabled():
            print(
                f"{count:>10,} calls, {rate:,.0f}/s, {size >> 20} MiB, seed {seed}",
                file=sys.stderr,
                flush=True,
            )
    assert peak - warm < MOST_GROWTH, f"{warm} bytes after {WARM_UP} calls, {peak} at most"
    if COUNT >= 1_000_000:
        assert unreached(guest.codes) == set()
