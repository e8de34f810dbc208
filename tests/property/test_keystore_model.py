# SPDX-License-Identifier: Apache-2.0
"""The keystore, driven by calls, against a model that a child could check.

The naive model knows the rules of docs/pks.md as a list of conditions on plain
dictionaries; it shares no code with the real one. Every rule issues a real call with
registers and memory; codes, outputs, used space and, after restarts and resets, all
content must agree.
"""

from __future__ import annotations

import dataclasses
import struct

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from hcalld.core.outcome import Outcome
from hcalld.domain.attributes import PartitionAttributes, PksAttributes
from hcalld.stores.memory import MemoryStore
from hcalld.testing.pks import OUT_GPA, PASSWORD_GPA, PksMachine, label
from hcallproto.abi.families import pks
from hcallproto.abi.returns import H
from hcallproto.payloads.pks import Policy

OVERHEAD = 24
TOTAL = 4096

CONSUMERS = (1, 2, 3)
LABELS = [label("a"), label("b"), label("a\0"), label("")]
POLICIES = st.lists(
    st.sampled_from(
        [
            Policy.WORLDREADABLE,
            Policy.PWSET,
            Policy.IMMUTABLE,
            Policy.TRANSIENT,
            Policy.OSSECBOOTAUDIT,
            Policy.OSSECBOOTENFORCE,
        ]
    ),
    max_size=3,
).map(lambda bits: int(sum(set(bits))))
DATA = st.one_of(
    st.binary(min_size=1, max_size=64),
    st.integers(800, 2500).map(lambda size: b"\xa5" * size),
)
PASSWORDS = st.sampled_from(["right", "empty", "wrong", "short"])


@dataclasses.dataclass
class Naive:
    """What should be there."""

    secure_boot: int
    objects: dict[tuple[int, bytes], tuple[int, bytes]]
    passwords: dict[int, bytes]

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


class KeystoreMachine(RuleBasedStateMachine):
    """Calls of three consumers, resets and restarts in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore()
        self.naive = Naive(0, {}, {})

    @initialize(secure_boot=st.sampled_from([0, 1, 2]))
    def power_on(self, secure_boot: int) -> None:
        self.naive.secure_boot = secure_boot
        attributes = PartitionAttributes(
            keystore_kbytes=4,
            secure_boot=secure_boot,  # type: ignore[arg-type]  # 0 to 2
            pks=PksAttributes(object_overhead=OVERHEAD),
        )
        self.machine = PksMachine(attributes, store=self.store)

    def password(self, consumer: int, kind: str) -> bytes:
        right = self.naive.passwords.get(consumer, b"")
        return {
            "right": right,
            "empty": b"",
            "wrong": b"w" * max(len(right), 1),
            "short": right[:-1],
        }[kind]

    def check(self, outcome: Outcome, code: H, registers: object = ()) -> None:
        assert outcome.code is code, (outcome, code)
        assert outcome.registers == registers

    @rule(consumer=st.sampled_from(CONSUMERS), size=st.integers(32, 64))
    def gen_password(self, consumer: int, size: int) -> None:
        outcome = self.machine.hcall(pks.GEN_PASSWORD, consumer, 0, PASSWORD_GPA, size)
        if consumer in self.naive.passwords:
            self.check(outcome, H.IN_USE)
        else:
            self.check(outcome, H.SUCCESS)
            self.naive.passwords[consumer] = self.machine.guest.read(PASSWORD_GPA, size)

    @rule(consumer=st.sampled_from(CONSUMERS), password=st.binary(min_size=32, max_size=64))
    def set_password(self, consumer: int, password: bytes) -> None:
        self.machine.guest.write(PASSWORD_GPA, password)
        outcome = self.machine.hcall(pks.SET_PASSWORD, consumer, 0, PASSWORD_GPA, len(password))
        if consumer in self.naive.passwords:
            self.check(outcome, H.IN_USE)
        else:
            self.check(outcome, H.SUCCESS)
            self.naive.passwords[consumer] = password

    @rule(
        consumer=st.sampled_from(CONSUMERS),
        name=st.sampled_from(LABELS),
        policy=POLICIES,
        data=DATA,
        kind=PASSWORDS,
    )
    def write(self, consumer: int, name: bytes, policy: int, data: bytes, kind: str) -> None:
        password = self.password(consumer, kind)
        outcome = self.machine.write(name, data, policy, consumer=consumer, password=password)
        if not self.naive.may_enter(consumer, password):
            self.check(outcome, H.AUTHORITY)
        elif (consumer, name) in self.naive.objects:
            self.check(outcome, H.RESOURCE)
        elif self.naive.used() + OVERHEAD + len(name) + len(data) > TOTAL:
            self.check(outcome, H.NO_MEM)
        else:
            self.check(outcome, H.SUCCESS)
            self.naive.objects[consumer, name] = (policy, data)

    @rule(name=st.sampled_from(LABELS), excess=st.sampled_from([-1, 0, 1]))
    def write_to_the_brim(self, name: bytes, excess: int) -> None:
        size = TOTAL - self.naive.used() - OVERHEAD - len(name) + excess
        if size > 0:
            self.write(3, name, 0, b"\x5a" * size, "right")

    @rule(
        consumer=st.sampled_from(CONSUMERS),
        name=st.sampled_from(LABELS),
        size=st.sampled_from([0, 1, 64, 4096]),
        kind=PASSWORDS,
    )
    def read(self, consumer: int, name: bytes, size: int, kind: str) -> None:
        password = self.password(consumer, kind)
        self.machine.guest.write(OUT_GPA, b"\xee" * 4096)
        outcome = self.machine.read(name, size, consumer=consumer, password=password)
        seen = self.machine.guest.read(OUT_GPA, 4096)
        found = self.naive.objects.get((consumer, name))
        enters = self.naive.may_enter(consumer, password)
        if not enters and (found is None or not found[0] & 0x0800_0000):
            self.check(outcome, H.AUTHORITY)
        elif found is None:
            self.check(outcome, H.NOT_FOUND)
        elif not self.naive.is_open(consumer, found[0]):
            self.check(outcome, H.AUTHORITY)
        elif len(found[1]) > size:
            self.check(outcome, H.TOO_BIG, ((4, len(found[1])),))
        else:
            policy, data = found
            self.check(outcome, H.SUCCESS, ((4, len(data)), (5, policy)))
            assert seen == data.ljust(4096, b"\xee")
            return
        assert seen == b"\xee" * 4096

    @rule(consumer=st.sampled_from(CONSUMERS), name=st.sampled_from(LABELS), kind=PASSWORDS)
    def remove(self, consumer: int, name: bytes, kind: str) -> None:
        password = self.password(consumer, kind)
        outcome = self.machine.remove(name, consumer=consumer, password=password)
        found = self.naive.objects.get((consumer, name))
        if not self.naive.may_enter(consumer, password):
            self.check(outcome, H.AUTHORITY)
        elif found is None:
            self.check(outcome, H.NOT_FOUND)
        elif not self.naive.is_open(consumer, found[0]) or found[0] & 0x0400_0000:
            self.check(outcome, H.AUTHORITY)
        else:
            self.check(outcome, H.SUCCESS)
            del self.naive.objects[consumer, name]

    @rule(consumer=st.sampled_from(CONSUMERS), name=st.sampled_from(LABELS), kind=PASSWORDS)
    def confirm(self, consumer: int, name: bytes, kind: str) -> None:
        password = self.password(consumer, kind)
        outcome = self.machine.confirm(name, consumer=consumer, password=password)
        if not self.naive.may_enter(consumer, password):
            self.check(outcome, H.AUTHORITY, ((4, 0),))
        else:
            found = (consumer, name) in self.naive.objects
            self.check(outcome, H.SUCCESS if found else H.NOT_FOUND, ((4, 1),))
            assert not self.machine.store.dirty

    @rule()
    def restart_the_daemon(self) -> None:
        self.machine.reload()

    @rule()
    def reset_the_machine(self) -> None:
        self.machine.reset()
        self.naive.passwords.clear()
        self.naive.objects = {
            key: found for key, found in self.naive.objects.items() if not found[0] & 0x0200_0000
        }

    @precondition(lambda self: self.naive.objects)
    @rule()
    def reset_and_restart(self) -> None:
        self.reset_the_machine()
        self.machine.reload()

    @invariant()
    def space_and_content_agree(self) -> None:
        if not hasattr(self, "machine"):
            return
        config = self.machine.keystore.config()
        assert struct.unpack_from(">I", config, 16) == (self.naive.used(),)
        assert self.naive.used() <= TOTAL
        real = {
            (int(item.consumer), item.label): (item.stored.policy, item.stored.data)
            for item in self.machine.keystore.objects()
        }
        assert real == self.naive.objects
        assert self.machine.changes() == []


TestKeystore = KeystoreMachine.TestCase
