# SPDX-License-Identifier: Apache-2.0
"""Memory that comes to a secure Linux and goes, while its daemon is stopped."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.e2e.secure import SVM, SecureLab

if TYPE_CHECKING:
    from tests.e2e.lab import Lab
    from tests.e2e.machine import Machine

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(900)]

MORE_MIB = 256
"""The least that pseries plugs."""
FILE_MIB = 24
PLANTED = b"planted by the host! "

SCRIPT = f"""\
total() {{ grep MemTotal /proc/meminfo | tr -dc 0-9; }}
before=$(total)
for round in 1 2; do
    echo "READY $round"
    until [ $(total) -gt $before ]; do sleep 0.1; done
    echo "grew $(($(total) - before))"
    # What can be moved goes to the new memory first.
    dd if=/dev/urandom of=/random bs=1M count={FILE_MIB} 2>/dev/null
    free=$(sed -n '/zone *Movable/,/min/s/.*pages free *//p' /proc/zoneinfo)
    [ $free -lt {(MORE_MIB - FILE_MIB // 2) << 8} ] && echo "in new memory"
    sha256sum /random; sha256sum /random
    rm /random
    echo "USED $round"
    [ $round = 2 ] || until [ $(total) -eq $before ]; do sleep 0.1; done
done
cat {SVM}
"""


def is_zero(path: Path) -> bool:
    """Nothing was left in memory that is a file."""
    content = path.read_bytes()
    return content.count(0) == len(content)


def plug(machine: Machine, backing: Path) -> None:
    """Plugs memory that the host has filled."""
    with backing.open("wb") as file:
        file.write(PLANTED * ((MORE_MIB << 20) // len(PLANTED)))
        file.truncate(MORE_MIB << 20)
    more: dict[str, Any] = {"qom-type": "memory-backend-file", "id": "more", "share": True}
    more |= {"mem-path": str(backing), "size": MORE_MIB << 20}
    machine.qmp.execute("object-add", **more)
    machine.qmp.execute("device_add", driver="pc-dimm", id="dimm", memdev="more")


def unplug(machine: Machine, backing: Path) -> None:
    """Takes it away again; nothing of the guest's may be left in it."""
    machine.qmp.execute("device_del", id="dimm")
    machine.qmp.wait_event("DEVICE_DELETED", 120)
    machine.qmp.execute("object-del", id="more")
    assert is_zero(backing)


def test_memory_comes_and_goes_while_the_daemon_is_stopped(lab: Lab) -> None:
    secure = SecureLab(lab)
    backing = lab.artifacts / "backing"
    extra = ["-m", "512M,slots=2,maxmem=1G"]
    # Movable, for the guest must be able to give it back.
    append = "swiotlb=force memhp_default_state=online_movable"
    machine = secure.linux(SCRIPT, smp=2, append=append, extra=extra)
    machine.console.expect("READY 1", 240)
    assert secure.daemon.process is not None
    stopped = secure.daemon.process.pid
    os.kill(stopped, signal.SIGSTOP)
    plug(machine, backing)
    hidden = lab.artifacts / "hidden"
    machine.qmp.execute("pmemsave", val=512 << 20, size=MORE_MIB << 20, filename=str(hidden))
    assert is_zero(hidden)
    os.kill(stopped, signal.SIGCONT)
    machine.console.expect("USED 1", 300)
    # Gone and back, and the daemon has not even seen it.
    os.kill(stopped, signal.SIGSTOP)
    unplug(machine, backing)
    machine.console.expect("READY 2", 120)
    plug(machine, backing)
    os.kill(stopped, signal.SIGCONT)
    text = machine.console.expect_end(300)
    assert text.count(f"grew {MORE_MIB << 10}") == 2
    assert text.count("in new memory") == 2
    sums = [line.split()[0] for line in text.splitlines() if line.endswith("/random")]
    assert len(sums) == 4
    assert sums[0] == sums[1] != sums[2] == sums[3]
    assert PLANTED not in backing.read_bytes()
    backing.unlink()
    hidden.unlink()
    trace = "\n".join(secure.daemon.trace_lines())
    # The second time it was told apart from what was there, though it is at the same place.
    assert "UV_UNREGISTER_MEM_SLOT" in trace
    assert trace.count("UV_REGISTER_MEM_SLOT") >= 3
