# SPDX-License-Identifier: Apache-2.0
"""The keystore as a child would keep it: dictionaries, and a list of conditions."""

from __future__ import annotations

import dataclasses
import functools
import struct

from tests import signing

from hcalld.domain.labels import os_label
from hcallproto.abi.returns import H

OVERHEAD = 24
TOTAL = 8192
WRAPPING = 0x0080_0000


@dataclasses.dataclass(frozen=True)
class Update:
    """A signed update that was made beforehand."""

    name: str
    signer: str
    second: int
    data: bytes = dataclasses.field(repr=False)
    is_append: bool
    message: bytes = dataclasses.field(repr=False)
    digests: tuple[int, ...] = ()

    @property
    def label(self) -> bytes:
        return os_label(b"", self.name.encode("utf-16-le"))

    @property
    def policy(self) -> int:
        return 0x0900_0000 if self.name in ("dbx", "other") else 0x0100_0000


SIGNERS = ("PK", "KEK", "new")


@functools.cache
def updates() -> list[Update]:
    """Every update that the machine knows."""
    made = []

    def add(
        name: str,
        by: str,
        second: int,
        data: bytes,
        digests: tuple[int, ...] = (),
        *,
        is_append: bool = False,
    ) -> None:
        message = signing.update(name, data, by, signing.moment(second), is_append=is_append)
        made.append(Update(name, by, second, data, is_append, message, digests))

    for second, by in enumerate(("PK", "new", "stranger")):
        add("PK", by, second, signing.certificates("PK"))
        add("PK", by, second + 5, signing.certificates("new"))
        add("PK", by, second + 2, b"")
        add("PK", by, second + 3, signing.WIPE)
        add("KEK", by, second, signing.certificates("KEK"))
        add("KEK", by, second + 1, b"")
    add("PK", "PK", 9, signing.certificates("new"), is_append=True)
    add("KEK", "KEK", 9, signing.certificates("KEK", "new"))
    for second in (1, 4, 7):
        for by in ("PK", "KEK", "new", "stranger"):
            add("dbx", by, second, signing.digests(second), (second,))
            add("other", by, second, bytes((second,)) * (second * 300))
    for by in ("PK", "KEK"):
        add("dbx", by, 3, signing.digests(1, 9), (1, 9), is_append=True)
        add("dbx", by, 8, signing.digests(8), (8,), is_append=True)
        add("other", by, 3, b"more", is_append=True)
        add("dbx", by, 6, b"")
        add("other", by, 6, b"")
    return made


@dataclasses.dataclass
class Naive:
    """What should be there."""

    secure_boot: int
    objects: dict[tuple[int, bytes], tuple[int, bytes]]
    passwords: dict[int, bytes]
    busy_answers: int = 0
    signed_updates: bool = True
    latch: bool = False
    run: int = 0
    """Resets so far."""

    def used(self) -> int:
        return sum(
            OVERHEAD + len(name) + len(data) for (_, name), (_, data) in self.objects.items()
        )

    def may_enter(self, consumer: int, password: bytes) -> bool:
        return password == self.passwords.get(consumer, b"")

    def is_open(self, consumer: int, policy: int) -> bool:
        if policy & 0x1000_0000 and consumer not in self.passwords:
            return False
        if policy & 0x4000_0000 and self.secure_boot == 0:
            return False
        return not (policy & 0x2000_0000 and self.secure_boot < 2)

    def has_room(self, growth: int) -> bool:
        return self.used() + growth <= TOTAL

    def may_use_key(self, consumer: int, name: bytes) -> H:
        found = self.objects.get((consumer, name))
        if found is None:
            return H.NOT_FOUND
        if not found[0] & WRAPPING or not self.is_open(consumer, found[0]):
            return H.AUTHORITY
        return H.SUCCESS

    def signer_in(self, name: str) -> tuple[str, ...]:
        """Whose certificates a variable holds."""
        found = self.objects.get((3, os_label(b"", name.encode("utf-16-le"))))
        if found is None or not found[0] & 0x0100_0000:
            return ()
        every = [(signer,) for signer in SIGNERS] + [("KEK", "new")]
        return next((s for s in every if found[1][8:] == signing.certificates(*s)), ())

    def update(self, update: Update) -> H:
        """Judge a signed update of an authorized caller; carry it out if it is good."""
        if not self.signed_updates:
            return H.AUTHORITY
        key = (3, update.label)
        found = self.objects.get(key)
        if found is not None and found[0] != update.policy:
            return H.P4
        if update.name == "PK" and update.is_append:
            return H.P5
        is_latched = update.name == "PK" and self.latch
        by_pk = self.signer_in("PK")[:1] == (update.signer,)
        by_kek = update.name not in ("PK", "KEK") and update.signer in self.signer_in("KEK")
        if not is_latched:
            if not self.signer_in("PK") or not (by_pk or by_kek):
                return H.AUTHORITY
            is_newer = found is None or signing.moment(update.second) > self.moment_of(found[1])
            if not update.is_append and not is_newer:
                return H.AUTHORITY
        if update.name == "PK":
            if not update.data or (update.data == signing.WIPE and not is_latched):
                return H.P6
            if update.data == signing.WIPE:
                self.objects = {k: v for k, v in self.objects.items() if not v[0] & 0x0100_0000}
                self.latch = False
                return H.SUCCESS
        data = self.outcome(update, found)
        if not data[8:] and by_pk:
            self.objects.pop(key, None)
            return H.SUCCESS
        growth = len(data) - (len(found[1]) if found else -OVERHEAD - len(update.label))
        if not self.has_room(growth):
            return H.NO_MEM
        self.objects[key] = (update.policy, data)
        if is_latched:
            self.latch = False
        return H.SUCCESS

    @staticmethod
    def moment_of(stored: bytes) -> tuple[int, ...]:
        return struct.unpack_from("<H5B", stored, 1)

    def outcome(self, update: Update, found: tuple[int, bytes] | None) -> bytes:
        time = signing.moment(update.second)
        if not update.is_append or found is None or not found[1][8:]:
            return signing.stored(time, update.data)
        later = max(tuple(time), self.moment_of(found[1]))
        head = b"\0" + struct.pack("<H5B", *later)
        if update.name == "other":
            return head + found[1][8:] + update.data
        there = [found[1][at] for at in range(8 + 28 + 16, len(found[1]), 48)]
        there += [digest for digest in update.digests if digest not in there]
        return head + signing.digests(*there)
