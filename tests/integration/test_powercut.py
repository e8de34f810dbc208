# SPDX-License-Identifier: Apache-2.0
"""Power cuts in every place of a few processes' lives; tests/soak has the long form."""

from __future__ import annotations

import dataclasses
import random

from tests.e2e.lab import Lab
from tests.e2e.powercut import PowerCuts

PROCESSES = 2
CUTS = 30
"""For each process, and one at its end."""


def test_power_cuts_lose_nothing_that_was_told_of_as_flushed(lab: Lab) -> None:
    seed = random.SystemRandom().getrandbits(32)
    outcome = PowerCuts(lab.require("strace"), lab.artifacts, seed, CUTS).run(PROCESSES)
    lab.measure(seed=seed, **dataclasses.asdict(outcome))
    assert outcome.violations == []
    assert outcome.processes == PROCESSES
    assert outcome.cuts >= PROCESSES
