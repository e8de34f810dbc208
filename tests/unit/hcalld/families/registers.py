# SPDX-License-Identifier: Apache-2.0
"""Good and bad values for every argument of every keystore call, and the memory behind them."""

from __future__ import annotations

import functools
from typing import Any

from tests import signing

from hcalld.core.records import Put, Record
from hcalld.domain.attributes import PartitionAttributes, PksAttributes
from hcalld.domain.keystore_records import encode_object, object_key
from hcalld.domain.labels import os_label
from hcalld.families.registry import SERVED
from hcalld.stores.memory import MemoryStore
from hcalld.testing import FakeGuest
from hcalld.testing.pks import (
    AUTH_GPA,
    DATA_GPA,
    LABEL_GPA,
    OUT_GPA,
    PASSWORD_GPA,
    PksMachine,
    label,
)
from hcallproto.abi.families import pks
from hcallproto.abi.returns import H
from hcallproto.payloads.pks import ALL_POLICIES, Policy, WrapFlag

RAM_SIZE = 1 << 20
HIGH_GPA = 0x1_0000_0000
"""A second piece of RAM; what lies between is MMIO and nothing."""
HIGH_SIZE = 0x10000
MAX_PASSWORD = 64
MAX_LABEL = 300
MAX_OBJECT = 3000

KEY_LABEL_GPA = 0x5000
VARIABLE_GPA = 0x6000
UPDATE_GPA = 0x11000
BLOB_GPA = 0x12000

LABEL = label("here")
KEY_LABEL = os_label(b"PLPKSWR", b"default-wrapping-key")
PLAIN = bytes(range(100))
WRAPPED_SIZE = len(PLAIN) + 1024
FLAGS = int(WrapFlag.PASSWORD | WrapFlag.AES_GCM_256)
SIGNED = int(Policy.SIGNEDUPDATE)


def variable_label(name: str) -> bytes:
    """The label under which Linux keeps a signed variable."""
    return os_label(b"", name.encode("utf-16-le"))


VARIABLE = variable_label("db")
PK_TIME = signing.moment(100)


@functools.cache
def update() -> bytes:
    """An update that creates db."""
    return signing.update("db", signing.digests(1), "PK", signing.moment(200))


def seed(store: MemoryStore, name: bytes, policy: int, data: bytes, consumer: int = 3) -> None:
    """Put an object into a store behind the guest's back."""
    record = Record("pks", object_key(consumer, name), encode_object(policy, data))
    store.commit([Put(record)], None)


def make(
    *, busy_answers: int = 0, supported: tuple[str, ...] | None = None, **attributes: int
) -> PksMachine:
    """A machine with PK and KEK, and small limits."""
    store = MemoryStore()
    for name in ("PK", "KEK"):
        data = signing.stored(PK_TIME, signing.certificates(name))
        seed(store, variable_label(name), SIGNED, data)
    limits = PksAttributes(
        max_password_size=MAX_PASSWORD,
        max_label_size=MAX_LABEL,
        max_object_size=MAX_OBJECT,
        supported_policies=supported,  # type: ignore[arg-type]  # names of Policy
        busy_answers=busy_answers,
    )
    values = {"keystore_kbytes": 8} | attributes
    return PksMachine(
        PartitionAttributes(pks=limits, **values),  # type: ignore[arg-type]  # small numbers
        guest=FakeGuest([(0, RAM_SIZE), (HIGH_GPA, HIGH_SIZE)]),
        store=store,
    )


def prepared(name: str = "", **attributes: Any) -> PksMachine:
    """A machine on which the call succeeds with the good values.

    It has an object, a wrapping key, and in memory everything that the values point at.
    Only for UNWRAP, which needs one, there is a password.
    """
    machine = make(**attributes)
    assert machine.write(LABEL, b"d" * 100).code is H.SUCCESS
    auth = machine.put_auth()
    key_label = (KEY_LABEL_GPA, len(KEY_LABEL))
    machine.guest.write(KEY_LABEL_GPA, KEY_LABEL)
    made = machine.hcall(pks.GEN_KEY, auth, *key_label, Policy.WRAPPINGKEY, 0, 32)
    assert made.code is H.SUCCESS
    machine.guest.write(VARIABLE_GPA, VARIABLE)
    machine.guest.write(UPDATE_GPA, update())
    machine.guest.write(DATA_GPA, PLAIN)
    if name == "H_PKS_UNWRAP_OBJECT":
        machine.gen_password()
        auth = machine.put_auth()
        call = (auth, *key_label, FLAGS, DATA_GPA, len(PLAIN), BLOB_GPA, WRAPPED_SIZE)
        token = 0
        while (outcome := machine.hcall(pks.WRAP_OBJECT, *call, token)).code is not H.SUCCESS:
            token = dict(outcome.registers)[4]
            assert token
    machine.put_label(LABEL)
    return machine


_OBJECT = {"auth": AUTH_GPA, "label": LABEL_GPA, "label_size": len(LABEL)}
_PASSWORD = {"consumer": 3, "reserved": 0, "password": PASSWORD_GPA, "password_size": 32}

GOOD: dict[str, dict[str, int]] = {
    "H_PKS_GET_CONFIG": {"buffer": OUT_GPA, "buffer_size": 512},
    "H_PKS_SET_PASSWORD": _PASSWORD,
    "H_PKS_GEN_PASSWORD": _PASSWORD,
    "H_PKS_WRITE_OBJECT": {
        **_OBJECT,
        "label_size": len(LABEL) + 1,  # one byte more: another object
        "policy": 0,
        "data": DATA_GPA,
        "data_size": 100,
    },
    "H_PKS_GEN_KEY": {
        **_OBJECT,
        "label_size": len(LABEL) + 1,
        "policy": 0,
        "out": OUT_GPA,
        "out_size": 32,
    },
    "H_PKS_READ_OBJECT": {**_OBJECT, "out": OUT_GPA, "out_size": 100},
    "H_PKS_REMOVE_OBJECT": _OBJECT,
    "H_PKS_CONFIRM_OBJECT_FLUSHED": _OBJECT,
    "H_PKS_SIGNED_UPDATE": {
        "auth": AUTH_GPA,
        "label": VARIABLE_GPA,
        "label_size": len(VARIABLE),
        "policy": SIGNED | Policy.WORLDREADABLE,
        "flags": 0,
        "in": UPDATE_GPA,
        "in_size": len(update()),
        "token": 0,
    },
    "H_PKS_WRAP_OBJECT": {
        "auth": AUTH_GPA,
        "label": KEY_LABEL_GPA,
        "label_size": len(KEY_LABEL),
        "flags": FLAGS,
        "in": DATA_GPA,
        "in_size": len(PLAIN),
        "out": OUT_GPA,
        "out_size": WRAPPED_SIZE,
        "token": 0,
    },
    "H_PKS_UNWRAP_OBJECT": {
        "auth": AUTH_GPA,
        "flags": 0,
        "in": BLOB_GPA,
        "in_size": WRAPPED_SIZE,
        "out": OUT_GPA,
        "out_size": len(PLAIN),
        "token": 0,
    },
}
"""Values with which each call succeeds on a ``prepared`` machine."""

CALLS = {
    hcall.name: hcall
    for served in SERVED
    if served.handlers.family is pks.FAMILY
    for hcall in served.handlers.by_call
}

UPPER = 1 << 32
TOP = 1 << 63
"""One of the four address bits that are ignored."""

BAD_ADDRESS = (
    RAM_SIZE,  # the first byte that is not RAM
    0x8000_0000,  # MMIO
    HIGH_GPA - 0x10,  # just below RAM
    HIGH_GPA + HIGH_SIZE,
    0x0FFF_FFFF_FFFF_FFF0,  # the last address of all
    0x0800_0000_0000_0000,
)
BAD_AUTH = (*BAD_ADDRESS, AUTH_GPA + 1, AUTH_GPA + 8, AUTH_GPA + 15)
SIZES_ABOVE = (UPPER, UPPER | 32, 1 << 63, (1 << 64) - 1)


def ending_outside(size: int) -> tuple[int, ...]:
    """Addresses from which ``size`` bytes begin in RAM and do not end there."""
    return (RAM_SIZE - size + 1, RAM_SIZE - 1, HIGH_GPA + HIGH_SIZE - size + 1)


_OBJECT_BAD: list[tuple[str, tuple[int, ...], H]] = [
    ("auth", BAD_AUTH, H.PARAMETER),
    ("label", (*BAD_ADDRESS, *ending_outside(len(LABEL))), H.P2),
    ("label_size", (0, 15, MAX_LABEL + 1, *SIZES_ABOVE), H.P3),
]
_PASSWORD_BAD: list[tuple[str, tuple[int, ...], H]] = [
    ("consumer", (0, 4, 255, UPPER | 3, (1 << 64) - 1), H.PARAMETER),
    ("reserved", (1, UPPER, TOP), H.P2),
    (
        "password",
        (*BAD_ADDRESS, *ending_outside(32), PASSWORD_GPA - 1, PASSWORD_GPA - 31),
        H.P3,
    ),
    ("password_size", (0, 1, 31, MAX_PASSWORD + 1, 4096, *SIZES_ABOVE), H.P4),
]
UNDEFINED = tuple(1 << bit for bit in range(64) if not ALL_POLICIES >> bit & 1)
WRAP_BITS = 0x7000_0000_0000_000F
TOKENS = (1, UPPER, TOP, (1 << 64) - 1)
BAD: dict[str, list[tuple[str, tuple[int, ...], H]]] = {
    "H_PKS_GET_CONFIG": [
        ("buffer", (*BAD_ADDRESS, *ending_outside(512)), H.PARAMETER),
        ("buffer_size", (0, 1, 31, 65537, *SIZES_ABOVE), H.P2),
    ],
    "H_PKS_SET_PASSWORD": _PASSWORD_BAD,
    "H_PKS_GEN_PASSWORD": _PASSWORD_BAD,
    "H_PKS_WRITE_OBJECT": [
        *_OBJECT_BAD,
        (
            "policy",
            (
                *UNDEFINED,
                Policy.SIGNEDUPDATE,
                Policy.WRAPPINGKEY,
                Policy.HVPROVISIONED,
                Policy.HVPROVISIONED | Policy.WORLDREADABLE,
                UPPER | Policy.WORLDREADABLE,
            ),
            H.P4,
        ),
        ("data", (*BAD_ADDRESS, *ending_outside(100)), H.P5),
        ("data_size", (0, MAX_OBJECT + 1, *SIZES_ABOVE), H.P6),
    ],
    "H_PKS_READ_OBJECT": [
        *_OBJECT_BAD,
        ("out", (*BAD_ADDRESS, *ending_outside(100)), H.P4),
        ("out_size", SIZES_ABOVE, H.P5),
    ],
    "H_PKS_REMOVE_OBJECT": _OBJECT_BAD,
    "H_PKS_CONFIRM_OBJECT_FLUSHED": _OBJECT_BAD,
    "H_PKS_GEN_KEY": [
        *_OBJECT_BAD,
        (
            "policy",
            (
                *UNDEFINED,
                Policy.SIGNEDUPDATE,
                Policy.HVPROVISIONED,
                Policy.WRAPPINGKEY | Policy.HVPROVISIONED,
                Policy.WRAPPINGKEY | Policy.SIGNEDUPDATE,
                Policy.WRAPPINGKEY | Policy.WORLDREADABLE,
                UPPER | Policy.WRAPPINGKEY,
            ),
            H.P4,
        ),
        ("out", (*BAD_ADDRESS, *ending_outside(32)), H.P5),
        ("out_size", (0, MAX_OBJECT + 1, *SIZES_ABOVE), H.P6),
    ],
    "H_PKS_SIGNED_UPDATE": [
        ("auth", BAD_AUTH, H.PARAMETER),
        ("label", (*BAD_ADDRESS, *ending_outside(len(VARIABLE))), H.P2),
        (
            "label_size",
            (0, 15, 16, len(VARIABLE) - 1, len(VARIABLE) + 1, MAX_LABEL + 1, *SIZES_ABOVE),
            H.P3,
        ),
        (
            "policy",
            (
                *UNDEFINED,
                0,
                Policy.WORLDREADABLE,
                SIGNED | Policy.WRAPPINGKEY,
                SIGNED | Policy.HVPROVISIONED,
                SIGNED | UPPER,
            ),
            H.P4,
        ),
        ("flags", (2, 3, 0x80, UPPER, UPPER | 1, TOP, TOP | 1), H.P5),
        ("in", (*BAD_ADDRESS, *ending_outside(len(update()))), H.P6),
        ("in_size", (0, 1, 39, MAX_OBJECT + 1, 0x10000, *SIZES_ABOVE), H.P7),
        ("token", TOKENS, H.P8),
    ],
    "H_PKS_WRAP_OBJECT": [
        *_OBJECT_BAD,
        (
            "flags",
            (
                *(FLAGS | 1 << bit for bit in range(64) if not WRAP_BITS >> bit & 1),
                *(WrapFlag.PASSWORD | algorithm for algorithm in (0, *range(2, 16))),
                0,
                FLAGS & ~WrapFlag.PASSWORD,
                FLAGS & ~WrapFlag.PASSWORD | WrapFlag.OSSECBOOTAUDIT,
                FLAGS | WrapFlag.OSSECBOOTAUDIT | WrapFlag.OSSECBOOTENFORCE,
            ),
            H.P4,
        ),
        ("in", (*BAD_ADDRESS, *ending_outside(len(PLAIN))), H.P5),
        ("in_size", (0, MAX_OBJECT + 1, *SIZES_ABOVE), H.P6),
        ("out", (*BAD_ADDRESS, *ending_outside(WRAPPED_SIZE)), H.P7),
        ("out_size", (0, len(PLAIN), 1024, WRAPPED_SIZE - 1, *SIZES_ABOVE), H.P8),
        ("token", TOKENS, H.P9),
    ],
    "H_PKS_UNWRAP_OBJECT": [
        ("auth", BAD_AUTH, H.PARAMETER),
        ("flags", (1, 1 << 31, UPPER, 1 << 60, TOP, FLAGS), H.P2),
        ("in", (*BAD_ADDRESS, *ending_outside(WRAPPED_SIZE)), H.P3),
        ("in_size", (0, 1, 1023, MAX_OBJECT + 1025, *SIZES_ABOVE), H.P4),
        ("out", (*BAD_ADDRESS, *ending_outside(len(PLAIN))), H.P5),
        ("out_size", (0, 1, len(PLAIN) - 1, *SIZES_ABOVE), H.P6),
        ("token", TOKENS, H.P7),
    ],
}
