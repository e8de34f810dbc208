# SPDX-License-Identifier: Apache-2.0
"""A thousand power cuts and more, on many disks."""

from __future__ import annotations

import dataclasses
import random
import shutil

import pytest
from tests.conftest import Require
from tests.e2e.lab import Lab
from tests.e2e.powercut import PowerCuts

pytestmark = pytest.mark.soak

DISKS = 8
PROCESSES = 4
CUTS = 45
"""For each process."""
LEAST = 1000


@pytest.mark.timeout(7200)
def test_power_cuts(lab: Lab, require: Require) -> None:
    strace = require("strace")
    cuts = confirms = rounds = 0
    for number in range(DISKS):
        folder = lab.artifacts / f"disk{number}"
        folder.mkdir()
        seed = random.SystemRandom().getrandbits(32)
        outcome = PowerCuts(strace, folder, seed, CUTS).run(PROCESSES)
        lab.measure(seed=seed, **dataclasses.asdict(outcome))
        assert outcome.violations == []
        cuts += outcome.cuts
        confirms += outcome.confirms
        rounds += outcome.rounds
        shutil.rmtree(folder)
    assert cuts >= LEAST
    assert confirms > 0
    assert rounds > 0, "no journal was ever used"
