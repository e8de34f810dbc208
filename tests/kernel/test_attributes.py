# SPDX-License-Identifier: Apache-2.0
"""Linux finds the partition as its attributes were set."""

from __future__ import annotations

import pytest
from tests.e2e.daemon import Daemon, run_hcalld
from tests.e2e.lab import PARTITION, Lab
from tests.e2e.patience import wait_until
from tests.kernel.guestside import CONFIG, config_of, succeed

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

MODE = f"""\
{CONFIG}
echo format=$(cat /sys/firmware/secvar/format)
echo vars=$(ls /sys/firmware/secvar/vars)
"""
STATIC_VARIABLES = "PK moduledb trustedcadb"
DYNAMIC_VARIABLES = "KEK PK db dbx grubdb grubdbx moduledb sbat trustedcadb"


def ctl_set(daemon: Daemon, *settings: str, refused: str = "") -> None:
    """``hcalld ctl set``, between two guests and with the daemon running."""
    sessions = daemon.log_text().count("guest connected")
    wait_until(lambda: daemon.log_text().count("guest gone") == sessions, "the guest's end")
    ended = run_hcalld("ctl", "set", "--state-dir", str(daemon.state_dir), PARTITION, *settings)
    assert (ended.returncode != 0) == bool(refused), ended
    assert refused in ended.stderr


def test_dynamic_keys_are_switched_on_and_off(lab: Lab) -> None:
    """The kernel's format, variables, secure boot and sizes follow hcalld ctl."""
    daemon = lab.daemon()
    text = succeed(lab.linux("own", MODE, daemon))
    assert "format=ibm,plpks-sb-v0" in text
    assert f"vars={STATIC_VARIABLES}\n" in text
    assert "Secure boot mode disabled" in text
    used = int(config_of(text)["used_space"])

    ctl_set(daemon, "linux_dynamic_key_secure_boot=1", "secure_boot=2", "keystore_kbytes=128")
    # Enforcing, the kernel says that its certificates are not there.
    text = succeed(lab.linux("own", MODE, daemon, failures=()))
    assert "format=ibm,plpks-sb-v1" in text
    assert f"vars={DYNAMIC_VARIABLES}\n" in text
    assert "Secure boot mode enabled" in text
    assert config_of(text)["total_size"] == str(128 * 1024)
    assert int(config_of(text)["used_space"]) == used + 32 + len("SB_VERSION") + 1

    ctl_set(
        daemon, "linux_dynamic_key_secure_boot=0", refused="while secure_boot is 2; set secure_boot"
    )
    ctl_set(daemon, "keystore_kbytes=64", refused="cannot be reduced from 128 to 64")
    ctl_set(daemon, "keystore_kbytes=0", refused="keystore_kbytes cannot be set to 0")
    ctl_set(daemon, "linux_dynamic_key_secure_boot=0", "secure_boot=0")
    text = succeed(lab.linux("own", MODE, daemon))
    assert "format=ibm,plpks-sb-v0" in text
    assert f"vars={STATIC_VARIABLES}\n" in text
    assert config_of(text)["used_space"] == str(used)
    # Linux has made a wrapping key of its own.
    ctl_set(daemon, "keystore_kbytes=0", refused="holds 1 objects")


def test_signed_updates_are_switched_off(lab: Lab) -> None:
    daemon = lab.daemon()
    shown = config_of(succeed(lab.linux("own", CONFIG, daemon)))
    assert shown["signed_update_algorithms"] == "c000000000000000"
    ctl_set(daemon, "keystore_signed_updates=0")
    shown = config_of(succeed(lab.linux("own", CONFIG, daemon)))
    assert shown["signed_update_algorithms"] == "0000000000000000"
