# SPDX-License-Identifier: Apache-2.0
"""A guest that makes random calls, most of them nearly right, in memory that it damages.

Seeded, so that what it found can be found again.
"""

from __future__ import annotations

import collections
import random

import msgspec
from tests.property.keystore_naive import updates
from tests.unit.hcalld.families.registers import (
    BLOB_GPA,
    CALLS,
    GOOD,
    HIGH_GPA,
    HIGH_SIZE,
    KEY_LABEL,
    KEY_LABEL_GPA,
    RAM_SIZE,
    UPDATE_GPA,
    VARIABLE,
    VARIABLE_GPA,
    WRAPPED_SIZE,
    prepared,
)

from hcalld.core.outcome import Outcome
from hcalld.domain.attributes import PartitionAttributes
from hcalld.testing.pks import (
    AUTH_GPA,
    DATA_GPA,
    LABEL_GPA,
    OUT_GPA,
    build_auth,
    label,
)
from hcallproto.abi.returns import H
from hcallproto.abi.spec import Arg, ArgKind, Hcall
from hcallproto.payloads.pks import Policy

ADDRESSES = [
    *(AUTH_GPA, LABEL_GPA, DATA_GPA, OUT_GPA, AUTH_GPA + 0xFF0, LABEL_GPA + 0xFF8),
    *(KEY_LABEL_GPA, VARIABLE_GPA, UPDATE_GPA, BLOB_GPA, BLOB_GPA + 1, UPDATE_GPA + 0xFFF),
    *(0, 1, 0x10, RAM_SIZE - 1, RAM_SIZE, RAM_SIZE - 16, HIGH_GPA, HIGH_GPA + HIGH_SIZE - 1),
    *(HIGH_GPA + HIGH_SIZE, 1 << 59, 1 << 60, (1 << 64) - 1, (1 << 64) - 4096, 0x8000_0000),
]
NUMBERS = [
    *(0, 1, 2, 3, 4, 16, 31, 32, 33, 40, 44, 64, 65, 100, 255, 256, 520, 1023, 1024, 1025),
    *(1124, 2000, 3000, 4095, 4096, 65535, 65536, 65537, (1 << 32) - 1023),
    *(0x7F80_0008, 0x0800_0000, 0x1000_0000, 0x0100_0000, 0x0180_0000, 8, 1 << 31, 1 << 32),
    *((1 << 32) + 32, 1 << 63, (1 << 64) - 1, len(label()), len(KEY_LABEL), len(VARIABLE)),
    *(0x1000_0000_0000_0001, 0x5000_0000_0000_0001, 0x7000_0000_0000_0001, 1 << 60),
]
POLICIES = [*(int(policy) for policy in Policy), 0, 0x0900_0000, 0x0280_0000]
CALL_LIST = list(CALLS.values())
ON_OBJECTS = ("H_PKS_READ_OBJECT", "H_PKS_REMOVE_OBJECT", "H_PKS_CONFIRM_OBJECT_FLUSHED")

NEVER = {H.FUNCTION, H.R_STATE, H.ABORTED, H.STATE}
"""Codes that no handler gives with a keystore and without a disk that fails; see
test_pks_codes.py."""


class RandomGuest:
    """One guest and its random numbers."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.codes: collections.Counter[tuple[str, int]] = collections.Counter()
        self._tokens: dict[str, int] = {}
        self._passwords: dict[int, bytes] = {}
        self._update = updates()[0]
        self._begin()

    def _begin(self) -> None:
        self.machine = prepared("H_PKS_UNWRAP_OBJECT")
        self._passwords = {3: self.machine.password}
        self._blob = self.machine.guest.read(BLOB_GPA, WRAPPED_SIZE)

    # -- what goes on around the calls ----------------------------------------------------

    def disturb(self) -> None:
        """Put memory right, or wrong; now and then reset the machine, or restart the daemon."""
        rng = self.rng
        machine = self.machine
        chance = rng.random()
        if chance < 0.60:
            self._mend()
        elif chance < 0.64:
            places = (AUTH_GPA, LABEL_GPA, KEY_LABEL_GPA, VARIABLE_GPA, UPDATE_GPA, BLOB_GPA)
            gpa = rng.choice(places) + rng.choice((rng.randrange(16), rng.randrange(1200)))
            machine.guest.write(gpa, bytes((rng.getrandbits(8),)))
        elif chance < 0.66:
            password = self._passwords.get(3, b"")[: rng.randrange(64)]
            machine.guest.write(AUTH_GPA, build_auth(rng.choice((1, 2, 3, 3)), password))
        elif chance < 0.67:
            self._blob = machine.guest.read(OUT_GPA, WRAPPED_SIZE)
        elif chance < 0.674:
            self._passwords.clear()
            machine.reset()
        elif chance < 0.678:
            machine.reload()
        elif chance < 0.679:
            self._power_on()

    def _mend(self) -> None:
        rng = self.rng
        write = self.machine.guest.write
        consumer = rng.choice((3, 3, 3, 3, 3, 1))
        write(AUTH_GPA, build_auth(consumer, self._passwords.get(consumer, b"")))
        write(LABEL_GPA, label(bytes((rng.randrange(4),)) * 4))
        write(KEY_LABEL_GPA, KEY_LABEL)
        update = self._update = rng.choice(updates())
        write(VARIABLE_GPA, update.label)
        write(UPDATE_GPA, update.message)
        write(BLOB_GPA, self._blob)

    def _power_on(self) -> None:
        rng = self.rng
        machine = self.machine
        if rng.random() < 0.2:
            self._begin()
            return
        self._passwords.clear()
        limits = msgspec.structs.replace(
            machine.attributes.pks,
            busy_answers=rng.choice((0, 0, 1, 3)),
            busy_hint_ms=rng.choice((0, 1, 10, 100, 1000, 10_000, 100_000)),
        )
        machine.power_on(
            PartitionAttributes(
                keystore_kbytes=8,
                secure_boot=rng.choice((0, 1, 2)),
                keystore_signed_updates_without_verification=rng.choice((0, 1)),
                pks=limits,
            )
        )

    # -- calls ----------------------------------------------------------------------------

    def register(self, hcall: Hcall, arg: Arg) -> int:
        """Mostly a good value, sometimes an interesting one, now and then any."""
        rng = self.rng
        chance = rng.random()
        if arg.kind is ArgKind.TOKEN:
            return self._tokens.get(hcall.name, 0) if chance < 0.97 else rng.getrandbits(64)
        if chance < 0.92:
            if hcall.name == "H_PKS_SIGNED_UPDATE":
                return self._of_update(arg.name)
            value = GOOD[hcall.name][arg.name]
            # What WRITE and GEN_KEY made has a label that is longer by one.
            is_longer = arg.name == "label_size" and hcall.name in ON_OBJECTS
            return value + rng.randrange(2) if is_longer else value
        if chance < 0.99:
            if arg.kind is ArgKind.ADDRESS:
                return rng.choice(ADDRESSES)
            return rng.choice(POLICIES if arg.name == "policy" else NUMBERS)
        return rng.getrandbits(64)

    def _of_update(self, name: str) -> int:
        update = self._update
        values = {
            "label_size": len(update.label),
            "policy": update.policy,
            "flags": int(update.is_append),
            "in_size": len(update.message),
        }
        return values.get(name, GOOD["H_PKS_SIGNED_UPDATE"][name])

    def call(self) -> Outcome:
        """Make one random call."""
        hcall = self.rng.choice(CALL_LIST)
        if self.rng.random() < 0.03:
            self._tokens.pop(hcall.name, None)
        registers = [self.register(hcall, arg) for arg in hcall.args]
        outcome = self.machine.hcall(hcall, *registers)
        self.codes[hcall.name, outcome.code] += 1
        if hcall.args[-1].kind is ArgKind.TOKEN:
            is_busy = outcome.code is H.BUSY or outcome.code >= H.LONG_BUSY_ORDER_1_MSEC
            self._tokens[hcall.name] = outcome.registers[0][1] if is_busy else 0
        elif hcall.name.endswith("_PASSWORD") and outcome.code is H.SUCCESS:
            gpa = registers[2] & (1 << 60) - 1
            self._passwords[registers[0]] = self.machine.guest.read(gpa, registers[3])
        return outcome

    def step(self) -> Outcome:
        """Whatever happens next, and a call."""
        self.disturb()
        return self.call()

    # -- what must always be true -----------------------------------------------------------

    def check(self) -> None:
        """Hold the model to its store: nothing more in either, and nothing without end.

        Raises:
            AssertionError: something leaks, or they differ.
        """
        machine = self.machine
        assert machine.changes() == []
        loaded = machine.store.load()
        kinds = collections.Counter((record.namespace, record.key[:1]) for record in loaded.records)
        objects = list(machine.keystore.objects())
        assert kinds["pks", b"o"] == len(objects)
        assert kinds["pks", b"p"] <= 3
        assert kinds["pks", b"t"] <= 256
        rest = sum(count for (space, _), count in kinds.items() if space != "pks")
        assert rest <= 3  # attributes, profile, instance
        assert len(loaded.replies) <= 1  # one vCPU
        assert machine.notes == []
        used, config = machine.keystore.used_space, machine.keystore.config()
        assert used == sum(32 + len(one.label) + len(one.stored.data) for one in objects)
        assert used <= machine.attributes.total_size
        machine.reload()
        assert machine.keystore.config() == config
        assert list(machine.keystore.objects()) == objects


def unreached(codes: collections.Counter[tuple[str, int]]) -> set[tuple[str, str]]:
    """(call, code) that the table declares and that were not given."""
    return {
        (hcall.name, entry.code.name)
        for hcall in CALL_LIST
        for entry in hcall.codes
        if entry.code not in NEVER and not codes[hcall.name, entry.code]
    } - {("H_PKS_GEN_KEY", "BUSY")}  # Linux does not repeat this call, so it never gives it
