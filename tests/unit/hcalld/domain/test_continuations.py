# SPDX-License-Identifier: Apache-2.0
"""Continue tokens: one issue of one call each, until the run ends."""

from __future__ import annotations

import pytest

from hcalld.core.errors import StoreError
from hcalld.core.records import Change, Delete, Lifetime, Put, Record
from hcalld.domain.continuations import (
    MAX_TOKENS,
    TOKEN_SIZE,
    TOKEN_TAG,
    Continuations,
    digest_of,
)

DIGEST = b"d" * 32
OTHER = b"o" * 32


class Recorded:
    """Tokens, and what a store would hold of them."""

    def __init__(self, records: dict[bytes, Record] | None = None) -> None:
        self.changes: list[Change] = []
        self.records = dict(records or {})
        self.tokens = Continuations("pks", self._change)
        for record in self.records.values():
            self.tokens.load(record)

    def _change(self, change: Change) -> None:
        self.changes.append(change)
        if isinstance(change, Put):
            self.records[change.record.key] = change.record
        else:
            del self.records[change.key]

    def reload(self) -> Recorded:
        return Recorded(self.records)


def key(token: int) -> bytes:
    return b"t" + token.to_bytes(8, "big")


def test_token_0_is_a_first_issue():
    tokens = Recorded().tokens

    assert tokens.left(0, DIGEST, 3) == 3
    assert tokens.left(0, DIGEST, 0) == 0


def test_a_token_that_was_never_handed_out_is_none():
    recorded = Recorded()
    recorded.tokens.make(7, DIGEST, 1)

    for token in (1, 6, 8, 7 << 32, (1 << 64) - 1):
        assert recorded.tokens.left(token, DIGEST, 3) is None


def test_a_token_says_how_many_busy_answers_are_left():
    recorded = Recorded()
    recorded.tokens.make(7, DIGEST, 2)

    assert recorded.tokens.left(7, DIGEST, 99) == 2
    assert recorded.tokens.left(7, DIGEST, 0) == 2  # the profile changed meanwhile


def test_a_token_is_bound_to_its_call():
    recorded = Recorded()
    recorded.tokens.make(7, DIGEST, 2)

    assert recorded.tokens.left(7, OTHER, 2) is None
    assert recorded.tokens.left(7, b"", 2) is None
    assert recorded.tokens.left(7, DIGEST, 2) == 2


def test_looking_at_a_token_does_not_use_it_and_using_it_does():
    recorded = Recorded()
    recorded.tokens.make(7, DIGEST, 2)
    for _ in range(3):
        assert recorded.tokens.left(7, DIGEST, 2) == 2
    recorded.tokens.use(7)

    assert recorded.tokens.left(7, DIGEST, 2) is None


def test_using_token_0_is_nothing():
    recorded = Recorded()
    recorded.tokens.use(0)

    assert recorded.changes == []


def test_making_and_using_are_recorded_for_the_run():
    recorded = Recorded()
    recorded.tokens.make(7, DIGEST, 2)
    recorded.tokens.use(7)
    put, delete = recorded.changes

    assert isinstance(put, Put)
    assert (put.record.namespace, put.record.key) == ("pks", key(7))
    assert put.record.lifetime is Lifetime.RUN
    assert delete == Delete("pks", key(7))


def test_the_record_is_the_documented_bytes():
    recorded = Recorded()
    recorded.tokens.make(0xFEDC_BA98_7654_3210, DIGEST, 0x1234)
    (record,) = recorded.records.values()

    assert record.key == b"t\xfe\xdc\xba\x98\x76\x54\x32\x10"
    assert record.value == b"\x01\0\x12\x34" + bytes(7) + b"\x01" + DIGEST


def test_tokens_outlive_the_daemon():
    recorded = Recorded()
    recorded.tokens.make(7, DIGEST, 2)
    recorded.tokens.make(8, OTHER, 0)
    tokens = recorded.reload().tokens

    assert tokens.left(7, DIGEST, 9) == 2
    assert tokens.left(8, OTHER, 9) == 0
    assert tokens.left(7, OTHER, 9) is None


def test_a_used_token_stays_used_after_the_daemons_restart():
    recorded = Recorded()
    recorded.tokens.make(7, DIGEST, 2)
    recorded.tokens.use(7)

    assert recorded.reload().tokens.left(7, DIGEST, 9) is None


def test_tokens_end_with_the_run_without_changes():
    recorded = Recorded()
    recorded.tokens.make(7, DIGEST, 2)
    recorded.changes.clear()
    recorded.tokens.clear()

    assert recorded.tokens.left(7, DIGEST, 2) is None
    assert recorded.changes == []


def test_of_too_many_tokens_the_oldest_is_forgotten():
    recorded = Recorded()
    # Made in an order that is not that of their numbers.
    numbers = [(i * 7919) % 65537 + 1 for i in range(MAX_TOKENS + 3)]
    for token in numbers:
        recorded.tokens.make(token, DIGEST, 1)

    assert len(recorded.records) == MAX_TOKENS
    known = [recorded.tokens.left(token, DIGEST, 1) is not None for token in numbers]
    assert known == [False] * 3 + [True] * MAX_TOKENS


def test_the_order_of_making_outlives_the_daemon():
    recorded = Recorded()
    for token in range(MAX_TOKENS, 0, -1):
        recorded.tokens.make(token, DIGEST, 1)
    later = recorded.reload()
    later.tokens.make(1000, DIGEST, 1)
    later = later.reload()
    later.tokens.make(1001, DIGEST, 1)

    missing = [n for n in range(1, MAX_TOKENS + 1) if later.tokens.left(n, DIGEST, 1) is None]
    assert missing == [MAX_TOKENS - 1, MAX_TOKENS]
    assert len(later.records) == MAX_TOKENS


GOOD = Record("pks", key(7), b"\x01\0\0\x02" + bytes(7) + b"\x01" + DIGEST, Lifetime.RUN)


def test_the_good_record_is_good():
    assert Recorded({GOOD.key: GOOD}).tokens.left(7, DIGEST, 9) == 2


@pytest.mark.parametrize(
    "record",
    [
        Record("pks", b"t", GOOD.value, Lifetime.RUN),
        Record("pks", GOOD.key[:-1], GOOD.value, Lifetime.RUN),
        Record("pks", GOOD.key + b"\0", GOOD.value, Lifetime.RUN),
        Record("pks", GOOD.key, b"", Lifetime.RUN),
        Record("pks", GOOD.key, GOOD.value[:-1], Lifetime.RUN),
        Record("pks", GOOD.key, GOOD.value + b"\0", Lifetime.RUN),
        Record("pks", GOOD.key, b"\x02" + GOOD.value[1:], Lifetime.RUN),
        Record("pks", GOOD.key, b"\0" + GOOD.value[1:], Lifetime.RUN),
        Record("pks", GOOD.key, b"\x01\x01" + GOOD.value[2:], Lifetime.RUN),
        Record("pks", GOOD.key, GOOD.value, Lifetime.PERSISTENT),
    ],
)
def test_a_malformed_record_is_refused(record: Record):
    with pytest.raises(StoreError, match="continue token is malformed, or of a newer hcalld"):
        Recorded({record.key: record})


def test_a_digest_is_of_the_call_and_all_arguments_but_the_token():
    arguments = {"auth": 0x1000, "in": 0x2000, "in_size": 32, "token": 0}
    digest = digest_of(0x490, arguments)

    assert len(digest) == 32
    assert digest_of(0x490, arguments | {"token": 99}) == digest
    assert digest_of(0x494, arguments) != digest
    for name in ("auth", "in", "in_size"):
        assert digest_of(0x490, arguments | {name: arguments[name] + 1}) != digest
    # Digits do not run together.
    assert digest_of(1, {"a": 1, "b": 11}) != digest_of(1, {"a": 11, "b": 1})
    assert digest_of(1, {"a": 11}) != digest_of(11, {"a": 1})


def test_sizes_are_those_of_a_register():
    assert TOKEN_SIZE == 8
    assert TOKEN_TAG == b"t"
