# SPDX-License-Identifier: Apache-2.0
"""A secure VM, captured with its secrets, runs again in process to the byte; and only there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.e2e.daemon import run_hcalld
from tests.e2e.secure import SecureLab, svm_of_each

if TYPE_CHECKING:
    from tests.e2e.lab import Lab

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]


@pytest.mark.parametrize("memory", ["private", "shared"])
def test_a_secure_vms_boot_is_replayed_to_the_byte(memory: str, lab: Lab) -> None:
    passphrase = lab.artifacts / "passphrase"
    passphrase.touch(0o600)
    passphrase.write_text("of this test\n")
    how = f"passphrase-file:{passphrase}"
    path = lab.artifacts / "capture.pcapng"
    secure = SecureLab(lab, "page_shift = 12\n", "--capture", str(path), "--capture-secrets", how)
    machine = secure.linux(svm_of_each(2), smp=2, memory=memory)
    text = machine.console.expect_end(180)
    assert "svm 1 1" in text
    assert "EXIT: STATUS=0" in text
    secure.daemon.terminate()
    calls = len(secure.daemon.trace_lines())
    assert calls > 10

    done = run_hcalld("replay", "code", "--secrets", how, str(path))
    assert done.returncode == 0, done.stdout[-4000:]
    said = done.stdout.splitlines()[-1]
    assert said.startswith("no differences, "), said
    assert " 0 left out" in said
    assert f" {calls} equal" in said

    done = run_hcalld(
        "replay", "machine", "--socket-path", str(lab.socket_dir / "replay.sock"), str(path)
    )
    assert done.returncode == 2
    assert "became a secure VM" in done.stderr
