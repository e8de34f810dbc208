# SPDX-License-Identifier: Apache-2.0
"""Frames of guests in a file, without holding them up."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest
import trio
from tests.unit.hcalld.observe.writing import capturing
from tests.unit.hcallproto.capture.sample import TIME, call

from hcalld.core.errors import ConfigError
from hcalld.observe import capture as module
from hcalld.observe.capture import Capture, CaptureFailed, CaptureOptions
from hcalld.observe.pieces import Piece
from hcallproto.abi.families import pks
from hcallproto.capture.pcapng import Direction
from hcallproto.capture.reading import CaptureReader, Entry
from hcallproto.capture.records import Dropped, Start, Stop
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.encode import encode

PROFILE = {"secure_boot": "2"}
READ = call(pks.READ_OBJECT, 1)
REPLY = f.Reply(3, 0, 1, -7)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0)


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def read(path: Path) -> list[Entry]:
    reader = CaptureReader([path.read_bytes()])
    entries = list(reader)
    assert reader.problems == []
    return entries


async def test_frames_and_their_connection_are_in_the_file(tmp_path: Path):
    path = tmp_path / "a.pcapng"
    async with capturing(path) as capture:
        tap = capture.tap("lpar7", PROFILE)
        tap.received(READ, encode(READ))
        tap.sent(REPLY, encode(REPLY), "no object has this label")
        tap.closed("closed by the peer")
        tap.closed("again")
    start, call_, reply, stop = read(path)
    assert start.what == Start(program="hcalld 0", partition="lpar7", profile=PROFILE)
    assert (call_.what, call_.direction, call_.time_ns) == (READ, Direction.INBOUND, TIME + 1000)
    assert (reply.what, reply.direction) == (REPLY, Direction.OUTBOUND)
    assert reply.comment == "no object has this label"
    assert stop.what == Stop(why="closed by the peer")
    assert path.stat().st_mode & 0o777 == 0o600


async def test_what_is_secret_is_blanked(tmp_path: Path):
    path = tmp_path / "a.pcapng"
    async with capturing(path) as capture:
        tap = capture.tap("lpar7", PROFILE)
        asked = call(pks.READ_OBJECT, 1, out=0x3000, out_size=64)
        tap.received(asked, encode(asked))
        reply = f.Reply(3, 0, 1, 0, (), (f.WriteSegment(0x3000, 9, b"my secret"),))
        tap.sent(reply, encode(reply), "")
    assert b"my secret" not in path.read_bytes()
    assert len([one for one in read(path) if isinstance(one.what, f.Reply)]) == 1


async def test_guests_are_told_apart(tmp_path: Path):
    path = tmp_path / "a.pcapng"
    async with capturing(path) as capture:
        taps = [capture.tap(name, PROFILE) for name in ("lpar7", "lpar8", "lpar7")]
        for tap in taps:
            tap.received(READ, encode(READ))
    guests = [(one.guest, one.connection) for one in read(path) if one.what == READ]
    assert guests == [("lpar7", 0), ("lpar8", 1), ("lpar7", 2)]


async def test_a_connection_that_was_there_before_says_so(tmp_path: Path):
    path = tmp_path / "a.pcapng"
    async with capturing(path) as capture:
        capture.tap("lpar7", PROFILE, is_continued=True).received(READ, encode(READ))
    start = read(path)[0].what
    assert isinstance(start, Start)
    assert start.is_continued


async def test_frames_that_do_not_fit_are_dropped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "MAX_PENDING", 2)
    path = tmp_path / "a.pcapng"
    async with capturing(path) as capture:
        tap = capture.tap("lpar7", PROFILE)
        for _ in range(5):
            tap.received(READ, encode(READ))
        await trio.testing.wait_all_tasks_blocked(0.05)
        tap.received(READ, encode(READ))
        assert capture.dropped == 3
    kinds = [type(one.what) for one in read(path)]
    assert kinds == [Start, f.Call, f.Call, Dropped, f.Call, Stop]
    reader = CaptureReader([path.read_bytes()])
    assert list(reader)[3].what == Dropped(frames=3)
    assert reader.dropped == 3


async def test_bytes_that_wait_are_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MAX_PENDING_BYTES", 3 * len(encode(READ)) - 1)
    async with capturing(tmp_path / "a.pcapng") as capture:
        tap = capture.tap("lpar7", PROFILE)
        for _ in range(3):
            tap.received(READ, encode(READ))
        assert capture.dropped == 1


async def test_a_slow_disk_holds_nobody_up(tmp_path: Path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    async with capturing(path) as capture:
        tap = capture.tap("lpar7", PROFILE)
        for _ in range(2000):  # 300 KiB, and a pipe holds 64
            tap.received(READ, encode(READ))
        await trio.sleep(0.05)
        tap.received(READ, encode(READ))
        os.set_blocking(reader, True)
        data = b""
        while data.count(b"\6\0\0\0") < 2001:
            data += await trio.to_thread.run_sync(os.read, reader, 1 << 16)
    data += await trio.to_thread.run_sync(os.read, reader, 1 << 20)
    os.close(reader)
    assert len([one for one in CaptureReader([data]) if one.what == READ]) == 2001


async def test_what_comes_while_the_last_piece_is_written_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    is_writing, may_go_on = trio.Event(), threading.Event()
    write_now = Capture._write_now

    def slowly(capture: Capture, piece: Piece) -> int:
        trio.from_thread.run_sync(is_writing.set)
        may_go_on.wait()
        return write_now(capture, piece)

    monkeypatch.setattr(Capture, "_write_now", slowly)
    path = tmp_path / "a.pcapng"
    async with capturing(path) as capture:
        tap = capture.tap("lpar7", PROFILE)
        tap.received(READ, encode(READ))
        await is_writing.wait()
        capture.close()
        may_go_on.set()
    assert [type(one.what) for one in read(path)] == [Start, f.Call, Stop]


async def test_a_full_disk_ends_the_capture_loudly():
    with pytest.raises(ExceptionGroup) as raised:
        async with capturing(Path("/dev/full")) as capture:
            capture.tap("lpar7", PROFILE).received(READ, encode(READ))
    (error,) = raised.value.exceptions
    assert isinstance(error, CaptureFailed)
    assert "/dev/full: the capture cannot be written: No space left" in str(error)


def test_a_file_that_cannot_be_made_is_refused(tmp_path: Path):
    options = CaptureOptions(path=tmp_path / "absent" / "a.pcapng")
    with pytest.raises(ConfigError, match="cannot be made: No such file or directory"):
        Capture(options, "hcalld 0")


def test_a_named_pipe_that_nobody_reads_is_refused_at_once(tmp_path: Path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    # It is opened in the event loop: waiting for a reader there would hold up all guests.
    with pytest.raises(ConfigError, match="start its reader first"):
        Capture(CaptureOptions(path=path), "hcalld 0")


async def test_a_next_file_that_cannot_be_made_ends_the_capture_and_nothing_else(tmp_path: Path):
    folder = tmp_path / "captures"
    folder.mkdir()
    capture = Capture(CaptureOptions(path=folder / "a.pcapng", file_bytes=1), "hcalld 0")
    capture.tap("lpar7", PROFILE).received(READ, encode(READ))
    shutil.rmtree(folder)
    with pytest.raises(CaptureFailed, match="the capture cannot be made"):
        await capture.run()
    # What was open is closed once, and not a descriptor that somebody has got since.
    await capture.aclose()


async def test_files_turn_and_the_oldest_go(tmp_path: Path):
    path = tmp_path / "a.pcapng"
    announcement = f.Announce(f.Announcement(), 1, 0)
    async with capturing(path, file_bytes=2000, files=2) as capture:
        tap = capture.tap("lpar7", PROFILE)
        tap.sent(announcement, encode(announcement), "")
        for _ in range(12):
            for _ in range(4):
                tap.received(READ, encode(READ))
            await trio.testing.wait_all_tasks_blocked(0.02)
    paths = files(tmp_path)
    assert len(paths) == 2
    assert tmp_path / "a_00001.pcapng" not in paths
    for path in paths:
        start, context, *others = read(path)
        assert isinstance(start.what, Start)
        assert start.what.is_continued
        assert (context.what, context.comment) == (announcement, "from an earlier file")
        assert {type(one.what) for one in others} <= {f.Call, Stop}


async def test_a_connection_that_ends_between_files_is_in_the_next(tmp_path: Path):
    async with capturing(tmp_path / "a.pcapng", file_bytes=1) as capture:
        tap = capture.tap("lpar7", PROFILE)
        tap.received(READ, encode(READ))
        await trio.testing.wait_all_tasks_blocked(0.05)
        tap.closed("ended")
    found = [
        [one.what for one in read(path)] for path in files(tmp_path) if len(path.read_bytes()) > 100
    ]
    assert [one[-1] for one in found] == [READ, Stop(why="ended")]


async def test_events_and_pages_are_kept(tmp_path: Path):
    path = tmp_path / "a.pcapng"
    event = f.Event(s.EventKind.RESET, s.NO_VCPU, 1, 1)
    async with capturing(path) as capture:
        capture.tap("lpar7", PROFILE).received(event, encode(event))
    assert event in [one.what for one in read(path)]


async def test_connections_that_come_and_go_while_nothing_is_written_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "MAX_PENDING", 10)
    monkeypatch.setattr(module, "MAX_PENDING_ENDS", 10)
    path = tmp_path / "a.pcapng"
    async with capturing(path) as capture:
        for _ in range(100):
            tap = capture.tap("lpar7", {})
            tap.received(READ, encode(READ))
            tap.closed("gone")
        assert capture.unwritten + capture.dropped == capture.passed == 100
        assert capture.ends_dropped > 70
    assert len([one for one in read(path) if isinstance(one.what, Stop)]) < 20
