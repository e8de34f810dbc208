# SPDX-License-Identifier: Apache-2.0
"""UV_SHARE_PAGE and UV_UNSHARE_PAGE of one page against GET_CONFIG, which changes nothing.

In process they are without the wire and the store, as in ``inprocess``; over the socket and
inside the guest with both, in a daemon that nobody watches. The page is shared and taken
back in turn, so that each call changes its state, beside none and beside many others that
are shared.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest
from tests.bench.floors import Pinger
from tests.bench.inprocess import InProcess, median_us
from tests.bench.results import Results
from tests.bench.secureshim import SecureShim
from tests.bench.securevm import SecureInProcess
from tests.e2e.lab import PARTITION, Lab, lab
from tests.e2e.secure import SecureLab
from tests.esm import CMDLINE, Section, elf

from hcallproto.abi.families import pks, uv

__all__ = ["lab"]

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

COUNT = 2000
ROUNDS = 7
MANY = 10_000
GOAL = 1.2
FLAT = 1.2
"""A page among many that are shared may cost so much more than one among few."""
FIRST = 0x2000
"""Frame of the first page that is shared."""
CALLS = {"SHARE": uv.SHARE_PAGE, "UNSHARE": uv.UNSHARE_PAGE}
BUFFER, CONFIG_SIZE = 0x1000, 512


def untraced(lab: Lab) -> SecureLab:
    """A daemon that nobody watches."""
    options = ("--log-level", "warning")
    secure = SecureLab(lab, "page_shift = 12\n", *options, is_started=False)
    at = secure.daemon.options.index("--trace")
    del secure.daemon.options[at : at + 2]
    secure.daemon.start()
    return secure


def strewn(count: int) -> Iterator[int]:
    """Frames of pages of which none is another one's neighbour."""
    return iter(range(FIRST, FIRST + 2 * count, 2))


def test_sharing_in_process(results: Results) -> None:
    keystore = InProcess()
    config = keystore.frame(pks.GET_CONFIG, (BUFFER, CONFIG_SIZE), {})
    secure = SecureInProcess()
    floors: list[float] = []
    times: dict[tuple[str, int], list[float]] = {}
    for count in (0, MANY):
        for gfn in strewn(count):
            secure.must(secure.frame(uv.SHARE_PAGE, gfn, 1))
        gfn = FIRST + 2 * count + 1
        frames = {name: secure.frame(hcall, gfn, 1) for name, hcall in CALLS.items()}
        for _ in range(ROUNDS):
            floors.append(median_us(lambda: keystore.call(config), COUNT))
            for name, median in secure.medians_us(frames, COUNT).items():
                times.setdefault((name, count), []).append(median)
    print(f"\nGET_CONFIG in process {min(floors):.1f} us", end="")
    for (name, count), each in times.items():
        print(f", {name} beside {count} {min(each):.1f} us", end="")
    for name in CALLS:
        few, many = min(times[name, 0]), min(times[name, MANY])
        what = f"UV_{name}_PAGE of one page"
        results.ratio(f"{what} in process / GET_CONFIG", few, min(floors), GOAL)
        results.ratio(f"{what} beside {MANY} shared ones in process / beside none", many, few, FLAT)


def test_sharing_over_the_socket(lab: Lab, pinger: Pinger, results: Results) -> None:
    secure = untraced(lab)
    vmlinux, initrd = secure.folder / "kernel.elf", secure.folder / "kernel.initrd"
    vmlinux.write_bytes(elf([Section(0, os.urandom(8192))]))
    initrd.write_bytes(bytes(4096))
    blob = secure.blob(vmlinux, initrd, CMDLINE).read_bytes()
    shim = SecureShim(secure.daemon.socket, PARTITION, vmlinux.read_bytes(), blob, CMDLINE)
    shim.enter()
    floors: list[int] = []
    times: dict[tuple[str, int], list[int]] = {}
    for count in (0, MANY):
        for gfn in strewn(count):
            assert shim.call(shim.frame(uv.SHARE_PAGE, gfn, 1)).status == 0
        gfn = FIRST + 2 * count + 1
        for _ in range(ROUNDS):
            shim.sock.setblocking(True)
            frame = shim.bytes_of(pks.GET_CONFIG, BUFFER, CONFIG_SIZE)
            floors.append(pinger.ping(shim.sock, frame, COUNT).p50)
            shim.seq += COUNT
            frames = [shim.bytes_of(hcall, gfn, 1) for hcall in CALLS.values()]
            took = pinger.ping_in_turn(shim.sock, frames, COUNT)
            shim.seq += COUNT * len(frames)
            for name, its in zip(CALLS, took, strict=True):
                times.setdefault((name, count), []).append(its.p50)
        shim.sock.setblocking(False)
    shim.close()
    print(f"\nGET_CONFIG over the socket {min(floors) / 1000:.0f} us", end="")
    for (name, count), each in times.items():
        least, most = min(each) / 1000, max(each) / 1000
        print(f", {name} beside {count} {least:.0f} to {most:.0f} us", end="")
    for name in CALLS:
        few, many = min(times[name, 0]), min(times[name, MANY])
        what = f"UV_{name}_PAGE of one page"
        results.ratio(f"{what} over the socket / GET_CONFIG", few, min(floors), GOAL)
        results.ratio(f"{what} beside {MANY} over the socket / beside none", many, few, FLAT)


def test_sharing_inside_the_guest(lab: Lab, results: Results) -> None:
    secure = untraced(lab)
    times: dict[str, list[int]] = {}
    for _ in range(3):
        machine = secure.stub(f"bench esm=1 call=share n={COUNT}", smp=1)
        report = machine.report(300)
        report.must_pass("bench")
        machine.close()
        for name, p50 in re.findall(r"# bench (\S+) n=\d+ min_ns=\d+ p50_ns=(\d+)", report.text):
            times.setdefault(name, []).append(int(p50))
    print()
    for name, each in times.items():
        print(f"{name}: " + ", ".join(f"{ns / 1000:.0f} us" for ns in each))
    for name in CALLS:
        results.ratio(
            f"UV_{name}_PAGE of one page inside the guest / GET_CONFIG",
            min(times[f"UV_{name}_PAGE"]),
            min(times["H_PKS_GET_CONFIG"]),
            GOAL,
        )
