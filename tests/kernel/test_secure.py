# SPDX-License-Identifier: Apache-2.0
"""Linux as a secure VM: a blob, a TPM, and the daemon's ultravisor."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.e2e.secure import (
    SAID_UNDER_VOF,
    SVM,
    SecureLab,
    provision,
    said_early,
    shared_calls,
    svm_of_each,
)

if TYPE_CHECKING:
    from tests.e2e.lab import Lab

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    ("firmware", "memory"),
    [
        ("vof", "shared"),
        ("vof", "private"),
        ("slof", "shared"),
        # The firmware knows nothing of how QEMU has the memory.
        pytest.param("slof", "private", marks=pytest.mark.soak),
    ],
)
def test_linux_enters_secure_mode(firmware: str, memory: str, lab: Lab) -> None:
    secure = SecureLab(lab)
    machine = secure.linux(svm_of_each(2), smp=2, firmware=firmware, memory=memory)
    text = machine.console.expect_end(180)
    assert "svm 0 1" in text
    assert "svm 1 1" in text
    assert "EXIT: STATUS=0" in text
    assert "guest enters secure mode" in secure.daemon.log_text()


def flip(path: Path, position: int) -> Path:
    """A copy of a file with one bit that differs."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    changed = path.with_name(f"{path.name}.changed")
    changed.write_bytes(data)
    return changed


def refused(
    secure: SecureLab, vmlinux: Path, initrd: Path, cmdline: str, firmware: str = "vof"
) -> str:
    """Boots a guest that does not become secure; gives the reason in log and trace."""
    extra = SAID_UNDER_VOF if firmware == "vof" else ()
    machine = secure.start(vmlinux, initrd, cmdline, failures=(), firmware=firmware, extra=extra)
    machine.console.expect_end(120)
    assert "Returned -4 from switching to secure mode." in said_early(machine)
    (line,) = [line for line in secure.daemon.trace_lines() if " UV_ESM(" in line]
    assert " = U_PARAMETER " in line
    (said,) = [
        line for line in secure.daemon.log_text().splitlines() if "does not become secure" in line
    ]
    reason = line.partition(" -- ")[2]
    assert reason.partition(";")[0] in said
    return reason


@pytest.mark.parametrize(
    ("what", "firmware"), [("kernel", "vof"), ("initrd", "vof"), ("bootargs", "slof")]
)
def test_one_changed_bit_is_refused(what: str, firmware: str, lab: Lab) -> None:
    secure = SecureLab(lab)
    cmdline = "console=hvc0 svm=1 swiotlb=force"
    vmlinux = lab.require("kernel-own")
    plain = secure.initrd("true", files={}, userland="initramfs")
    initrd = secure.blob(vmlinux, plain, cmdline)
    if what == "kernel":
        kernel = lab.artifacts / "vmlinux"
        kernel.write_bytes(vmlinux.read_bytes())
        at = kernel.read_bytes().index(b"Linux version")
        vmlinux = flip(kernel, at)
    elif what == "initrd":
        initrd = flip(initrd, -1)
    else:
        cmdline += " "
    reason = refused(secure, vmlinux, initrd, cmdline, firmware)
    assert f"{what}: " in reason
    for other in {"rtas", "kernel", "initrd", "bootargs"} - {what}:
        assert f"{other}: " not in reason


def test_another_machine_cannot_open_the_blob(lab: Lab) -> None:
    secure = SecureLab(lab)
    other = lab.artifacts / "other.pem"
    provision(lab.artifacts / "other.state", other)
    cmdline = "console=hvc0 svm=1 swiotlb=force"
    vmlinux = lab.require("kernel-own")
    plain = secure.initrd("true", files={}, userland="initramfs")
    initrd = secure.blob(vmlinux, plain, cmdline, recipient=other)
    assert "key unavailable" in refused(secure, vmlinux, initrd, cmdline)


def test_without_a_key_in_the_tpm(lab: Lab, require: Callable[[str], Path]) -> None:
    require("swtpm")
    secure = SecureLab(lab, is_started=False)
    fresh = lab.daemon(*secure.daemon.options[:2], name="fresh")
    secure.daemon = fresh
    cmdline = "console=hvc0 svm=1 swiotlb=force"
    vmlinux = lab.require("kernel-own")
    plain = secure.initrd("true", files={}, userland="initramfs")
    initrd = secure.blob(vmlinux, plain, cmdline)
    assert "has no wrapping key" in refused(secure, vmlinux, initrd, cmdline)


def test_a_reset_ends_secure_mode_and_it_is_entered_again(lab: Lab) -> None:
    secure = SecureLab(lab)
    script = f"cat {SVM}; echo 'READY'; sleep 600"
    machine = secure.linux(script, smp=2, can_reboot=True)
    for _ in range(2):
        machine.console.expect("READY", 180)
        machine.qmp.execute("system_reset")
    machine.console.expect("READY", 180)
    assert secure.daemon.log_text().count("guest enters secure mode") == 3


def program(lab: Lab, name: str) -> bytes:
    """A program for Linux guests."""
    return (lab.require("stub") / name).read_bytes()


SECRET = bytes(range(33, 127)) * 3
"""Not a multiple of what a call gives."""


def test_a_file_is_read_once_from_user_space(lab: Lab) -> None:
    script = """\
esmb-get-file -f rootd > /first; echo "first $? $(sha256sum < /first)"
esmb-get-file -f rootd; echo "second $?"
esmb-get-file empty; echo "empty $?"
esmb-get-file nosuch; echo "nosuch $?"
"""
    secure = SecureLab(lab)
    machine = secure.linux(
        script,
        smp=1,
        files={"/bin/esmb-get-file": program(lab, "esmb-get-file")},
        attached={"rootd": SECRET, "empty": b""},
    )
    text = machine.console.expect_end(120)
    assert f"first 0 {hashlib.sha256(SECRET).hexdigest()}" in text
    assert "second 1" in text
    assert "empty 0" in text
    assert "nosuch 1" in text
    assert text.count("UV_ESMB_GET_FILE: -4") == 2
    told = secure.daemon.log_text() + "\n".join(secure.daemon.trace_lines())
    assert SECRET[:8].decode() not in told
    assert SECRET[:8].hex() not in told


def test_a_normal_vm_reads_no_file(lab: Lab) -> None:
    secure = SecureLab(lab)
    files = {"/bin/esmb-get-file": program(lab, "esmb-get-file")}
    machine = lab.linux("own", "esmb-get-file rootd; echo code $?", secure.daemon, files=files)
    text = machine.console.expect_end(120)
    assert "UV_ESMB_GET_FILE: -4" in text
    assert "code 1" in text


PAGE = 4096
MAX_CPUS = 8
"""CONFIG_NR_CPUS of our own kernel, which is all that it knows of when it makes lppacas."""
LPPACA_SIZE = 0x400
LOGS_OF_A_SLAB = 4
"""Dispatch trace logs, each shared as its slab is made."""
QUEUE_SIZE = 1 << 16
SWIOTLB_SIZE = 64 << 20


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_what_is_shared(cpus: int, lab: Lab) -> None:
    secure = SecureLab(lab)
    machine = secure.linux(svm_of_each(cpus), smp=cpus)
    text = machine.console.expect_end(180)
    for cpu in range(cpus):
        assert f"svm {cpu} 1" in text
    lppacas = LPPACA_SIZE * MAX_CPUS // PAGE
    queues = [QUEUE_SIZE // PAGE] * cpus
    expected = sorted([lppacas, *[1] * LOGS_OF_A_SLAB, *queues, SWIOTLB_SIZE // PAGE])
    assert sorted(shared_calls(secure.daemon.trace_lines())) == expected


DISK_SCRIPT = """\
# A mapping has at most 256 KiB, and not every driver asks.
for disk in vda vdb; do echo 128 > /sys/block/$disk/queue/max_sectors_kb; done
for n in 1 2 3; do
    echo 3 > /proc/sys/vm/drop_caches
    sha256sum < /dev/vda
done
dd if=/dev/vda bs=1M count=2 2>/dev/null | tee /dev/null > /dev/vdb
sync
ip link set eth0 up 2>/dev/null
cat /sys/devices/system/cpu/svm
"""


def test_a_disk_works_through_shared_pages(lab: Lab) -> None:
    secure = SecureLab(lab)
    disk, other = lab.artifacts / "disk", lab.artifacts / "other"
    disk.write_bytes(random.Random(7).randbytes(8 << 20))
    other.write_bytes(bytes(2 << 20))
    extra: list[str] = []
    for number, path in enumerate((disk, other)):
        extra += ["-drive", f"if=none,id=d{number},format=raw,file={path}"]
        extra += [
            "-device",
            f"virtio-blk-pci,drive=d{number},iommu_platform=on,disable-legacy=on",
        ]
    machine = secure.linux(DISK_SCRIPT, smp=2, extra=extra)
    text = machine.console.expect_end(180)
    assert text.count(hashlib.sha256(disk.read_bytes()).hexdigest()) == 3
    assert other.read_bytes() == disk.read_bytes()[: 2 << 20]


PAGED_SCRIPT = """\
dd if=/dev/urandom of=/random bs=1M count=16 2>/dev/null
for n in 1 2 3 4; do sha256sum /random; done
cat /sys/devices/system/cpu/svm
echo PAGED DONE
"""


@pytest.mark.parametrize("cpu", ["power9", "power10"])
def test_a_guest_with_little_secure_memory_is_paged(cpu: str, lab: Lab) -> None:
    # All that it has beyond the limit goes out as it enters.
    secure = SecureLab(lab, "page_shift = 12\nsecure_memory_mib = 160\n")
    machine = secure.linux(
        PAGED_SCRIPT, append="swiotlb=8192,force", smp=2, memory_mib=256, extra=["-cpu", cpu]
    )
    text = machine.console.expect_end(300)
    sums = {line.split()[0] for line in text.splitlines() if line.endswith("/random")}
    assert len(sums) == 1
    assert "PAGED DONE" in text
    lines = secure.daemon.trace_lines()
    paged_in = sum(" PAGE_IN(" in line for line in lines)
    lab.measure(paged_in=paged_in)
    assert paged_in
    assert any("UV_PAGE_OUT" in line for line in lines)


def test_a_daemon_that_is_killed_and_started_again(lab: Lab) -> None:
    script = f"""\
echo READY; read -r told
esmb-get-file rootd; echo "file $?"
echo 0 > /sys/devices/system/cpu/cpu1/online
echo 1 > /sys/devices/system/cpu/cpu1/online
taskset -c 1 cat {SVM}
"""
    secure = SecureLab(lab)
    machine = secure.linux(
        script,
        smp=2,
        files={"/bin/esmb-get-file": program(lab, "esmb-get-file")},
        attached={"rootd": b"a secret\n"},
    )
    machine.console.expect("READY", 180)
    secure.daemon.kill()
    secure.daemon.start()
    machine.enter("go on")
    text = machine.console.expect_end(120)
    assert "a secret" in text
    assert "file 0" in text
    assert "EXIT: STATUS=0" in text
