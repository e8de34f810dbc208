# SPDX-License-Identifier: Apache-2.0
"""Linux uses its keystore: a stock Debian kernel, and one with what Debian's leaves out."""

from __future__ import annotations

import re
import time
from functools import partial

import pytest
from tests.e2e import tls
from tests.e2e.console import ConsoleError
from tests.e2e.daemon import run_hcalld
from tests.e2e.lab import PARTITION, Lab, LinuxKernel
from tests.e2e.patience import patience, wait_until
from tests.kernel.guestside import (
    BOOT_S,
    CONFIG,
    INITIALIZED,
    OFF,
    WARNING,
    WRAPPING_KEY_LABEL,
    WRAPPING_KEY_SPACE,
    calls,
    config_of,
    profile,
    succeed,
)

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

EMPTY = {
    "max_object_size": "65535",
    "signed_update_algorithms": "c000000000000000",
    "supported_policies": "7f800008",
    "total_size": "65536",
    "used_space": "0",
    "version": "3",
    "wrapping_features": "8000000000000000",
}
"""What a 7.2 kernel shows of a keystore without objects."""


# -- Debian's -------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["debian", "debian-sid", "debian-64k"])
def test_debian_kernel_has_its_keystore(kernel: LinuxKernel, lab: Lab) -> None:
    """Without a drive's PIN in the store the kernel's buffer keeps its filler, 255."""
    daemon = lab.daemon()
    text = succeed(lab.linux(kernel, f"grep opal /proc/keys\n{CONFIG}", daemon, memory_mib=1024))
    assert INITIALIZED in text
    assert WARNING not in text
    assert "opal-boot-pin: 255" in text
    made = [line.split("(")[0].split()[-1] for line in daemon.trace_lines()]
    assert made[:2] == ["H_PKS_GET_CONFIG", "H_PKS_GEN_PASSWORD"]
    assert "H_PKS_READ_OBJECT" in made
    # Linux 6.12 shows the configuration below secvar only, which Debian leaves out.
    assert config_of(text) == ({} if kernel == "debian" else EMPTY)


def test_debian_kernel_reboots_with_a_seeded_pin(lab: Lab) -> None:
    """Each boot gets a new password, and finds what was put into the store."""
    state_dir = lab.artifacts / "daemon.state"
    key = lab.artifacts / "key"
    key.write_bytes(b"0123456789abcdefghijklm")
    put = run_hcalld(
        *("state", "put", "--state-dir", str(state_dir)),
        *("--partition", PARTITION, "--sed-key", str(key)),
    )
    assert put.returncode == 0, put.stderr
    daemon = lab.daemon()
    script = "grep opal /proc/keys; read -r told; reboot -f"
    machine = lab.linux("debian", script, daemon, can_reboot=True)
    for boot in range(2):
        if boot:
            machine.enter("go on")
        machine.console.expect(re.escape(INITIALIZED), BOOT_S)
        machine.console.expect(r"opal-boot-pin: 23$", BOOT_S)
    machine.qmp.execute("quit")
    assert machine.wait() == 0
    assert WARNING not in machine.console.text
    assert daemon.log_text().count("kind=RESET") == 1
    passwords = [line for line in daemon.trace_lines() if "H_PKS_GEN_PASSWORD" in line]
    assert len(passwords) == 2
    assert all("= H_SUCCESS" in line for line in passwords)


def test_debian_kernel_with_a_keystore_of_no_size(lab: Lab) -> None:
    daemon = lab.daemon(*profile(lab, "keystore_kbytes = 0\n"))
    text = succeed(lab.linux("debian", "true", daemon))
    assert OFF in text
    assert INITIALIZED not in text


def test_debian_kernel_without_the_device(lab: Lab) -> None:
    text = succeed(lab.linux("debian", "true"))
    assert "plpks:" not in text


# -- our own --------------------------------------------------------------------------------


@pytest.mark.parametrize("firmware", ["vof", "slof"])
def test_config_in_sysfs(firmware: str, lab: Lab) -> None:
    daemon = lab.daemon()
    script = f"{CONFIG}echo format=$(cat /sys/firmware/secvar/format)\nls /sys/firmware/secvar/vars"
    text = succeed(lab.linux("own", script, daemon, firmware=firmware))
    assert INITIALIZED in text
    assert config_of(text) == EMPTY | {"used_space": str(WRAPPING_KEY_SPACE)}
    assert "format=ibm,plpks-sb-v0" in text
    assert "trusted_key:" not in text


def test_config_of_a_profile(lab: Lab) -> None:
    text = (
        "keystore_kbytes = 8\n"
        "[pks]\n"
        "max_object_size = 2048\n"
        'supported_policies = ["WORLDREADABLE", "TRANSIENT"]\n'
    )
    daemon = lab.daemon(*profile(lab, text))
    shown = config_of(succeed(lab.linux("own", CONFIG, daemon)))
    assert shown["total_size"] == "8192"
    assert shown["max_object_size"] == "2048"
    assert shown["supported_policies"] == "0a000000"


def test_used_space_is_live(lab: Lab) -> None:
    """Overhead, label and data count, of what was put into the store before."""
    state_dir = lab.artifacts / "daemon.state"
    for name, data in (("one", "x" * 1000), ("three", "y" * 7)):
        put = run_hcalld(
            *("state", "put", "--state-dir", str(state_dir), "--partition", PARTITION),
            *("--name", name, "-"),
            stdin=data,
        )
        assert put.returncode == 0, put.stderr
    daemon = lab.daemon(*profile(lab, "[pks]\nobject_overhead = 100\n"))
    shown = config_of(succeed(lab.linux("own", CONFIG, daemon)))
    assert int(shown["used_space"]) == (
        3 * 100 + (16 + 3 + 1000) + (16 + 5 + 7) + (WRAPPING_KEY_LABEL + 32)
    )


@pytest.mark.parametrize(("value", "words"), [(0, "disabled"), (1, "disabled"), (2, "enabled")])
def test_secure_boot(value: int, words: str, lab: Lab) -> None:
    daemon = lab.daemon(*profile(lab, f"secure_boot = {value}\n"))
    script = "od -An -tx1 /proc/device-tree/ibm,secure-boot"
    text = succeed(lab.linux("own", script, daemon, failures=()))
    assert f"Secure boot mode {words}" in text
    assert f"00 00 00 0{value}" in text


def test_own_kernel_without_the_device(lab: Lab) -> None:
    text = succeed(lab.linux("own", "test ! -e /sys/firmware/plpks"))
    assert "plpks:" not in text
    assert "secvar-sysfs: Failed to retrieve secvar operations" in text


def test_daemon_is_killed_under_a_running_kernel(lab: Lab) -> None:
    """Whoever reads the keystore's space waits for the next daemon, and notices nothing."""
    daemon = lab.daemon()
    script = (
        "(read -r told < /dev/console; touch /stop) &\n"
        "echo READY\n"
        "until [ -f /stop ]; do\n"
        f"    [ $(cat /sys/firmware/plpks/config/used_space) = {WRAPPING_KEY_SPACE} ] || exit 1\n"
        "done\n"
    )
    machine = lab.linux("own", script, daemon)
    machine.console.expect("^READY", BOOT_S)
    for _ in range(4):
        daemon.kill()
        daemon.start()
        enough = len(calls(daemon, "H_PKS_GET_CONFIG")) + 3
        wait_until(partial(lambda n: len(calls(daemon, "H_PKS_GET_CONFIG")) >= n, enough), "calls")
    machine.enter("stop")
    succeed(machine)


def test_daemon_is_killed_while_a_kernel_boots(lab: Lab) -> None:
    daemon = lab.daemon()
    machine = lab.linux("own", "true", daemon, can_reboot=True)
    for _ in range(3):
        machine.console.expect(re.escape(INITIALIZED), BOOT_S)
        daemon.kill()
        machine.qmp.execute("system_reset")
        daemon.start()
    text = succeed(machine)
    assert text.count(INITIALIZED) == 4
    assert WARNING not in text


def test_kernel_over_tls(lab: Lab) -> None:
    """QEMU resets the guest once, somewhere in its boot, when the negotiation is over."""
    certificates = tls.make(lab.artifacts / "tls")
    port = tls.free_port()
    daemon = lab.daemon(
        "--listen", f"127.0.0.1:{port}", *certificates.daemon_options, socket_path=False
    )
    machine = lab.linux("own", CONFIG, chardev=tls.chardev(port), extra=certificates.qemu_options)
    text = succeed(machine)
    assert text.count(INITIALIZED) == 1
    assert config_of(text)["total_size"] == "65536"
    assert daemon.log_text().count("kind=RESET") == 1


def test_failure_of_the_guest_ends_a_test_at_once(lab: Lab) -> None:
    """Not at the deadline: the harness looks for what a broken kernel prints."""
    start = time.monotonic()
    machine = lab.linux("own", "", files={"/init": b"#!/bin/busybox sh\nexit 1\n"})
    with pytest.raises(ConsoleError, match="Kernel panic - not syncing"):
        machine.console.expect("never printed", 600)
    assert time.monotonic() - start < patience(300)
