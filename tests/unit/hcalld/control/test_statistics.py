# SPDX-License-Identifier: Apache-2.0
"""The daemon's numbers, as the control socket tells them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from tests.unit.hcalld.control.conftest import Control
from tests.unit.hcalld.control.test_commands import Start, boot, plain, secure
from tests.unit.hcalld.runtime.daemon import Daemon, FaultyStore
from tests.unit.hcalld.runtime.shim import Shim, hello

from hcalld.config import Profile
from hcalld.control.messages import Stats
from hcalld.core.errors import StoreError
from hcalld.metrics.collector import render
from hcalld.runtime.transport import StreamTransport
from hcallproto.abi.families import pks, sev
from hcallproto.abi.returns import H
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

__all__ = ["boot", "plain", "secure"]


async def test_stats_when_no_guest_has_come_then_there_are_none(plain: Daemon, control: Control):
    reply = await (await control.client()).ask(command="stats")
    assert (reply["reply"], reply["guests"]) == ("stats", [])
    assert reply["capture"] == {
        "reply": "capture",
        "path": None,
        "frames": 0,
        "dropped": 0,
        "answers_dropped": 0,
        "is_whole": True,
        "not_written": 0,
    }


async def test_stats_when_guests_call_then_their_calls_are_counted(plain: Daemon, control: Control):
    shim = await plain.guest(hello("a"))
    for _ in range(3):
        assert (await shim.call(pks.GET_CONFIG.number, 0x1000, 64)).status == H.SUCCESS
    assert (await shim.call(pks.GET_CONFIG.number, 0x1000, 8)).status == H.P2
    await shim.call(0xE000)
    client = await control.client()
    (guest,) = (await client.ask(command="stats"))["guests"]
    assert guest["partition"] == "a"
    assert guest["guest"]["calls"] == 5
    assert guest["keystore"] == {"used": 0, "total": 65536, "objects": 0}
    config, unknown = guest["calls"]
    assert (config["call"], config["codes"]) == ("H_PKS_GET_CONFIG", {"H_P2": 1, "H_SUCCESS": 3})
    assert (unknown["call"], unknown["codes"]) == ("unknown", {"H_FUNCTION": 1})
    assert 0 < config["p50_ns"] <= config["p90_ns"] <= config["p99_ns"] <= config["max_ns"]
    assert config["max_ns"] <= config["total_ns"]
    assert sum(count for _, count in config["latency"]) == 4
    assert guest["refused"] == 2
    assert [one["code"] for one in guest["refusals"]] == ["H_P2", "H_FUNCTION"]
    assert "8" in guest["refusals"][0]["reason"]
    session = plain.server.sessions["a"]
    await shim.close()
    await session.ended.wait()
    (gone,) = (await client.ask(command="stats"))["guests"]
    assert (gone["guest"], gone["keystore"]) == (None, None)
    assert gone["calls"] == guest["calls"]


async def test_stats_when_a_program_uses_sev_then_its_commands_are_counted(
    plain: Daemon, control: Control
):
    """Beside a pseries guest; it has a keystore, and a VM of a platform has none."""
    await plain.guest(hello("a"))
    shim = await plain.guest(hello("", features=s.Feature.COMMANDS))
    for number in (sev.PLATFORM_STATUS.number, sev.GUEST_STATUS.number, 0x5300_0063):
        call = shim.call_frame(number)._replace(level=s.LEVEL_COMMAND)
        await shim.send(call)
        await shim.expect(f.Reply)
    guest, client = (await (await control.client()).ask(command="stats"))["guests"]
    assert (guest["partition"], client["partition"]) == ("a", "sev-1")
    assert guest["keystore"] is not None
    assert client["keystore"] is None
    assert {one["call"]: one["codes"] for one in client["calls"]} == {
        "KVM_SEV_GUEST_STATUS": {"ENOTTY": 1},
        "SEV_PLATFORM_STATUS": {"SEV_RET_SUCCESS": 1},
        "unknown command": {"EINVAL": 1},
    }
    assert [one["code"] for one in client["refusals"]] == ["ENOTTY", "EINVAL"]
    metrics = render(msgspec.convert(await (await control.client()).ask(command="stats"), Stats))
    assert b'call="unknown command",partition="sev-1",return="EINVAL"} 1.0' in metrics
    await shim.close()


async def test_stats_when_a_guest_without_a_store_is_turned_away_then_the_others_are_told(
    plain: Daemon, control: Control, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
):
    """It may take its time to read why, and come again and again."""
    await plain.guest(hello("a"))

    def locked(profile: Profile) -> FaultyStore:
        raise StoreError("another daemon has it")

    monkeypatch.setattr(plain.server, "_open_store", locked)
    ours, theirs = trio.testing.lockstep_stream_pair()
    nursery.start_soon(plain.server.serve_transport, StreamTransport(theirs, "memory"))
    await Shim(StreamTransport(ours, "test")).send(hello("b", instance=bytes(16)))
    await plain.settle()
    client = await control.client()
    one, other = (await client.ask(command="stats"))["guests"]
    assert (one["partition"], other["partition"]) == ("a", "b")
    assert (one["keystore"]["total"], other["keystore"]) == (65536, None)


async def test_stats_when_a_store_rests_then_it_is_loaded_once_a_call_at_most(
    plain: Daemon, control: Control
):
    shim = await plain.guest(hello("a"))
    await shim.call(pks.GET_CONFIG.number, 0x1000, 64)
    partition = plain.server.sessions["a"].partition
    assert partition is not None
    client = await control.client()
    told: list[Any] = []
    for _ in range(2):
        told.append((await client.ask(command="stats"))["guests"][0]["keystore"])
        partition.discard()
    assert told[0] == told[1] == {"used": 0, "total": 65536, "objects": 0}
    assert not partition._models, "the second was told from what is known"


async def test_stats_when_a_guest_is_secure_then_its_pages_are_told(
    secure: Start, control: Control
):
    await secure()
    (guest,) = (await (await control.client()).ask(command="stats"))["guests"]
    assert guest["guest"]["pef"]["state"] == "secure"
    assert guest["guest"]["pef"]["secure"] > 0
