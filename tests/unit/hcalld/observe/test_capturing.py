# SPDX-License-Identifier: Apache-2.0
"""Captures that are begun and ended while the daemon runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from tests.unit.hcallproto.capture.sample import call

from hcalld.core.tap import Taps
from hcalld.observe import capture as module
from hcalld.observe.capture import CaptureOptions
from hcalld.observe.capturing import Capturing
from hcallproto.abi.families import pks
from hcallproto.wire.encode import encode


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0)


class Guests:
    """One guest that calls once when it is captured, and never is again."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def begin_taps(self, taps: Taps) -> None:
        """See Guests."""
        if self.error is not None:
            raise self.error
        frame = call(pks.READ_OBJECT, 1)
        taps.tap("lpar7", {}).received(frame, encode(frame))

    def end_taps(self) -> None:
        """See Guests."""


async def test_begin_when_a_guest_is_in_the_way_then_the_capture_can_be_ended(
    tmp_path: Path, nursery: trio.Nursery
):
    guests = Guests()
    guests.error = RuntimeError("a bug")
    capturing = Capturing(guests, nursery, "hcalld 0")
    with pytest.raises(RuntimeError, match="a bug"):
        capturing.begin(CaptureOptions(path=tmp_path / "a.pcapng"))
    with trio.fail_after(20):
        await capturing.end()
    assert capturing.now is None


async def test_captures_when_hundreds_come_and_go_then_nothing_of_them_stays(tmp_path: Path):
    before = os.listdir("/proc/self/fd")
    # Its end waits for all that a capture does.
    async with trio.open_nursery() as nursery:
        capturing = Capturing(Guests(), nursery, "hcalld 0")
        for _ in range(300):
            capturing.begin(CaptureOptions(path=tmp_path / "a.pcapng", file_bytes=1, files=2))
            done = await capturing.end()
            assert done is not None
            assert done.frames == 1
    # The same files each time: the oldest of a capture goes, and those of others are written over.
    assert len(os.listdir(tmp_path)) == 2
    assert os.listdir("/proc/self/fd") == before
