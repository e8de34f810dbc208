# SPDX-License-Identifier: Apache-2.0
"""The bytes of a journal: what is whole, torn, damaged, or of somebody else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcalld.stores import journal_format as fmt

EPOCH = bytes(range(16))
ONE = fmt.StoreName("one", b"1" * 16)
TWO = fmt.StoreName("zwei/ü", b"2" * 16)
ROWS: list[fmt.Row] = [
    fmt.PutRow("pks", b"\xff\0key", 1, b"sealed"),
    fmt.DeleteRow("tpm", b""),
    fmt.ReplyRow(7, -1, b"frame"),
    fmt.RunRow(b"instance", 3),
]


def part(store: fmt.StoreName, *generations: int) -> fmt.Part:
    return fmt.Part(store, [fmt.encode_entry(fmt.Entry(n, ROWS)) for n in generations])


ROUNDS = [
    fmt.Round([], [part(ONE, 1, 2), part(TWO, 9)]),
    fmt.Round([], [part(ONE, 3)]),
    fmt.Round([ONE], [part(TWO, 10), part(TWO, 11)]),
]


def journal(*rounds: fmt.Round) -> bytes:
    frames = [fmt.frame(EPOCH, number, payload) for number, payload in enumerate(rounds)]
    return fmt.head(EPOCH) + b"".join(frames)


def generations(contents: fmt.Contents, store: fmt.StoreName) -> list[int]:
    return [entry.generation for entry in contents.entries(store)]


def test_what_was_written_is_read():
    data = journal(*ROUNDS)
    contents = fmt.Contents(data)
    assert contents.payloads == ROUNDS
    assert (contents.epoch, contents.end) == (EPOCH, len(data))
    assert contents.stores() == {TWO}
    assert generations(contents, TWO) == [9, 10, 11]
    assert [entry.rows for entry in contents.entries(TWO)] == [ROWS] * 3


def test_what_is_before_a_mark_is_not_needed():
    assert generations(fmt.Contents(journal(*ROUNDS[:2])), ONE) == [1, 2, 3]
    assert generations(fmt.Contents(journal(*ROUNDS)), ONE) == []
    again = journal(*ROUNDS, fmt.Round([], [part(ONE, 8)]))
    assert generations(fmt.Contents(again), ONE) == [8]
    assert fmt.Contents(again).stores() == {ONE, TWO}


def test_a_store_of_the_same_name_is_another_one():
    contents = fmt.Contents(journal(*ROUNDS))
    assert generations(contents, fmt.StoreName(TWO.partition, bytes(16))) == []


def test_an_empty_journal_is_one():
    contents = fmt.Contents(fmt.head(EPOCH))
    assert contents.payloads == []
    assert contents.end == fmt.HEAD_SIZE
    assert contents.stores() == set()


def test_a_torn_end_is_left_out_wherever_it_is_torn():
    whole = journal(*ROUNDS[:2])
    data = journal(*ROUNDS)
    for size in range(len(whole), len(data)):
        contents = fmt.Contents(data[:size])
        assert contents.payloads == ROUNDS[:2]
        assert contents.end == len(whole)
        # Space that was given to the file and not written is zeros.
        assert fmt.Contents(data[:size].ljust(len(data), b"\0")).payloads == ROUNDS[:2]


@given(st.integers(0, len(journal(*ROUNDS)) - 1), st.integers(1, 255))
def test_a_changed_byte_is_never_read(offset: int, change: int):
    data = bytearray(journal(*ROUNDS))
    data[offset] ^= change
    last = len(journal(*ROUNDS[:2]))
    if offset >= last:
        assert fmt.Contents(bytes(data)).payloads == ROUNDS[:2]
    elif offset == 7:
        with pytest.raises(fmt.JournalNewer):
            fmt.Contents(bytes(data))
    elif len(fmt.MAGIC) <= offset < fmt.HEAD_SIZE:
        # Another epoch: none of the frames is its own.
        assert fmt.Contents(bytes(data)).payloads == []
    else:
        with pytest.raises(fmt.JournalDamaged):
            fmt.Contents(bytes(data))


@given(st.binary(max_size=300))
def test_any_bytes_behind_are_a_torn_end(garbage: bytes):
    assert fmt.Contents(journal(*ROUNDS) + garbage).payloads == ROUNDS


def test_a_frame_is_not_read_twice_or_out_of_order():
    frames = [fmt.frame(EPOCH, number, payload) for number, payload in enumerate(ROUNDS)]
    head = fmt.head(EPOCH)
    assert fmt.Contents(head + frames[0] + frames[0]).payloads == ROUNDS[:1]
    with pytest.raises(fmt.JournalDamaged, match="later ones are"):
        fmt.Contents(head + frames[0] + frames[2])


def test_frames_of_another_journal_are_not_its_own():
    other = fmt.frame(bytes(16), 1, ROUNDS[1])
    assert fmt.Contents(journal(ROUNDS[0]) + other).payloads == ROUNDS[:1]


def test_more_behind_than_a_frame_is_no_torn_end():
    with pytest.raises(fmt.JournalDamaged, match="more than one is missing"):
        fmt.Contents(journal() + bytes(fmt.MAX_FRAME_SIZE + 1000))


def test_many_beginnings_of_frames_do_not_cost_a_search_for_ever():
    fake = fmt.frame(EPOCH, 5, ROUNDS[0])[:-1] + b"?"
    with pytest.raises(fmt.JournalDamaged):
        fmt.Contents(journal() + b"x" + fake * 10_000)


@pytest.mark.parametrize("data", [b"", b"hcjrnl", b"SQLite format 3\0", fmt.head(EPOCH)[:-1]])
def test_what_does_not_begin_as_a_journal_is_none(data: bytes):
    with pytest.raises(fmt.JournalDamaged):
        fmt.Contents(data)


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xc1", b"\x93", fmt.encode_entry(["round"]), fmt.encode_entry([[], [[["p"], []]]])],
)
def test_a_whole_frame_with_nonsense_is_damage(payload: bytes):
    digest = fmt._digest(EPOCH, 0, payload)
    head = fmt._FRAME.pack(b"HJfr", EPOCH, 0, len(payload), digest)
    with pytest.raises(fmt.JournalDamaged, match="frame 0"):
        fmt.Contents(journal() + head + payload)


@pytest.mark.parametrize("entry", [b"", fmt.encode_entry([1]), fmt.encode_entry([1, [["drop"]]])])
def test_a_malformed_entry_is_damage(entry: bytes):
    contents = fmt.Contents(journal(fmt.Round([], [fmt.Part(ONE, [entry])])))
    with pytest.raises(fmt.JournalDamaged, match="malformed"):
        list(contents.entries(ONE))
