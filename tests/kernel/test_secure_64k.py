# SPDX-License-Identifier: Apache-2.0
"""A Linux with pages of 64 KiB: as a secure VM, and its secure variables in larger pieces."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING, Any, Final

import pytest
from tests.e2e.secure import SVM, SecureLab, shared_calls, svm_of_each
from tests.kernel.guestside import calls, profile, succeed
from tests.kernel.secvars import EPERM, Sequence
from tests.kernel.test_secure import (
    LPPACA_SIZE,
    QUEUE_SIZE,
    SWIOTLB_SIZE,
    program,
)
from tests.kernel.test_secvar import (
    DYNAMIC_MODE,
    LATCH,
    SB_VERSION_SPACE,
    Author,
    enrol,
    hash_list,
)
from tests.provision import initramfs

if TYPE_CHECKING:
    from tests.e2e.lab import Lab
    from tests.e2e.machine import Machine
    from tests.kernel.conftest import Keys

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

PAGE: Final = 65536
MAX_CPUS: Final = 64
"""CONFIG_NR_CPUS, by tests/provision/kernels.py."""
PAGES_OF_LOGS: Final = 2
"""Of a slab of dispatch trace logs, each shared as the slab is made."""
PAGES_SHIFT: Final = "page_shift = 16\n"


def boot(secure: SecureLab, script: str, **options: Any) -> Machine:
    return secure.linux(script, kernel="own-64k", **options)


# -- a secure VM -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_what_is_shared(cpus: int, lab: Lab) -> None:
    secure = SecureLab(lab, PAGES_SHIFT)
    text = succeed(boot(secure, svm_of_each(cpus), smp=cpus))
    for cpu in range(cpus):
        assert f"svm {cpu} 1" in text
    lppacas = LPPACA_SIZE * MAX_CPUS // PAGE
    queues = [QUEUE_SIZE // PAGE] * cpus
    expected = sorted([lppacas, *[1] * PAGES_OF_LOGS, *queues, SWIOTLB_SIZE // PAGE])
    assert sorted(shared_calls(secure.daemon.trace_lines())) == expected


@pytest.mark.parametrize("firmware", ["vof", "slof"])
def test_the_size_of_a_page_is_guessed(firmware: str, lab: Lab) -> None:
    """A profile need not tell pages of 64 KiB."""
    secure = SecureLab(lab, "")
    text = succeed(boot(secure, svm_of_each(2), smp=2, firmware=firmware))
    assert "svm 0 1" in text
    assert "svm 1 1" in text


SECRET = b"for pages of 64 KiB\n" * 300

BUSY: Final = f"""\
for disk in vda vdb; do echo 128 > /sys/block/$disk/queue/max_sectors_kb; done
esmb-get-file rootd > /secret; echo "file $(sha256sum < /secret)"
dd if=/dev/urandom of=/random bs=1M count=16 2>/dev/null
for n in 1 2 3; do
    echo 7 > /proc/sys/vm/drop_caches
    echo "random $(sha256sum < /random)"
    echo "disk $(sha256sum < /dev/vda)"
done
dd if=/dev/vda of=/dev/vdb bs=64k 2>/dev/null
sync
for n in 1 2; do
    echo 0 > /sys/devices/system/cpu/cpu1/online
    echo 1 > /sys/devices/system/cpu/cpu1/online
done
echo "svm $(taskset -c 1 cat {SVM})"
"""


@pytest.mark.parametrize("cpu", ["power9", "power10"])
def test_it_reads_files_and_disks_while_it_is_paged(cpu: str, lab: Lab) -> None:
    # All that it has beyond the limit goes out as it enters.
    secure = SecureLab(lab, f"{PAGES_SHIFT}secure_memory_mib = 160\n")
    disk, other = lab.artifacts / "disk", lab.artifacts / "other"
    disk.write_bytes(random.Random(64).randbytes(4 << 20))
    other.write_bytes(bytes(4 << 20))
    extra = ["-cpu", cpu]
    for number, path in enumerate((disk, other)):
        extra += ["-drive", f"if=none,id=d{number},format=raw,file={path}"]
        device = f"virtio-blk-pci,drive=d{number},iommu_platform=on,disable-legacy=on"
        extra += ["-device", device]
    files = {"/bin/esmb-get-file": program(lab, "esmb-get-file")}
    attached = {"rootd": SECRET}
    options: dict[str, Any] = {"append": "swiotlb=8192,force", "memory_mib": 256, "extra": extra}
    text = succeed(boot(secure, BUSY, smp=2, files=files, attached=attached, **options))
    lines = text.splitlines()
    assert f"file {hashlib.sha256(SECRET).hexdigest()}  -" in lines
    assert lines.count(f"disk {hashlib.sha256(disk.read_bytes()).hexdigest()}  -") == 3
    assert len({line for line in lines if line.startswith("random ")}) == 1
    assert other.read_bytes() == disk.read_bytes()
    assert "svm 1" in lines
    trace = secure.daemon.trace_lines()
    paged_in = sum(" PAGE_IN(" in line for line in trace)
    lab.measure(paged_in=paged_in)
    assert paged_in
    assert any("UV_PAGE_OUT" in line for line in trace)
    # Taken off line, a CPU gives its queue back; brought back, it shares one again.
    assert sum(" UV_UNSHARE_PAGE(" in line for line in trace) >= 2


NEXT = """\
kexec -s --load /vmlinux --initrd=/next --command-line="console=hvc0 swiotlb=force" || exit
echo 'NEXT KERNEL'
kexec --exec
"""


def test_a_kexec_takes_shared_pages_back(lab: Lab) -> None:
    userland = lab.require("initramfs-tools").read_bytes()
    following = userland + initramfs.overlay({"/run.sh": svm_of_each(2).encode()})
    files = {"/vmlinux": lab.require("kernel-own-64k").read_bytes(), "/next": following}
    secure = SecureLab(lab, PAGES_SHIFT)
    machine = boot(secure, NEXT, smp=2, memory_mib=1024, files=files, userland="initramfs-tools")
    _, _, second = succeed(machine).partition("\nNEXT KERNEL\n")
    assert "kexec: Unshared all shared pages." in second
    for cpu in range(2):
        assert f"svm {cpu} 1" in second
    lines = secure.daemon.trace_lines()
    assert sum(" UV_UNSHARE_ALL_PAGES(" in line for line in lines) == 1
    assert sum(" UV_ESM(" in line for line in lines) == 1


# -- secure variables ------------------------------------------------------------------------------


def test_an_update_of_many_small_pages_is_one_call(keys: Keys, lab: Lab) -> None:
    """Linux passes on a page of what is written, which here is 64 KiB."""
    daemon = lab.daemon(*profile(lab, DYNAMIC_MODE + LATCH))
    author, steps = Author(), Sequence(base=SB_VERSION_SPACE, page_size=PAGE)
    enrol(steps, author, keys)
    hashes = [hashlib.sha256(n.to_bytes(2, "big")).digest() for n in range(1000)]
    file = author("dbx", hash_list(*hashes), keys.kek)
    assert 11 * 4096 < len(file) < PAGE
    steps.works("a large one in one piece", "dbx", file, author.stored(hash_list(*hashes)))
    flipped = bytearray(author("dbx", hash_list(*hashes[1:]), keys.kek))
    flipped[-1] ^= 1
    steps.fails("its last byte is signed too", "dbx", bytes(flipped), EPERM)
    more = hash_list(*(hashlib.sha256(data).digest() for data in hashes[:200]))
    file = author("db", more, keys.kek)
    steps.works("another", "db", file, author.stored(more))
    text = succeed(lab.linux("own-64k", steps.script(), daemon, files=steps.files))
    steps.check(text)
    assert len(calls(daemon, "H_PKS_SIGNED_UPDATE")) == len(steps.steps)
