# SPDX-License-Identifier: Apache-2.0
"""Devices of a secure Linux: what is shared reaches them, and nothing else does."""

from __future__ import annotations

import hashlib
import random
import re
from typing import TYPE_CHECKING

import pytest
from tests.e2e.ether import GUEST_ADDRESS, HOST_ADDRESS, EtherHost
from tests.e2e.patience import wait_until
from tests.e2e.secure import BEHIND_TCES, SVM, SecureLab, disk

from hcalld.cli.qemu_args import window_arguments

if TYPE_CHECKING:
    from tests.e2e.lab import Lab
    from tests.e2e.machine import Machine

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

MEMORY_MIB = 256
BUSY_SCRIPT = f"""\
ip link set eth0 up
ip addr add {GUEST_ADDRESS}/24 dev eth0
dd if=/dev/vda of=/out bs=1M count=1 2>/dev/null
(
    for n in 1 2 3; do
        echo 3 > /proc/sys/vm/drop_caches
        sha256sum < /dev/vda
    done
    dd if=/dev/vda bs=1M count=4 2>/dev/null | dd of=/dev/vdb bs=64k 2>/dev/null
    sync
) > /disk.log &
tftp -g -b 1428 -r in -l /in {HOST_ADDRESS} 2>/dev/null; echo "got $? $(sha256sum < /in)"
tftp -p -b 1428 -l /out -r out {HOST_ADDRESS} 2>/dev/null; echo "put $?"
wait
cat /disk.log {SVM}
"""


@pytest.mark.parametrize("secure_memory", [None, 96])
def test_network_and_disks_at_once(secure_memory: int | None, lab: Lab) -> None:
    limit = f"secure_memory_mib = {secure_memory}\n" if secure_memory else ""
    secure = SecureLab(lab, f"page_shift = 12\n{limit}")
    chance = random.Random(8)
    content, sent = chance.randbytes(8 << 20), chance.randbytes(1 << 20)
    source, target = lab.artifacts / "source", lab.artifacts / "target"
    source.write_bytes(content)
    target.write_bytes(bytes(4 << 20))
    with EtherHost(lab.socket_dir / "ether.sock", {"in": sent}) as host:
        device = f"virtio-net-pci,{BEHIND_TCES}"
        extra = [
            *window_arguments(MEMORY_MIB << 20),
            *disk(0, source),
            *disk(1, target),
            *host.options(device),
        ]
        machine = secure.linux(BUSY_SCRIPT, smp=4, memory_mib=MEMORY_MIB, extra=extra)
        text = machine.console.expect_end(300)
    assert f"got 0 {hashlib.sha256(sent).hexdigest()}" in text
    assert "put 0" in text
    assert host.received == {"out": content[: 1 << 20]}
    assert text.count(hashlib.sha256(content).hexdigest()) == 3
    assert target.read_bytes() == content[: 4 << 20]
    assert machine.messages() == ""
    paged_in = sum(" PAGE_IN(" in line for line in secure.daemon.trace_lines())
    lab.measure(paged_in=paged_in)
    assert bool(paged_in) is bool(secure_memory)


PATTERN = b"What the guest alone may read.\n\n"
REFUSED_SCRIPT = f"""\
echo SIZE; cat {SVM}
until [ "$(cat /sys/block/vda/size)" -gt 0 ]; do sleep 0.1; done
(dd if=/secret of=/dev/vda bs=64k oflag=direct; echo written) &
read -r told
ip link set eth0 up || echo "no network"
"""
REFUSAL = re.compile(
    r"spapr-hcall-proxy: DMA of (\S+) \(LIOBN 0x(\w+)\) at 0x\w+ to 0x\w+ is "
    r"refused: the page is not shared"
)


VLAN = "/machine/peripheral/vlan"


def refusals(machine: Machine) -> list[tuple[str, str]]:
    """Of which devices QEMU says that it has refused a DMA, and their LIOBNs."""
    return [(found[1], found[2]) for found in REFUSAL.finditer(machine.messages())]


def test_what_is_not_bounced_is_refused(lab: Lab) -> None:
    """Linux bounces nothing without ``swiotlb=force``, and never for spapr-vlan."""
    secure = SecureLab(lab)
    image = lab.artifacts / "image"
    image.write_bytes(b"")
    extra = [*disk(0, image), "-netdev", "hubport,id=hub,hubid=0"]
    extra += ["-device", "spapr-vlan,id=vlan,netdev=hub"]
    files = {"/secret": PATTERN * 8192}
    machine = secure.linux(REFUSED_SCRIPT, append="", smp=1, extra=extra, files=files)
    machine.console.expect("SIZE", 120)
    # Of a disk that has a size Linux would read partitions before there is a first process.
    machine.qmp.execute("block_resize", device="d0", size=4 << 20)
    wait_until(lambda: refusals(machine), "a refusal", 60)
    machine.enter("go on")
    text = machine.console.expect_end(120)
    assert "h_register_logical_lan failed with -4" in text
    assert "no network" in text
    assert "written" not in text
    # Of a PCI device its bridge is named, with the number of the 64-bit window.
    refused = {path.partition("[")[0]: liobn for path, liobn in refusals(machine)}
    assert refused == {"/machine/unattached/device": "80000001", VLAN: "71000002"}
    assert image.read_bytes() == bytes(4 << 20)


def test_a_vscsi_adapter_is_refused(lab: Lab) -> None:
    """Its driver shares nothing; Linux waits for its answers before there is a first process."""
    secure = SecureLab(lab)
    image = lab.artifacts / "image"
    image.write_bytes(PATTERN * 8192)
    extra = ["-drive", f"if=none,id=d0,format=raw,file={image}", "-device", "spapr-vscsi,id=scsi"]
    machine = secure.linux("true", smp=1, extra=[*extra, "-device", "scsi-hd,drive=d0"])
    machine.console.expect("scsi host0: IBM POWER Virtual SCSI Adapter", 120)
    wait_until(lambda: refusals(machine), "a refusal", 60)
    assert set(refusals(machine)) == {("/machine/peripheral/scsi", "71000002")}
