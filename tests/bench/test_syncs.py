# SPDX-License-Identifier: Apache-2.0
"""What guests that confirm objects cost in syncs, when they call as fast as they can.

``tests/integration/test_group_commit.py`` holds the daemon to the goal with calls that
come together; here each vCPU goes on by itself, so the count says how well rounds gather.
"""

from __future__ import annotations

import pytest
from tests.conftest import Require
from tests.e2e.lab import Lab, lab
from tests.e2e.pairs import CountingDaemon, Load, run_freely

__all__ = ["lab"]

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]

GOAL = 125


def test_syncs_of_pairs(lab: Lab, require: Require) -> None:
    strace = require("strace")
    for load in (Load(), Load(guests=1), Load(guests=1, vcpus=1)):
        name = f"guests{load.guests}-vcpus{load.vcpus}"
        daemon = lab.daemon("--log-level", "warning", name=f"{name}-counted", is_started=False)
        counting = CountingDaemon(daemon, strace, lab.artifacts / f"{name}.strace")
        daemon.start()
        run_freely(daemon.socket, load)
        syncs = counting.end()
        free = lab.daemon("--log-level", "warning", name=f"{name}-free")
        seconds = run_freely(free.socket, load)
        per_pair = seconds / load.pairs * load.guests * load.vcpus * 1e6
        print(
            f"\n{load.pairs} WRITE and CONFIRM pairs, {load.guests} guests of {load.vcpus} vCPUs: "
            f"{syncs} syncs in the daemon's whole life, {per_pair:.0f} us a pair for its vCPU",
            end="",
        )
        if load == Load():
            print(
                f", goal at most {GOAL} syncs: {'reached' if syncs <= GOAL else 'MISSED'}", end=""
            )
