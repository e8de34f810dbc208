# SPDX-License-Identifier: Apache-2.0
"""How a guest's run ends: by its own reboot, by the operator's reset, by a panic.

After each the next boot has a keystore with the same objects and a password of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.kernel.guestside import (
    BOOT_S,
    INITIALIZED,
    LIBRARY,
    WARNING,
    WRAPPING_KEY_SPACE,
    calls,
)

if TYPE_CHECKING:
    from tests.e2e.lab import Lab

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

SCRIPT = """\
# A disk is what a guest keeps: the number of the boot, and from 4096 on a wrapped key.
boot=$(head -c 1 /dev/vda)
if [ $boot = 1 ]; then
    keyctl add trusted kmk "new 32" @u
    keyctl print %trusted:kmk | dd of=/dev/vda bs=4096 seek=1
fi
blob=$(dd if=/dev/vda bs=4096 skip=1 | head -c 2112)
try load keyctl add trusted loaded "load $blob" @u
say used $(used)
echo -n $((boot + 1)) | dd of=/dev/vda conv=notrunc
sync
echo "BOOT $boot"
case $boot in
    1) reboot -f ;;
    2) sleep 1000 ;;
    3) echo c > /proc/sysrq-trigger ;;
    4) echo b > /proc/sysrq-trigger ;;
esac
"""


def test_every_end_of_a_run_is_followed_by_a_boot_that_works(lab: Lab) -> None:
    disk = lab.artifacts / "disk"
    disk.write_bytes(b"1".ljust(1 << 20, b"\0"))
    daemon = lab.daemon()
    machine = lab.linux(
        "own",
        LIBRARY + SCRIPT,
        daemon,
        userland="initramfs-tools",
        append="panic=1",
        can_reboot=True,
        failures=("lockup", "detected stall"),
        extra=[
            *("-action", "panic=none"),
            *("-drive", f"file={disk},format=raw,if=none,id=disk"),
            *("-device", "virtio-blk-pci,drive=disk"),
        ],
    )
    for boot in range(1, 6):
        machine.console.expect(INITIALIZED, BOOT_S)
        machine.console.expect("^@load=ok$", BOOT_S)
        machine.console.expect(f"^@used={WRAPPING_KEY_SPACE}$", BOOT_S)
        machine.console.expect(f"^BOOT {boot}$", BOOT_S)
        if boot == 2:
            machine.qmp.execute("system_reset")
    assert machine.wait(BOOT_S) == 0
    text = machine.console.text
    assert "Kernel panic - not syncing: sysrq triggered crash" in text
    assert WARNING not in text
    assert daemon.log_text().count("kind=RESET") == 4
    passwords = calls(daemon, "H_PKS_GEN_PASSWORD")
    assert len(passwords) == 5
    assert all("= H_SUCCESS" in line for line in passwords)
