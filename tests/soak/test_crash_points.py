# SPDX-License-Identifier: Apache-2.0
"""The daemon dies at every boundary of every call that changes something."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.e2e.crash_scenarios import SCENARIOS
from tests.e2e.crashes import Rig, Scenario, every
from tests.e2e.crashing_hcalld import Nursery
from tests.e2e.lab import Lab

pytestmark = pytest.mark.soak


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_crash_when_it_is_at_each_boundary_then_nothing_is_lost_or_done_twice(
    scenario: Scenario, lab: Lab, artifacts: Path, socket_dir: Path
):
    started = time.monotonic()
    with Nursery() as nursery:
        rig = Rig(nursery, artifacts, socket_dir)
        names = list(every(rig, scenario, lambda names: range(1, len(names) + 1)))
    lab.measure(crashes=len(names), seconds=round(time.monotonic() - started, 1))
    assert "before COMMIT" in names or "UNWRAP" in scenario.name
