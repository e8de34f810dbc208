# SPDX-License-Identifier: Apache-2.0
"""What a state directory remembers of its key's source, and moving the key."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import stat
from typing import Any

import pytest

from hcalld.core.errors import ConfigError, StoreError
from hcalld.core.records import Put, Record
from hcalld.core.secret import Secret
from hcalld.crypto import passphrase as passphrases
from hcalld.stores.directory import StateDirectory
from hcalld.stores.keys import FileKeySource, Kept, Keyring, KeySource
from hcalld.stores.keys.credential import DIRECTORY_VARIABLE, CredentialKeySource
from hcalld.stores.keys.note import NOTE_NAME, read_note
from hcalld.stores.keys.passphrase import PassphraseFrom, PassphraseKeySource


@pytest.fixture(autouse=True)
def _cheap_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passphrases, "LOG_N", 10)


def passphrase(text: bytes = b"correct horse") -> PassphraseKeySource:
    return PassphraseKeySource(PassphraseFrom(lambda _is_new: text, "typed passphrase"))


def ring(path: pathlib.Path, source: KeySource, *partitions: str) -> Keyring:
    return Keyring(path, source, lambda: list(partitions))


def test_a_key_is_made_once_and_noted(tmp_path: pathlib.Path):
    path = tmp_path / "state"
    master = ring(path, passphrase()).load(may_create=True)

    assert ring(path, passphrase()).load(may_create=True) == master
    assert stat.S_IMODE((path / NOTE_NAME).stat().st_mode) == 0o600
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert os.listdir(path) == [NOTE_NAME]
    assert master.reveal().hex() not in (path / NOTE_NAME).read_text()


def test_nothing_is_made_unless_it_may_be(tmp_path: pathlib.Path):
    with pytest.raises(StoreError, match="has no master key yet"):
        ring(tmp_path, passphrase()).load(may_create=False)
    FileKeySource(tmp_path / "key").keep(Secret(bytes(32)))
    found = ring(tmp_path, FileKeySource(tmp_path / "key")).load(may_create=False)
    assert found == Secret(bytes(32))
    assert os.listdir(tmp_path) == ["key"]


def test_partitions_without_a_key_get_no_new_one(tmp_path: pathlib.Path):
    for source in (passphrase(), FileKeySource(tmp_path / "key")):
        with pytest.raises(StoreError, match="the partitions a, b are encrypted with it"):
            ring(tmp_path, source, "a", "b").load(may_create=True)
    assert os.listdir(tmp_path) == []


def test_another_kind_of_source_is_refused_with_the_right_one(tmp_path: pathlib.Path):
    ring(tmp_path, passphrase()).load(may_create=True)

    with pytest.raises(StoreError, match=r"passphrase, not file; use --key passphrase:.*rekey"):
        ring(tmp_path, FileKeySource(tmp_path / "key")).load(may_create=True)
    assert os.listdir(tmp_path) == [NOTE_NAME], "no second key was made"


def test_another_key_is_refused_before_any_store_is_opened(tmp_path: pathlib.Path):
    ring(tmp_path, FileKeySource(tmp_path / "key")).load(may_create=True)
    FileKeySource(tmp_path / "other").keep(Secret(bytes(32)))

    with pytest.raises(StoreError, match=r"another key than that of key file .*other"):
        ring(tmp_path, FileKeySource(tmp_path / "other")).load(may_create=True)


def test_of_two_that_make_a_key_one_wins(tmp_path: pathlib.Path):
    first: list[Secret] = []

    class Slow(FileKeySource):
        """Another process makes the directory's key while this one makes its own."""

        def keep(self, master: Secret) -> Kept:
            if not first:
                first.append(ring(tmp_path, FileKeySource(self.path)).load(may_create=True))
            return super().keep(master)

    assert ring(tmp_path, Slow(tmp_path / "key")).load(may_create=True) == first[0]


def sum_again(path: pathlib.Path, **changed: Any) -> None:
    """Changes fields of the note as somebody with the format's description would."""
    name, line, _, _ = path.read_bytes().split(b"\n")
    line = json.dumps({**json.loads(line), **changed}).encode()
    path.write_bytes(b"\n".join((name, line, hashlib.sha256(line).hexdigest().encode(), b"")))


def test_every_changed_or_missing_byte_of_the_note_is_damage(tmp_path: pathlib.Path):
    ring(tmp_path, passphrase()).load(may_create=True)
    path = tmp_path / NOTE_NAME
    whole = path.read_bytes()
    for offset in range(len(whole)):
        for content in (
            whole[:offset],
            whole[:offset] + bytes((whole[offset] ^ 1,)) + whole[offset + 1 :],
        ):
            path.write_bytes(content)
            with pytest.raises(StoreError, match=r"is damaged|newer hcalld"):
                read_note(path)
    path.write_bytes(whole + b"\n")
    with pytest.raises(StoreError, match="damaged"):
        read_note(path)


@pytest.mark.parametrize(
    "changed",
    [{"check": ""}, {"kept": 1}, {"more": 1}, {"kind": None}, {"check": "AAAA"}],
    ids=str,
)
def test_a_note_with_other_fields_is_damage(tmp_path: pathlib.Path, changed: dict[str, Any]):
    ring(tmp_path, passphrase()).load(may_create=True)
    sum_again(tmp_path / NOTE_NAME, **changed)

    with pytest.raises(StoreError, match="damaged"):
        ring(tmp_path, passphrase()).load(may_create=True)


def test_a_note_of_a_newer_version_or_kind_is_not_ours(tmp_path: pathlib.Path):
    ring(tmp_path, passphrase()).load(may_create=True)
    path = tmp_path / NOTE_NAME
    sum_again(path, kind="quantum")
    with pytest.raises(StoreError, match=r"kind quantum.*newer hcalld"):
        ring(tmp_path, passphrase()).load(may_create=True)
    path.write_bytes(path.read_bytes().replace(b"source-v1", b"source-v2"))
    with pytest.raises(StoreError, match="newer hcalld"):
        ring(tmp_path, passphrase()).load(may_create=True)


def test_a_note_that_others_may_read_is_refused(tmp_path: pathlib.Path):
    ring(tmp_path, passphrase()).load(may_create=True)
    (tmp_path / NOTE_NAME).chmod(0o644)

    with pytest.raises(StoreError, match="chmod 0600"):
        ring(tmp_path, passphrase()).load(may_create=True)


# -- moving -----------------------------------------------------------------------------------


def fill(path: pathlib.Path) -> None:
    store = StateDirectory(path).open("guest")
    store.commit([Put(Record("pks", b"k", b"value"))], None)
    store.close()


def value(path: pathlib.Path, source: KeySource) -> bytes:
    store = StateDirectory(path, source).open("guest", create=False)
    try:
        return store.load().records[0].value
    finally:
        store.close()


def test_a_moved_key_opens_the_same_stores_and_leaves_no_file(tmp_path: pathlib.Path):
    path = tmp_path / "state"
    fill(path)
    before = (path / "partitions" / "guest" / "keystore.db").read_bytes()
    assert StateDirectory(path).move_key(passphrase(), forget=True) == ""

    assert not (path / "key").exists()
    assert value(path, passphrase()) == b"value"
    assert (path / "partitions" / "guest" / "keystore.db").read_bytes() == before
    with pytest.raises(StoreError, match="kind passphrase, not file"):
        StateDirectory(path).open("guest")
    back = FileKeySource(tmp_path / "elsewhere")
    assert StateDirectory(path, passphrase()).move_key(back, forget=True) == ""
    assert value(path, back) == b"value"


def test_a_passphrase_is_changed(tmp_path: pathlib.Path):
    ring(tmp_path, passphrase()).load(may_create=True)
    old = ring(tmp_path, passphrase())
    old.move(old.load(may_create=False), passphrase(b"battery staple"), forget=True)

    ring(tmp_path, passphrase(b"battery staple")).load(may_create=False)
    with pytest.raises(StoreError, match="wrong passphrase"):
        ring(tmp_path, passphrase()).load(may_create=False)


def test_the_old_file_stays_if_asked(tmp_path: pathlib.Path):
    fill(tmp_path)
    StateDirectory(tmp_path).move_key(passphrase(), forget=False)

    assert (tmp_path / "key").exists()


def test_a_key_moves_into_a_credential_that_was_made_of_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(DIRECTORY_VARIABLE, os.fspath(tmp_path))
    path = tmp_path / "state"
    fill(path)
    (tmp_path / "hcalld").write_bytes(bytes(32))
    with pytest.raises(StoreError, match="holds another key"):
        StateDirectory(path).move_key(CredentialKeySource("hcalld"), forget=True)
    assert value(path, FileKeySource(path / "key")) == b"value"
    (tmp_path / "hcalld").write_bytes((path / "key").read_bytes())
    StateDirectory(path).move_key(CredentialKeySource("hcalld"), forget=True)
    assert value(path, CredentialKeySource("hcalld")) == b"value"


def test_a_key_is_not_moved_over_another_or_onto_itself(tmp_path: pathlib.Path):
    path = tmp_path / "state"
    fill(path)
    other = FileKeySource(tmp_path / "other")
    other.keep(Secret(bytes(32)))

    with pytest.raises(StoreError, match="holds another key already"):
        StateDirectory(path).move_key(other, forget=True)
    with pytest.raises(ConfigError, match="is where the key is"):
        StateDirectory(path).move_key(FileKeySource(path / ".." / "state" / "key"), forget=True)
    assert value(path, FileKeySource(path / "key")) == b"value"


def test_a_move_that_cannot_be_noted_leaves_all_as_it_was(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "state"
    fill(path)
    target = FileKeySource(tmp_path / "other")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StoreError, match="No space left"):
        StateDirectory(path).move_key(target, forget=True)
    monkeypatch.undo()
    assert value(path, FileKeySource(path / "key")) == b"value"
    assert sorted(os.listdir(path)) == ["key", NOTE_NAME, "partitions"]
