# SPDX-License-Identifier: Apache-2.0
"""State directories of older versions, opened with today's code."""

from __future__ import annotations

import pathlib
import shutil
import sqlite3

import pytest

from hcalld.core.records import RecordedReply, Run
from hcalld.domain.attributes import PartitionAttributes
from hcalld.domain.keystore import Keystore
from hcalld.domain.labels import SED_LABEL, os_label, sed_object
from hcalld.stores import sqlite_schema
from hcalld.stores.directory import StateDirectory
from hcallproto.payloads.pks import Consumer, Policy

VECTORS = pathlib.Path(__file__).parent / "stores"
RUN = Run(b"instance of lpar", 3)
PASSWORD = b"password of the OS"


def state(tmp_path: pathlib.Path, version: str) -> StateDirectory:
    """A copy that today's code may open: git keeps no modes."""
    copy = tmp_path / "state"
    shutil.copytree(VECTORS / version, copy)
    (copy / "key").chmod(0o600)
    return StateDirectory(copy)


def test_every_version_has_a_vector():
    assert {f"version{version}" for version in sqlite_schema.SCHEMAS} - {
        f"version{sqlite_schema.SCHEMA_VERSION}"
    } == {path.name for path in VECTORS.iterdir()}


@pytest.mark.parametrize("partition", ["lpar7", "grün"])
def test_version_1_when_opened_then_everything_is_found(tmp_path: pathlib.Path, partition: str):
    store = state(tmp_path, "version1").open(partition, create=False)
    store.verify()
    assert store.generation == 3
    assert not store.begin_run(RUN), "the run goes on"
    loaded = store.load()
    assert sorted(loaded.replies, key=lambda reply: reply.vcpu) == [
        RecordedReply(0, 7, b"reply to vCPU 0"),
        RecordedReply(1, (1 << 64) - 1, b"reply to vCPU 1"),
    ]
    keystore = Keystore(PartitionAttributes(), loaded.records)
    found = {(item.consumer, item.label): item.stored for item in keystore.objects()}
    assert {key: (stored.policy, stored.data) for key, stored in found.items()} == {
        (Consumer.OS, os_label(b"hcalld", b"first")): (0, b"first object of " + partition.encode()),
        (Consumer.OS, os_label(b"", b"second")): (Policy.WORLDREADABLE, bytes(range(256)) * 8),
        (Consumer.OS, SED_LABEL): (Policy.WORLDREADABLE, sed_object(b"pin")),
        (Consumer.FIRMWARE, b"bare name"): (0, b"firmware's"),
    }
    keystore.authorize(Consumer.OS, PASSWORD)
    store.close()


@pytest.mark.parametrize("partition", ["lpar7", "grün"])
def test_version_1_when_migrated_then_the_copy_beside_it_is_the_old_store(
    tmp_path: pathlib.Path, partition: str
):
    directory = state(tmp_path, "version1")
    directory.open(partition).close()
    path = directory.folder(partition) / "keystore.db"
    copy = path.with_name("keystore.db.v1.bak")
    assert copy.stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(path) as new, sqlite3.connect(copy) as old:
        assert old.execute("PRAGMA user_version").fetchone() == (1,)
        assert new.execute("PRAGMA user_version").fetchone() == (sqlite_schema.SCHEMA_VERSION,)
        for table in ("records", "replies"):
            query = f"SELECT * FROM {table}"
            assert sorted(old.execute(query)) == sorted(new.execute(query))
    new.close()
    old.close()
    # Put back, the copy is a store again.
    copy.rename(path)
    store = directory.open(partition)
    store.verify()
    assert store.generation == 3
    store.close()
