# SPDX-License-Identifier: Apache-2.0
"""What is played, and what lies ahead of it."""

from __future__ import annotations

import pytest
import trio
from tests.unit.hcalld.replay.peers import GET, Capture, call, greeted, reply, script

from hcalld.replay import script as script_module
from hcallproto.capture.records import Record
from hcallproto.wire import frames as f


def long_one(calls: int) -> Capture:
    frames: list[f.Frame] = []
    for seq in range(1, calls + 1):
        one = call(GET, seq, vcpu=0)
        frames += [one, reply(one)]
    return greeted(*frames)


async def test_all_comes_in_its_order() -> None:
    played = script(long_one(500))
    seqs = []
    while (event := await played.next()) is not None:
        if isinstance(event.what, f.Reply):
            seqs.append(event.what.seq)
    assert seqs == list(range(1, 501))


async def test_what_is_ahead_is_seen_and_stays() -> None:
    played = script(long_one(500))
    await played.next()
    ahead = [event.what async for event in played.ahead()]
    rest = []
    while (event := await played.next()) is not None:
        rest.append(event.what)
    assert ahead == rest
    assert isinstance(ahead[-1], Record)


async def test_looking_ahead_goes_on_where_the_play_is() -> None:
    played = script(long_one(10))
    ahead = played.ahead()
    first = await anext(ahead)
    for _ in range(8):
        await played.next()
    there = await anext(ahead)
    assert isinstance(first.what, Record)
    following = await played.next()
    assert following is there


async def test_not_more_than_so_much_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = long_one(1000)
    monkeypatch.setattr(script_module, "MAX_AHEAD", 300)
    assert len([event async for event in script(capture).ahead()]) < 600
    monkeypatch.setattr(script_module, "MAX_AHEAD", 10**9)
    monkeypatch.setattr(script_module, "MAX_AHEAD_BYTES", 50_000)
    played = script(capture)
    assert len([event async for event in played.ahead()]) < 1000
    count = 0
    while await played.next() is not None:
        count += 1
    assert count > 2000


async def test_two_may_look_ahead_at_once() -> None:
    played = script(long_one(1000))
    found: list[int] = []

    async def look() -> None:
        found.append(len([event async for event in played.ahead()]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        nursery.start_soon(look)
    assert found[0] == found[1] > 2000
