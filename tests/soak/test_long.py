# SPDX-License-Identifier: Apache-2.0
"""The long forms of tests that ``make test`` runs in short."""

from __future__ import annotations

import dataclasses
import random

import pytest
from tests.e2e import dying_hcalld, kills
from tests.e2e.lab import Lab
from tests.e2e.machine import ByteOrder, Memory
from tests.integration.test_shim_calls import hold_call

pytestmark = [pytest.mark.soak, pytest.mark.qemu]

KILLS = 200
KILLS_WITH_A_CHANGE_PENDING = 100


@pytest.mark.parametrize("threads", ["multi", "single"])
def test_held_call_delays_nobody(threads: str, lab: Lab) -> None:
    hold_call(lab, threads, 5.0)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("memory", ["shared", "private"])
def test_kills_under_load(memory: Memory, lab: Lab) -> None:
    outcome = kills.run(lab, KILLS, seed=random.SystemRandom().getrandbits(32), memory=memory)
    lab.measure(**dataclasses.asdict(outcome))
    assert outcome.kills == KILLS
    assert outcome.mutating >= KILLS_WITH_A_CHANGE_PENDING


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("place", dying_hcalld.PLACES)
def test_kills_at_the_worst_places(place: str, lab: Lab) -> None:
    seed = random.SystemRandom().getrandbits(32)
    outcome = kills.run(lab, KILLS, seed=seed, place=place)
    lab.measure(**dataclasses.asdict(outcome))
    assert outcome.kills == KILLS


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("cpus", [1, 4])
@pytest.mark.parametrize("byte_order", ["le", "be"])
def test_fuzz(byte_order: ByteOrder, cpus: int, lab: Lab) -> None:
    """Millions of random calls; the seed is in the console's log."""
    seed = random.SystemRandom().getrandbits(32)
    daemon = lab.daemon("--memory")
    machine = lab.stub(
        f"fuzz seed={seed} count={1_000_000 // cpus} cpus={cpus} require=1",
        daemon,
        byte_order=byte_order,
        memory_mib=512,
    )
    machine.report(7000).must_pass("fuzz")
    assert daemon.is_alive


@pytest.mark.timeout(1200)
def test_soak(lab: Lab) -> None:
    lab.stub("soak seconds=600 clean=1 require=1", lab.daemon()).report(1000).must_pass("soak")
