# SPDX-License-Identifier: Apache-2.0
"""The SQLite store against the one in memory: any history, the same content."""

from __future__ import annotations

import pathlib
import shutil
import tempfile

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hcalld.core.records import Change, Delete, Lifetime, Put, Record, RecordedReply, Run
from hcalld.core.secret import Secret
from hcalld.stores.memory import MemoryDirectory
from hcalld.stores.sqlite import SqliteStore

NAMESPACES = st.sampled_from(["pks", "tpm"])
KEYS = st.sampled_from([b"", b"a", b"A", b"a\0", b"\xff" * 100])
RECORDS = st.builds(
    Record,
    NAMESPACES,
    KEYS,
    st.one_of(st.binary(max_size=100), st.just(b"\x5a" * 20_000)),
    st.sampled_from(Lifetime),
)
CHANGES: st.SearchStrategy[Change] = st.one_of(
    st.builds(Put, RECORDS), st.builds(Delete, NAMESPACES, KEYS)
)
REPLIES = st.builds(
    RecordedReply,
    st.sampled_from([0, 1, 0xFFFF_FFFE]),
    st.sampled_from([1, 2, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]),
    st.binary(max_size=200),
)
RUNS = st.builds(Run, st.sampled_from([b"1" * 16, b"2" * 16]), st.integers(0, 2))


class StoreMachine(RuleBasedStateMachine):
    """Commits, runs, flushes, rests, restarts and copies of the files."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="hcalld-test-"))
        self.naive_directory = MemoryDirectory()
        self.naive = self.naive_directory.open("guest")
        self.store = self.open()

    def open(self) -> SqliteStore:
        return SqliteStore(self.folder, "guest", lambda may_create: Secret(b"k" * 32))

    @rule(changes=st.lists(CHANGES, max_size=5), reply=st.one_of(st.none(), REPLIES))
    def commit(self, changes: list[Change], reply: RecordedReply | None) -> None:
        self.store.commit(changes, reply)
        self.naive.commit(changes, reply)

    @rule(run=RUNS)
    def begin_run(self, run: Run) -> None:
        assert self.store.begin_run(run) == self.naive.begin_run(run)

    @rule()
    def flush(self) -> None:
        self.store.flush()
        assert not self.store.dirty

    @rule()
    def rest(self) -> None:
        self.store.rest()

    @rule()
    def close_and_open(self) -> None:
        self.store.close()
        self.naive.close()
        self.naive = self.naive_directory.open("guest")
        self.store = self.open()

    @rule()
    def die_and_open(self) -> None:
        """What another process finds if this one dies now: the files as they are."""
        copy = self.folder.with_name(self.folder.name + "-copy")
        shutil.copytree(self.folder, copy)
        self.store.close()
        shutil.rmtree(self.folder)
        copy.rename(self.folder)
        self.store = self.open()

    @invariant()
    def content_agrees(self) -> None:
        real, naive = self.store.load(), self.naive.load()
        by_key = {(record.namespace, record.key): record for record in real.records}
        assert by_key == {(record.namespace, record.key): record for record in naive.records}
        assert len(by_key) == len(real.records)
        assert {reply.vcpu: reply for reply in real.replies} == {
            reply.vcpu: reply for reply in naive.replies
        }
        assert real.generation == naive.generation == self.store.generation

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)


# Each example syncs real files.
StoreMachine.TestCase.settings = settings(max_examples=settings().max_examples // 4)
TestStore = StoreMachine.TestCase
