# SPDX-License-Identifier: Apache-2.0
"""What outlives the daemon, QEMU and the guest's reset, and what must not."""

from __future__ import annotations

import re

import pytest
from tests.e2e import ktap
from tests.e2e.lab import PARTITION, Lab
from tests.e2e.patience import wait_until
from tests.e2e.stubwords import KEYSTORE

from hcalld.domain.keystore_records import NAMESPACE, OBJECT_TAG, decode_object, split_object_key
from hcalld.domain.labels import os_label
from hcalld.stores.directory import StateDirectory
from hcallproto.payloads.pks import WRAP_OVERHEAD, WRAPPING_KEY_SIZE

pytestmark = pytest.mark.qemu

PASSWORDS = "dt pks_config pks_password pks_object pks_policy pks_bad pks=1 require=1"
PKS_TESTS = ("pks_config", "pks_password", "pks_object", "pks_space", "pks_policy", "pks_number")


@pytest.mark.parametrize("ends_by", ["SIGTERM", "SIGKILL"])
def test_objects_outlive_daemon_and_qemu(ends_by: str, lab: Lab) -> None:
    """Written by a big-endian guest, found by a little-endian one; TRANSIENT is gone."""
    daemon = lab.daemon()
    lab.stub("persist-write seed=7 require=1", daemon, byte_order="be").report().must_pass(
        "persist-write"
    )
    if ends_by == "SIGTERM":
        assert daemon.terminate() == 0
    else:
        daemon.kill()
    daemon.start()
    machine = lab.stub("persist-check seed=7 clean=1 require=1", daemon)
    machine.report().must_pass("persist-check")
    # And what is not there is not found: the same check fails over an empty store.
    report = lab.stub("persist-check seed=7", daemon).report()
    assert "persist-check: not ok: READ persist-os" in list(report.failures())


def test_partitions_are_apart(lab: Lab) -> None:
    daemon = lab.daemon()
    lab.stub("persist-write", daemon, name="one").report().must_pass("persist-write")
    assert lab.stub("persist-check", daemon, name="two").report().status == 1
    lab.stub("persist-check", daemon, name="one").report().must_pass("persist-check")


def test_restarts_of_the_daemon_go_unnoticed(lab: Lab) -> None:
    """Passwords, TRANSIENT objects and calls in flight stay, between any two tests."""
    daemon = lab.daemon()
    machine = lab.stub(KEYSTORE, daemon)
    for number, name in enumerate(PKS_TESTS):
        machine.console.expect(f"Subtest: {name}")
        if number % 2:
            daemon.kill()
        else:
            assert daemon.terminate() == 0
        daemon.start()
    machine.report(120).must_pass(*PKS_TESTS)
    log = daemon.log_text()
    assert log.count("guest connected") == len(PKS_TESTS) + 1
    # One instance throughout, which counts its connections; one that fails counts too.
    connections = [int(number) for number in re.findall(r"connection=(\d+)", log)]
    assert connections == sorted(set(connections))
    assert connections[0] == 0
    assert set(re.findall(r"reset=(\d+)", log)) == {"0"}


@pytest.mark.parametrize("by", ["guest", "system_reset"])
def test_passwords_end_with_the_reset(by: str, lab: Lab) -> None:
    """Each boot gets new passwords, and the stub's password tests pass again in each."""
    daemon = lab.daemon()
    if by == "guest":
        machine = lab.stub("pks_password reboot reboots=3 require=1", daemon, can_reboot=True)
        machine.report(180).must_pass("pks_password", "reboot")
        boots = 4
    else:
        hold = "hold run-ms=600000 gap-ms=900000"
        machine = lab.stub(f"{PASSWORDS} {hold}", daemon, can_reboot=True)
        for _ in range(3):
            machine.console.expect("# hold ready", 120)
            machine.qmp.execute("system_reset")
        machine.console.expect("# hold ready", 120)
        boots = 4
    texts = re.split(r"^KTAP version 1$", machine.console.text, flags=re.MULTILINE)[1:]
    assert len(texts) == boots
    for text in texts:
        tests = ktap.parse(f"KTAP version 1\n{text}").tests
        assert tests
        assert all(check.passed for test in tests for check in test.checks)
        # A test that resets the machine does not come to its own line.
        assert all(test.passed for test in tests if test.name != ktap.UNNAMED)
        assert "pks_password" in [test.name for test in tests]
    # The daemon saw each reset.
    wait_until(
        lambda: daemon.log_text().count("kind=RESET") == boots - 1, "the event of the last reset"
    )


def test_reset_while_the_daemon_is_gone(lab: Lab) -> None:
    """Told by HELLO's greater reset count: what lived for the run is gone."""
    daemon = lab.daemon()
    machine = lab.stub(
        f"{PASSWORDS} hold run-ms=600000 gap-ms=900000 start-ms=0", daemon, can_reboot=True
    )
    machine.console.expect("# hold ready", 120)
    machine.qmp.execute("stop")
    daemon.kill()
    machine.qmp.execute("system_reset")
    daemon.start()
    machine.qmp.execute("cont")
    machine.console.expect("# hold ready", 120)
    report = ktap.parse(machine.console.text)
    assert all(test.passed for test in report.tests)
    assert report["pks_password"].passed
    assert "reset=1" in daemon.log_text()


def test_another_qemu_has_other_passwords(lab: Lab) -> None:
    """Powering off ends the run, as a reset does."""
    daemon = lab.daemon()
    for _ in range(2):
        lab.stub(PASSWORDS, daemon).report().must_pass("pks_password", "pks_policy")


def test_store_has_what_the_guest_wrote(lab: Lab) -> None:
    daemon = lab.daemon()
    lab.stub("persist-write seed=7", daemon).report().must_pass("persist-write")
    assert daemon.terminate() == 0
    store = StateDirectory(daemon.state_dir).open(PARTITION, create=False)
    try:
        records = store.load().of(NAMESPACE)
    finally:
        store.close()
    data = {}
    for record in records:
        if record.key.startswith(OBJECT_TAG):
            consumer, label = split_object_key(record.key)
            name = label[label.index(b"persist-") :].decode()
            data[name] = decode_object(record)[1]
            assert label == (os_label(b"STUB", name.encode()) if consumer == 3 else name.encode())
    assert {name: len(value) for name, value in data.items()} == {
        "persist-firmware": 1,
        "persist-bootloader": 100,
        "persist-os": 4096,
        "persist-world": 33,
        "persist-pwset": 17,
        "persist-pwset-world": 18,
        "persist-key": WRAPPING_KEY_SIZE,
        "persist-blob": 32 + WRAP_OVERHEAD,
        # The machine was powered off, but no other was powered on: the run is not over.
        "persist-transient": 64,
    }
    # Contents lie there encrypted only.
    for path in daemon.state_dir.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        for name, value in data.items():
            assert value[:16] not in content or len(value) < 16, (path, name)
