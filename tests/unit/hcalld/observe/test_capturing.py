# SPDX-License-Identifier: Apache-2.0
"""Captures that are begun and ended while the daemon runs."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from tests.unit.hcallproto.capture.sample import call

from hcalld.core.tap import Taps
from hcalld.observe import capture as module
from hcalld.observe import capturing as ending
from hcalld.observe.capture import Capture, CaptureOptions
from hcalld.observe.capturing import Captured, Capturing
from hcalld.testing.logs import capture_logs
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
    # Two are kept, of all captures.
    assert len(os.listdir(tmp_path)) == 2
    assert os.listdir("/proc/self/fd") == before


async def test_begin_when_there_is_a_capture_of_this_name_then_it_stays(tmp_path: Path):
    options = CaptureOptions(path=tmp_path / "a.pcapng")
    async with trio.open_nursery() as nursery:
        capturing = Capturing(Guests(), nursery, "hcalld 0")
        capturing.begin(options)
        await capturing.end()
        first = options.path.read_bytes()
        assert first
        with capture_logs() as logs:
            capturing.begin(options)
            await capturing.end()
    assert (tmp_path / "a.1.pcapng").read_bytes() == first
    assert options.path.read_bytes() != first
    warned = [entry for entry in logs if entry["log_level"] == "warning"]
    assert [entry["path"] for entry in warned] == [str(tmp_path / "a.1.pcapng")]


class BusyGuests(Guests):
    """A guest whose calls fill a pipe."""

    def begin_taps(self, taps: Taps) -> None:
        """See Guests."""
        tap = taps.tap("lpar7", {})
        frame = call(pks.READ_OBJECT, 1)
        for _ in range(2000):
            tap.received(frame, encode(frame))


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A named pipe, and what reads it."""
    path = tmp_path / "a.pcapng"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    yield path, reader
    os.close(reader)


async def _stalled(path: Path, capturing: Capturing) -> Captured | None:
    """What is said at the end of a capture that nobody reads."""
    capturing.begin(CaptureOptions(path=path))
    with trio.fail_after(20):
        return await capturing.end()


async def test_end_when_nobody_reads_the_pipe_then_it_is_given_up_and_told(
    pipe: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ending, "STALL_SECONDS", 0.1)
    # Whoever comes to wait for a close, with the write going on, fails.
    monkeypatch.setattr(module, "CLOSE_SECONDS", math.nan)
    path, reader = pipe
    before = len(os.listdir("/proc/self/fd"))
    with capture_logs() as said:
        async with trio.open_nursery() as nursery:
            done = await _stalled(path, Capturing(BusyGuests(), nursery, "hcalld 0"))
    assert done is not None
    assert (done.frames, done.dropped, done.is_whole, done.unwritten) == (2000, 0, False, 2000)
    (error,) = [entry for entry in said if entry["log_level"] == "error"]
    assert (error["event"], error["not_written"]) == ("the capture is not whole", 2000)
    # The thread still writes: to its file, and to no other of this number. Then it closes it.
    assert len(os.listdir("/proc/self/fd")) == before + 1
    os.set_blocking(reader, True)
    while await trio.to_thread.run_sync(os.read, reader, 1 << 16):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


class SlowCapture(Capture):
    """Of which a little is written now and then."""

    pieces = 0

    async def run(self) -> None:
        """See Capture."""
        with self._scope:
            for _ in range(self.pieces):
                await trio.sleep(ending.STALL_SECONDS - 1)
                self.bytes_written += 1
            self.is_whole = True


@pytest.mark.parametrize(("pieces", "is_whole"), [(5, True), (1000, False)])
async def test_end_when_the_file_is_slow_then_it_is_waited_for_but_not_for_ever(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
    pieces: int,
    is_whole: bool,
):
    monkeypatch.setattr(SlowCapture, "pieces", pieces)
    monkeypatch.setattr(ending, "Capture", SlowCapture)
    async with trio.open_nursery() as nursery:
        capturing = Capturing(Guests(), nursery, "hcalld 0")
        capturing.begin(CaptureOptions(path=tmp_path / "a.pcapng"))
        begun = trio.current_time()
        done = await capturing.end()
        assert trio.current_time() - begun <= ending.END_SECONDS
    assert done is not None
    assert done.is_whole is is_whole


async def test_end_when_the_disk_is_full_then_it_says_that_frames_are_missing():
    async with trio.open_nursery() as nursery:
        done = await _stalled(Path("/dev/full"), Capturing(Guests(), nursery, "hcalld 0"))
    assert done is not None
    assert (done.is_whole, done.unwritten) == (False, 1)
