# SPDX-License-Identifier: Apache-2.0
"""Four processors write at once: signed updates and trusted keys, from a shell on each."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest
from tests.e2e.authvar import SHA256, sbat_list, signature_list
from tests.e2e.daemon import run_hcalld
from tests.e2e.patience import wait_until
from tests.kernel.guestside import (
    BOOT_S,
    FUNCTIONS,
    LIBRARY,
    calls,
    profile,
    results,
    succeed,
    wait_until_off,
)
from tests.kernel.secvars import Sequence
from tests.kernel.test_secvar import DYNAMIC_MODE, DYNAMIC_SPACE, LATCH, Author, enrol, run

if TYPE_CHECKING:
    from tests.e2e.daemon import Daemon
    from tests.e2e.lab import Lab
    from tests.kernel.conftest import Keys

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

ROUNDS = 6

SHELLS = ("db", "dbx", "grubdb", "grubdbx")
"""Each shell has a variable of its own, and all have sbat."""

SHELL = f"""\
{FUNCTIONS}
for round in $(seq {ROUNDS}); do
    update $1 /updates/$1.$round 2> /dev/null || say lost_$1_$round yes
    # Of the others' dates some are later: then this one is refused.
    update sbat /updates/sbat.$1.$round 2> /dev/null && echo $1 >> /tmp/shared.$1
    keyctl add trusted $1.$round "new 32" @u > /tmp/id.$1 || say nokey_$1_$round yes
    keyctl print $(cat /tmp/id.$1) > /tmp/blob.$1.$round
done
"""

SCRIPT = f"""\
mask=1
for name in {" ".join(SHELLS)}; do
    taskset $mask sh /shell.sh $name &
    mask=$((2 * mask))
done
wait
loaded=0
for blob in /tmp/blob.*; do
    keyctl add trusted again "load $(cat $blob)" @s > /dev/null && loaded=$((loaded + 1))
done
say loaded $loaded
say shared $(cat /tmp/shared.* | wc -l)
"""

LOOK = f"""\
for name in {" ".join(SHELLS)} sbat; do say $name $(hex $vars/$name/data); done
say used $(used)
"""


def wait_for_updates(daemon: Daemon, count: int) -> None:
    """Waits until so many signed updates are in the trace."""
    wait_until(lambda: len(calls(daemon, "H_PKS_SIGNED_UPDATE")) >= count, "updates", 60)


@pytest.mark.parametrize("kills", [0, 4])
def test_four_processors_write_at_once(kills: int, keys: Keys, lab: Lab) -> None:
    """Nothing is lost or done twice, not even if the daemon is killed under them."""
    daemon = lab.daemon(*profile(lab, DYNAMIC_MODE + LATCH))
    author, steps = Author(), Sequence(base=DYNAMIC_SPACE)
    enrol(steps, author, keys)
    run(lab, daemon, steps)

    files = {"/shell.sh": SHELL.encode()}
    for turn in range(1, ROUNDS + 1):
        for name in SHELLS:
            data = signature_list(SHA256, [os.urandom(32) for _ in range(turn)])
            files[f"/updates/{name}.{turn}"] = author(name, data, keys.kek)
            steps.objects[name] = author.stored(data)
            level = sbat_list(f"sbat,1\n{name},{turn}\n".encode())
            files[f"/updates/sbat.{name}.{turn}"] = author("sbat", level, keys.kek)
            steps.objects["sbat"] = author.stored(level)
    already = len(calls(daemon, "H_PKS_SIGNED_UPDATE"))
    machine = lab.linux(
        "own",
        LIBRARY + "echo GO\n" + SCRIPT + LOOK,
        daemon,
        userland="initramfs-tools",
        files=files,
        smp=len(SHELLS),
    )
    machine.console.expect("^GO$", BOOT_S)
    for kill in range(kills):
        wait_for_updates(daemon, already + len(files) * (kill + 1) // (kills + 1))
        daemon.kill()
        daemon.start()
    text = succeed(machine)
    got = results(text)
    expected = {name: steps.objects[name].hex() for name in (*SHELLS, "sbat")}
    assert {name: got[name] for name in expected} == expected
    assert got["used"] == str(steps.space)
    assert not [name for name in got if name.startswith(("lost", "nokey"))]
    assert got["loaded"] == str(len(SHELLS) * ROUNDS)
    # Each update of sbat was taken or refused for its date, and the latest was taken.
    shared = [line for line in calls(daemon, "H_PKS_SIGNED_UPDATE") if 'label=u"sbat"' in line]
    if not kills:
        # The trace of a daemon that was killed may lack its last lines.
        assert len(shared) == len(SHELLS) * ROUNDS
        assert sum("= H_SUCCESS" in line for line in shared) == int(got["shared"])
    assert int(got["shared"]) >= 1
    cpus = {match[1] for line in daemon.trace_lines() if (match := re.search(r" cpu(\d+) ", line))}
    assert len(cpus) == 4

    wait_until_off(daemon)
    verified = run_hcalld("state", "verify", "--state-dir", str(daemon.state_dir))
    assert verified.returncode == 0, verified.stderr
    cold = results(succeed(lab.linux("own", LIBRARY + LOOK, daemon)))
    assert cold == {**expected, "used": got["used"]}
