# SPDX-License-Identifier: Apache-2.0
"""Linux as a secure VM whose pages go out at an operator's command, whatever it does then."""

from __future__ import annotations

import hashlib
import random
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.e2e.console import LINUX_FAILURES
from tests.e2e.control import (
    PAGE,
    Traced,
    guest_at_rest,
    page_out,
    start_page_out,
    the_guest,
)
from tests.e2e.patience import patience, wait_until
from tests.e2e.secure import SVM, SecureLab

if TYPE_CHECKING:
    from tests.e2e.lab import Lab
    from tests.e2e.machine import Machine

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1800)]

MEMORY_MIB = 256
"""The least that pseries has; each page that goes out and comes back costs milliseconds."""
FILE_MIB = 12
ALL_PAGES = MEMORY_MIB * (1 << 20) // PAGE
BOUNCED_MIB = 128
"""Bounce buffers: what is shared does not go out, so that there is less to wait for."""
DISK_SIZE = 2 << 20
SECTOR = 512

LIBRARY = f"""\
for name in vda vdb vdc; do echo 128 > /sys/block/$name/queue/max_sectors_kb; done
dd if=/dev/urandom of=/big bs=1M count={FILE_MIB} 2>/dev/null
memory=$(sha256sum < /big)

echo 4 > /proc/sys/vm/drop_caches # say nothing of it
fresh() {{ echo 3 > /proc/sys/vm/drop_caches; }}
sum_memory() {{ [ "$(sha256sum < /big)" = "$memory" ] && echo "memory $1" || echo "WRONG memory"; }}
# What was read is written to another disk, for the host to look at.
copy_disk() {{
    fresh
    [ "$(sha256sum < /dev/vda)" = "$disk" ] && echo "disk $1" || echo "WRONG disk"
    dd if=/dev/vda of=/dev/vdb bs=64k 2>/dev/null; sync
}}
forever() {{ local n=0; until [ -f /stop ]; do n=$((n + 1)); $1 $n; done; }}
# The host writes to the third disk when it has seen enough.
until_told() {{
    until dd if=/dev/vdc bs=512 count=1 2>/dev/null | grep -q stop; do sleep 1; fresh; done
    touch /stop
    wait
}}
"""

BUSY = """\

(taskset -p 1 $$ > /dev/null; forever sum_memory) &
(taskset -p 2 $$ > /dev/null; forever copy_disk) &
echo READY
until_told
sum_memory end; copy_disk end
"""


class Paged:
    """A secure guest that is paged out while it works.

    Args:
        lab: What starts things.
        work: A script that prints READY, works, and ends when it is told.
        profile: More of the guest's profile.
        bounced_mib: How much of its memory is for bounce buffers, which it shares.
        options: Of the guest.
    """

    def __init__(
        self,
        lab: Lab,
        work: str,
        profile: str = "page_shift = 12\n",
        bounced_mib: int = BOUNCED_MIB,
        **options: Any,
    ) -> None:
        self.lab = lab
        self.secure = SecureLab(lab, profile)
        self.daemon = self.secure.daemon
        self.disk = self._disk("disk", random.Random(7).randbytes(DISK_SIZE))
        self.copy = self._disk("copy", bytes(DISK_SIZE))
        self.told = self._disk("told", bytes(SECTOR))
        extra: list[str] = []
        for number, path in enumerate((self.disk, self.copy, self.told)):
            extra += ["-drive", f"if=none,id=d{number},format=raw,file={path}"]
            device = f"virtio-blk-pci,drive=d{number},iommu_platform=on,disable-legacy=on"
            extra += ["-device", device]
        digest = hashlib.sha256(self.disk.read_bytes()).hexdigest()
        script = f"disk='{digest}  -'\n{LIBRARY}{work}\ncat {SVM}\necho PAGING DONE\n"
        failures = (*LINUX_FAILURES, "WRONG")
        settings: dict[str, Any] = {
            "smp": 2,
            "memory_mib": MEMORY_MIB,
            "extra": extra,
            "failures": failures,
            **options,
        }
        self.machine: Machine = self.secure.linux(
            script, append=f"swiotlb={bounced_mib << 9},force", **settings
        )
        self.machine.console.expect("READY", 600)
        self.mark()

    def _disk(self, name: str, content: bytes) -> Path:
        path = self.lab.artifacts / name
        path.write_bytes(content)
        return path

    def goes_on(self, *what: str) -> None:
        """Waits until the guest has done each of its works anew: what it began before, and one."""
        for pattern in what:
            for _ in range(2):
                self.machine.console.expect(rf"^{pattern} \d+$", 400)

    def mark(self) -> None:
        """What happens from now on is counted."""
        self._before = guest_at_rest(self.daemon, self.machine)["pef"]
        self._lines = len(self.daemon.trace_lines())
        self.machine.qmp.execute("cont")

    def counts_agree(self) -> int:
        """Checks what the daemon tells against its trace; gives how often pages went out."""
        before, now = self._before, guest_at_rest(self.daemon, self.machine)["pef"]
        traced = Traced(self.daemon.trace_lines()[self._lines :])
        assert traced.went == now["paged_out"] - before["paged_out"]
        assert traced.went - traced.came == now["out"] - before["out"]
        assert now["secure"] + now["out"] + now["shared"] == ALL_PAGES
        self.machine.qmp.execute("cont")
        return traced.went

    def end(self) -> str:
        """Tells the guest to end, and looks at what it did; gives its console."""
        self.told.write_bytes(b"stop".ljust(SECTOR, b"\0"))
        text = self.machine.console.expect_end(600)
        assert "\n1\nPAGING DONE\n" in text
        return text


# A minute, and two.
@pytest.mark.parametrize(
    ("memory", "rounds"), [("shared", 2), pytest.param("private", 4, marks=pytest.mark.soak)]
)
def test_all_goes_out_while_memory_and_disks_are_used(memory: str, rounds: int, lab: Lab) -> None:
    paged = Paged(lab, BUSY, memory=memory)
    shared = the_guest(paged.daemon)["pef"]["shared"]
    went = []
    for number in range(rounds):
        done = page_out(paged.daemon)
        assert done["wanted"] == done["went"] or done["why"]
        assert done["wanted"] - done["went"] <= 16, done
        went.append(done["went"])
        if number == 0:
            assert done["wanted"] == ALL_PAGES - shared
        paged.goes_on("memory", "disk")
    assert paged.counts_agree() == sum(went)
    text = paged.end()
    assert "memory end" in text
    assert "disk end" in text
    assert paged.copy.read_bytes() == paged.disk.read_bytes()
    paged_in = sum(" PAGE_IN(" in line for line in paged.daemon.trace_lines())
    lab.measure(went=went, paged_in=paged_in)


CHANGING = """\
echo 1 > /sys/devices/system/cpu/cpu1/online
change_cpus() {
    echo 0 > /sys/devices/system/cpu/cpu1/online
    echo 1 > /sys/devices/system/cpu/cpu1/online
    [ "$(taskset 2 cat /sys/devices/system/cpu/svm)" = 1 ] && echo "cpus $1"
}
# The queues of a virtio device are shared anew each time.
driver=/sys/bus/virtio/drivers/virtio_blk
device=$(basename $(readlink -f /sys/block/vdb/device))
change_sharing() {
    echo $device > $driver/unbind
    echo $device > $driver/bind
    [ -e /sys/block/vdb ] && echo "sharing $1"
}
(forever change_cpus) &
(forever change_sharing) &
(forever sum_memory) &
echo READY
until_told
sum_memory end
"""


def test_pages_go_out_while_cpus_and_sharing_change(lab: Lab) -> None:
    paged = Paged(lab, CHANGING)
    went = 0
    for _ in range(2):
        went += page_out(paged.daemon)["went"]
        paged.goes_on("cpus", "sharing")
    paged.goes_on("memory")
    assert paged.counts_agree() == went
    assert "memory end" in paged.end()
    lines = paged.daemon.trace_lines()
    for call in ("UV_SHARE_PAGE", "UV_UNSHARE_PAGE"):
        answers = [line for line in lines if f" {call}(" in line]
        assert len(answers) > 20
        assert all(" = U_SUCCESS " in line for line in answers)


LIMIT_MIB = 36
"""Less than the guest's file and what else it touches."""


def test_a_guest_that_is_short_of_secure_memory_is_paged_out(lab: Lab) -> None:
    limit = LIMIT_MIB * (1 << 20) // PAGE
    # What is shared needs no secure memory: much of it, and little would be left that must go out.
    profile = f"page_shift = 12\nsecure_memory_mib = {LIMIT_MIB}\n"
    paged = Paged(lab, BUSY, profile, bounced_mib=LIMIT_MIB // 2)
    asked_for = 0
    for _ in range(2):
        done = page_out(paged.daemon)
        assert done["pef"]["limit"] == limit
        assert done["went"] > 0
        asked_for += done["went"]
        paged.goes_on("memory", "disk")
    # The rest went for want of room.
    assert paged.counts_agree() > max(limit, asked_for)
    assert the_guest(paged.daemon)["pef"]["secure"] <= limit
    paged.end()
    assert paged.copy.read_bytes() == paged.disk.read_bytes()


def test_the_daemon_is_killed_while_pages_go_out(lab: Lab) -> None:
    paged = Paged(lab, BUSY)
    for number in range(3):
        enough = attends(paged) + 10
        command = start_page_out(paged.daemon)
        wait_until(partial(lambda enough: attends(paged) > enough, enough), "a page-out", 60)
        paged.daemon.kill()
        _, told = command.communicate(timeout=patience(30))
        assert command.returncode == 1
        assert "the daemon has ended the connection" in told
        paged.daemon.start()
        wait_until(lambda: is_connected(paged), "the guest's connection", 60)
        if number == 0:
            paged.goes_on("memory", "disk")
    # What a killed daemon's trace had no time to tell of is told by the next one.
    paged.mark()
    done = page_out(paged.daemon)
    paged.goes_on("memory", "disk")
    assert paged.counts_agree() == done["went"] > 0
    paged.end()
    assert paged.copy.read_bytes() == paged.disk.read_bytes()


def attends(paged: Paged) -> int:
    """How many batches went out."""
    return sum(" ATTEND(" in line for line in paged.daemon.trace_lines())


def is_connected(paged: Paged) -> bool:
    """The guest is the daemon's again."""
    log = paged.daemon.log_text()
    return log.count("guest ready") == paged.daemon.starts
