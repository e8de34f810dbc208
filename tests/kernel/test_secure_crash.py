# SPDX-License-Identifier: Apache-2.0
"""How a secure Linux ends, and what is cut off: panics, resets, crash kernels, a daemon's death."""

from __future__ import annotations

import hashlib
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest
from tests.e2e.patience import wait_until
from tests.e2e.secure import (
    SVM,
    SecureLab,
    disk,
    pages_with_content,
    shared_calls,
    svm_of_each,
)
from tests.provision import initramfs

from hcalld.cli.qemu_args import window_arguments

if TYPE_CHECKING:
    from tests.e2e.lab import Lab

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

ENTERED = "guest enters secure mode"


def test_a_panic_is_told_to_a_daemon_that_is_busy(lab: Lab) -> None:
    secure = SecureLab(lab)
    script = "echo READY; read -r told; echo c > /proc/sysrq-trigger"
    machine = secure.linux(script, smp=2, failures=())
    machine.console.expect("READY", 120)
    daemon = secure.daemon.process
    assert daemon is not None
    # QEMU does not wait for it; what it was told is there when it goes on.
    daemon.send_signal(signal.SIGSTOP)
    machine.enter("go on")
    try:
        text = machine.console.expect_end(120)
    finally:
        daemon.send_signal(signal.SIGCONT)
    assert "Kernel panic - not syncing: sysrq triggered crash" in text
    wait_until(lambda: "kind=PANIC" in secure.daemon.log_text(), "the panic's event")


BOOTS = f"""\
boot=$(head -c 1 /dev/vda)
echo "boot $boot secure $(cat {SVM})"
echo -n $((boot + 1)) | dd of=/dev/vda conv=notrunc 2>/dev/null
sync
case $boot in
    1) reboot -f ;;
    2) echo c > /proc/sysrq-trigger ;;
    3) echo READY; sleep 1000 ;;
esac
"""


def test_each_boot_is_secure_whatever_ended_the_one_before(lab: Lab) -> None:
    secure = SecureLab(lab)
    image = lab.artifacts / "image"
    image.write_bytes(b"1".ljust(1 << 20, b"\0"))
    machine = secure.linux(
        BOOTS,
        append="swiotlb=force panic=1",
        smp=2,
        can_reboot=True,
        failures=(),
        extra=["-action", "panic=none", *disk(0, image)],
    )
    machine.console.expect("READY", 240)
    machine.qmp.execute("system_reset")
    text = machine.console.expect_end(120)
    assert "Kernel panic - not syncing: sysrq triggered crash" in text
    for boot in range(1, 5):
        assert text.count(f"boot {boot} secure 1") == 1
    wait_until(lambda: "guest gone" in secure.daemon.log_text(), "the guest's end")
    log = secure.daemon.log_text()
    assert log.count(ENTERED) == 4
    assert log.count("kind=RESET") == 3


RESETS = 10
KILLS = 4


@pytest.mark.parametrize("cut", ["reset", "kill"])
def test_an_entry_is_cut_off_at_random(cut: str, lab: Lab) -> None:
    """Whatever instant it is, the next entry succeeds; with a kill it may be the same one."""
    secure = SecureLab(lab)
    daemon = secure.daemon
    machine = secure.linux(svm_of_each(2), smp=2, can_reboot=True)
    wait_until(lambda: ENTERED in daemon.log_text(), "the first entry", 60)
    chance = random.Random(11)
    started = time.monotonic()
    machine.qmp.execute("system_reset")
    wait_until(lambda: daemon.log_text().count(ENTERED) == 2, "the second entry", 60)
    # What it takes until the kernel runs, on this machine and now.
    longest = time.monotonic() - started
    for _ in range(RESETS if cut == "reset" else KILLS):
        machine.qmp.execute("system_reset")
        time.sleep(chance.uniform(0, longest))
        if cut == "kill":
            daemon.kill()
            daemon.start()
    if cut == "reset":
        machine.qmp.execute("system_reset")
    text = machine.console.expect_end(180)
    for cpu in range(2):
        assert f"svm {cpu} 1" in text
    if cut == "kill":
        # While QEMU resets its memory an entry that is not needed any more may see other bytes.
        assert "does not become secure" not in daemon.log_text()
    entries = [line for line in daemon.trace_lines() if " UV_ESM(" in line]
    lab.measure(entered=daemon.log_text().count(ENTERED), traced=len(entries))


PAGED = """\
(read -r told < /dev/console; touch /stop) &
echo READY
until [ -f /stop ]; do
    echo 3 > /proc/sys/vm/drop_caches
    echo "sum $(sha256sum < /dev/vda)"
done
"""


def test_a_daemon_that_is_killed_while_pages_and_a_disk_are_read(lab: Lab) -> None:
    secure = SecureLab(lab, "page_shift = 12\nsecure_memory_mib = 96\n")
    image = lab.artifacts / "image"
    image.write_bytes(random.Random(12).randbytes(8 << 20))
    script = f"dd if=/dev/urandom of=/random bs=1M count=16 2>/dev/null\nsha256sum /random\n{PAGED}"
    machine = secure.linux(
        f"{script}sha256sum /random\n",
        smp=2,
        memory_mib=256,
        extra=[*window_arguments(256 << 20), *disk(0, image)],
    )
    machine.console.expect("READY", 240)
    chance = random.Random(13)
    for _ in range(3):
        time.sleep(chance.uniform(0, 1))
        secure.daemon.kill()
        secure.daemon.start()
        # Of what was begun before, and of what was not.
        machine.console.expect("^sum ", 240)
        machine.console.expect("^sum ", 240)
    machine.enter("stop")
    text = machine.console.expect_end(240)
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    assert {line for line in text.splitlines() if line.startswith("sum ")} == {f"sum {digest}  -"}
    sums = [line.split()[0] for line in text.splitlines() if line.endswith("/random")]
    assert len(sums) == 2
    assert len(set(sums)) == 1
    assert any(" PAGE_IN(" in line for line in secure.daemon.trace_lines())


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


FILLING = f"""\
echo 'Of the next kernel, and not to be seen.' > /line
for n in $(seq 18); do cat /line /line > /twice; mv /twice /line; done
mount -t tmpfs -o size=100% none /tmp
for n in $(seq 56); do cat /line || exit; done > /tmp/filled
{svm_of_each(2)}
echo READY
sleep 600
"""


def test_a_kexec_takes_shared_pages_back(lab: Lab) -> None:
    userland = lab.require("initramfs-tools").read_bytes()
    following = userland + initramfs.overlay({"/run.sh": FILLING.encode()})
    files = {"/vmlinux": lab.require("kernel-own").read_bytes(), "/next": following}
    secure = SecureLab(lab)
    # The first kernel shares 64 MiB more than the next: in what it does not take back the next
    # one's files would be seen.
    machine = secure.linux(
        NEXT,
        append="swiotlb=65536,force",
        smp=2,
        memory_mib=768,
        files=files,
        userland="initramfs-tools",
    )
    machine.console.expect("^READY", 240)
    _, _, second = machine.console.text.partition("\nNEXT KERNEL\n")
    assert "kexec: Unshared all shared pages." in second
    for cpu in range(2):
        assert f"svm {cpu} 1" in second
    lines = secure.daemon.trace_lines()
    assert sum(" UV_ESM(" in line for line in lines) == 1
    (taken,) = [number for number, line in enumerate(lines) if " UV_UNSHARE_ALL_PAGES(" in line]
    first, again = shared_calls(lines[:taken]), shared_calls(lines[taken:])
    assert max(first) == 2 * max(again)
    assert sorted(first)[:-1] == sorted(again)[:-1]
    visible = lab.artifacts / "visible"
    machine.qmp.execute("stop")
    machine.qmp.execute("pmemsave", val=0, size=768 << 20, filename=str(visible))
    is_seen = b"Of the next kernel" in visible.read_bytes()
    assert not is_seen
    assert 0 < pages_with_content(visible) <= sum(again)
    visible.unlink()


CRASH_MARKER = "echo the old kernel knows | sha256sum | head -c 64"
"""Neither kernel's initrd has what this prints."""

CRASHING = f"""\
kexec -s -p /vmlinux --initrd=/next --command-line="console=hvc0 swiotlb=force nr_cpus=1" || exit
printf %s "$({CRASH_MARKER})" > /secret
for n in $(seq 20); do cat /secret /secret > /twice; mv /twice /secret; done
echo 'CRASHING'
echo c > /proc/sysrq-trigger
"""
DUMPING = f"""\
echo "crash secure $(cat {SVM})"
marker=$({CRASH_MARKER})
# All pages of that file are the same. Some are found, looking at one of each megabyte.
found=0
for n in $(seq $(($(stat -c %s /proc/vmcore) / 1048576 - 1)) -1 0); do
    [ "$(dd if=/proc/vmcore bs=64 skip=$((n * 16384)) count=1 2>/dev/null)" = $marker ] || continue
    found=$((found + 1))
    [ $found -lt 4 ] || break
done
echo "remembered $found"
"""


def test_a_crash_kernel_is_secure_and_reads_the_other_ones_memory(lab: Lab) -> None:
    userland = lab.require("initramfs").read_bytes()
    following = userland + initramfs.overlay({"/run.sh": DUMPING.encode()})
    files = {"/vmlinux": lab.require("kernel-own").read_bytes(), "/next": following}
    secure = SecureLab(lab)
    machine = secure.linux(
        CRASHING,
        append="swiotlb=force crashkernel=192M",
        smp=2,
        files=files,
        userland="initramfs-tools",
        failures=(),
    )
    machine.console.expect("^CRASHING", 240)
    text = machine.console.expect_end(240).partition("\nCRASHING\n")[2]
    assert "crash secure 1" in text
    assert "remembered 4" in text
    lines = secure.daemon.trace_lines()
    assert sum(" UV_ESM(" in line for line in lines) == 1
    assert not any(" UV_UNSHARE_ALL_PAGES(" in line for line in lines)
