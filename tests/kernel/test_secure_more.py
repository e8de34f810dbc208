# SPDX-License-Identifier: Apache-2.0
"""A secure Linux over its life: CPUs, memory, kexec, panic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.e2e.secure import SVM, SecureLab, svm_of_each
from tests.provision import initramfs

if TYPE_CHECKING:
    from tests.e2e.lab import Lab

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]


@pytest.mark.parametrize("topology", ["4,sockets=1,cores=2,threads=2", "8,sockets=2,cores=4"])
@pytest.mark.parametrize("cpu", ["power9", "power10"])
def test_all_cpus_are_in_secure_state(topology: str, cpu: str, lab: Lab) -> None:
    cpus = int(topology.partition(",")[0])
    script = f"""\
{svm_of_each(cpus)}
for round in 1 2 3; do
    for cpu in $(seq 1 {cpus - 1}); do
        echo 0 > /sys/devices/system/cpu/cpu$cpu/online
    done
    for cpu in $(seq 1 {cpus - 1}); do
        echo 1 > /sys/devices/system/cpu/cpu$cpu/online
    done
done
{svm_of_each(cpus).replace("svm ", "again ")}
"""
    secure = SecureLab(lab)
    # The last -smp counts. With more than four CPUs Linux warns of pages for dispatch trace
    # logs: it counts those of CONFIG_NR_CPUS, 8, and a slab's constructor makes more.
    failures = ("Kernel panic", "Oops:", "BUG: ")
    machine = secure.linux(script, extra=["-smp", topology, "-cpu", cpu], failures=failures)
    text = machine.console.expect_end(300)
    for number in range(cpus):
        assert f"svm {number} 1" in text
        assert f"again {number} 1" in text


def test_memory_is_plugged_in_and_out(lab: Lab) -> None:
    script = f"""\
before=$(grep MemTotal /proc/meminfo | tr -dc 0-9)
echo READY
for n in $(seq 200); do
    now=$(grep MemTotal /proc/meminfo | tr -dc 0-9)
    [ $now -gt $before ] && break
    sleep 0.1
done
echo "grew $((now - before))"
dd if=/dev/urandom of=/random bs=1M count=400 2>/dev/null
sha256sum /random; sha256sum /random
rm /random
cat {SVM}
"""
    secure = SecureLab(lab)
    machine = secure.linux(script, smp=2, extra=["-m", "512M,slots=2,maxmem=1G"])
    machine.console.expect("READY", 120)
    more: dict[str, Any] = {"qom-type": "memory-backend-ram", "id": "more", "size": 256 << 20}
    machine.qmp.execute("object-add", **more)
    machine.qmp.execute("device_add", driver="pc-dimm", id="dimm", memdev="more")
    text = machine.console.expect_end(240)
    assert "grew 262144" in text
    sums = {line.split()[0] for line in text.splitlines() if line.endswith("/random")}
    assert len(sums) == 1
    assert any(" ATTEND(" in line for line in secure.daemon.trace_lines())


def test_a_panic_is_told_and_ends_the_guest(lab: Lab) -> None:
    secure = SecureLab(lab)
    machine = secure.linux("echo c > /proc/sysrq-trigger", smp=2, failures=())
    text = machine.console.expect_end(120)
    assert "Kernel panic - not syncing: sysrq triggered crash" in text
    assert "kind=PANIC" in secure.daemon.log_text()


def test_memory_that_a_secure_guest_leaves_at_a_reset_is_zeroed(lab: Lab) -> None:
    marker = "only-the-secure-guest-may-read-this"
    script = f"""\
yes {marker} | head -c 64M > /secret
cat {SVM}
echo READY; sleep 600
"""
    secure = SecureLab(lab)
    machine = secure.linux(script, smp=1, can_reboot=True)
    machine.console.expect("READY", 120)
    machine.qmp.execute("stop")
    hidden = lab.artifacts / "hidden"
    machine.qmp.execute("pmemsave", val=0, size=512 << 20, filename=str(hidden))
    assert marker.encode() * 2 not in hidden.read_bytes().replace(b"\n", b"")
    machine.qmp.execute("system_reset")
    after = lab.artifacts / "after"
    machine.qmp.execute("pmemsave", val=0, size=512 << 20, filename=str(after))
    assert (marker.encode() + b"\n") * 2 not in after.read_bytes()
    hidden.unlink()
    after.unlink()


NEXT = """\
kexec -s --load /vmlinux --initrd=/next --command-line="console=hvc0 swiotlb=force" || exit
echo 'NEXT KERNEL'
kexec --exec
"""


def test_a_kexec_takes_shared_pages_back(lab: Lab) -> None:
    userland = lab.require("initramfs-tools").read_bytes()
    following = userland + initramfs.overlay({"/run.sh": svm_of_each(2).encode()})
    files = {"/vmlinux": lab.require("kernel-own").read_bytes(), "/next": following}
    secure = SecureLab(lab)
    machine = secure.linux(NEXT, smp=2, memory_mib=1024, files=files, userland="initramfs-tools")
    _, _, second = machine.console.expect_end(240).partition("\nNEXT KERNEL\n")
    assert "kexec: Unshared all shared pages." in second
    for cpu in range(2):
        assert f"svm {cpu} 1" in second
    lines = secure.daemon.trace_lines()
    assert sum(" UV_UNSHARE_ALL_PAGES(" in line for line in lines) == 1
    assert sum(" UV_ESM(" in line for line in lines) == 1
