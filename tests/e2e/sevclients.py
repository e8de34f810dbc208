# SPDX-License-Identifier: Apache-2.0
"""Many VMs at once on one daemon, some of which die; and what must be true of each that lives."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import os
import random
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.e2e.sevhosts import Host

from hcalld.guestowner.client import CommandRefused, ConnectionFailed
from hcalld.guestowner.platform import Platform
from hcalld.guestowner.sessions import make_session
from hcalld.sevvm.machine import Machine
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.payloads.sev import GuestState, SevCertificate
from hcallproto.payloads.sev.constants import PAGE_SIZE

SIZE = 4 * PAGE_SIZE
STEPS = 7
"""Commands of a launch after which a client may die."""


@dataclasses.dataclass
class Tally:
    """What came of launches."""

    launched: int = 0
    killed: int = 0
    full: int = 0
    """No ASID was free."""
    lost: int = 0
    """The daemon died, or let nobody in."""
    handles: list[int] = dataclasses.field(default_factory=list)
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def count(self, what: str, handle: int = 0) -> None:
        with self._lock:
            setattr(self, what, getattr(self, what) + 1)
            if handle:
                self.handles.append(handle)


class Died(Exception):
    """The client is gone in the middle."""


def launch_one(
    host: Host, tally: Tally, seed: int, barrier: threading.Barrier | None = None
) -> None:
    """One client's life: a launch that is proven to its owner, a secret of its own in memory.

    Args:
        host: the platform.
        tally: counts what came of it.
        seed: decides what is launched, and after which command the client dies, if it does.
        barrier: where those wait who shall be alive at the same time.
    """
    chance = random.Random(seed)
    dies_after = chance.randrange(STEPS) if barrier is None and chance.random() < 0.3 else STEPS
    try:
        with host.machine(SIZE) as machine:
            _live(machine, tally, chance, dies_after, barrier)
    except Died:
        tally.count("killed")
    except ConnectionFailed:
        tally.count("lost")
    except CommandRefused as error:
        if error.status != SevCode.RESOURCE_LIMIT:
            raise
        tally.count("full")


def _live(
    machine: Machine,
    tally: Tally,
    chance: random.Random,
    dies_after: int,
    barrier: threading.Barrier | None,
) -> None:
    steps = iter(range(STEPS + 1))

    def step() -> None:
        if next(steps) == dies_after:
            machine.client.close()
            raise Died

    platform = Platform(machine.client)
    version = platform.status().version
    pdh = SevCertificate.parse(platform.export().pdh, "PDH")
    policy = chance.choice((0, 1, 2, 3))
    made = make_session(pdh, policy, os.urandom)
    content = chance.randbytes(SIZE)
    machine.init(sev.INIT)
    step()
    handle = machine.launch_start(policy, made.certificate.build(), made.session.build())
    step()
    machine.launch_update_data(0, content)
    step()
    blob = machine.launch_measure()
    step()
    message = bytes((4, *version)) + policy.to_bytes(4, "little")
    message += hashlib.sha256(content).digest() + blob[32:]
    assert blob[:32] == hmac.digest(made.keys.tik.reveal(), message, "sha256")
    machine.launch_finish()
    step()
    if barrier is not None:
        barrier.wait()
    assert machine.status() == (handle, policy, GuestState.RUNNING)
    step()
    if policy & 1:
        assert machine.read(0, SIZE) != content
    else:
        assert machine.read_decrypted(0, SIZE) == content
    step()
    tally.count("launched", handle)


def launch_many(host: Host, seeds: Sequence[int], *, workers: int, together: bool) -> Tally:
    """Launch guests in parallel; raises what any of them raises.

    Args:
        host: the platform, one that encrypts.
        seeds: one for each guest.
        workers: so many at once.
        together: all are alive at one moment, and nobody dies.
    """
    tally = Tally()
    barrier = threading.Barrier(len(seeds), timeout=120) if together else None
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(launch_one, host, tally, seed, barrier) for seed in seeds]
        for future in futures:
            future.result()
    return tally
