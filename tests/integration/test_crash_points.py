# SPDX-License-Identifier: Apache-2.0
"""The daemon dies between two effects of a call, and the next one goes on: some of the places.

``make soak`` takes every boundary of every scenario.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.e2e.crash_scenarios import RESET, SCENARIOS
from tests.e2e.crashes import Rig, Scenario, every, every_beginning
from tests.e2e.crashing_hcalld import Nursery
from tests.e2e.lab import Lab

from hcallproto.abi.registry import CALLS

CRASHES = 2
"""A scenario, beside the boundaries around its commit, which are the ones that matter."""


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as started:
        yield started


@pytest.fixture
def rig(nursery: Nursery, lab: Lab, artifacts: Path, socket_dir: Path) -> Rig:
    return Rig(nursery, artifacts, socket_dir)


def test_every_call_that_changes_something_is_in_a_scenario():
    text = "\n".join(scenario.name for scenario in SCENARIOS)
    named = set(re.findall(r"[A-Z]+(?:_[A-Z]+)?", text))
    changing = {
        call.name.removeprefix("H_PKS_").removesuffix("_OBJECT")
        for call in CALLS
        if call.name.startswith("H_PKS_") and call.effect_may_remain and not call.decode_only
    }
    # These change a token, if the profile asks for busy answers.
    assert changing | {"WRAP", "UNWRAP"} <= named


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_crash_when_the_daemon_dies_then_the_next_one_goes_on(scenario: Scenario, rig: Rig):
    place = SCENARIOS.index(scenario)

    def choose(names: Sequence[str]) -> list[int]:
        worst = [n for n, name in enumerate(names, 1) if name in ("before COMMIT", "after COMMIT")]
        spread = [1 + (place * 7 + n * len(names) // CRASHES) % len(names) for n in range(CRASHES)]
        return sorted({*worst[:1], *spread} if place % 2 else {*worst[1:2], *spread})

    assert list(every(rig, scenario, choose))


@pytest.mark.parametrize("is_power_on", [False, True], ids=["reset", "power-on"])
def test_crash_when_a_run_begins_then_all_of_the_last_one_ends_or_nothing(
    is_power_on: bool, rig: Rig
):
    def choose(names: Sequence[str]) -> list[int]:
        worst = [n for n, name in enumerate(names, 1) if name.endswith("COMMIT")]
        return [worst[0], worst[-1]]

    assert len(list(every_beginning(rig, RESET, choose, is_power_on=is_power_on))) == 2
