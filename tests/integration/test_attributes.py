# SPDX-License-Identifier: Apache-2.0
"""A partition's attributes while a guest is on, when it is off, and when it comes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.e2e.daemon import Daemon, run_hcalld
from tests.e2e.lab import PARTITION, Lab
from tests.e2e.patience import wait_until

pytestmark = pytest.mark.qemu


def with_profile(lab: Lab) -> tuple[Daemon, Path]:
    """A daemon and the file of its only profile, which is empty."""
    path = lab.artifacts / "profiles" / "default.toml"
    path.parent.mkdir()
    path.touch()
    return lab.daemon("--profile-dir", str(path.parent)), path


def ctl(daemon: Daemon, *words: str) -> str:
    """What ``hcalld ctl`` says: on stdout if it succeeds, or else on stderr."""
    ended = run_hcalld("ctl", words[0], "--state-dir", str(daemon.state_dir), *words[1:])
    return ended.stdout if ended.returncode == 0 else ended.stderr


def test_profile_that_is_refused_is_told_by_qemu(lab: Lab) -> None:
    daemon, profile = with_profile(lab)
    lab.stub("dt pks_object pks=1", daemon).report().must_pass("dt", "pks_object")
    daemon.terminate()
    profile.write_text("keystore_kbytes = 8\nsecure_boot = 2\n", "utf-8")
    daemon.start()
    for _ in range(2):
        machine = lab.stub("dt", daemon)
        assert machine.wait() == 1
        assert "keystore_kbytes cannot be reduced from 64 to 8" in machine.messages()
    assert "guest refused" in daemon.log_text()
    daemon.terminate()
    profile.write_text("secure_boot = 2\n", "utf-8")
    daemon.start()
    lab.stub("dt secure-boot=2", daemon).report().must_pass("dt")


def test_profile_that_changes_under_a_running_guest_waits(lab: Lab) -> None:
    """For the next power-on: neither the daemon's restart nor the guest's reset is one."""
    daemon, profile = with_profile(lab)
    hold = "hold run-ms=600000 gap-ms=900000 start-ms=0"
    machine = lab.stub(f"dt secure-boot=0 pks_config pks=1 {hold}", daemon, can_reboot=True)
    machine.console.expect("# hold ready", 120)
    daemon.kill()
    profile.write_text("secure_boot = 2\nkeystore_kbytes = 128\n", "utf-8")
    daemon.start()
    wait_until(
        lambda: "profile changed while the guest is on" in daemon.log_text(), "the daemon's warning"
    )
    machine.qmp.execute("system_reset")
    machine.console.expect("# hold ready", 120)
    assert "not ok" not in machine.console.text
    assert machine.console.text.count("ok 1 dt") == 2
    machine.qmp.execute("quit")
    assert machine.wait() == 0
    lab.stub("dt secure-boot=2", daemon).report().must_pass("dt")
    assert "keystore_kbytes                               128       128" in ctl(
        daemon, "show", PARTITION
    )


def test_ctl_is_for_guests_that_are_off(lab: Lab) -> None:
    daemon, _ = with_profile(lab)
    machine = lab.stub("dt hold run-ms=600000 gap-ms=900000 start-ms=0", daemon)
    machine.console.expect("# hold ready", 120)
    assert daemon.process is not None
    refusal = ctl(daemon, "set", PARTITION, "secure_boot=2")
    assert refusal == (
        f"hcalld: partition {PARTITION} is in use by process {daemon.process.pid}; shut its guest "
        "down, or stop the daemon, first. 'hcalld ctl guests' says what its guest does\n"
    )
    machine.qmp.execute("quit")
    assert machine.wait() == 0
    wait_until(lambda: "guest gone" in daemon.log_text(), "the end of the session")
    # The daemon may stay.
    assert ctl(daemon, "set", PARTITION, "secure_boot=2") == "secure_boot: 0 -> 2\n"
    lab.stub("dt secure-boot=2", daemon).report().must_pass("dt")
