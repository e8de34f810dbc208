# SPDX-License-Identifier: Apache-2.0
"""Many clients at once: each has its own guest, and who dies takes only that with him."""

from __future__ import annotations

import contextlib

from tests.e2e.patience import wait_until
from tests.e2e.sevclients import launch_many
from tests.e2e.sevhosts import Pair, start

from hcalld.sevvm.machine import PAGE_SIZE

CLIENTS = 50


def test_fifty_clients_launch_at_once(pair: Pair) -> None:
    host = pair.source()
    tally = launch_many(host, range(CLIENTS), workers=CLIENTS, together=True)
    assert (tally.launched, tally.lost, tally.full) == (CLIENTS, 0, 0)
    assert len(set(tally.handles)) == CLIENTS
    wait_until(lambda: host.status().guest_count == 0, "the end of all guests")


def test_clients_that_die_leave_nothing(pair: Pair) -> None:
    """Each after a command of its own; others go on."""
    host = pair.source()
    tally = launch_many(host, range(1000, 1000 + CLIENTS), workers=10, together=False)
    assert tally.killed
    assert tally.launched + tally.killed == CLIENTS
    wait_until(lambda: host.status().guest_count == 0, "the end of all guests")
    again = launch_many(host, range(10), workers=10, together=True)
    assert again.launched == 10


def test_clients_for_whom_there_is_no_asid_launch_later(pair: Pair) -> None:
    """A platform has 15 unless told otherwise."""
    host = pair.source("elsewhere")
    with contextlib.ExitStack() as stack:
        for _ in range(15):
            start(stack.enter_context(host.machine(PAGE_SIZE)), 0)
        # These seeds are of clients that live until they are refused.
        tally = launch_many(host, range(5), workers=5, together=False)
        assert (tally.launched, tally.full, tally.killed) == (0, 4, 1)
    wait_until(lambda: host.status().guest_count == 0, "the end of all guests")
    assert launch_many(host, range(5), workers=5, together=True).launched == 5
