# SPDX-License-Identifier: Apache-2.0
"""Many clients at once: each has its own guest, and who dies takes only that with him."""

from __future__ import annotations

import contextlib

import pytest
from tests.e2e.patience import wait_until
from tests.e2e.sevclients import launch_many
from tests.e2e.sevhosts import Host, Pair, start

from hcalld.sevvm.machine import MIB
from hcallproto.abi.families import sev
from hcallproto.payloads.sev.constants import PAGE_SIZE

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


class Vanished(Exception):
    """The client is gone in the middle of a command."""


def die_inside(host: Host, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def vanish(*_: object) -> None:
        raise Vanished

    with host.machine(4 * MIB) as machine:
        machine.init(sev.INIT)
        machine.launch_start(0)
        machine.write(0, bytes(machine.size))
        monkeypatch.setattr(machine.client.memory, way, vanish)
        address = machine.address(0, machine.size)
        machine.client.command(sev.LAUNCH_UPDATE_DATA, uaddr=address, len=machine.size)


@pytest.mark.parametrize("way", ["read", "write"])
def test_a_client_that_dies_inside_a_command_leaves_nothing(
    way: str, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon has asked for memory, or to write it, and nobody answers any more."""
    host = pair.hosts.fresh(pair.left) if way == "read" else pair.source("strict")

    with host.machine() as staying:
        start(staying, 0)
        with pytest.raises(Vanished):
            die_inside(host, way, monkeypatch)
        monkeypatch.undo()
        wait_until(lambda: host.status().guest_count == 1, "the end of the guest")
        assert staying.read_decrypted(0, 16) is not None
        # What it held is free: its ASID, its place among the connections.
        with host.machine() as next_one:
            start(next_one, 0)
            assert host.status().guest_count == 2
