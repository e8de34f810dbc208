# SPDX-License-Identifier: Apache-2.0
"""``kill -9`` of the daemon under load, again and again, and what must be true afterwards."""

from __future__ import annotations

import dataclasses
import random
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence

from tests.e2e import soaklog
from tests.e2e.daemon import Daemon
from tests.e2e.lab import PARTITION, Lab
from tests.e2e.machine import Memory
from tests.e2e.patience import patience, wait_until

_AGAIN = re.compile(
    r"H_PKS_(?:WRITE_OBJECT|REMOVE_OBJECT|GEN_PASSWORD|GEN_KEY)\("
    r".*(?P<how>sent again|recorded reply)"
)

OPS_A_KILL = 120
"""Calls of each CPU for each kill: more than are made between two."""

CALLS_BETWEEN = 20
"""Answers of each daemon at least: the guest has gone on before the next kill."""

MOST_COMMITS = 40
"""A daemon that kills itself does so at one of its first so many changes."""

LONGEST_S = 0.05
"""Kills come at random within this after the guest has gone on."""


@dataclasses.dataclass(slots=True)
class Outcome:
    """What was counted.

    Attributes:
        kills: How often the daemon was killed.
        mutating: Kills that fell while at least one mutating call was pending.
        resent: Mutating calls that were sent again and carried out by the next daemon.
        replayed: Those that had been carried out, and were answered with what was recorded.
        calls: All calls of the guest's.
    """

    kills: int = 0
    mutating: int = 0
    resent: int = 0
    replayed: int = 0
    calls: int = 0
    seconds: float = 0.0

    def count(self, lines: Sequence[str]) -> None:
        """Counts what a daemon found pending, by the trace of its life."""
        again = [found["how"] for line in lines if (found := _AGAIN.search(line))]
        self.mutating += bool(again)
        self.replayed += again.count("recorded reply")
        self.resent += again.count("sent again")


def wait_for_calls(daemon: Daemon, count: int) -> None:
    """Waits until the trace has so many lines."""
    wait_until(lambda: len(daemon.trace_lines()) >= count, f"{count} calls", 60)


class Killer:
    """Ends a daemon in one of two ways, and starts the next."""

    def __init__(self, daemon: Daemon, seed: int, place: str | None) -> None:
        self._daemon = daemon
        self._chance = random.Random(seed)
        self._place = place
        if place is not None:
            daemon.command = (sys.executable, "-m", "tests.e2e.dying_hcalld")

    def arm(self, is_last: bool = False) -> None:
        """To be called before each start."""
        self._daemon.environ.pop("HCALLD_DIE", None)
        if self._place is not None and not is_last:
            number = self._chance.randint(1, MOST_COMMITS)
            self._daemon.environ["HCALLD_DIE"] = f"{self._place}:{number}"

    def kill(self) -> None:
        """Kills it at random, or waits until it has done so itself."""
        if self._place is None:
            time.sleep(self._chance.uniform(0, LONGEST_S))
            self._daemon.kill()
            return
        process = self._daemon.process
        assert process is not None
        status = process.wait(patience(60))
        if status != -signal.SIGKILL:
            raise soaklog.SoakError(f"the daemon ended with {status}")


def run(
    lab: Lab, kills: int, *, seed: int, memory: Memory = "shared", place: str | None = None
) -> Outcome:
    """Kills the daemon under a guest with four CPUs, then compares the guest's log with the store.

    Args:
        lab: Starts what is needed.
        kills: How often.
        seed: Of the guest's calls, and of the times of kills.
        memory: The guest's.
        place: None: at any time; or one of ``dying_hcalld.PLACES``.

    Raises:
        SoakError: They do not agree.
        KtapError: The guest itself saw something wrong.
    """
    # A deadline that no slow machine comes near: what is tested is resumption.
    profiles = lab.artifacts / "profiles"
    profiles.mkdir()
    (profiles / "default.toml").write_text("[hcalld]\ndeadline_ms = 600000\n", "utf-8")
    outcome = Outcome()
    started = time.monotonic()
    daemon = lab.daemon("--profile-dir", str(profiles), is_started=False)
    killer = Killer(daemon, seed, place)
    killer.arm()
    daemon.start()
    ops = OPS_A_KILL * kills
    machine = lab.stub(f"soak seed={seed} ops={ops} require=1", daemon, memory=memory)
    lines = 0
    while outcome.kills < kills:
        killer.kill()
        outcome.kills += 1
        lines = len(daemon.trace_lines())
        killer.arm(is_last=outcome.kills == kills)
        daemon.start()
        if place is None or outcome.kills == kills:
            wait_for_calls(daemon, lines + CALLS_BETWEEN)
        elif daemon.process is not None:
            daemon.process.wait(patience(60))
        outcome.count(daemon.trace_lines()[lines:])
    machine.report(900).must_pass("soak")
    assert daemon.terminate() == 0
    outcome.seconds = time.monotonic() - started
    operations = soaklog.parse(machine.console.text)
    outcome.calls = len(operations)
    problems = list(compare(operations, daemon))
    if problems:
        raise soaklog.SoakError("; ".join(problems[:20]))
    return outcome


def compare(operations: list[soaklog.Operation], daemon: Daemon) -> Iterator[str]:
    """Says what the guest was told and the store does not have, or the other way round."""
    for one in operations:
        if one.code is None:
            yield f"the guest has ended, and call {one.seq} of CPU {one.cpu} has no answer"
    stored = soaklog.read_store(daemon.state_dir, PARTITION)
    yield from soaklog.disagreements(operations, stored)
    # The machine was powered on, which put attributes in force, and one run of it was begun;
    # each other commit is one change, told once.
    changes, told = stored.generation - 2, soaklog.successes(operations)
    if changes != told:
        yield f"the store has seen {changes} changes, the guest was told of {told}"
