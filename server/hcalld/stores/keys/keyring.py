# SPDX-License-Identifier: Apache-2.0
"""The master key of one state directory: found, made, or kept in another place.

The master key is 32 random bytes and stays the same for the directory's life; a source
is only where it is kept. So another source, or another passphrase, changes one small
file, the note (``note.py``), in one rename: no store is encrypted anew.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Final

from hcalld.core.errors import ConfigError, StoreError
from hcalld.core.secret import Secret
from hcalld.crypto.passphrase import key_check
from hcalld.crypto.seal import KEY_SIZE
from hcalld.stores.fsync import make_directory
from hcalld.stores.keys.file import FileKeySource
from hcalld.stores.keys.note import NOTE_NAME, Note, read_note, write_note
from hcalld.stores.keys.source import KeySource

_ADVICE: Final = {
    "file": "--key file:PATH",
    "credential": "--key credential:NAME",
    "passphrase": "--key passphrase: (or passphrase-file:PATH and so on)",
    "tpm": "--key tpm:TCTI",
}


class Keyring:
    """Where a state directory's master key is.

    Args:
        path: the state directory.
        source: where the user says that the key is.
        partitions: names those that are encrypted already.
    """

    def __init__(
        self,
        path: pathlib.Path,
        source: KeySource,
        partitions: Callable[[], Sequence[str]],
    ) -> None:
        self.source = source
        self._path = path
        self._note_path = path / NOTE_NAME
        self._partitions = partitions

    def load(self, *, may_create: bool) -> Secret:
        """The master key; made if there is none and nothing needs an older one.

        Raises:
            StoreError: it is missing, damaged, another one, or kept in another kind of place.
            ConfigError: the source is no such thing.
        """
        note = read_note(self._note_path)
        if note is not None:
            return self._load_noted(note)
        master = self.source.load({})
        others = self._partitions()
        if others:
            if master is None:
                raise self._missing(others)
            return master  # whether it is theirs, they know themselves
        if may_create:
            return self._create(master)
        if master is None:
            raise StoreError(
                f"{self._path} has no master key yet, for it has no partitions; the first one, by "
                "'hcalld ctl set --create' for instance, makes the key"
            )
        return master

    @property
    def is_noted(self) -> bool:
        """True if there is a note, which tells the right key from others."""
        return self._note_path.exists()

    def _load_noted(self, note: Note) -> Secret:
        if note.kind != self.source.kind:
            raise StoreError(
                f"the master key of {self._path} is kept by a source of kind {note.kind}, not "
                f"{self.source.kind}; use {_ADVICE.get(note.kind, 'a newer hcalld')}, or move "
                "the key with hcalld state rekey"
            )
        master = self.source.load(note.kept)
        if master is None:
            raise self._missing(self._partitions())
        if key_check(master) != note.check:
            raise StoreError(
                f"{self._path} was encrypted with another key than that of "
                f"{self.source.description}; restore the key that was used"
            )
        return master

    def _missing(self, partitions: Sequence[str]) -> StoreError:
        if not partitions:
            return StoreError(
                f"{self.source.description} is missing; restore it from a backup, or say where it "
                "is with --key"
            )
        return StoreError(
            f"{self.source.description} is missing, but the partitions {', '.join(partitions)} are "
            "encrypted with it; restore it from a backup, or say where it is with --key"
        )

    def _create(self, found: Secret | None) -> Secret:
        """Note a key that was found, or that is made now. The first process wins."""
        try:
            make_directory(self._path)
        except OSError as error:
            raise StoreError(
                f"{self._path}: cannot make the state directory ({error.strerror}); give another "
                "with --state-dir"
            ) from None
        kept = self.source.keep(found or Secret(os.urandom(KEY_SIZE)))
        master = self.source.load(kept)
        if master is None:
            raise StoreError(f"{self.source.description} vanished while it was made")
        try:
            write_note(self._note_path, self.source.kind, key_check(master), kept, replace=False)
        except FileExistsError:
            return self.load(may_create=False)
        return master

    def move(self, master: Secret, target: KeySource, *, forget: bool) -> str:
        """Keep the master key in another place, and no longer in this one.

        The new place is tried before the note is changed, and the old one is emptied after.

        Args:
            master: what ``load`` gave; a passphrase is not asked for twice.
            target: the new place.
            forget: remove the key from the old one.

        Returns:
            What is left for the user to do; "" for nothing.

        Raises:
            StoreError: the new place holds another, or cannot be used.
            ConfigError: both are the same.
        """
        if _same_file(self.source, target):
            raise ConfigError(f"{target.description} is where the key is; name another place")
        kept = target.keep(master)
        if target.load(kept) != master:
            raise StoreError(
                f"{target.description} holds another key already; remove it, or name another place"
            )
        write_note(self._note_path, target.kind, key_check(master), kept, replace=True)
        return self.source.forget() if forget else ""


def _same_file(one: KeySource, other: KeySource) -> bool:
    if not isinstance(one, FileKeySource) or not isinstance(other, FileKeySource):
        return False
    return one.path.exists() and other.path.exists() and one.path.samefile(other.path)
