# SPDX-License-Identifier: Apache-2.0
"""Linux as a secure VM, under an ultravisor that takes its word for everything."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from tests.e2e.fakedaemon import announcement
from tests.e2e.machine import socket_chardev
from tests.e2e.ultravisor import PAGE, Pager, enter, ultracall

from hcallproto.abi.families import uv
from hcallproto.abi.returns import U
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

if TYPE_CHECKING:
    from tests.e2e.lab import Lab

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

MEMORY_MIB = 512
CPUS = 2

SCRIPT = f"""\
for cpu in $(seq 0 {CPUS - 1}); do
    echo "svm $cpu $(taskset -c $cpu cat /sys/devices/system/cpu/svm)"
done
echo 0 > /sys/devices/system/cpu/cpu1/online
echo 1 > /sys/devices/system/cpu/cpu1/online
echo "svm again $(taskset -c 1 cat /sys/devices/system/cpu/svm)"
dd if=/dev/urandom of=/random bs=1M count=8
for n in 1 2 3 4; do sha256sum /random; done
echo "SECURE DONE"
"""

PAGED_AT_ONCE = 16
PAUSE_ROUNDS = 400
"""How often pages are taken away while the guest runs, at most."""


@pytest.mark.parametrize(
    ("cpu", "is_paged"), [("power9", False), ("power9", True), ("power10", True)]
)
def test_linux_in_secure_state(cpu: str, is_paged: bool, lab: Lab) -> None:
    daemon = lab.fake_daemon()
    machine = lab.linux(
        "own",
        SCRIPT,
        append="svm=1",
        chardev=socket_chardev(daemon.path),
        memory_mib=MEMORY_MIB,
        smp=CPUS,
        extra=["-cpu", cpu],
    )
    peer = daemon.accept()
    peer.greet()
    calls = (uv.ESM, uv.SHARE_PAGE, uv.UNSHARE_PAGE, uv.UNSHARE_ALL_PAGES)
    accept = peer.welcome(
        announcement(map(ultracall, calls)),
        s.Feature.SC2 | s.Feature.PAGE_STATES,
        s.DEFAULT_MAX_FRAME,
    )
    assert not accept.refused
    pager = Pager(peer)
    shared: set[int] = set()
    rng = random.Random(5)
    rounds = 0
    while not isinstance(frame := pager.receive(180), f.ShimGoodbye):
        if isinstance(frame, f.Event):
            continue
        assert isinstance(frame, f.Call), frame
        registers = frame.registers()
        name = (frame.vcpu, frame.reset, frame.seq)
        if frame.level == s.LEVEL_SHIM:
            pages = {rng.randrange(0x400000, MEMORY_MIB << 20) & -PAGE for _ in range(64)}
            # Much of it is never used again; the kernel's own is.
            pages |= {rng.randrange(0x400000, 0x2800000) & -PAGE for _ in range(PAGED_AT_ONCE)}
            pager.page_out(frame, *sorted(pages - shared)[: s.MAX_SEGMENTS])
            peer.reply(frame, U.SUCCESS)
            rounds += 1
            if rounds < PAUSE_ROUNDS:
                peer.send(f.Control(s.ControlAction.ATTEND, "", frame.reset))
            continue
        assert bool(frame.msr & s.MSR_S) is (frame.number != uv.ESM.number)
        if frame.number == uv.ESM.number:
            # As after kexec: the device tree in r3, the kernel in r4, nothing in r5.
            everything = (f.PageRange(0, MEMORY_MIB << 20, s.PageState.UNSHARED),)
            enter(
                peer,
                frame,
                status=registers[5],
                registers=((4, registers[4]), (5, 0)),
                pages=everything,
            )
            if is_paged:
                peer.send(f.Control(s.ControlAction.ATTEND, "", frame.reset))
            continue
        gpas = [(registers[4] + n) * PAGE for n in range(registers[5])]
        is_shared = frame.number == uv.SHARE_PAGE.number
        writes, _ = pager.bring(*gpas)
        shared = shared | set(gpas) if is_shared else shared - set(gpas)
        state = s.PageState(0) if is_shared else s.PageState.UNSHARED
        ranges = (f.PageRange(gpas[0], PAGE * len(gpas), state),) if gpas else ()
        peer.send(f.Reply(*name, U.SUCCESS, writes=writes, pages=ranges))
    text = machine.console.expect_end()
    for number in range(CPUS):
        assert f"svm {number} 1" in text
    assert "svm again 1" in text
    assert "SECURE DONE" in text
    sums = {line.split()[0] for line in text.splitlines() if line.endswith("/random")}
    assert len(sums) == 1
    lab.measure(paged_in=pager.paged_in, rounds=rounds, shared=len(shared))
    assert bool(pager.paged_in) is is_paged
