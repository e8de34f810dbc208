# SPDX-License-Identifier: Apache-2.0
"""What every store does, run over each of them."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator

import pytest

from hcalld.core.errors import StoreError
from hcalld.core.records import Delete, Lifetime, Put, Record, RecordedReply, Run
from hcalld.stores.base import Store
from hcalld.stores.directory import StateDirectory
from hcalld.stores.memory import MemoryDirectory

Open = Callable[[], Store]
RUN = Run(b"instance 1......", 0)


@pytest.fixture(params=["memory", "sqlite"])
def reopen(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Open]:
    """Opens the one store, after closing it if it was open."""
    opened: list[Store] = []
    directory = MemoryDirectory() if request.param == "memory" else StateDirectory(tmp_path)

    def open_store() -> Store:
        if opened:
            opened[-1].close()
        opened.append(directory.open("guest"))
        return opened[-1]

    yield open_store
    for store in opened:
        store.close()


def put(
    key: bytes, value: bytes = b"value", lifetime: Lifetime = Lifetime.PERSISTENT, ns: str = "pks"
) -> Put:
    return Put(Record(ns, key, value, lifetime))


def content(store: Store) -> dict[tuple[str, bytes], tuple[bytes, Lifetime]]:
    return {(r.namespace, r.key): (r.value, r.lifetime) for r in store.load().records}


def test_a_new_store_is_empty(reopen: Open):
    loaded = reopen().load()

    assert (list(loaded.records), list(loaded.replies), loaded.generation) == ([], [], 0)


def test_what_was_committed_is_loaded_and_survives(reopen: Open):
    store = reopen()
    store.commit([put(b"a", b"1"), put(b"a", b"2", ns="tpm"), put(b"", b"")], None)
    expected = {
        ("pks", b"a"): (b"1", Lifetime.PERSISTENT),
        ("tpm", b"a"): (b"2", Lifetime.PERSISTENT),
        ("pks", b""): (b"", Lifetime.PERSISTENT),
    }

    assert content(store) == expected
    assert content(reopen()) == expected


def test_changes_are_applied_in_order(reopen: Open):
    store = reopen()
    store.commit(
        [put(b"a", b"1"), put(b"a", b"2"), put(b"b"), Delete("pks", b"b"), Delete("pks", b"c")],
        None,
    )

    assert content(store) == {("pks", b"a"): (b"2", Lifetime.PERSISTENT)}


def test_a_replaced_record_takes_the_new_lifetime(reopen: Open):
    store = reopen()
    store.begin_run(RUN)
    store.commit([put(b"a", b"1", Lifetime.RUN)], None)
    store.commit([put(b"a", b"2")], None)
    store.begin_run(Run(RUN.instance, 1))

    assert content(store) == {("pks", b"a"): (b"2", Lifetime.PERSISTENT)}


@pytest.mark.parametrize("key", [b"\0", b"\xff" * 200, b"'; DROP TABLE records; --", b"k\0k"])
def test_keys_are_any_bytes(reopen: Open, key: bytes):
    reopen().commit([put(key, key)], None)

    assert content(reopen()) == {("pks", key): (key, Lifetime.PERSISTENT)}


def test_large_values_come_back(reopen: Open):
    value = bytes(range(256)) * 256
    reopen().commit([put(b"a", value)], RecordedReply(0, 1, value))
    loaded = reopen().load()

    assert loaded.records[0].value == value
    assert loaded.replies[0].frame == value


def test_a_reply_is_kept_until_the_vcpus_next(reopen: Open):
    store = reopen()
    store.begin_run(RUN)
    first, second, other = (
        RecordedReply(0, 1, b"1"),
        RecordedReply(0, 2, b"2"),
        RecordedReply(7, (1 << 64) - 1, b"3"),
    )
    store.commit([put(b"a")], first)
    store.commit([], other)
    assert set(store.load().replies) == {first, other}
    store.commit([], second)
    store.commit([put(b"b")], None)

    assert set(reopen().load().replies) == {second, other}


def test_a_new_run_drops_run_records_and_replies(reopen: Open):
    store = reopen()
    assert store.begin_run(RUN)
    store.commit([put(b"kept"), put(b"gone", lifetime=Lifetime.RUN)], RecordedReply(0, 1, b"r"))

    assert not store.begin_run(RUN)
    assert set(content(store)) == {("pks", b"kept"), ("pks", b"gone")}
    assert store.begin_run(Run(RUN.instance, 1))
    assert set(content(store)) == {("pks", b"kept")}
    assert list(store.load().replies) == []


@pytest.mark.parametrize("run", [Run(RUN.instance, 1), Run(b"instance 2......", 0)])
def test_another_reset_or_instance_is_another_run(reopen: Open, run: Run):
    store = reopen()
    store.begin_run(RUN)
    store.commit([put(b"gone", lifetime=Lifetime.RUN)], None)

    assert store.begin_run(run)
    assert content(store) == {}
    assert store.begin_run(RUN)


def test_a_run_goes_on_when_the_store_is_opened_again(reopen: Open):
    store = reopen()
    store.begin_run(RUN)
    store.commit([put(b"a", b"1", Lifetime.RUN)], RecordedReply(3, 9, b"r"))
    store = reopen()

    assert not store.begin_run(RUN)
    assert content(store) == {("pks", b"a"): (b"1", Lifetime.RUN)}
    assert list(store.load().replies) == [RecordedReply(3, 9, b"r")]


def test_a_run_that_ended_while_the_store_was_closed_is_dropped(reopen: Open):
    store = reopen()
    store.begin_run(RUN)
    store.commit([put(b"a", lifetime=Lifetime.RUN)], RecordedReply(3, 9, b"r"))
    store = reopen()

    assert store.begin_run(Run(RUN.instance, 1))
    assert content(store) == {}


def test_run_records_before_any_run_are_dropped_by_the_first(reopen: Open):
    store = reopen()
    store.commit([put(b"a", lifetime=Lifetime.RUN)], None)
    assert content(store) == {("pks", b"a"): (b"value", Lifetime.RUN)}
    store.begin_run(RUN)

    assert content(store) == {}


def test_the_generation_grows_with_each_commit_and_stays(reopen: Open):
    store = reopen()
    seen = [store.generation]
    store.commit([put(b"a")], None)
    seen.append(store.generation)
    store.commit([], None)
    seen.append(store.generation)
    store.begin_run(RUN)
    seen.append(store.generation)
    store.begin_run(RUN)

    assert seen == sorted(set(seen))
    assert store.generation == seen[-1]
    store = reopen()
    assert store.generation == store.load().generation == seen[-1]


def test_flush_covers_what_was_committed(reopen: Open):
    store = reopen()
    store.commit([put(b"a")], None)
    assert store.dirty
    store.flush()
    assert not store.dirty
    store.flush()
    store.commit([put(b"b")], None)
    assert store.dirty


def test_rest_keeps_content_and_ownership(reopen: Open):
    store = reopen()
    store.begin_run(RUN)
    store.commit([put(b"a")], RecordedReply(0, 1, b"r"))
    store.rest()
    store.rest()

    assert content(store) == {("pks", b"a"): (b"value", Lifetime.PERSISTENT)}
    store.rest()
    store.flush()
    store.commit([put(b"b")], None)
    store.rest()
    assert not store.begin_run(RUN)
    assert len(content(store)) == 2


def test_a_closed_store_refuses_everything(reopen: Open):
    store = reopen()
    store.close()
    store.close()

    for action in (
        store.load,
        lambda: store.commit([put(b"a")], None),
        lambda: store.begin_run(RUN),
    ):
        with pytest.raises(StoreError, match="closed"):
            action()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_store_has_one_owner(kind: str, tmp_path: pathlib.Path):
    directory = MemoryDirectory() if kind == "memory" else StateDirectory(tmp_path)
    first = directory.open("guest")
    with pytest.raises(StoreError, match="partition guest is in use by"):
        directory.open("guest")
    other = directory.open("other")
    first.commit([put(b"mine")], None)
    assert content(other) == {}
    first.close()
    second = directory.open("guest")
    assert content(second) == {("pks", b"mine"): (b"value", Lifetime.PERSISTENT)}
    second.close()
    other.close()
