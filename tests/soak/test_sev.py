# SPDX-License-Identifier: Apache-2.0
"""SEV for longer: every bit of a packet, and hundreds of launches while clients and daemons die.

``HCALLD_SEV_LAUNCHES`` says how many, ``HCALLD_SEV_SEED`` from where.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time

import pytest
from tests.e2e.patience import wait_until
from tests.e2e.sevclients import Tally, launch_many, launch_one
from tests.e2e.sevhosts import Host, Hosts, sending
from tests.sev_platform import flipped

from hcalld.guestowner.client import CommandRefused, ConnectionFailed
from hcalld.guestowner.platform import Platform
from hcallproto.abi.families.sev import PACKET_MAX_SIZE
from hcallproto.abi.returns import SevCode
from hcallproto.payloads.sev.constants import PAGE_SIZE

LAUNCHES = int(os.environ.get("HCALLD_SEV_LAUNCHES", "600"))
SEED = int(os.environ.get("HCALLD_SEV_SEED") or random.SystemRandom().getrandbits(32))
WORKERS = 8
LONGEST_LIFE_S = 1.0
"""A daemon is killed within this after it has begun."""

pytestmark = pytest.mark.soak


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("size", "step"), [(PAGE_SIZE, 1), (PACKET_MAX_SIZE, 7)], ids=["a page", "64 KiB"]
)
def test_no_bit_of_a_packet_can_be_changed(size: int, step: int, hosts: Hosts) -> None:
    """All bits of a page's packet; of the largest one's, a bit of each byte."""
    left, right = hosts.daemon("left"), hosts.daemon("right")
    content = random.Random(SEED).randbytes(PACKET_MAX_SIZE)
    with sending(Host(left, "encrypted"), Host(right, "encrypted"), content) as (here, there):
        packet = here.send_update_data(0, size)
        before = there.read(0, there.size)
        count = len(packet.header)
        for bit in range(8 * count):
            altered = packet._replace(header=flipped(packet.header, bit // 8, 1 << bit % 8))
            with pytest.raises(CommandRefused) as raised:
                there.receive_update_data(0, altered)
            assert raised.value.status == SevCode.BAD_MEASUREMENT or bit < 32, bit
        for bit in range(0, 8 * size, step):
            altered = packet._replace(payload=flipped(packet.payload, bit // 8, 1 << bit % 8))
            with pytest.raises(CommandRefused) as raised:
                there.receive_update_data(0, altered)
            assert raised.value.status == SevCode.BAD_MEASUREMENT, bit
        assert there.read(0, there.size) == before
        there.receive_update_data(0, packet)
        there.receive_finish()
        assert there.read_decrypted(0, size) == content[:size]


@pytest.mark.timeout(3600)
def test_launches_while_clients_die(hosts: Hosts) -> None:
    """Some die after each of their commands; the others see nothing of it, and nothing is left."""
    host = Host(hosts.daemon("daemon"), "encrypted")
    print(f"HCALLD_SEV_SEED={SEED}", file=sys.stderr)
    seeds = random.Random(SEED).sample(range(1 << 32), LAUNCHES)
    tally = launch_many(host, seeds, workers=WORKERS, together=False)
    assert tally.launched + tally.killed == LAUNCHES
    assert tally.killed > LAUNCHES // 10
    wait_until(lambda: host.status().guest_count == 0, "the end of all guests")


@pytest.mark.timeout(3600)
def test_launches_while_the_daemon_dies(hosts: Hosts) -> None:
    """Keys are what they were last told to be; a launch is wholly proven, or its daemon died."""
    daemon = hosts.daemon("daemon")
    host = Host(daemon, "encrypted")
    print(f"HCALLD_SEV_SEED={SEED}", file=sys.stderr)
    chance = random.Random(SEED)
    tally = Tally()
    errors: list[BaseException] = []
    is_over = threading.Event()

    def launching(seed: int) -> None:
        own = random.Random(seed)
        while not is_over.is_set():
            lost = tally.lost
            try:
                launch_one(host, tally, own.getrandbits(32))
            except BaseException as error:
                errors.append(error)
                is_over.set()
            if tally.lost > lost:
                time.sleep(0.02)

    threads = [threading.Thread(target=launching, args=(chance.random(),)) for _ in range(WORKERS)]
    kills = 0
    try:
        for thread in threads:
            thread.start()
        while tally.launched < LAUNCHES and not is_over.is_set():
            told = _export(host)
            time.sleep(chance.random() * LONGEST_LIFE_S)
            daemon.kill()
            kills += 1
            daemon.start()
            assert _export(host) == told
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    print(f"{tally.launched} launched, {tally.killed} died, {tally.lost} lost, {kills} kills")
    assert tally.launched >= LAUNCHES
    assert tally.lost
    wait_until(lambda: host.status().guest_count == 0, "the end of all guests")


def _export(host: Host) -> bytes:
    with host.client() as client:
        return Platform(client).export().whole


@pytest.mark.timeout(3600)
def test_keys_that_were_told_are_kept_whenever_the_daemon_dies(hosts: Hosts) -> None:
    """A change that nobody was told of is there or not; one that was told is there."""
    daemon = hosts.daemon("daemon")
    host = Host(daemon, "encrypted")
    chance = random.Random(SEED)
    told = [_export(host)]
    changes = (Platform.make_pdh, Platform.make_pek, Platform.factory_reset)
    for _ in range(max(4, LAUNCHES // 20)):
        timer = threading.Timer(chance.random() * 0.2, daemon.kill)
        timer.start()
        try:
            with host.client() as client:
                platform = Platform(client)
                while True:
                    chance.choice(changes)(platform)
                    told.append(platform.export().whole)
        except ConnectionFailed:
            pass
        timer.join()
        daemon.start()
        now = _export(host)
        # Between the last that was told and now is at most the change that was cut off.
        assert now == told[-1] or now not in told
        told.append(now)
