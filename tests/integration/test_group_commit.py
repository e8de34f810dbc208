# SPDX-License-Identifier: Apache-2.0
"""What guests cost in syncs, counted by strace."""

from __future__ import annotations

from tests.e2e.lab import Lab
from tests.e2e.pairs import CountingDaemon, Load, run_in_waves

LIMIT = 125
"""For 1,000 pairs with 32 in flight; one sync for each call that waits would be 1,000."""


def test_pairs_of_32_vcpus_cost_few_syncs(lab: Lab) -> None:
    """The whole life of the daemon counts, with making and closing four partitions.

    No luck is needed: the 32 calls of a wave reach the daemon together, so a wave is one
    round, whatever the disk and the machine.
    """
    daemon = lab.daemon(is_started=False)
    counting = CountingDaemon(daemon, lab.require("strace"), lab.artifacts / "strace")
    daemon.start()
    pairs = run_in_waves(daemon.socket, Load(), counting.process_id)
    syncs = counting.end()
    lab.measure(pairs=pairs, syncs=syncs)
    assert pairs >= 1000
    assert syncs <= LIMIT
