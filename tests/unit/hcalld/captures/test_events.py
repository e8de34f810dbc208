# SPDX-License-Identifier: Apache-2.0
"""What is read of captures with secrets: with the key all, in order; without it less."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
import trio
from tests.unit.hcalld.captures.captured import (
    CALL,
    ENTROPY,
    HELLO,
    REPLY,
    RIGHT,
    SECRET,
    STATE,
    WRONG,
    begin,
    capturing,
    files,
    read,
    settle,
    talk,
    whats,
    whole,
)

from hcalld.captures import events as reading
from hcalld.captures.events import Event, Events
from hcalld.captures.sealing import CaptureKey, FileSeal
from hcalld.core.tap import NOW
from hcalld.crypto import passphrase as passphrases
from hcalld.crypto.locks import Unlock
from hcalld.observe import capture as module
from hcallproto.abi.families import pks
from hcallproto.capture import entries as e
from hcallproto.capture import pcapng
from hcallproto.capture.blocks import Reader
from hcallproto.capture.pcapng import LinkType, Packet
from hcallproto.capture.problems import Problems
from hcallproto.capture.reading import CaptureReader, Plain
from hcallproto.capture.records import (
    VERSION,
    Dropped,
    Key,
    Records,
    Sealed,
    Start,
    Stop,
    encode,
)
from hcallproto.errors import CaptureDamage, CaptureError
from hcallproto.wire import frames as f
from hcallproto.wire.encode import encode as encode_frame


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(passphrases, "LOG_N", 10)


def at(entry: e.AnyEntry, number: int) -> e.AnyEntry:
    return msgspec.structs.replace(entry, at=number)


async def one_guest(path: Path, *, has_secrets: bool = True, calls: int = 2) -> bytes:
    """A connection from its begin to its end."""
    async with capturing(path, has_secrets=has_secrets) as capture:
        tap = capture.tap("lpar7", {})
        begin(tap)
        for _ in range(calls):
            talk(tap)
            await settle(capture)
        tap.closed("closed by the peer")
    return await trio.Path(path).read_bytes()


async def test_with_the_key_all_is_there_in_order(tmp_path: Path):
    data = await one_guest(tmp_path / "a.pcapng")
    start, *others, stop = whats(read(data))
    assert isinstance(start, Start)
    assert start.has_secrets
    assert others == [
        HELLO,
        at(STATE, 1),
        *(CALL, at(ENTROPY, 2), REPLY),
        *(CALL, at(ENTROPY, 4), REPLY),
    ]
    assert stop == Stop(why="closed by the peer")
    events = Events([data], RIGHT)
    assert not any(one.is_blanked for one in events)
    assert events.inexact == {}


def told(read: Callable[[Events], Iterable[Event | Plain]], data: bytes, unlock: Unlock | None):
    """All that is said of a file, and of how many frames no more than their bytes."""
    events = Events([data], unlock)
    found: list[object] = []
    plain = 0
    try:
        for one in read(events):
            plain += isinstance(one, Plain)
            found.append(whole(one))
    except CaptureError as error:
        found.append(str(error))
    return (found, list(events.problems), events.inexact), plain


async def test_who_wants_bytes_is_told_the_same(tmp_path: Path):
    path = tmp_path / "a.pcapng"
    async with capturing(path) as capture:
        tap = capture.tap("lpar7", {})
        begin(tap)
        for _ in range(3):
            talk(tap)
            tap.received(call_of_config, encode_frame(call_of_config))
            tap.happened(ENTROPY)
            tap.sent(PLAIN_REPLY, encode_frame(PLAIN_REPLY), "")
            await settle(capture)
        tap.closed("closed by the peer")
    data = await trio.Path(path).read_bytes()
    found, plain = told(Events.undecoded, data, RIGHT)
    # A reply with a secret is in its packet only in part; the first call comes after the state.
    assert plain == 8
    assert (found, 0) == told(Events.__iter__, data, RIGHT)
    assert told(Events.undecoded, data, None) == told(Events.__iter__, data, None)
    wrong = [data[:at] for at in range(0, len(data), 200)]
    wrong += [data[:at] + data[at + 4 :] for at in range(0, len(data), 200)]
    wrong += [data[:at] + b"\x01" + data[at + 1 :] for at in range(0, len(data), 50)]
    wrong += [data[: block[0]] + data[block[1] :] for block in blocks_of(data)]
    for changed in wrong:
        shown, _ = told(Events.undecoded, changed, RIGHT)
        assert (shown, 0) == told(Events.__iter__, changed, RIGHT)


def blocks_of(data: bytes) -> Iterator[tuple[int, int]]:
    """Where each block begins and ends."""
    at = 0
    while at < len(data):
        end = at + int.from_bytes(data[at + 4 : at + 8], "little")
        yield at, end
        at = end


async def test_without_the_key_it_is_a_blanked_capture(tmp_path: Path):
    sealed = await one_guest(tmp_path / "a.pcapng")
    blanked = await one_guest(tmp_path / "b.pcapng", has_secrets=False)
    assert SECRET not in sealed
    assert SECRET[::-1] not in sealed
    shown = [one for one in whats(read(sealed, None)) if not isinstance(one, Start)]
    assert shown == [one for one in whats(read(blanked, None)) if not isinstance(one, Start)]
    known = [one.what for one in CaptureReader([sealed]) if not isinstance(one.what, Key | Sealed)]
    assert [one for one in known if not isinstance(one, Start)] == shown
    for data, why in ((sealed, "were not opened"), (blanked, "were not captured")):
        events = Events([data])
        hidden = [type(one.what) for one in events if one.is_blanked]
        assert hidden == [f.Reply, f.Reply]
        assert events.inexact == {0: f"its secrets {why}"}


async def test_a_frame_that_shows_all_is_not_sealed_too(tmp_path: Path):
    calls = 3000
    async with capturing(tmp_path / "a.pcapng") as capture:
        tap = capture.tap("lpar7", {})
        begin(tap)
        for _ in range(calls):
            tap.received(call_of_config, encode_frame(call_of_config))
    with_secrets = (tmp_path / "a.pcapng").stat().st_size
    async with capturing(tmp_path / "b.pcapng", has_secrets=False) as capture:
        tap = capture.tap("lpar7", {})
        begin(tap)
        for _ in range(calls):
            tap.received(call_of_config, encode_frame(call_of_config))
    assert with_secrets < (tmp_path / "b.pcapng").stat().st_size * 1.1


call_of_config = CALL._replace(gpr=(*CALL.gpr[:2], pks.GET_CONFIG.number, *CALL.gpr[3:]))
PLAIN_REPLY = f.Reply(3, 0, 1, 0)


async def test_guests_do_not_mix(tmp_path: Path):
    path = tmp_path / "a.pcapng"
    async with capturing(path) as capture:
        taps = [capture.tap(name, {}) for name in ("lpar7", "lpar8")]
        for tap in taps:
            begin(tap)
        for _ in range(3):
            for tap in taps:
                talk(tap)
            await settle(capture)
    for number in (0, 1):
        mine = [one.what for one in read(path.read_bytes()) if one.connection == number]
        assert mine[1:-1] == [
            HELLO,
            at(STATE, 1),
            *(CALL, at(ENTROPY, 2), REPLY),
            *(CALL, at(ENTROPY, 4), REPLY),
            *(CALL, at(ENTROPY, 6), REPLY),
        ]


async def test_large_answers_are_in_batches_of_their_own(tmp_path: Path):
    path = tmp_path / "a.pcapng"
    large = [
        e.Answer(NOW, 3, 1, e.EffectKind.READ_RAM, data, None, (0x1000, len(data)))
        for data in (random.Random(n).randbytes(700_000) for n in range(9))
    ]
    async with capturing(path) as capture:
        tap = capture.tap("lpar7", {})
        begin(tap)
        tap.received(CALL, encode_frame(CALL))
        for entry in large:
            tap.happened(entry)
        tap.sent(REPLY, encode_frame(REPLY), "")
    events = whats(read(path.read_bytes()))
    assert events[3:-1] == [CALL, *(at(one, 2) for one in large), REPLY]
    sizes = [len(e.encode(batch)) for batch in batches(path.read_bytes())]
    assert len(sizes) > 3
    assert max(sizes) < e.MAX_SIZE + 700_000
    # Wireshark's limit, and so that of tshark and capinfos.
    assert max(len(packet.data) for packet in packets(path.read_bytes())) <= 256 << 10


def batches(data: bytes) -> list[e.Batch]:
    """What is sealed in a file of one connection."""
    from hcalld.captures.sealing import Keys

    found, opener, name = [], None, ("", "")
    for packet in packets(data):
        if packet.interface.link_type == LinkType.RECORDS:
            record = records_of(packet)
            if isinstance(record, Key):
                opener, name = Keys(RIGHT).of(record), packet.interface[1:]
            elif isinstance(record, Sealed):
                assert opener is not None
                batch = opener.open(name, record)
                if batch is not None:
                    found.append(batch)
    return found


# -- the wrong key, and hostile hands ---------------------------------------------------------


def packets(data: bytes) -> list[Packet]:
    return list(Reader(Problems()).feed(data))


def records_of(packet: Packet) -> object:
    records = Records()
    records.decode(encode(Start(program="", partition="", profile={})))
    return records.decode(packet.data)


def rebuilt(data: list[Packet]) -> bytes:
    """A file of these packets."""
    result = pcapng.section("hcalld 0")
    numbers: dict[object, int] = {}
    for packet in data:
        for link in (LinkType.FRAMES, LinkType.RECORDS):
            name = packet.interface.name, packet.interface.description
            if (link, name) not in numbers:
                numbers[link, name] = len(numbers)
                result += pcapng.interface(link, *name)
        number = numbers[LinkType(packet.interface.link_type), name]
        result += pcapng.packet(
            number, packet.time_ns, packet.data, packet.direction, packet.comment
        )
    return result


def is_sealed(packet: Packet) -> bool:
    return packet.interface.link_type == LinkType.RECORDS and isinstance(records_of(packet), Sealed)


async def test_the_wrong_key_is_told(tmp_path: Path):
    data = await one_guest(tmp_path / "a.pcapng")
    with pytest.raises(CaptureError, match="the capture's secrets stay closed: wrong passphrase"):
        list(Events([data], WRONG))
    blanked = await one_guest(tmp_path / "b.pcapng", has_secrets=False)
    with pytest.raises(CaptureError, match="made without --capture-secrets"):
        list(Events([blanked], RIGHT))


def altered(found: list[Packet], place: int) -> list[Packet]:
    record = records_of(found[place])
    assert isinstance(record, Sealed)
    data = record.data[:-1] + bytes([record.data[-1] ^ 1])
    packet = found[place]._replace(data=encode(Sealed(number=record.number, data=data)))
    return [*found[:place], packet, *found[place + 1 :]]


def removed(found: list[Packet], place: int) -> list[Packet]:
    return [*found[:place], *found[place + 1 :]]


def renumbered(found: list[Packet], place: int) -> list[Packet]:
    """One is removed, and the next one has its number."""
    number = 0
    result = []
    for packet in removed(found, place):
        record = records_of(packet) if packet.interface.link_type == LinkType.RECORDS else None
        if isinstance(record, Sealed):
            record = Sealed(number=number, data=record.data)
            packet = packet._replace(data=encode(record))
            number += 1
        result.append(packet)
    return result


def exchanged(found: list[Packet], place: int) -> list[Packet]:
    """Two in each other's place."""
    places = [index for index, packet in enumerate(found) if is_sealed(packet)]
    other = next(index for index in places if index != place)
    result = list(found)
    result[place], result[other] = found[other], found[place]
    return result


@pytest.mark.parametrize("change", [altered, removed, renumbered, exchanged])
@pytest.mark.parametrize("which", [0, 1, -1])
async def test_what_is_sealed_is_bound_to_its_place(
    change: Callable[[list[Packet], int], list[Packet]], which: int, tmp_path: Path
):
    found = packets(await one_guest(tmp_path / "a.pcapng", calls=4))
    assert whats(read(rebuilt(found))) == whats(read(await one_guest(tmp_path / "b", calls=4)))
    places = [index for index, packet in enumerate(found) if is_sealed(packet)]
    assert len(places) >= 4
    with pytest.raises(CaptureDamage, match=r"at byte \d+: .*(sealed record|frames)"):
        list(Events([rebuilt(change(found, places[which]))], RIGHT))


async def test_frames_cannot_be_removed_or_added(tmp_path: Path):
    found = packets(await one_guest(tmp_path / "a.pcapng", calls=4))
    frames = [n for n, packet in enumerate(found) if packet.interface.link_type == 147]
    for changed in (
        removed(found, frames[2]),
        [*found[: frames[2]], found[frames[2]], *found[frames[2] :]],
    ):
        with pytest.raises(CaptureDamage, match=r"frames|speaks of"):
            list(Events([rebuilt(changed)], RIGHT))


async def test_a_record_of_another_file_does_not_open(tmp_path: Path):
    """Not even of a file under the same key, of a connection of the same name."""
    async with capturing(tmp_path / "a.pcapng", file_bytes=1) as capture:
        tap = capture.tap("lpar7", {})
        begin(tap)
        for _ in range(2):
            talk(tap)
            await settle(capture)
    first, second = map(packets, files(tmp_path)[:2])
    mine, other = (
        next(n for n, packet in enumerate(one) if is_sealed(packet)) for one in (first, second)
    )
    first[mine] = first[mine]._replace(data=second[other].data)
    with pytest.raises(CaptureDamage, match="altered, moved, or sealed with another key"):
        list(Events([rebuilt(first)], RIGHT))


async def test_a_record_of_another_connection_does_not_open(tmp_path: Path):
    path = tmp_path / "a.pcapng"
    async with capturing(path) as capture:
        for _ in range(2):
            tap = capture.tap("lpar7", {})
            begin(tap)
            talk(tap)
    found = packets(path.read_bytes())
    mine, other = (place for place, packet in enumerate(found) if is_sealed(packet))
    found[mine], found[other] = (
        found[mine]._replace(data=found[other].data),
        found[other]._replace(data=found[mine].data),
    )
    with pytest.raises(CaptureDamage, match="altered, moved, or sealed with another key"):
        list(Events([rebuilt(found)], RIGHT))


async def test_a_file_that_is_cut_off_is_read_up_to_there(tmp_path: Path):
    data = await one_guest(tmp_path / "a.pcapng", calls=4)
    whole = whats(read(data))
    reached = set()
    for size in range(300, len(data), 97):
        events = Events([data[:size]], RIGHT)
        found: list[object] = []
        with contextlib.suppress(CaptureDamage):  # before the first packet
            found = [one.what for one in events]
        assert found == whole[: len(found)]
        assert found == whole or events.problems or events.remarks or not found
        assert found == whole or len(found) < 3 or 0 in events.inexact
        reached.add(len(found))
    assert len(reached) > 6


# -- ring files, drops --------------------------------------------------------------------------


async def ring(tmp_path: Path, rounds: int = 6) -> list[bytes]:
    async with capturing(tmp_path / "a.pcapng", file_bytes=2500) as capture:
        tap = capture.tap("lpar7", {})
        begin(tap)
        announcement = f.Announce(f.Announcement(), 1, 0)
        tap.sent(announcement, encode_frame(announcement), "")
        for _ in range(rounds):
            talk(tap, 4)
            await settle(capture)
    return files(tmp_path)


async def test_each_file_is_opened_by_itself(tmp_path: Path):
    parts = await ring(tmp_path)
    assert len(parts) > 3
    events = Events([parts[0]], RIGHT)
    assert [at(STATE, 1)] == [one.what for one in events if isinstance(one.what, e.State)]
    missing = "its end is missing: the capture was cut off, or goes on in another file"
    assert events.inexact == {0: missing}
    (remark,) = events.remarks
    assert remark.endswith(f": connection 0 of guest 'lpar7': {missing}")
    assert events.problems == []
    for data in parts[1:-1]:
        events = Events([data], RIGHT)
        found = list(events)
        assert isinstance(found[0].what, Start)
        assert found[0].what.is_continued
        assert [one.what for one in found[1:3]] == [HELLO, f.Announce(f.Announcement(), 1, 0)]
        assert REPLY in whats(found)
        assert "frames of it are in earlier files" in events.inexact[0]


async def test_all_files_are_read_as_one(tmp_path: Path):
    parts = await ring(tmp_path)
    events = Events(parts, RIGHT)
    found = [one.what for one in events if isinstance(one.what, f.Frame.__args__)]
    assert found == [HELLO, f.Announce(f.Announcement(), 1, 0), *[CALL, REPLY] * 24]
    assert events.inexact == {}
    assert events.problems == events.remarks == []


async def test_a_file_that_is_missing_is_told(tmp_path: Path):
    parts = await ring(tmp_path)
    del parts[1]
    events = Events(parts, RIGHT)
    found = list(events)
    (gap,) = [one.what for one in found if isinstance(one.what, Dropped)]
    assert isinstance(gap, Dropped)
    frames = [one for one in found if isinstance(one.what, f.Frame.__args__)]
    assert len(frames) + gap.frames == 50
    assert "in earlier files" in events.inexact[0]


async def test_what_is_dropped_is_told_at_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "MAX_PENDING", 5)
    path = tmp_path / "a.pcapng"
    async with capturing(path) as capture:
        tap = capture.tap("lpar7", {})
        begin(tap)
        talk(tap, 3)
        await settle(capture)
        talk(tap)
        assert (capture.dropped, capture.entries_dropped) == (4, 2)
    events = Events([path.read_bytes()], RIGHT)
    _, *found, _ = [one.what for one in events]
    assert found == [
        *(HELLO, at(STATE, 1), CALL, at(ENTROPY, 2), REPLY),
        Dropped(frames=4, entries=2),
        *(CALL, at(ENTROPY, 4), REPLY),
    ]
    assert events.inexact == {0: "6 frames or answers are missing: the disk was too slow"}
    clear = [one.what for one in Events([path.read_bytes()]) if isinstance(one.what, Dropped)]
    assert clear == [Dropped(frames=4, entries=2)]


async def test_bytes_of_entries_that_wait_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "MAX_PENDING_BYTES_SEALED", 3000)
    async with capturing(tmp_path / "a.pcapng") as capture:
        tap = capture.tap("lpar7", {})
        for _ in range(5):
            tap.happened(e.Answer(NOW, 3, 1, e.EffectKind.READ_RAM, bytes(1000)))
        assert capture.entries_dropped == 3


async def test_after_the_end_nothing_is_kept(tmp_path: Path):
    path = tmp_path / "a.pcapng"
    async with capturing(path) as capture:
        tap = capture.tap("lpar7", {})
        begin(tap)
        tap.closed("ended")
        tap.happened(ENTROPY)
    assert [type(one) for one in whats(read(path.read_bytes()))] == [Start, f.Hello, e.State, Stop]


async def test_a_state_that_is_not_all_is_told(tmp_path: Path):
    path = tmp_path / "a.pcapng"
    async with capturing(path) as capture:
        tap = capture.tap("lpar7", {}, is_continued=True)
        tap.received(HELLO, encode_frame(HELLO))
        tap.happened(msgspec.structs.replace(STATE, problem="2 calls waited", is_begin=False))
        talk(tap)
    events = Events([path.read_bytes()], RIGHT)
    assert [one.what for one in events][-2] == REPLY
    assert events.inexact == {0: "2 calls waited"}


@pytest.mark.parametrize("effect", sorted(e.SAY_WHAT))
async def test_an_answer_says_what_was_asked_since_version_2(tmp_path: Path, effect: e.EffectKind):
    path = tmp_path / "a.pcapng"
    unsaid = e.Answer(NOW, 3, 1, effect, SECRET)
    async with capturing(path) as capture:
        tap = capture.tap("lpar7", {})
        begin(tap)
        tap.received(CALL, encode_frame(CALL))
        tap.happened(unsaid)
        tap.sent(REPLY, encode_frame(REPLY), "")
    data = path.read_bytes()
    with pytest.raises(CaptureDamage, match="does not say what was asked"):
        list(Events([data], RIGHT))
    new, old = (b'"version":%d' % version for version in (VERSION, 1))
    assert data.count(new) == 1
    events = Events([data.replace(new, old)], RIGHT)
    assert at(unsaid, 2) in whats(list(events))
    assert not events.says_asked


async def test_a_capture_without_a_state_is_told(tmp_path: Path):
    path = tmp_path / "a.pcapng"
    async with capturing(path) as capture:
        tap = capture.tap("lpar7", {})
        tap.received(HELLO, encode_frame(HELLO))
        talk(tap)
    events = Events([path.read_bytes()], RIGHT)
    assert len(list(events)) == 6
    assert events.inexact == {0: "the partition's state at its begin is missing"}


# -- bounds -------------------------------------------------------------------------------------


def opened(
    seal: FileSeal, batches: Iterable[tuple[int, Sequence[e.AnyEntry]]], guests: int
) -> bytes:
    """A file in which each connection has these batches, each before so many frames."""
    packed = [pcapng.section("x")]
    for number in range(guests):
        name = f"lpar{number}", "d"
        packed += [pcapng.interface(link, *name) for link in (LinkType.FRAMES, LinkType.RECORDS)]
        start = Start(program="x", partition=name[0], profile={}, has_secrets=True)
        packed += [pcapng.packet(2 * number + 1, 1, encode(one)) for one in (start, seal.record)]
        frames = 0
        for count, entries in batches:
            records = seal.seal(name, e.Batch(frames, frames + count, 0, 0, entries))
            packed += [pcapng.packet(2 * number + 1, 1, encode(one)) for one in records]
            packed += [pcapng.packet(2 * number, 1, encode_frame(HELLO))] * count
            frames += count
    return b"".join(packed)


def answer(number: int, size: int) -> e.Answer:
    return e.Answer(number, 0, 0, e.EffectKind.ENTROPY, bytes(size), None, size)


ENTRIES_THAT_WAIT: dict[str, e.AnyEntry] = {
    "an answer": answer(1, 1 << 20),
    "an error": e.Answer(
        1, 0, 0, e.EffectKind.NOW, None, e.Raised(e.Failure.STORE, "x" * (1 << 20))
    ),
    "a rule": e.Fault(1, 0, 0, 0, "x" * (1 << 20)),
    "a farewell": e.Stop(1, "x" * (1 << 20)),
    "a state": msgspec.structs.replace(STATE, at=1, profile=bytes(1 << 20)),
    "records": msgspec.structs.replace(
        STATE, at=1, records=(e.StoredRecord("", b"", b"", 0),) * (1 << 14)
    ),
    "addresses": e.PageOut(1, (1,) * (1 << 15)),
    "a frame": e.Full(0, bytes(1 << 20)),
}


@pytest.mark.parametrize("what", ENTRIES_THAT_WAIT)
def test_what_waits_on_all_connections_is_bounded(what: str, monkeypatch: pytest.MonkeyPatch):
    """Each of them holds little enough."""
    seal = CaptureKey(RIGHT).of_file()
    waiting = [(1, [ENTRIES_THAT_WAIT[what]])]
    monkeypatch.setattr(reading, "MAX_HELD", 4 << 20)
    data = opened(seal, waiting, 8)
    for number in range(8):
        data = data.replace(pcapng.packet(2 * number, 1, encode_frame(HELLO)), b"")
    with pytest.raises(CaptureDamage, match="MiB of what is sealed waits for its frames"):
        list(Events([data], RIGHT))


def test_what_was_given_out_does_not_count(monkeypatch: pytest.MonkeyPatch):
    seal = CaptureKey(RIGHT).of_file()
    full = encode_frame(HELLO)
    batches = [(1, (answer(n, 1 << 20), e.Full(n, full))) for n in range(4)]
    data = opened(seal, batches, 4)
    monkeypatch.setattr(reading, "MAX_HELD", 5 << 19)
    events = Events([data], RIGHT)
    assert sum(isinstance(one.what, e.Answer) for one in events) == 16
    assert events._held.size == 0


def test_a_new_file_forgets_what_waits_in_the_one_before():
    key = CaptureKey(RIGHT)
    frame = pcapng.packet(0, 1, encode_frame(HELLO))
    full = e.Full(0, encode_frame(HELLO))
    files = [opened(key.of_file(), [(1, [full])], 1).replace(frame, b"") for _ in range(2)]
    sizes = []
    for data in (files[:1], files, [*files, opened(key.of_file(), [(1, [full])], 1)]):
        events = Events(data, RIGHT)
        list(events)
        sizes.append(events._held.size)
    assert sizes == [e.size_of(full)] * 2 + [0]


def test_parts_of_what_is_sealed_are_bounded(monkeypatch: pytest.MonkeyPatch):
    """Of each connection the last part is missing."""
    seal = CaptureKey(RIGHT).of_file()
    noise = random.Random(1).randbytes(1 << 20)
    entry = e.Answer(0, 0, 0, e.EffectKind.ENTROPY, noise, None, len(noise))
    found = packets(opened(seal, [(0, [entry])], 6))
    last = [
        place
        for place, packet in enumerate(found)
        if is_sealed(packet) and (place + 1 == len(found) or not is_sealed(found[place + 1]))
    ]
    assert len(last) == 6
    data = rebuilt([packet for place, packet in enumerate(found) if place not in last])
    monkeypatch.setattr(reading, "MAX_HELD", 4 << 20)
    with pytest.raises(CaptureDamage, match="MiB of what is sealed waits for its frames"):
        list(Events([data], RIGHT))


def test_many_entries_are_refused_before_they_are_read():
    seal = CaptureKey(RIGHT).of_file()
    data = opened(seal, [(0, [e.Attend(0)] * (e.MAX_ENTRIES + 1))], 1)
    with pytest.raises(CaptureError, match="length <= 65536"):
        list(Events([data], RIGHT))
