# SPDX-License-Identifier: Apache-2.0
"""Sequences of calls side by side."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator

import pytest
from tests.unit.hcallproto.capture.sample import call

from hcallproto.abi.families import pks, svm
from hcallproto.abi.spec import Hcall
from hcallproto.capture import compare as module
from hcallproto.capture.compare import Change, Difference, Ignores, asked, compare
from hcallproto.capture.exchanges import Exchange, Fate
from hcallproto.wire import frames as f


def made(label: bytes = b"db", status: int = 0, at: int = 0x2000, **more: int) -> Exchange:
    frame = call(pks.READ_OBJECT, 1, label=at, label_size=len(label), **more)
    reply = f.Reply(3, 0, 1, status, ((4, 7),), (f.WriteSegment(0x3000, 2, b"ab"),))
    return Exchange(frame, pks.READ_OBJECT, 0, {"label": label}, Fate.ANSWERED, reply)


def ignoring(*fields: str) -> Ignores:
    return lambda call, names: not set(fields).isdisjoint(names)


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
        Change("status", "H_SUCCESS", "H_NOT_FOUND"),
        Change("size", "0x7", "0x8"),
        Change("out", "6162", "-"),
        Change("policy", "-", "0x1"),
    )
    assert list(compare([mine], [its], ignoring("status", "r4", "out", "policy"))) == []


def test_a_reply_that_never_came_is_a_difference():
    lost = made()
    lost.fate, lost.reply = Fate.LOST, None
    (found,) = compare([made()], [lost])
    assert found.changes[0] == Change("reply", "answered", "lost")


def test_what_is_ignored_makes_calls_the_same():
    assert list(compare([made(b"aa")], [made(b"bb")], ignoring("label"))) == []
    other = made(out_size=1)
    assert len(list(compare([made()], [other]))) == 2
    assert list(compare([made()], [other], ignoring("out_size"))) == []
    assert len(list(compare([made(b"aa")], [made(b"bb")]))) == 2


def answer(hcall: Hcall, *registers: tuple[int, int], out: bytes = b"", **args: int) -> Exchange:
    """A call that was answered, with what was written to its buffer at 0x3000."""
    writes = (f.WriteSegment(0x3000, len(out), out),) if out else ()
    reply = f.Reply(3, 0, 1, 0, registers, writes)
    return Exchange(call(hcall, 1, **args), hcall, 0, {}, Fate.ANSWERED, reply)


def test_what_no_two_boots_have_the_same_is_left_out():
    """Tokens, random numbers, passwords; but not how many bytes there are of them."""
    left = [
        answer(pks.WRAP_OBJECT, (4, 0x1111), token=0x77),
        answer(svm.RANDOM, (4, 5)),
        answer(pks.GEN_PASSWORD, out=b"abcd", password=0x3000, password_size=4),
    ]
    right = [
        answer(pks.WRAP_OBJECT, (4, 0x2222), token=0x88),
        answer(svm.RANDOM, (4, 6)),
        answer(pks.GEN_PASSWORD, out=b"efgh", password=0x3000, password_size=4),
    ]
    assert list(compare(left, right)) == []
    right[-1] = answer(pks.GEN_PASSWORD, out=b"efg", password=0x3000, password_size=4)
    (found,) = compare(left, right)
    assert found.changes == (Change("password", "4 bytes", "3 bytes"),)


def test_a_structure_is_compared_field_by_field():
    left = answer(pks.GET_CONFIG, out=bytes(64), buffer=0x3000, buffer_size=64)
    layout = next(one.layout for one in pks.GET_CONFIG.buffers)
    assert layout is not None
    changed = bytearray(64)
    changed[layout.sizeof() - 1] = 9
    right = answer(pks.GET_CONFIG, out=bytes(changed), buffer=0x3000, buffer_size=64)
    (found,) = compare([left], [right])
    (change,) = found.changes
    assert change.field in {part.name for part in layout.subcons}
    assert list(compare([left], [right], ignoring(change.field))) == []
    assert list(compare([left], [right], ignoring("buffer"))) == []


def test_long_buffers_that_differ_at_their_end_do_not_look_alike():
    args = {"out": 0x3000, "out_size": 100}
    reply = f.Reply(3, 0, 1, 0, (), (f.WriteSegment(0x3000, 100, bytes(99) + b"a"),))
    left = Exchange(call(pks.READ_OBJECT, 1, **args), pks.READ_OBJECT, 0, {}, Fate.ANSWERED, reply)
    reply = reply._replace(writes=(f.WriteSegment(0x3000, 100, bytes(99) + b"b"),))
    right = Exchange(left.call, pks.READ_OBJECT, 0, {}, Fate.ANSWERED, reply)
    ((change,),) = (one.changes for one in compare([left], [right]))
    assert change.left != change.right


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
