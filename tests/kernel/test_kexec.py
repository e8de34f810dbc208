# SPDX-License-Identifier: Apache-2.0
"""One kernel starts the next: what becomes of the password that only the first one knows.

``kexec_file_load`` hands it over in the next kernel's device tree; the older ``kexec_load`` does
not, so that the next kernel meets a password that is set (H_IN_USE).
"""

from __future__ import annotations

import datetime
import re
from typing import TYPE_CHECKING, Any

import pytest
from tests.e2e import authvar
from tests.e2e.daemon import run_hcalld
from tests.e2e.lab import PARTITION
from tests.kernel.guestside import (
    BOOT_S,
    INITIALIZED,
    LIBRARY,
    WARNING,
    calls,
    profile,
    results,
    succeed,
)
from tests.provision import initramfs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.e2e.daemon import Daemon
    from tests.e2e.lab import Lab, LinuxKernel
    from tests.e2e.machine import Machine
    from tests.kernel.conftest import Keys

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

HANDED_OVER = "/proc/device-tree/chosen/ibm,plpks-pw"
"""Where the first kernel puts the password. The next one takes it out before it has user space."""

NEXT = """\
kexec {} --load /vmlinux --initrd=/next --command-line=console=hvc0 || exit
echo 'NEXT KERNEL'
kexec --exec
"""


def start(
    lab: Lab,
    kernel: LinuxKernel,
    daemon: Daemon,
    how: str,
    first: str,
    second: str,
    more: Mapping[str, bytes] | None = None,
    **options: Any,
) -> Machine:
    """Boots a kernel whose script starts the same kernel with another script.

    ``how`` is an option of kexec(8): ``-s`` is kexec_file_load, ``-c`` is kexec_load. The second
    kernel has ``more`` files.
    """
    userland = lab.require("initramfs-tools").read_bytes()
    overlay = {"/run.sh": (LIBRARY + second).encode(), **(more or {})}
    following = userland + initramfs.overlay(overlay)
    files = {"/vmlinux": lab.require(f"kernel-{kernel}").read_bytes(), "/next": following}
    return lab.linux(
        kernel,
        f"{LIBRARY}{first}{NEXT.format(how)}",
        daemon,
        userland="initramfs-tools",
        files=files,
        memory_mib=1024,
        **options,
    )


def both_succeed(machine: Machine) -> str:
    """Waits for the end of two kernels' boots, each in its time; gives the console."""
    machine.console.expect("^NEXT KERNEL$", BOOT_S)
    return succeed(machine)


def after_kexec(text: str) -> str:
    """What the second kernel printed."""
    return text.partition("\nNEXT KERNEL\n")[2]


def before_kexec(text: str) -> str:
    """What the first kernel printed."""
    return text.partition("\nNEXT KERNEL\n")[0]


def enrolled(lab: Lab, keys: Keys) -> Daemon:
    """A daemon whose partition has a PK, a db that all may read, and a moduledb that they may not.

    There is no dbx.
    """
    enroll = run_hcalld(
        *("secvar", "enroll", "--state-dir", str(lab.artifacts / "daemon.state")),
        *("--partition", PARTITION, "--time", "2026-01-01T00:00:00Z"),
        *("--pk", str(keys.pk.certificate), "--db", str(keys.db.certificate)),
        *("--moduledb", str(keys.module.certificate)),
    )
    assert enroll.returncode == 0, enroll.stderr
    return lab.daemon(*profile(lab, "linux_dynamic_key_secure_boot = 1\n"))


def update_of_db(keys: Keys) -> bytes:
    """What replaces db, signed by PK."""
    when = authvar.START + datetime.timedelta(days=1)
    return authvar.update("db", keys.module.esl, keys.pk, when)


def test_kexec_file_load_hands_the_password_over(keys: Keys, lab: Lab) -> None:
    daemon = enrolled(lab, keys)
    first = 'keyctl add trusted kmk "new 32" @u\nsay used $(used)\n'
    second = f"""
[ -e /proc/device-tree/chosen/linux,booted-from-kexec ] && say kexec yes
[ -e {HANDED_OVER} ] || say password absent
try kmk keyctl add trusted kmk "new 32" @u
keyctl print %trusted:kmk > /tmp/kmk
try load keyctl add trusted again "load $(cat /tmp/kmk)" @u
say used $(used)
try read cat $vars/moduledb/data
try update update db /update
"""
    more = {"/update": update_of_db(keys)}
    text = both_succeed(start(lab, "own", daemon, "-s", first, second, more))
    assert INITIALIZED in before_kexec(text)
    assert INITIALIZED in after_kexec(text)
    assert WARNING not in text
    assert results(after_kexec(text)) == {
        "kexec": "yes",
        "password": "absent",
        "kmk": "ok",
        "load": "ok",
        "used": results(before_kexec(text))["used"],
        "read": "ok",
        "update": "ok",
    }
    assert after_kexec(text).count("Loaded X.509 cert 'db: ") >= 1
    assert len(calls(daemon, "H_PKS_GEN_PASSWORD")) == 1
    assert "kind=RESET" not in daemon.log_text()


def test_kexec_load_leaves_the_password_behind(keys: Keys, lab: Lab) -> None:
    """The next kernel can read what is world-readable, and no more; a reset gives the rest back."""
    daemon = enrolled(lab, keys)
    first = 'keyctl add trusted kmk "new 32" @u\nsay used $(used)\necho FIRST\n'
    second = """
[ -e /proc/device-tree/chosen/linux,booted-from-kexec ] && say kexec yes
try kmk keyctl add trusted kmk "new 32" @u
say used $(used)
say db $(hex $vars/db/data)
try moduledb cat $vars/moduledb/data
try dbx cat $vars/dbx/data
try update update db /update
echo SECOND
reboot -f
"""
    more = {"/update": update_of_db(keys)}
    machine = start(lab, "own", daemon, "-c", first, second, more, can_reboot=True)
    machine.console.expect("^FIRST$", BOOT_S)
    machine.console.expect("^SECOND$", BOOT_S)
    text = after_kexec(machine.console.text)
    assert INITIALIZED in text
    assert f"plpks: {WARNING} - authenticated operations will fail" in text
    assert "plpks: H_PKS_GEN_KEY failed. pseries_status=-10, rc=-1" in text
    # Having read db, the kernel fails at dbx: without a password nobody is told that it is absent.
    assert "Loaded X.509 cert 'db: " in text
    assert "Error reading dbx from firmware: -5" in text
    assert results(text) == {
        "kexec": "yes",
        # Its type of key is not even registered without the wrapping key.
        "kmk": "No such device",
        # The configuration needs no password.
        "used": results(before_kexec(machine.console.text))["used"],
        "db": (authvar.stored_header(authvar.START) + keys.db.esl).hex(),
        "moduledb": "Input/output error",
        "dbx": "Input/output error",
        "update": "Operation not permitted",
    }
    machine.console.expect("^FIRST$", BOOT_S)
    machine.qmp.execute("quit")
    assert machine.wait() == 0
    passwords = calls(daemon, "H_PKS_GEN_PASSWORD")
    codes = [match[1] for line in passwords if (match := re.search(r"\) = (\w+)", line))]
    assert codes == ["H_SUCCESS", "H_IN_USE", "H_SUCCESS"]


def test_debian_kernel_reads_what_is_world_readable_after_kexec(lab: Lab) -> None:
    key = lab.artifacts / "key"
    key.write_bytes(b"0123456789abcdefghijklm")
    put = run_hcalld(
        *("state", "put", "--state-dir", str(lab.artifacts / "daemon.state")),
        *("--partition", PARTITION, "--sed-key", str(key)),
    )
    assert put.returncode == 0, put.stderr
    daemon = lab.daemon()
    script = "say pin $(sed -n 's/.*opal-boot-pin: //p' /proc/keys)\n"
    # Unchecked: the kernel's 45 MB would be summed three times.
    text = both_succeed(start(lab, "debian-64k", daemon, "-c --no-checks", script, script))
    assert WARNING not in before_kexec(text)
    assert WARNING in after_kexec(text)
    assert results(after_kexec(text)) == {"pin": "23"}
    reads = calls(daemon, "H_PKS_READ_OBJECT")
    assert ["auth=OS+64" in reads[0], "auth=OS+0" in reads[1]] == [True, True]
    assert all("= H_SUCCESS" in line for line in reads)


def test_crash_kernel_gets_the_password(lab: Lab) -> None:
    """A kernel that kdump starts when the first one has crashed."""
    daemon = lab.daemon()
    userland = lab.require("initramfs-tools").read_bytes()
    crash = 'try kmk keyctl add trusted kmk "new 32" @u\n[ -s /proc/vmcore ] && say vmcore yes\n'
    machine = lab.linux(
        "own",
        LIBRARY + "kexec -s --load-panic /vmlinux --initrd=/next"
        ' --command-line="console=hvc0 maxcpus=1" && echo c > /proc/sysrq-trigger\n',
        daemon,
        userland="initramfs-tools",
        files={
            "/vmlinux": lab.require("kernel-own").read_bytes(),
            "/next": userland + initramfs.overlay({"/run.sh": (LIBRARY + crash).encode()}),
        },
        memory_mib=1024,
        append="crashkernel=256M",
        failures=(),
    )
    text = succeed(machine)
    assert "sysrq: Trigger a crash" in text
    assert WARNING not in text
    assert results(text) == {"kmk": "ok", "vmcore": "yes"}
    assert len(calls(daemon, "H_PKS_GEN_PASSWORD")) == 1
