# SPDX-License-Identifier: Apache-2.0
"""Secure mode over the wire: ultracalls, QEMU's own calls, and what a reply can do to a CPU."""

from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio
from tests.unit.hcalld.runtime.conftest import Logs
from tests.unit.hcalld.runtime.daemon import Daemon
from tests.unit.hcalld.runtime.shim import Shim, hello

from hcalld.config import Profiles
from hcalld.core.secret import Secret
from hcalld.domain.esm.boot_tree import Range
from hcalld.domain.pef.machine import PefMachine
from hcalld.domain.pef.verify import Verified
from hcalld.domain.ultravisor.vm_states import VmState
from hcallproto.abi.families import svm, uv
from hcallproto.abi.registers import MSR_PR, MSR_S
from hcallproto.abi.returns import H, U
from hcallproto.abi.spec import Hcall
from hcallproto.payloads import fdt
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

SECURE = s.Feature.SC2 | s.Feature.PAGE_STATES
RAM_SIZE = 4 << 20
RAM = f.Ram((f.RamRegion(0, RAM_SIZE),), 0, 0)
KERNEL, TREE = 0x20_0000, 0x10_0000
PAGE = 1 << 16
OUT = s.PageState.UNSHARED | s.PageState.PAGED_OUT
SECRET = b"what only the secure guest may read"


class Guest:
    """A guest with memory, and QEMU's part of the protocol about it."""

    def __init__(self, daemon: Daemon, shim: Shim) -> None:
        self.daemon = daemon
        self.shim = shim
        self.memory = bytearray(b"\x5a" * RAM_SIZE)
        self.states: dict[int, s.PageState] = {}
        self.controls: list[f.Control] = []
        tree = fdt.Fdt().build()
        self.memory[TREE : TREE + len(tree)] = tree
        self.size = RAM_SIZE
        self.plugs: f.Ram | None = None
        """Memory that comes while a call waits for PAGES."""

    @property
    def machine(self) -> PefMachine:
        partition = self.daemon.server.sessions["lpar7"].partition
        assert partition is not None
        model = partition.model("uv")
        assert isinstance(model, PefMachine)
        return model

    def frame(
        self, hcall: Hcall | int, *arguments: int, msr: int = MSR_S, level: int = 2, vcpu: int = 0
    ) -> f.Call:
        """A call as QEMU sends it."""
        number = hcall if isinstance(hcall, int) else hcall.number
        return self.shim.call_frame(number, *arguments, vcpu=vcpu)._replace(level=level, msr=msr)

    async def call(self, hcall: Hcall | int, *arguments: int, **more: Any) -> f.Reply:
        """Makes a call, and does what it asks of memory."""
        frame = self.frame(hcall, *arguments, **more)
        await self.shim.send(frame)
        return await self.reply_to(frame)

    async def reply_to(self, call: f.Call) -> f.Reply:
        """Serves the daemon until it has answered."""
        while True:
            frame = await self.shim.receive()
            match frame:
                case f.Reply():
                    assert frame.seq == call.seq
                    self._carry_out(frame.writes)
                    self.set_states(frame.pages)
                    return frame
                case f.Control():
                    self.controls.append(frame)
                case f.Pages():
                    self.set_states(frame.ranges)
                    if self.plugs is not None:
                        await self.shim.send(self.plugs)
                        self.plugs = None
                    name = (frame.vcpu, frame.reset, frame.seq, frame.request)
                    await self.shim.send(f.PagesReply(*name, s.AccessStatus.OK, 0))
                case f.Read():
                    parts = [bytes(self.memory[gpa : gpa + n]) for gpa, n in frame.segments]
                    await self.shim.answer_read(frame, *parts)
                case f.Write():
                    self._carry_out(frame.segments)
                    await self.shim.answer_write(frame)
                case _:
                    raise AssertionError(frame)

    def _carry_out(self, segments: tuple[f.WriteSegment, ...]) -> None:
        for gpa, size, data in segments:
            self.memory[gpa : gpa + size] = bytes(size) if data is None else data

    def set_states(self, ranges: tuple[f.PageRange, ...]) -> None:
        for gpa, size, state in ranges:
            assert gpa + size <= self.size
            for page in range(gpa, gpa + size, PAGE):
                self.states[page] = state

    async def control(self) -> f.Control:
        """What the daemon asks of QEMU next, or has asked."""
        if not self.controls:
            return await self.shim.expect(f.Control)
        return self.controls.pop(0)

    async def enter(self) -> f.Reply:
        """UV_ESM of a guest that is what it must be."""

        async def verify(read: Any, tree: bytes, kernel: int, key: Any) -> Verified:
            await read(kernel, PAGE)
            return Verified(files={b"rootd": Secret(SECRET)}, measured=(Range(kernel, PAGE),))

        self.machine.verify = verify
        return await self.call(uv.ESM, KERNEL, TREE, msr=0)

    async def attend(self) -> f.Reply:
        """QEMU's ATTEND."""
        return await self.call(s.ShimCall.ATTEND, level=3, vcpu=s.MACHINE_VCPU, msr=0)


Boot = Callable[..., Any]


@pytest.fixture
async def boot(nursery: trio.Nursery, logs: Logs, tmp_path: pathlib.Path) -> AsyncIterator[Boot]:
    """Connects a guest; gives it."""
    daemons: list[Daemon] = []

    async def start(
        profile: str = "page_shift = 12", *, features: s.Feature = SECURE, enabled: bool = True
    ) -> Guest:
        text = f"[pef]\nenabled = {str(enabled).lower()}\n{profile}\n"
        (tmp_path / "lpar7.toml").write_text(text, "utf-8")
        daemon = Daemon(nursery, Profiles(tmp_path))
        daemons.append(daemon)
        return Guest(daemon, await daemon.guest(hello(features=features), RAM))

    yield start
    for daemon in daemons:
        daemon.close()


# -- what is offered ------------------------------------------------------------------------


def is_secure_mode_said(logs: Logs) -> bool:
    """What an operator is told whose guest does not become secure."""
    (entry,) = [entry for entry in logs if entry["event"] == "guest connected"]
    return bool(entry["secure_mode"])


async def test_a_guest_that_may_be_secure_is_told_of_ultracalls(boot: Boot, logs: Logs):
    guest = await boot()
    assert is_secure_mode_said(logs)
    welcome = guest.shim.welcome
    assert welcome.features == SECURE
    calls = {(spec.level, spec.number): spec for spec in welcome.announcement.calls}
    for hcall in (*uv.FAMILY.calls, *svm.FAMILY.calls):
        assert calls[hcall.level, hcall.number].disposition is s.Disposition.FORWARD
    assert calls[2, uv.ESMB_GET_FILE.number].flags & s.CALL_FLAG_PROBLEM_STATE
    assert not any(level == s.LEVEL_SHIM for level, _ in calls)


@pytest.mark.parametrize(
    "features", [s.Feature(0), s.Feature.SC2, s.Feature.PAGE_STATES, s.Feature.SHARED_RAM]
)
async def test_a_qemu_without_secure_mode_serves_a_normal_vm(
    boot: Boot, features: s.Feature, logs: Logs
):
    guest = await boot(features=features)
    assert not guest.shim.welcome.features & SECURE
    levels = {spec.level for spec in guest.shim.welcome.announcement.calls}
    assert levels == {1}
    assert svm.RANDOM.number not in guest.shim.announced
    (entry,) = [entry for entry in logs if entry["event"] == "no secure mode"]
    assert "-cpu power9" in entry["reason"]
    assert not is_secure_mode_said(logs)


async def test_a_profile_that_does_not_enable_it_serves_a_normal_vm(boot: Boot, logs: Logs):
    guest = await boot(enabled=False)
    assert not guest.shim.welcome.features
    assert uv.ESM.number not in guest.shim.announced
    assert not [entry for entry in logs if entry["event"] == "no secure mode"]
    assert not is_secure_mode_said(logs)


# -- UV_ESM -----------------------------------------------------------------------------------


async def test_entry_sets_nip_msr_registers_and_pages(boot: Boot, logs: Logs):
    guest = await boot()
    reply = await guest.enter()
    assert reply.status == TREE
    assert reply.registers == ((4, KERNEL), (5, 0))
    assert reply.context == s.CONTEXT_NIP | s.CONTEXT_MSR
    assert (reply.nip, reply.msr, reply.msr_mask) == (KERNEL, MSR_S, MSR_S | s.MSR_EE)
    assert reply.pages == (f.PageRange(0, RAM_SIZE, s.PageState.UNSHARED),)
    assert guest.memory[KERNEL : KERNEL + PAGE] == b"\x5a" * PAGE
    assert not any(guest.memory[KERNEL + PAGE :])
    assert not any(guest.memory[:TREE])
    (entry,) = [entry for entry in logs if entry["event"] == "guest enters secure mode"]
    assert entry["nip"] == hex(KERNEL)
    assert [done.outcome.result for done in guest.daemon.answered] == [TREE]


async def test_a_guest_without_a_blob_goes_on_as_it_was(boot: Boot, logs: Logs):
    guest = await boot()
    before = bytes(guest.memory)
    reply = await guest.call(uv.ESM, KERNEL, TREE, msr=0)
    assert reply.status == U.PARAMETER
    assert not reply.context
    assert guest.memory == before
    assert set(guest.states.values()) == {s.PageState(0)}
    (entry,) = [entry for entry in logs if entry["event"] == "guest does not become secure"]
    assert "device tree" in entry["reason"]
    assert guest.machine.state is VmState.NORMAL


async def test_an_entry_that_is_sent_again_gets_the_same_answer(boot: Boot):
    guest = await boot()
    reply = await guest.enter()
    call = guest.frame(uv.ESM, KERNEL, TREE, msr=0)._replace(seq=reply.seq, is_resent=True)
    await guest.shim.close()
    await guest.daemon.gone()
    guest.shim = await guest.daemon.guest(hello(features=SECURE, connection=1), RAM)
    await guest.shim.send(call)
    assert await guest.reply_to(call) == reply
    assert guest.machine.is_secure


async def test_an_entry_is_cancelled_and_leaves_nothing_in_the_model(boot: Boot):
    guest = await boot()
    call = guest.frame(uv.ESM, KERNEL, TREE, msr=0)
    await guest.shim.send(call)
    pages = await guest.shim.expect(f.Pages)
    await guest.shim.send(f.Cancel(0, 0, call.seq, s.CancelReason.DEADLINE))
    name = (pages.vcpu, pages.reset, pages.seq, pages.request)
    await guest.shim.send(f.PagesReply(*name, s.AccessStatus.NO_CALL, 0))
    cancelled = await guest.shim.expect(f.Cancelled)
    assert cancelled.effect is s.Effect.MAY_REMAIN
    assert guest.machine.state is VmState.NORMAL
    # What it took is given back when it is missed.
    guest.states[0] = OUT
    reply = await guest.call(s.ShimCall.PAGE_IN, 0x1234, level=3, msr=0)
    assert reply.pages == (f.PageRange(0, PAGE, s.PageState(0)),)


async def test_memory_that_was_unplugged_meanwhile_is_told(boot: Boot):
    guest = await boot()
    call = guest.frame(uv.ESM, KERNEL, TREE, msr=0)
    await guest.shim.send(call)
    pages = await guest.shim.expect(f.Pages)
    name = (pages.vcpu, pages.reset, pages.seq, pages.request)
    await guest.shim.send(f.PagesReply(*name, s.AccessStatus.NOT_RAM, 0))
    assert (await guest.reply_to(call)).status == U.RETRY


async def test_a_reset_in_the_midst_ends_it(boot: Boot):
    guest = await boot()
    await guest.shim.send(guest.frame(uv.ESM, KERNEL, TREE, msr=0))
    await guest.shim.expect(f.Pages)
    await guest.shim.send(guest.shim.reset_event())
    await guest.shim.expect(f.EventAck)
    await guest.daemon.settle()
    assert guest.machine.state is VmState.NORMAL
    assert (await guest.enter()).status == TREE


async def test_a_reset_ends_secure_mode(boot: Boot):
    guest = await boot()
    await guest.enter()
    await guest.shim.send(guest.shim.reset_event())
    await guest.shim.expect(f.EventAck)
    assert not guest.machine.is_secure
    assert (await guest.enter()).status == TREE


# -- who calls --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hcall", "arguments", "msr"),
    [
        (uv.SHARE_PAGE, (1, 1), 0),
        (uv.SHARE_PAGE, (1, 1), MSR_S | MSR_PR),
        (uv.UNSHARE_ALL_PAGES, (), 0),
        (uv.SVM_TERMINATE, (1,), MSR_S),
        (uv.WRITE_MEM, (1, 2, 3, 4), MSR_S),
        (uv.ESM, (0, 0), MSR_PR),
    ],
)
async def test_who_calls_is_looked_at_first(
    boot: Boot, hcall: Hcall, arguments: tuple[int, ...], msr: int
):
    guest = await boot()
    reply = await guest.call(hcall, *arguments, msr=msr)
    assert reply.status == U.PERMISSION


def name_registers(name: bytes) -> tuple[int, ...]:
    padded = name.ljust(64, b"\0")
    return tuple(int.from_bytes(padded[n : n + 8], "big") for n in range(0, 64, 8))


async def test_a_file_is_for_callers_in_secure_state_only(boot: Boot):
    guest = await boot()
    await guest.enter()
    name = name_registers(b"rootd")
    refused = await guest.call(uv.ESMB_GET_FILE, 0, *name, msr=MSR_PR)
    assert refused.status == U.PARAMETER
    reply = await guest.call(uv.ESMB_GET_FILE, 0, *name, msr=MSR_S | MSR_PR)
    assert reply.status == len(SECRET)
    data = b"".join(value.to_bytes(8, "big") for _, value in reply.registers)
    assert data[: reply.status] == SECRET


async def test_random_numbers_are_the_ultravisors(boot: Boot):
    guest = await boot()
    assert (await guest.call(svm.RANDOM, level=1, msr=0)).status == H.FUNCTION
    await guest.enter()
    one, other = [await guest.call(svm.RANDOM, level=1) for _ in range(2)]
    assert one.status == other.status == H.SUCCESS
    assert one.registers != other.registers


async def test_pages_are_shared_and_read_as_zeros(boot: Boot):
    guest = await boot()
    await guest.enter()
    reply = await guest.call(uv.SHARE_PAGE, KERNEL >> 12, 16)
    assert reply.status == U.SUCCESS
    assert guest.states[KERNEL] == s.PageState(0)
    assert not any(guest.memory[KERNEL : KERNEL + PAGE])


# -- QEMU's own calls -------------------------------------------------------------------------


async def test_a_guest_over_its_limit_is_paged_and_gets_its_pages_back(boot: Boot):
    guest = await boot("page_shift = 12\nsecure_memory_mib = 2")
    kernel = bytes(guest.memory[KERNEL : KERNEL + PAGE])
    await guest.enter()
    rounds = 0
    while True:
        control = await guest.control()
        assert control.action is s.ControlAction.ATTEND
        rounds += 1
        if (await guest.attend()).status == U.SUCCESS:
            break
    out = [gpa for gpa, state in guest.states.items() if state & s.PageState.PAGED_OUT]
    assert len(out) == (RAM_SIZE - (2 << 20)) // PAGE
    assert rounds >= len(out) // 8
    assert all(not any(guest.memory[gpa : gpa + PAGE]) for gpa in out)
    assert not guest.controls
    for gpa in (*range(0, RAM_SIZE, PAGE), *out):
        if guest.states[gpa] & s.PageState.PAGED_OUT:
            await guest.call(s.ShimCall.PAGE_IN, gpa + 8, level=3, msr=0)
        assert guest.states[gpa] is s.PageState.UNSHARED
        assert guest.memory[gpa : gpa + PAGE] == (
            kernel if gpa == KERNEL else guest.memory[gpa : gpa + PAGE]
        )
    assert guest.machine.hypervisor.resident_count <= (2 << 20) // PAGE


async def test_pages_that_are_out_outlive_the_daemon(boot: Boot):
    guest = await boot("page_shift = 12")
    kernel = bytes(guest.memory[KERNEL : KERNEL + PAGE])
    await guest.enter()
    guest.machine.wanted_out[KERNEL] = None
    await guest.attend()
    assert guest.states[KERNEL] == OUT
    assert not any(guest.memory[KERNEL : KERNEL + PAGE])
    await guest.shim.close()
    await guest.daemon.gone()
    seq = guest.shim.seq
    guest.shim = await guest.daemon.guest(hello(features=SECURE, connection=1), RAM)
    guest.shim.seq = seq
    reply = await guest.call(s.ShimCall.PAGE_IN, KERNEL, level=3, msr=0)
    assert reply.registers == ()
    assert guest.memory[KERNEL : KERNEL + PAGE] == kernel
    assert guest.states[KERNEL] is s.PageState.UNSHARED


async def test_a_page_that_was_altered_ends_the_guest(boot: Boot, logs: Logs):
    guest = await boot("page_shift = 12")
    await guest.enter()
    guest.machine.wanted_out[KERNEL] = None
    await guest.attend()
    (lra,) = guest.machine.hypervisor.out.values()
    guest.machine.memory.store(lra, bytes(PAGE))
    await guest.call(s.ShimCall.PAGE_IN, KERNEL, level=3, msr=0)
    (control,) = guest.controls
    assert control.action is s.ControlAction.TERMINATE
    assert guest.states[KERNEL] == OUT
    assert [entry for entry in logs if entry["event"] == "guest taken down"]
    # A QEMU whose daemon died in between is told again.
    await guest.shim.close()
    await guest.daemon.gone()
    shim = await guest.daemon.guest(hello(features=SECURE, connection=1), RAM)
    assert (await shim.expect(f.Control)).action is s.ControlAction.TERMINATE


async def test_memory_that_is_plugged_in_becomes_the_guests_own(boot: Boot):
    guest = await boot()
    await guest.enter()
    guest.size = RAM_SIZE + (1 << 20)
    guest.memory += b"\xee" * (1 << 20)
    ram = f.Ram((f.RamRegion(0, RAM_SIZE), f.RamRegion(RAM_SIZE, 1 << 20)), 0, 0)
    await guest.shim.send(ram)
    assert (await guest.control()).action is s.ControlAction.ATTEND
    await guest.attend()
    assert guest.states[RAM_SIZE] is s.PageState.UNSHARED
    assert not any(guest.memory[RAM_SIZE:])
    assert (await guest.call(uv.SHARE_PAGE, RAM_SIZE >> 12, 1)).status == U.SUCCESS
    await guest.shim.send(RAM)
    assert (await guest.control()).action is s.ControlAction.ATTEND
    await guest.attend()
    assert (await guest.call(uv.SHARE_PAGE, RAM_SIZE >> 12, 1)).status == U.P2
    assert not guest.controls


async def test_memory_that_is_plugged_in_while_the_guest_is_checked(boot: Boot):
    guest = await boot()
    more = f.Ram((f.RamRegion(0, RAM_SIZE), f.RamRegion(RAM_SIZE, 1 << 20)), 0, 0)
    guest.plugs = more
    guest.memory += b"\xee" * (1 << 20)
    guest.size = RAM_SIZE + (1 << 20)
    assert (await guest.enter()).context
    assert (await guest.control()).action is s.ControlAction.ATTEND
    await guest.attend()
    assert guest.states[RAM_SIZE] is s.PageState.UNSHARED
    assert not any(guest.memory[RAM_SIZE:])


async def test_an_attend_that_nobody_wants_does_nothing(boot: Boot):
    guest = await boot()
    assert (await guest.attend()).status == U.SUCCESS
    await guest.enter()
    assert (await guest.attend()).status == U.SUCCESS
    assert not guest.controls


async def test_a_guest_whose_pages_cannot_go_out_is_left_alone(boot: Boot):
    guest = await boot("page_shift = 12\nsecure_memory_mib = 1")
    guest.machine.memory.allocate = lambda: None
    await guest.enter()
    assert (await guest.control()).action is s.ControlAction.ATTEND
    assert (await guest.attend()).status == U.PARAMETER
    await guest.daemon.settle()
    assert not guest.controls
