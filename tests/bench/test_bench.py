# SPDX-License-Identifier: Apache-2.0
"""``make bench``: ratios against floors measured in the same run.

Nothing here fails for being slow: the numbers are printed, compared with their goals,
and kept in ``tests/artifacts/bench.json``. What fails is a measurement that is not one: a
call that is refused, a guest that does not answer.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from tests.bench.floors import Pinger, Times, daemon, memory_of
from tests.bench.results import Results
from tests.bench.shim import BenchShim
from tests.conftest import Require
from tests.e2e.machine import Guest, Machine, socket_chardev

from hcallproto.abi.families import pks
from hcallproto.abi.returns import H

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

COUNT = 20_000
SPACED_COUNT = 3_000
PAUSE_US = 300
GUESTS = 500

BUFFER, AUTH, LABEL, DATA, OUT = 0x1000, 0x4000, 0x5000, 0x8000, 0x20000
_AUTH_OS = bytes([1, 3]) + bytes(14)
_LABEL = b"bench\0\0\0\0\x02\x10\0\0\0\0\0object"
_DATA_SIZE = 4096
_WORLDREADABLE = 0x0800_0000


_BENCH_LINE = re.compile(r"# bench (?P<name>\S+) n=\d+ min_ns=\d+ p50_ns=(?P<p50>\d+)")


def _medians(text: str) -> dict[str, int]:
    """Name to nanoseconds, from the console; prints the lines."""
    p50 = {}
    for line in text.splitlines():
        if found := _BENCH_LINE.match(line.strip()):
            print(line.strip())
            p50[found["name"]] = int(found["p50"])
    return p50


def _config_frame(shim: BenchShim) -> bytes:
    reply = shim.call(pks.GET_CONFIG.number, (BUFFER, 512), {})
    assert reply.status == H.SUCCESS
    return shim.frame(pks.GET_CONFIG.number, (BUFFER, 512), {})


@pytest.fixture(scope="module")
def socket_times(pinger: Pinger, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Times]:
    """GET_CONFIG and the floors, spaced and back to back."""
    with daemon(tmp_path_factory.mktemp("daemon")) as (_, path):
        shim = BenchShim(path, "bench", shared_ram=False)
        frame = _config_frame(shim)
        times = {}
        with pinger.c_echo() as sock:
            times["C echo, back to back"] = pinger.ping(sock, frame, COUNT)
        with pinger.trio_echo() as sock:
            times["trio echo, back to back"] = pinger.ping(sock, frame, COUNT)
            times["trio echo, spaced"] = pinger.ping(sock, frame, SPACED_COUNT, PAUSE_US)
        times["GET_CONFIG, back to back"] = pinger.ping(shim.sock, frame, COUNT)
        shim.seq += COUNT
        frame = shim.frame(pks.GET_CONFIG.number, (BUFFER, 512), {})
        times["GET_CONFIG, spaced"] = pinger.ping(shim.sock, frame, SPACED_COUNT, PAUSE_US)
        shim.close()
    for name, time_ in times.items():
        print(f"\n{name}: {time_}", end="")
    return times


def test_get_config_over_the_socket(socket_times: dict[str, Times], results: Results) -> None:
    results.ratio(
        "GET_CONFIG p50 / raw trio echo, back to back",
        socket_times["GET_CONFIG, back to back"].p50,
        socket_times["trio echo, back to back"].p50,
        1.5,
    )
    results.ratio(
        "GET_CONFIG p50 / raw trio echo, spaced calls",
        socket_times["GET_CONFIG, spaced"].p50,
        socket_times["trio echo, spaced"].p50,
        1.5,
    )
    results.ratio(
        "GET_CONFIG p50 / C echo, back to back",
        socket_times["GET_CONFIG, back to back"].p50,
        socket_times["C echo, back to back"].p50,
        4,
    )


def _write_and_read(path: Path, name: str, *, shared_ram: bool, rounds: int) -> float:
    """Median seconds of WRITE + READ of 4 KiB (REMOVE is not counted)."""
    shim = BenchShim(path, name, shared_ram=shared_ram)
    data = bytes(range(256)) * (_DATA_SIZE // 256)
    buffers = {AUTH: _AUTH_OS, LABEL: _LABEL, DATA: data}
    named = (AUTH, LABEL, len(_LABEL))
    took = []
    for _ in range(rounds):
        start = time.perf_counter()
        write = shim.call(
            pks.WRITE_OBJECT.number, (*named, _WORLDREADABLE, DATA, _DATA_SIZE), buffers
        )
        read = shim.call(pks.READ_OBJECT.number, (*named, OUT, _DATA_SIZE), {})
        took.append(time.perf_counter() - start)
        assert write.status == H.SUCCESS
        assert read.status == H.SUCCESS
        assert read.writes[0].data == data
        removed = shim.call(pks.REMOVE_OBJECT.number, named, {})
        assert removed.status == H.SUCCESS
    shim.close()
    return sorted(took)[rounds // 2]


def test_get_config_inside_the_guest(
    socket_times: dict[str, Times], results: Results, tmp_path: Path, require: Require
) -> None:
    with daemon(tmp_path) as (_, path):
        guest = Guest(
            qemu=require("qemu"),
            kernel=require("stub") / "stub-le.elf",
            append=f"bench call=config n={SPACED_COUNT}",
            smp=1,
            memory="private",
            chardev=socket_chardev(path),
        )
        with Machine(guest, tmp_path) as machine:
            report = machine.report(300)
    print()
    p50 = _medians(report.text)
    results.ratio(
        "GET_CONFIG p50 inside the guest / over the socket, back to back",
        p50["H_PKS_GET_CONFIG"],
        socket_times["GET_CONFIG, back to back"].p50,
        2,
    )


def test_wrapping_inside_the_guest(results: Results, tmp_path: Path, require: Require) -> None:
    with daemon(tmp_path) as (_, path):
        guest = Guest(
            qemu=require("qemu"),
            kernel=require("stub") / "stub-le.elf",
            append=f"bench call=wrap n={SPACED_COUNT}",
            smp=1,
            chardev=socket_chardev(path),
        )
        with Machine(guest, tmp_path) as machine:
            report = machine.report(300)
    report.must_pass("bench")
    print()
    p50 = _medians(report.text)
    read = p50["READ_beside_WRAP_61440"]
    for name in ("WRAP", "UNWRAP"):
        results.ratio(
            f"{name} of 60 KiB / READ of 60 KiB inside the guest",
            p50[f"H_PKS_{name}_OBJECT_61440"],
            read,
            1.5,
        )


def test_write_and_read_with_shared_ram(results: Results, tmp_path: Path) -> None:
    with daemon(tmp_path) as (_, path):
        # In turn, so that a machine that gets slower does not decide.
        inline, shared = [], []
        for _ in range(5):
            inline.append(_write_and_read(path, "inline", shared_ram=False, rounds=200))
            shared.append(_write_and_read(path, "shared", shared_ram=True, rounds=200))
    print(f"\nWRITE + READ of 4 KiB: inline {min(inline) * 1e6:.0f} us, ", end="")
    print(f"shared RAM {min(shared) * 1e6:.0f} us", end="")
    results.ratio("WRITE + READ of 4 KiB, shared RAM / inline", min(shared), min(inline), 1.0)


def test_memory(results: Results, tmp_path: Path) -> None:
    with daemon(tmp_path, "--idle-seconds", "2") as (process, path):
        first = BenchShim(path, "first", shared_ram=False)
        _config_frame(first)
        first.close()
        idle = memory_of(process.pid)
        guests = []
        for index in range(GUESTS):
            guests.append(BenchShim(path, f"guest{index}", shared_ram=False))
            _config_frame(guests[-1])
        time.sleep(6)  # long enough for the daemon to find every guest idle
        loaded = memory_of(process.pid)
        assert process.poll() is None
        for guest in guests:
            guest.close()
    results.value("daemon memory when idle", idle.resident / 1024, 60, "MiB")
    results.value(
        f"private memory for each of {GUESTS} idle guests",
        (loaded.private - idle.private) / GUESTS,
        256,
        "KiB",
    )
