# SPDX-License-Identifier: Apache-2.0
"""Operations that take several issues: continue tokens.

A long operation is answered with a busy code and a token; the guest issues the call
again with the token, and all other arguments as before (plpks.c
``plpks_signed_update_var()``, ``plpks_wrap_object()``). A token is random, good for one
issue of one call with the same arguments, and dies with the run of the machine. It is
kept in the store, so it outlives the daemon.

The operation itself is carried out by its last issue. Nothing of it is kept in between,
and whoever never comes back has left nothing but a token.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Callable, Mapping
from typing import Final

from hcalld.core.errors import StoreError
from hcalld.core.records import Change, Delete, Lifetime, Put, Record

TOKEN_TAG: Final = b"t"
TOKEN_SIZE: Final = 8
MAX_TOKENS: Final = 256
"""Tokens at a time; then the oldest is forgotten, as if the guest had never held it."""

_VERSION: Final = 1
_HEAD: Final = bytes((_VERSION, 0))
_VALUE: Final = struct.Struct(">BxHQ32s")
"""Version, 0, issues left, order of its making, digest of the call."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Token:
    left: int
    order: int
    digest: bytes


def digest_of(number: int, arguments: Mapping[str, int]) -> bytes:
    """What a token is bound to: the call and all of its arguments but the token."""
    text = [f"{number}"] + [f"{name}={arguments[name]}" for name in arguments if name != "token"]
    return hashlib.sha256(",".join(text).encode()).digest()


class Continuations:
    """The tokens that a partition's guest holds.

    Args:
        namespace: of the records.
        change: is told what a store must be told.
    """

    def __init__(self, namespace: str, change: Callable[[Change], None]) -> None:
        self._namespace = namespace
        self._change = change
        self._tokens: dict[int, _Token] = {}
        self._order = 0

    def load(self, record: Record) -> None:
        """Take a record of the store.

        Raises:
            StoreError: it is malformed, or of a newer version.
        """
        key, value = record.key, record.value
        is_ours = len(key) == 1 + TOKEN_SIZE and len(value) == _VALUE.size
        is_known = is_ours and value[:2] == _HEAD and record.lifetime is Lifetime.RUN
        if not is_known:
            raise StoreError(
                f"record of a continue token is malformed, or of a newer hcalld: {key.hex()}"
            )
        _, left, order, digest = _VALUE.unpack(value)
        self._tokens[int.from_bytes(key[1:], "big")] = _Token(left, order, digest)
        self._order = max(self._order, order)

    def clear(self) -> None:
        """The run is over; a store drops the records by itself."""
        self._tokens.clear()

    def left(self, token: int, digest: bytes, issues: int) -> int | None:
        """How many more busy answers a call gets.

        Args:
            token: what the call came with; 0 for a first issue.
            digest: of the call.
            issues: busy answers of an operation.

        Returns:
            The number; None if the token is not one, or not this call's.
        """
        if token == 0:
            return issues
        held = self._tokens.get(token)
        return held.left if held is not None and held.digest == digest else None

    def use(self, token: int) -> None:
        """Forget a token; it is good for one issue."""
        if token:
            del self._tokens[token]
            self._change(Delete(self._namespace, self._key(token)))

    def make(self, token: int, digest: bytes, left: int) -> None:
        """Hand out ``token`` for the next issue."""
        if len(self._tokens) >= MAX_TOKENS:
            self.use(min(self._tokens, key=lambda token: self._tokens[token].order))
        self._order += 1
        self._tokens[token] = _Token(left, self._order, digest)
        value = _VALUE.pack(_VERSION, left, self._order, digest)
        self._change(Put(Record(self._namespace, self._key(token), value, Lifetime.RUN)))

    @staticmethod
    def _key(token: int) -> bytes:
        return TOKEN_TAG + token.to_bytes(TOKEN_SIZE, "big")
