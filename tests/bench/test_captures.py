# SPDX-License-Identifier: Apache-2.0
"""What a capture costs a guest: GET_CONFIG over the socket, captured or not.

Daemons with and without a capture are asked in turn, in rounds, so that a machine whose
clock or load changes does so for all of them.
"""

from __future__ import annotations

import contextlib
import statistics
from pathlib import Path

import pytest
from tests.bench.floors import Pinger, Times, daemon
from tests.bench.results import Results
from tests.bench.shim import BenchShim

from hcallproto.abi.families import pks
from hcallproto.abi.returns import H

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

COUNT = 5000
SPACED_COUNT = 800
PAUSE_US = 300
ROUNDS = 5
GOAL = 1.1
BUFFER, SIZE = 0x1000, 512


def test_get_config_while_it_is_captured(pinger: Pinger, results: Results, tmp_path: Path) -> None:
    passphrase = tmp_path / "pass"
    passphrase.write_text("correct horse")
    passphrase.chmod(0o600)
    captures = {
        "not captured": (),
        "captured": ("--capture",),
        "captured with secrets": (
            *("--capture-secrets", f"passphrase-file:{passphrase}"),
            "--capture",
        ),
    }
    times: dict[tuple[str, str], list[Times]] = {}
    with contextlib.ExitStack() as stack:
        shims = {}
        for name, words in captures.items():
            folder = tmp_path / name.replace(" ", "-")
            folder.mkdir()
            more = (*words, str(folder / "all.pcapng")) if words else ()
            _, path = stack.enter_context(daemon(folder, *more))
            shims[name] = stack.enter_context(
                contextlib.closing(BenchShim(path, "bench", shared_ram=False))
            )
        for _ in range(ROUNDS):
            for name, shim in shims.items():
                reply = shim.call(pks.GET_CONFIG.number, (BUFFER, SIZE), {})
                assert reply.status == H.SUCCESS
                for how, count, pause in (
                    ("back to back", COUNT, 0),
                    ("spaced", SPACED_COUNT, PAUSE_US),
                ):
                    frame = shim.frame(pks.GET_CONFIG.number, (BUFFER, SIZE), {})
                    took = pinger.ping(shim.sock, frame, count, pause)
                    shim.seq += count
                    times.setdefault((name, how), []).append(took)
    p50 = {key: statistics.median(one.p50 for one in found) for key, found in times.items()}
    for (name, how), found in times.items():
        print(f"\nGET_CONFIG, {name}, {how}: {' '.join(str(one) for one in found)}", end="")
    for name in list(captures)[1:]:
        for how in ("back to back", "spaced"):
            results.ratio(
                f"GET_CONFIG p50, {name} / not captured, {how}",
                p50[name, how],
                p50["not captured", how],
                GOAL,
            )
