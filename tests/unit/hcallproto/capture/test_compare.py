# SPDX-License-Identifier: Apache-2.0
"""Sequences of calls side by side."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator

import pytest
from tests.unit.hcallproto.capture.sample import call

from hcallproto.abi.families import pks
from hcallproto.capture import compare as module
from hcallproto.capture.compare import Change, Difference, asked, compare
from hcallproto.capture.exchanges import Exchange, Fate
from hcallproto.wire import frames as f


def made(label: bytes = b"db", status: int = 0, at: int = 0x2000, **more: int) -> Exchange:
    frame = call(pks.READ_OBJECT, 1, label=at, label_size=len(label), **more)
    reply = f.Reply(3, 0, 1, status, ((4, 7),), (f.WriteSegment(0x3000, 2, b"ab"),))
    return Exchange(frame, pks.READ_OBJECT, 0, {"label": label}, Fate.ANSWERED, reply)


def label_of(exchange: Exchange | None) -> str:
    return "" if exchange is None else (exchange.buffers["label"] or b"").decode()


def shape(differences: Iterator[Difference]) -> list[str]:
    """Each difference as the labels of its two calls."""
    return [f"{label_of(one.left)}/{label_of(one.right)}" for one in differences]


def calls(word: str) -> list[Exchange]:
    return [made(letter.encode()) for letter in word]


def test_the_same_calls_have_no_differences_wherever_their_buffers_are():
    assert list(compare([made(at=0x2000)], [made(at=0x9000)])) == []


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("abc", "abc", []),
        ("abc", "ac", ["b/"]),
        ("ac", "abc", ["/b"]),
        ("abc", "axc", ["b/", "/x"]),
        ("abc", "", ["a/", "b/", "c/"]),
        ("", "abc", ["/a", "/b", "/c"]),
        ("aaab", "aab", ["a/"]),
        ("abcdef", "cdefab", ["a/", "b/", "/a", "/b"]),
        ("ab", "xy", ["a/", "b/", "/x", "/y"]),
    ],
)
def test_calls_that_one_side_has_alone(left: str, right: str, expected: list[str]):
    assert shape(compare(calls(left), calls(right))) == expected


def test_replies_that_differ_are_told_by_field():
    mine, its = made(status=0), made(status=-7)
    its.reply = f.Reply(3, 0, 1, -7, ((4, 8), (5, 1)))
    mine.call = call(pks.READ_OBJECT, 1, label_size=2, out=0x3000)
    (found,) = compare([mine], [its])
    assert found.changes == (
        Change("return", "H_SUCCESS", "H_NOT_FOUND"),
        Change("size", "0x7", "0x8"),
        Change("out[]", "6162", "-"),
        Change("policy", "-", "0x1"),
    )
    ignored = ("return", "size", "out[]", "policy")
    assert list(compare([mine], [its], ignored)) == []


def test_a_reply_that_never_came_is_a_difference():
    lost = made()
    lost.fate, lost.reply = Fate.LOST, None
    (found,) = compare([made()], [lost])
    assert found.changes[0] == Change("fate", "answered", "lost")


def test_what_is_ignored_makes_calls_the_same():
    assert list(compare([made(b"aa")], [made(b"bb")], ["label[]"])) == []
    assert len(list(compare([made(b"aa")], [made(b"bb")]))) == 2


def test_calls_that_the_table_does_not_know_are_compared_by_registers():
    frame = call(pks.READ_OBJECT, 1)
    gpr = list(frame.gpr)
    gpr[2] = 0x4242
    first = Exchange(frame._replace(gpr=tuple(gpr)), None, 0)
    gpr[3] = 5
    second = Exchange(frame._replace(gpr=tuple(gpr)), None, 0)
    assert asked(first) != asked(second)
    assert len(asked(first)) == 2 + 9


def test_both_sides_are_found_again_after_many_calls():
    source = random.Random(3)
    left = [made(b"%d" % number) for number in range(3000)]
    gone = set(source.sample(range(3000), 100))
    right = [one for number, one in enumerate(left) if number not in gone]
    assert shape(compare(left, right)) == [f"{number}/" for number in sorted(gone)]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "WINDOW", 50)

    def endless(prefix: bytes) -> Iterator[Exchange]:
        return (made(prefix + b"%d" % number) for number in range(2000))

    tracemalloc.start()
    try:
        assert sum(1 for _ in compare(endless(b"a"), endless(b"b"))) == 4000
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
