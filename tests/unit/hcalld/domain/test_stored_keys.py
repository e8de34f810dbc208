# SPDX-License-Identifier: Apache-2.0
"""What a store is told of keys that may have changed."""

from __future__ import annotations

from hcalld.core.records import Delete, Put, Record
from hcalld.domain.stored_keys import StoredKeys


def test_what_is_there_is_put_and_what_is_gone_is_deleted_once():
    held = {b"b": b"2", b"a": b"1"}
    keys = StoredKeys("n", lambda key, content: Record("n", key, content), held.get)
    assert keys.changes({b"b", b"a", b"never"}) == [
        Put(Record("n", b"a", b"1")),
        Put(Record("n", b"b", b"2")),
    ]
    assert sorted(keys) == [b"a", b"b"]
    del held[b"a"]
    assert keys.changes({b"a"}) == [Delete("n", b"a")]
    assert keys.changes({b"a"}) == []


def test_what_the_store_was_seen_to_hold_is_deleted_too():
    keys = StoredKeys("n", lambda key, content: Record("n", key, content), lambda key: None)
    keys.add(b"old")
    assert keys.changes([b"old"]) == [Delete("n", b"old")]
    assert list(keys) == []
