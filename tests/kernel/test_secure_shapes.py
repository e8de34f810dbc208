# SPDX-License-Identifier: Apache-2.0
"""A secure Linux of many shapes: CPUs and memory that come and go, and what is shared for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.e2e.secure import SVM, SecureLab, shared_calls, svm_of_each

if TYPE_CHECKING:
    from tests.e2e.lab import Lab

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

CPU_DIR = "/sys/devices/system/cpu"

# Linux warns of pages for dispatch trace logs, when there are more than four CPUs or one's log
# is looked at: it counts those of CONFIG_NR_CPUS, 8, and a slab's constructor makes more.
FAILURES = ("Kernel panic", "Oops:", "BUG: ")


@pytest.mark.parametrize(
    ("cpu", "topology"),
    [
        ("power9", "8,sockets=2,cores=2,threads=2"),
        ("power10", "4,sockets=1,cores=2,threads=2"),
        ("power10", "8,sockets=2,cores=4"),
    ],
)
def test_all_cpus_are_in_secure_state(topology: str, cpu: str, lab: Lab) -> None:
    cpus = int(topology.partition(",")[0])
    script = f"""\
{svm_of_each(cpus)}
for round in 1 2 3; do
    for cpu in $(seq 1 {cpus - 1}); do
        echo 0 > {CPU_DIR}/cpu$cpu/online
    done
    for cpu in $(seq 1 {cpus - 1}); do
        echo 1 > {CPU_DIR}/cpu$cpu/online
    done
done
{svm_of_each(cpus).replace("svm ", "again ")}
"""
    secure = SecureLab(lab)
    # The last -smp counts.
    machine = secure.linux(script, extra=["-smp", topology, "-cpu", cpu], failures=FAILURES)
    text = machine.console.expect_end(300)
    for number in range(cpus):
        assert f"svm {number} 1" in text
        assert f"again {number} 1" in text


QUEUE_PAGES = 16
"""An interrupt queue of 64 KiB, of each CPU that comes."""

CPU_PLUGGED = f"""\
echo READY
until [ -d {CPU_DIR}/cpu1 ]; do sleep 0.1; done
until [ "$(cat {CPU_DIR}/cpu1/online)" = 1 ]; do sleep 0.1; done
echo "plugged $(taskset -c 1 cat {SVM})"
sha256sum /bin/busybox > /sum
taskset -c 1 sha256sum -c /sum
cat /sys/kernel/debug/powerpc/dtl/cpu-1 > /dev/null && echo "log read"
echo OUT
while [ -d {CPU_DIR}/cpu1 ] && [ "$(cat {CPU_DIR}/cpu1/online)" = 1 ]; do sleep 0.1; done
echo "still $(cat {SVM})"
"""


def test_a_cpu_is_plugged_in_and_out(lab: Lab) -> None:
    secure = SecureLab(lab)
    topology = "1,sockets=1,cores=2,threads=1,maxcpus=2"
    machine = secure.linux(CPU_PLUGGED, extra=["-smp", topology], failures=FAILURES)
    machine.console.expect("^READY", 120)
    (free,) = [
        one for one in machine.qmp.execute("query-hotpluggable-cpus") if "qom-path" not in one
    ]
    before = shared_calls(secure.daemon.trace_lines())
    machine.qmp.execute("device_add", driver=free["type"], id="core", **named(free["props"]))
    machine.console.expect("^plugged 1", 120)
    machine.console.expect("^/bin/busybox: OK", 60)
    machine.console.expect("^OUT", 60)
    more = shared_calls(secure.daemon.trace_lines())[len(before) :]
    assert QUEUE_PAGES in more
    assert len(machine.qmp.execute("query-cpus-fast")) == 2
    machine.qmp.execute("device_del", id="core")
    # Its thread has an event of its own, before.
    while "device" not in machine.qmp.wait_event("DEVICE_DELETED", 120)["data"]:
        pass
    assert len(machine.qmp.execute("query-cpus-fast")) == 1
    text = machine.console.expect_end(120)
    assert "still 1" in text
    lines = secure.daemon.trace_lines()
    assert any(" UV_UNSHARE_PAGE(" in line for line in lines)


def named(properties: dict[str, Any]) -> dict[str, Any]:
    """QEMU's properties as arguments."""
    return {name.replace("-", "_"): value for name, value in properties.items()}


MEMORY_PLUGGED = f"""\
total() {{ grep MemTotal /proc/meminfo | tr -dc 0-9; }}
before=$(total)
echo READY
until [ $(total) -gt $before ]; do sleep 0.1; done
echo "grew $(($(total) - before))"
# What can be moved goes to the new memory first, and away from it in the end.
dd if=/dev/urandom of=/random bs=1M count=64 2>/dev/null
sha256sum /random
free=$(sed -n '/zone *Movable/,/min/s/.*pages free *//p' /proc/zoneinfo)
[ $free -lt $((65536 - 12288)) ] && echo "new memory used"
echo OUT
until [ $(total) -eq $before ]; do sleep 0.1; done
echo "shrank $(cat {SVM})"
sha256sum /random
"""


def test_memory_is_plugged_in_and_out(lab: Lab) -> None:
    secure = SecureLab(lab)
    machine = secure.linux(
        MEMORY_PLUGGED,
        append="swiotlb=force memhp_default_state=online_movable",
        smp=2,
        extra=["-m", "512M,slots=2,maxmem=1G"],
    )
    machine.console.expect("^READY", 120)
    more: dict[str, Any] = {"qom-type": "memory-backend-ram", "id": "more", "size": 256 << 20}
    machine.qmp.execute("object-add", **more)
    machine.qmp.execute("device_add", driver="pc-dimm", id="dimm", memdev="more")
    machine.console.expect("^OUT", 240)
    machine.qmp.execute("device_del", id="dimm")
    machine.qmp.wait_event("DEVICE_DELETED", 240)
    assert machine.qmp.execute("query-memory-size-summary")["plugged-memory"] == 0
    text = machine.console.expect_end(240)
    assert "grew 262144" in text
    assert "new memory used" in text
    assert "shrank 1" in text
    sums = [line.split()[0] for line in text.splitlines() if line.endswith("/random")]
    assert len(sums) == 2
    assert len(set(sums)) == 1
    assert any(" ATTEND(" in line for line in secure.daemon.trace_lines())
