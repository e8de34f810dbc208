# SPDX-License-Identifier: Apache-2.0
"""Any rules, any calls: the daemon stays up, others notice nothing, and it all passes.

A guest's side that behaves as QEMU does goes on whatever becomes of its calls: it gives up what
is not answered, and comes back when the connection breaks.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.hcalld.runtime import ledger
from tests.unit.hcalld.runtime.daemon import Daemon
from tests.unit.hcalld.runtime.shim import OTHER_INSTANCE, Shim, hello
from trio.testing import MockClock

from hcalld.core.errors import ConfigError
from hcalld.faults import rules
from hcalld.faults.rules import Gone, Rule
from hcalld.runtime import partition
from hcalld.testing.logs import capture_logs
from hcallproto.abi.returns import H
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

CALLS = (ledger.PUT, ledger.GET, ledger.LOAD, ledger.STORE, ledger.FLUSH, ledger.NOTE)
DEADLINE = 10
"""Seconds of a clock that jumps."""

ACTIONS = st.one_of(
    st.builds(lambda code: {"return": code}, st.sampled_from([0, 1, 9900, -2, -4711, 1 << 40])),
    st.just({"drop_reply": True}),
    st.builds(lambda when: {"close": when}, st.sampled_from(["before", "after"])),
    st.builds(lambda what: {"gone": what}, st.sampled_from(["space", "disk"])),
    st.builds(lambda ms: {"delay_ms": ms}, st.integers(1, 30_000)),
)
RULES = st.builds(
    lambda action, delay, more: {**more, **delay, **action},
    ACTIONS,
    st.just({}) | st.builds(lambda ms: {"delay_ms": ms}, st.integers(1, 20_000)),
    st.fixed_dictionaries(
        {},
        optional={
            "vcpu": st.integers(0, 2),
            "after": st.integers(0, 2),
            "times": st.integers(1, 3),
            "probability": st.sampled_from([0.3, 0.7]),
            "seed": st.integers(0, 3),
            "arguments": st.builds(lambda key: {"key": key}, st.integers(0, 2)),
        },
    ),
)


@dataclasses.dataclass
class Guest:
    """The guest's side of a partition, connected as often as it must be."""

    daemon: Daemon
    shim: Shim | None = None
    connections: int = 0

    async def connected(self) -> Shim:
        if self.shim is None:
            self.connections += 1
            self.shim = await self.daemon.guest(hello(connection=self.connections))
        return self.shim

    async def call(self, hcall: Any, *arguments: int, vcpu: int) -> int | None:
        """The status of a call; None: it has none, for want of an answer."""
        shim = await self.connected()
        call = await shim.start(hcall, *arguments, vcpu=vcpu)
        for attempt in range(4):
            with trio.move_on_after(DEADLINE):
                status = await self._answer(shim)
                if status is not None:
                    return status
                # The connection broke: the call is sent again, as QEMU does.
                self.shim = None
                shim = await self.connected()
                shim.seq = max(shim.seq, call.seq)
                if attempt < 3:
                    await shim.send(call._replace(is_resent=True))
                continue
            await self._give_up(shim, call)
            return None
        return None

    async def _answer(self, shim: Shim) -> int | None:
        while (frame := await shim.receive()) is not None:
            match frame:
                case f.Read():
                    await shim.answer_read(frame, *(bytes(size) for _, size in frame.segments))
                case f.Write():
                    await shim.answer_write(frame)
                case f.Reply():
                    return frame.status
                case _:
                    raise AssertionError(frame)
        return None

    async def _give_up(self, shim: Shim, call: f.Call) -> None:
        await shim.send(f.Cancel(call.vcpu, call.reset, call.seq, s.CancelReason.DEADLINE))
        while not isinstance(frame := await shim.receive(), f.Cancelled):
            if frame is None:
                self.shim = None
                return
            assert isinstance(frame, f.Reply | f.Read | f.Write), frame


async def scenario(given_rules: list[dict[str, Any]], calls: list[tuple[int, int, int]]) -> None:
    async with trio.open_nursery() as nursery:
        daemon = Daemon(nursery)
        # A thread that flushes takes no time of this clock.
        daemon.faults.is_never_dirty = True
        faults = daemon.server.faults
        for one in given_rules:
            try:
                faults.add(msgspec.convert({**one, "guest": "lpar7"}, Rule))
            except ConfigError:
                continue  # one that another covers
        guest = Guest(daemon)
        other = await daemon.guest(hello("other", instance=OTHER_INSTANCE))
        for number, (which, vcpu, key) in enumerate(calls):
            await guest.call(CALLS[which], key, 0x100, 8, vcpu=vcpu)
            with trio.fail_after(DEADLINE):
                reply = await other.call(ledger.PUT, number, number)
            assert reply.registers == ((4, number + 1),)
        faults.clear()
        for vcpu in range(3):
            assert await guest.call(ledger.PUT, 99, 99, vcpu=vcpu) == H.SUCCESS
        assert await guest.call(ledger.GET, 99, vcpu=0) == H.SUCCESS
        (one_of_ours,) = [
            record.value for record in daemon.stored() if int.from_bytes(record.key, "big") == 99
        ]
        assert one_of_ours == (99).to_bytes(8, "big")
        nursery.cancel_scope.cancel()


@given(
    given_rules=st.lists(RULES, max_size=5),
    calls=st.lists(
        st.tuples(st.integers(0, len(CALLS) - 1), st.integers(0, 2), st.integers(0, 2)), max_size=8
    ),
)
def test_whatever_goes_wrong_passes(
    given_rules: list[dict[str, Any]], calls: list[tuple[int, int, int]]
):
    with pytest.MonkeyPatch.context() as patch, capture_logs() as logs:
        patch.setattr(partition, "SERVED", ledger.SERVED)
        patch.setattr(rules, "CALLS", ledger.FAMILY.calls)
        patch.setattr(rules, "_USERS", {Gone.DISK: (ledger.FLUSH,)})
        trio.run(scenario, given_rules, calls, clock=MockClock(autojump_threshold=0))
    assert not [entry for entry in logs if "bug" in entry["event"]]
