# SPDX-License-Identifier: Apache-2.0
"""``make demo``: the act of SEV, with a QEMU whose guest runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import ROOT, Require
from tests.demo import sev
from tests.e2e.patience import patience
from tests.integration.test_demo_sev import check_story

pytestmark = [pytest.mark.kvm, pytest.mark.timeout(300)]


def test_the_sev_act_shows_a_guest_that_was_given_a_secret(require: Require, socket_dir: Path):
    environ = {
        "HCALLD_SEV_FIRMWARE": str(require("sev-firmware")),
        "HCALLD_SEV_LIBRARY": str(require("sev-library")),
        "TMPDIR": str(socket_dir),
    }
    require(sev.QEMU)
    done = subprocess.run(
        [sys.executable, "-m", "tests.demo", "sev"],
        cwd=ROOT,
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=patience(200),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    check_story(done.stdout)
    last = done.stdout.partition("An unmodified QEMU")[2]
    given = f"{len(sev.SECRET)} bytes, text: {sev.SECRET}\n"
    guid = "736869e5-84f0-4973-92ec-06879ce3da0b"
    assert f"the guest's serial port: secret: {guid} {given}" in last
