# SPDX-License-Identifier: Apache-2.0
"""TPM2_GetRandom from the guest: by hcalld, and by QEMU's own spapr-tpm-proxy.

Both reach the same swtpm, at the same unix socket. The proxy takes a character device only,
so that a small relay in C stands between: a pty at one end, the socket at the other. A second
figure has the swtpm at the pty itself, without the relay.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.bench.floors import HERE, daemon
from tests.bench.results import Results
from tests.conftest import Require
from tests.e2e.machine import Guest, Machine, socket_chardev
from tests.e2e.tpm import listening_swtpm, pty_swtpm

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

COUNT = 5000
ROUNDS = 3


@contextlib.contextmanager
def relay(program: Path, path: Path) -> Iterator[str]:
    """A pty for a swtpm's socket."""
    process = subprocess.Popen(
        [program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(timeout=10)
        process.stdout.close()


def p50_of(require: Require, folder: Path, more: str = "", **options: object) -> dict[str, int]:
    """Nanoseconds of each call, inside the guest."""
    guest = Guest(
        qemu=require("qemu"),
        kernel=require("stub") / "stub-le.elf",
        append=f"tpm_bench {more} n={COUNT}",
        smp=1,
        **options,  # type: ignore[arg-type]  # fields of Guest
    )
    with Machine(guest, folder) as machine:
        report = machine.report(300)
    report.must_pass("tpm_bench")
    found = re.findall(r"# bench (\S+) n=\d+ min_ns=\d+ p50_ns=(\d+)", report.text)
    return {name: int(p50) for name, p50 in found}


def test_get_random(results: Results, tmp_path: Path, socket_dir: Path, require: Require) -> None:
    swtpm, program = require("swtpm"), tmp_path / "relay"
    warnings = ("-Wall", "-Wextra")
    subprocess.run(["cc", "-O2", *warnings, "-o", program, HERE / "tpm_relay.c"], check=True)
    ours, floor, theirs, direct = [], [], [], []
    profiles = tmp_path / "profiles"
    profiles.mkdir()
    with listening_swtpm(swtpm, tmp_path / "tpm", socket_dir) as path:
        profile = f'[tpm]\nbackend = "socket"\npath = "{path}"\n'
        (profiles / "default.toml").write_text(profile, "utf-8")
        # In turn, so that a machine that gets slower does not decide.
        for _ in range(ROUNDS):
            with daemon(tmp_path, "--profile-dir", str(profiles)) as (_, hcalld):
                chardev = socket_chardev(hcalld)
                p50 = p50_of(require, tmp_path, "bench call=config", chardev=chardev)
                ours.append(p50["H_TPM_COMM"])
                floor.append(p50["H_PKS_GET_CONFIG"])
            with relay(program, path) as pty:
                proxy = ("-device", f"spapr-tpm-proxy,host-path={pty}")
                theirs.append(p50_of(require, tmp_path, extra=proxy)["H_TPM_COMM"])
            with pty_swtpm(swtpm, tmp_path / "tpm-at-pty") as at_pty:
                proxy = ("-device", f"spapr-tpm-proxy,host-path={at_pty}")
                direct.append(p50_of(require, tmp_path, extra=proxy)["H_TPM_COMM"])
    for name, times in (
        ("GetRandom, hcalld", ours),
        ("GET_CONFIG, hcalld", floor),
        ("GetRandom, proxy, relay", theirs),
        ("GetRandom, proxy, pty", direct),
    ):
        print(f"\n{name}: " + ", ".join(f"{ns / 1000:.0f} us" for ns in times), end="")
    results.ratio(
        "GetRandom inside the guest, hcalld / spapr-tpm-proxy over a relay",
        min(ours),
        min(theirs),
        1.3,
    )
    results.ratio(
        "GetRandom inside the guest, hcalld / spapr-tpm-proxy with swtpm at its pty",
        min(ours),
        min(direct),
        1.3,
    )
    # How much of it is the way to the daemon, which any call takes.
    results.ratio(
        "GetRandom inside the guest less GET_CONFIG / spapr-tpm-proxy over a relay",
        max(min(ours) - min(floor), 0),
        min(theirs),
        1.3,
    )
