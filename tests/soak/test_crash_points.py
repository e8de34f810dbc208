# SPDX-License-Identifier: Apache-2.0
"""The daemon dies at every boundary of every call that changes something."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.e2e.crash_scenarios import RESET, SCENARIOS
from tests.e2e.crashes import Rig, Scenario, every, every_beginning
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


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("is_power_on", [False, True], ids=["reset", "power-on"])
def test_crash_when_a_run_begins_then_all_of_the_last_one_ends_or_nothing(
    is_power_on: bool, lab: Lab, artifacts: Path, socket_dir: Path
):
    with Nursery() as nursery:
        rig = Rig(nursery, artifacts, socket_dir)
        everywhere = every_beginning(
            rig, RESET, lambda names: range(1, len(names) + 1), is_power_on=is_power_on
        )
        names = list(everywhere)
    lab.measure(crashes=len(names))
    assert "before COMMIT" in names
