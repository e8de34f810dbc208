# SPDX-License-Identifier: Apache-2.0
"""``kill -9`` of the daemon under load: nothing twice, nothing lost. ``make soak`` has more."""

from __future__ import annotations

import dataclasses

import pytest
from tests.e2e import dying_hcalld, kills
from tests.e2e.lab import Lab

pytestmark = pytest.mark.qemu

KILLS = 12
KILLS_AT_A_PLACE = 3


@pytest.mark.timeout(300)
def test_kills_under_load(lab: Lab) -> None:
    outcome = kills.run(lab, KILLS, seed=1)
    lab.measure(**dataclasses.asdict(outcome))
    assert outcome.kills == KILLS
    # A test of this size cannot promise half, but none would prove nothing.
    assert outcome.mutating


@pytest.mark.timeout(300)
@pytest.mark.parametrize("place", dying_hcalld.PLACES)
def test_kills_at_the_worst_places(place: str, lab: Lab) -> None:
    """Around the commit of a change: what was recorded is replayed, what was not is done."""
    outcome = kills.run(lab, KILLS_AT_A_PLACE, seed=2, memory="private", place=place)
    lab.measure(**dataclasses.asdict(outcome))
    assert outcome.kills == KILLS_AT_A_PLACE
    if place == "after":
        # Committed and not told: the next daemon has to tell.
        assert outcome.replayed >= KILLS_AT_A_PLACE
    elif place in ("before", "inside"):
        assert outcome.resent >= KILLS_AT_A_PLACE
