# SPDX-License-Identifier: Apache-2.0
"""A guest that speaks the keystore's calls, as Linux's plpks driver does."""

from __future__ import annotations

import struct

from hcalld.core.outcome import Outcome
from hcalld.core.records import Change
from hcalld.domain.keystore import Keystore
from hcalld.domain.labels import os_label
from hcalld.testing.machine import PureMachine
from hcallproto.abi.families import pks
from hcallproto.abi.returns import H
from hcallproto.payloads.pks import Consumer

AUTH_GPA = 0x1000
LABEL_GPA = 0x2000
DATA_GPA = 0x10000
OUT_GPA = 0x20000
PASSWORD_GPA = 0x4000

_AUTH = struct.Struct(">BB12sH")


def build_auth(
    consumer: int = Consumer.OS,
    password: bytes = b"",
    *,
    version: int = 1,
    reserved: bytes = bytes(12),
    password_size: int | None = None,
) -> bytes:
    """An authorization structure, malformed if asked for."""
    size = len(password) if password_size is None else password_size
    return _AUTH.pack(version, consumer, reserved, size) + password


class PksMachine(PureMachine):
    """A guest with helpers for H_PKS_*; it keeps the OS password it was given."""

    password = b""

    @property
    def keystore(self) -> Keystore:
        """The model behind it."""
        model = self.models["pks"]
        assert isinstance(model, Keystore)
        return model

    def changes(self) -> list[Change]:
        """Changes that were made and not committed: none, after any call."""
        return self.keystore.take_changes()

    def put_auth(self, consumer: int = Consumer.OS, password: bytes | None = None) -> int:
        """Put an authorization structure into memory."""
        if password is None:
            password = self.password if consumer == Consumer.OS else b""
        self.guest.write(AUTH_GPA, build_auth(consumer, password))
        return AUTH_GPA

    def put_label(self, label: bytes) -> tuple[int, int]:
        """Put a label into memory: address and size."""
        self.guest.write(LABEL_GPA, label)
        return LABEL_GPA, len(label)

    def gen_password(self, consumer: int = Consumer.OS, size: int = 32) -> Outcome:
        """H_PKS_GEN_PASSWORD."""
        outcome = self.hcall(pks.GEN_PASSWORD, consumer, 0, PASSWORD_GPA, size)
        if outcome.code is H.SUCCESS and consumer == Consumer.OS:
            self.password = self.guest.read(PASSWORD_GPA, size)
        return outcome

    def write(
        self,
        label: bytes,
        data: bytes,
        policy: int = 0,
        *,
        consumer: int = Consumer.OS,
        password: bytes | None = None,
    ) -> Outcome:
        """H_PKS_WRITE_OBJECT."""
        auth = self.put_auth(consumer, password)
        self.guest.write(DATA_GPA, data)
        return self.hcall(
            pks.WRITE_OBJECT, auth, *self.put_label(label), policy, DATA_GPA, len(data)
        )

    def read(
        self,
        label: bytes,
        size: int = 4096,
        *,
        consumer: int = Consumer.OS,
        password: bytes | None = None,
    ) -> Outcome:
        """H_PKS_READ_OBJECT."""
        auth = self.put_auth(consumer, password)
        return self.hcall(pks.READ_OBJECT, auth, *self.put_label(label), OUT_GPA, size)

    def remove(
        self, label: bytes, *, consumer: int = Consumer.OS, password: bytes | None = None
    ) -> Outcome:
        """H_PKS_REMOVE_OBJECT."""
        auth = self.put_auth(consumer, password)
        return self.hcall(pks.REMOVE_OBJECT, auth, *self.put_label(label))

    def confirm(
        self, label: bytes, *, consumer: int = Consumer.OS, password: bytes | None = None
    ) -> Outcome:
        """H_PKS_CONFIRM_OBJECT_FLUSHED."""
        auth = self.put_auth(consumer, password)
        return self.hcall(pks.CONFIRM_OBJECT_FLUSHED, auth, *self.put_label(label))

    def used_space(self) -> int:
        """The live field of H_PKS_GET_CONFIG."""
        outcome = self.hcall(pks.GET_CONFIG, OUT_GPA, 32)
        assert outcome.code is H.SUCCESS
        (used,) = struct.unpack_from(">I", self.guest.read(OUT_GPA, 32), 16)
        return int(used)


def label(name: str | bytes = "test") -> bytes:
    """A label of Linux's, with prefix ``hcalld``."""
    return os_label(b"hcalld", name.encode() if isinstance(name, str) else name)
