# SPDX-License-Identifier: Apache-2.0
"""Which of a model's records a store holds, so that what is gone is deleted, and no more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from hcalld.core.records import Change, Delete, Put, Record


class StoredKeys:
    """The keys of one namespace.

    Args:
        namespace: of the records.
        put: makes a record of a key and its content.
        encode: gives what a key's record holds now; None if there is none.
    """

    def __init__(
        self,
        namespace: str,
        put: Callable[[bytes, bytes], Record],
        encode: Callable[[bytes], bytes | None],
    ) -> None:
        self._namespace = namespace
        self._put = put
        self._encode = encode
        self._keys: set[bytes] = set()

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._keys)

    def add(self, key: bytes) -> None:
        """The store was seen to hold it."""
        self._keys.add(key)

    def changes(self, dirty: Iterable[bytes]) -> list[Change]:
        """What the store is to be told of keys whose records may have changed."""
        changes: list[Change] = []
        for key in sorted(dirty):
            content = self._encode(key)
            if content is not None:
                self._keys.add(key)
                changes.append(Put(self._put(key, content)))
            elif key in self._keys:
                self._keys.remove(key)
                changes.append(Delete(self._namespace, key))
        return changes
