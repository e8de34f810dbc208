# SPDX-License-Identifier: Apache-2.0
"""The guest stub's own tests, over every way that a guest reaches the daemon."""

from __future__ import annotations

import re
import shlex
import shutil

import pytest
from tests.e2e import tls
from tests.e2e.daemon import run_hcalld
from tests.e2e.lab import Lab
from tests.e2e.machine import ByteOrder, Firmware, Memory
from tests.e2e.patience import wait_until
from tests.e2e.stubwords import KEYSTORE

pytestmark = pytest.mark.qemu


SOAK = pytest.mark.soak
"""SLOF takes seconds; ``make soak`` has each combination with it."""

MUST_RUN = ("smp", "dt", "pks_config", "pks_password", "pks_object", "pks_policy", "pks_user")


@pytest.mark.parametrize(
    ("byte_order", "firmware", "memory"),
    [
        ("le", "vof", "shared"),
        ("le", "vof", "private"),
        ("be", "vof", "shared"),
        ("be", "vof", "private"),
        ("le", "slof", "private"),
        ("be", "slof", "shared"),
        pytest.param("le", "slof", "shared", marks=SOAK),
        pytest.param("be", "slof", "private", marks=SOAK),
    ],
)
def test_unix_socket(byte_order: ByteOrder, firmware: Firmware, memory: Memory, lab: Lab) -> None:
    daemon = lab.daemon()
    machine = lab.stub(KEYSTORE, daemon, byte_order=byte_order, firmware=firmware, memory=memory)
    machine.report().must_pass(*MUST_RUN)
    # Shared RAM is in use where, and only where, the guest has a backend that can be shared.
    assert f"shared_ram={memory == 'shared'}" in daemon.log_text()


@pytest.mark.parametrize(
    ("byte_order", "firmware"),
    [("le", "vof"), ("be", "vof"), ("be", "slof"), pytest.param("le", "slof", marks=SOAK)],
)
def test_tls(byte_order: ByteOrder, firmware: Firmware, lab: Lab) -> None:
    certificates = tls.make(lab.artifacts / "tls")
    port = tls.free_port()
    daemon = lab.daemon(
        "--listen", f"127.0.0.1:{port}", *certificates.daemon_options, socket_path=False
    )
    machine = lab.stub(
        KEYSTORE,
        chardev=tls.chardev(port),
        byte_order=byte_order,
        firmware=firmware,
        extra=[*certificates.qemu_options, "-S"],
    )
    wait_until(lambda: "kind=RESET" in daemon.log_text(), "the reset after negotiation")
    machine.qmp.execute("cont")
    machine.report().must_pass(*MUST_RUN)
    log = daemon.log_text()
    assert "(TLS)" in log
    assert "shared_ram=False" in log
    assert log.count("kind=RESET") == 1


def test_tls_resets_a_running_guest_once(lab: Lab) -> None:
    """QEMU cannot wait for TLS, so the guest starts without its calls, and anew with them."""
    certificates = tls.make(lab.artifacts / "tls")
    port = tls.free_port()
    machine = lab.stub(
        "dt hold pks=1 run-ms=1000 gap-ms=60000",
        chardev=tls.chardev(port),
        extra=certificates.qemu_options,
        device_options="connect-timeout-ms=30000",
    )
    machine.console.expect("Subtest: hold")
    machine.qmp.execute("stop")
    daemon = lab.daemon(
        "--listen", f"127.0.0.1:{port}", *certificates.daemon_options, socket_path=False
    )
    wait_until(lambda: "kind=RESET" in daemon.log_text(), "the reset after negotiation")
    machine.qmp.execute("cont")
    machine.report().must_pass("dt", "hold")
    assert len(re.findall(r"^KTAP version 1$", machine.console.text, re.MULTILINE)) == 2
    assert daemon.log_text().count("kind=RESET") == 1


@pytest.mark.parametrize("certificate", ["none", "another authority's"])
def test_tls_without_our_certificate(certificate: str, lab: Lab) -> None:
    ours = tls.make(lab.artifacts / "tls")
    others = tls.make(lab.artifacts / "others")
    shutil.copy(ours.directory / "ca-cert.pem", others.directory / "ca-cert.pem")
    if certificate == "none":
        (others.directory / "client-cert.pem").unlink()
        (others.directory / "client-key.pem").unlink()
    port = tls.free_port()
    daemon = lab.daemon("--listen", f"127.0.0.1:{port}", *ours.daemon_options, socket_path=False)
    machine = lab.stub(
        "dt",
        chardev=tls.chardev(port),
        device_options="connect-timeout-ms=1000",
        # QEMU itself would not use a certificate that its authority has not signed.
        extra=["-object", others.qemu_options[-1] + ",sanity-check=off", "-S"],
    )
    assert machine.wait() == 1
    assert "no daemon has answered" in machine.messages()
    assert "connection refused" in daemon.log_text()
    assert "guest connected" not in daemon.log_text()


def test_one_cpu_on_one_thread(lab: Lab) -> None:
    machine = lab.stub("dt pks pks=1", lab.daemon(), threads="single", smp=1)
    machine.report().must_pass("pks_object", may_skip=True)


def test_without_device(lab: Lab) -> None:
    report = lab.stub("self dt pks pks=0").report()
    report.must_pass("dt", "pks_object", may_skip=True)
    assert {skip.partition(":")[0] for skip in report.skips()} >= {"pks_config", "pks_object"}


def test_profile_of_the_guest_of_that_name(lab: Lab) -> None:
    profiles = lab.artifacts / "profiles"
    profiles.mkdir()
    (profiles / "web1.toml").write_text("secure_boot = 2\n", "utf-8")
    (profiles / "default.toml").write_text("secure_boot = 1\n", "utf-8")
    daemon = lab.daemon("--profile-dir", str(profiles))
    for name, value in (("web1", 2), ("other", 1)):
        machine = lab.stub(f"dt secure-boot={value}", daemon, name=name)
        machine.report().must_pass("dt")


def test_unknown_guest_is_refused(lab: Lab) -> None:
    profiles = lab.artifacts / "profiles"
    profiles.mkdir()
    daemon = lab.daemon("--profile-dir", str(profiles), "--refuse-unknown")
    machine = lab.stub("dt", daemon, name="stranger")
    assert machine.wait() == 1
    assert "no profile for guest 'stranger'" in machine.messages()


@pytest.mark.parametrize("words", [[], ["--optional"], ["--memory-size", "256M"]])
def test_options_that_qemu_args_prints(words: list[str], lab: Lab) -> None:
    daemon = lab.daemon()
    printed = run_hcalld("qemu-args", "--socket-path", str(daemon.socket), *words)
    assert printed.returncode == 0, printed.stderr
    machine = lab.stub("dt pks_object pks=1", extra=shlex.split(printed.stdout), memory="private")
    machine.report().must_pass("dt", "pks_object")
    assert f"shared_ram={'--memory-size' in words}" in daemon.log_text()
