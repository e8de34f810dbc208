# SPDX-License-Identifier: Apache-2.0
"""The keystore, driven by calls, against a model that a child could check.

The naive model knows the rules of docs/pks.md as a list of conditions on plain
dictionaries; it shares no code with the real one. Every rule issues a real call with
registers and memory; codes, outputs, used space and, after restarts and resets, all
content must agree. What was wrapped is remembered with its plaintext, what was begun with
its token. Signed updates are made beforehand, once.
"""

from __future__ import annotations

import dataclasses
import struct

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from tests.property.keystore_naive import OVERHEAD, TOTAL, WRAPPING, Naive, Update, updates

from hcalld.core.outcome import Outcome
from hcalld.domain.attributes import PartitionAttributes, PksAttributes
from hcalld.stores.memory import MemoryStore
from hcalld.testing.pks import DATA_GPA, OUT_GPA, PASSWORD_GPA, PksMachine, label
from hcallproto.abi.families import pks
from hcallproto.abi.returns import H
from hcallproto.abi.spec import Hcall
from hcallproto.payloads.pks import Policy

BLOB_GPA = 0x30000

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
PASSWORDS = st.sampled_from(["right", "right", "empty", "wrong", "short"])
PICKS = st.none() | st.integers(0, 255)
"""Which of what there is, rather than anything."""
KEY_POLICIES = POLICIES.flatmap(lambda policy: st.sampled_from([policy, policy | WRAPPING]))
WRAP_FLAGS = st.sampled_from([0x1000_0000_0000_0001, 0x5000_0000_0000_0001, 0x3000_0000_0000_0001])


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """A wrapped object that the guest keeps, and what is in it."""

    blob: bytes = dataclasses.field(repr=False)
    consumer: int
    label: bytes
    key: bytes = dataclasses.field(repr=False)
    flags: int
    data: bytes


@dataclasses.dataclass(frozen=True)
class Begun:
    """A long operation that was answered busy."""

    hcall: Hcall
    registers: tuple[int, ...]
    token: int
    run: int
    left: int
    memory: tuple[tuple[int, bytes], ...] = dataclasses.field(repr=False)


class KeystoreMachine(RuleBasedStateMachine):
    """Calls of three consumers, resets and restarts in any order."""

    wrapped: Bundle[Wrapped] = Bundle("wrapped")
    begun: Bundle[Begun] = Bundle("begun")

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore()
        self.naive = Naive(0, {}, {})
        self.used_tokens: set[int] = set()

    @initialize(
        secure_boot=st.sampled_from([0, 1, 2]),
        busy_answers=st.sampled_from([0, 0, 1, 2]),
        mode=st.sampled_from(["latch", "latch", "latch", "plain", "off"]),
        is_populated=st.sampled_from([True, True, False]),
    )
    def power_on(self, secure_boot: int, busy_answers: int, mode: str, is_populated: bool) -> None:
        self.naive.secure_boot = secure_boot
        self.naive.busy_answers = busy_answers
        self.naive.signed_updates = mode != "off"
        self.naive.latch = mode == "latch"
        attributes = PartitionAttributes(
            keystore_kbytes=8,
            secure_boot=secure_boot,  # type: ignore[arg-type]  # 0 to 2
            keystore_signed_updates=int(mode != "off"),  # type: ignore[arg-type]
            keystore_signed_updates_without_verification=int(mode == "latch"),  # type: ignore[arg-type]
            pks=PksAttributes(object_overhead=OVERHEAD, busy_answers=busy_answers),
        )
        self.machine = PksMachine(attributes, store=self.store)
        if is_populated:
            self.make_a_wrapping_key(3, 0)
            self.send_update(updates()[0], b"")
            self.send_update(next(one for one in updates() if one.name == "KEK"), b"")

    def password(self, consumer: int, kind: str) -> bytes:
        right = self.naive.passwords.get(consumer, b"")
        return {
            "right": right,
            "empty": b"",
            "wrong": b"w" * max(len(right), 1),
            "short": right[:-1],
        }[kind]

    def existing(
        self, pick: int | None, consumer: int, name: bytes, mask: int = 0
    ) -> tuple[int, bytes]:
        """An object that is there, if one is to be picked; otherwise the one that was named."""
        there = sorted(key for key, found in self.naive.objects.items() if found[0] & mask == mask)
        if pick is None or not there:
            return consumer, name
        return there[pick % len(there)]

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
        pick=PICKS,
        size=st.sampled_from([0, 1, 64, 4096]),
        kind=PASSWORDS,
    )
    def read(self, consumer: int, name: bytes, pick: int | None, size: int, kind: str) -> None:
        consumer, name = self.existing(pick, consumer, name)
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
        elif found[0] & WRAPPING:
            self.check(outcome, H.AUTHORITY, ((5, found[0]),))
        elif len(found[1]) > size:
            self.check(outcome, H.TOO_BIG, ((4, len(found[1])),))
        else:
            policy, data = found
            self.check(outcome, H.SUCCESS, ((4, len(data)), (5, policy)))
            assert seen == data.ljust(4096, b"\xee")
            return
        assert seen == b"\xee" * 4096

    @rule(
        consumer=st.sampled_from(CONSUMERS),
        name=st.sampled_from(LABELS),
        pick=PICKS,
        kind=PASSWORDS,
    )
    def remove(self, consumer: int, name: bytes, pick: int | None, kind: str) -> None:
        consumer, name = self.existing(pick, consumer, name)
        password = self.password(consumer, kind)
        outcome = self.machine.remove(name, consumer=consumer, password=password)
        found = self.naive.objects.get((consumer, name))
        if not self.naive.may_enter(consumer, password):
            self.check(outcome, H.AUTHORITY)
        elif found is None:
            self.check(outcome, H.NOT_FOUND)
        elif not self.naive.is_open(consumer, found[0]) or found[0] & 0x0500_0000:
            self.check(outcome, H.AUTHORITY)
        else:
            self.check(outcome, H.SUCCESS)
            del self.naive.objects[consumer, name]

    @rule(
        consumer=st.sampled_from(CONSUMERS),
        name=st.sampled_from(LABELS),
        pick=PICKS,
        kind=PASSWORDS,
    )
    def confirm(self, consumer: int, name: bytes, pick: int | None, kind: str) -> None:
        consumer, name = self.existing(pick, consumer, name)
        password = self.password(consumer, kind)
        outcome = self.machine.confirm(name, consumer=consumer, password=password)
        if not self.naive.may_enter(consumer, password):
            self.check(outcome, H.AUTHORITY, ((4, 0),))
        else:
            found = (consumer, name) in self.naive.objects
            self.check(outcome, H.SUCCESS if found else H.NOT_FOUND, ((4, 1),))
            assert not self.machine.store.dirty

    @rule(
        consumer=st.sampled_from(CONSUMERS),
        name=st.sampled_from(LABELS),
        policy=KEY_POLICIES,
        size=st.sampled_from([1, 31, 32, 32, 32, 33, 1000]),
        kind=PASSWORDS,
    )
    def gen_key(self, consumer: int, name: bytes, policy: int, size: int, kind: str) -> None:
        password = self.password(consumer, kind)
        self.machine.guest.write(OUT_GPA, b"\xee" * 1024)
        auth = self.machine.put_auth(consumer, password)
        place = self.machine.put_label(name)
        outcome = self.machine.hcall(pks.GEN_KEY, auth, *place, policy, OUT_GPA, size)
        told = self.machine.guest.read(OUT_GPA, size)
        if policy & WRAPPING and size != 32:
            self.check(outcome, H.P6)
        elif policy & WRAPPING and policy & 0x0800_0000:
            self.check(outcome, H.P4)
        elif not self.naive.may_enter(consumer, password):
            self.check(outcome, H.AUTHORITY)
        elif (consumer, name) in self.naive.objects:
            self.check(outcome, H.RESOURCE)
        elif not self.naive.has_room(OVERHEAD + len(name) + size):
            self.check(outcome, H.NO_MEM)
        else:
            self.check(outcome, H.SUCCESS)
            key = self.real_objects()[consumer, name][1]
            assert len(key) == size
            assert told == (b"\xee" * size if policy & WRAPPING else key)
            self.naive.objects[consumer, name] = (policy, key)
            return
        assert told == b"\xee" * size

    def has_wrapping_key(self) -> bool:
        return any(policy & WRAPPING for policy, _ in self.naive.objects.values())

    @precondition(lambda self: not self.has_wrapping_key())
    @rule(consumer=st.sampled_from(CONSUMERS), policy=st.sampled_from([0, 0, 0x0200_0000]))
    def make_a_wrapping_key(self, consumer: int, policy: int) -> None:
        self.gen_key(consumer, LABELS[0], WRAPPING | policy, 32, "right")

    # -- long operations ----------------------------------------------------------------

    def carry_out(self, hcall: Hcall, *registers: int, is_allowed: bool) -> Outcome:
        """Issue a call until it is no longer answered busy."""
        token = 0
        for left in range(self.naive.busy_answers, -1, -1):
            outcome = self.machine.hcall(hcall, *registers, token)
            if not left or not is_allowed:
                return outcome
            assert outcome.code is H.LONG_BUSY_ORDER_1_MSEC
            ((register, token),) = outcome.registers
            assert register == 4
            assert token
            assert token not in self.used_tokens
            self.used_tokens.add(token)
        raise AssertionError("the last issue is not the last")

    def wrap_registers(
        self, consumer: int, name: bytes, password: bytes, flags: int, data: bytes
    ) -> tuple[int, ...]:
        auth = self.machine.put_auth(consumer, password)
        self.machine.guest.write(DATA_GPA, data)
        place = self.machine.put_label(name)
        return (auth, *place, flags, DATA_GPA, len(data), OUT_GPA, len(data) + 1024)

    @rule(
        target=wrapped,
        consumer=st.sampled_from(CONSUMERS),
        name=st.sampled_from(LABELS),
        pick=PICKS,
        kind=PASSWORDS,
        flags=WRAP_FLAGS,
        data=st.binary(min_size=1, max_size=80),
    )
    def wrap(
        self,
        consumer: int,
        name: bytes,
        pick: int | None,
        kind: str,
        flags: int,
        data: bytes,
    ) -> MultipleResults[Wrapped] | Wrapped:
        consumer, name = self.existing(pick, consumer, name, WRAPPING)
        password = self.password(consumer, kind)
        self.machine.guest.write(OUT_GPA, b"\xee" * 2048)
        code = self.naive.may_use_key(consumer, name)
        if not self.naive.may_enter(consumer, password):
            code = H.AUTHORITY
        registers = self.wrap_registers(consumer, name, password, flags, data)
        outcome = self.carry_out(pks.WRAP_OBJECT, *registers, is_allowed=code is H.SUCCESS)
        size = len(data) + 1024
        blob = self.machine.guest.read(OUT_GPA, size)
        if code is not H.SUCCESS:
            self.check(outcome, code, ((4, 0),))
            assert blob == b"\xee" * size
            return multiple()
        self.check(outcome, H.SUCCESS, ((4, 0), (5, size)))
        assert self.machine.guest.read(OUT_GPA + size, 16) == b"\xee" * 16
        key = self.naive.objects[consumer, name][1]
        assert key not in blob
        return Wrapped(blob, consumer, name, key, flags, data)

    @precondition(lambda self: self.has_wrapping_key())
    @rule(
        target=wrapped,
        pick=st.integers(0, 255),
        flags=WRAP_FLAGS,
        data=st.binary(min_size=1, max_size=80),
    )
    def wrap_with_what_is_there(
        self, pick: int, flags: int, data: bytes
    ) -> MultipleResults[Wrapped] | Wrapped:
        return self.wrap(3, LABELS[0], pick, "right", flags, data)

    @rule(item=wrapped)
    def unwrap_well(self, item: Wrapped) -> None:
        if item.consumer not in self.naive.passwords:
            self.gen_password(item.consumer, 32)
        self.unwrap(item, 0, "right", None, 0)

    @rule(item=wrapped, flip=st.integers(0, 1103))
    def unwrap_what_was_altered(self, item: Wrapped, flip: int) -> None:
        self.unwrap(item, 0, "right", flip, 0)

    @rule(
        item=wrapped,
        consumer=st.sampled_from((0, 0, 0, *CONSUMERS)),
        kind=PASSWORDS,
        flip=st.none() | st.none() | st.integers(0, 1103),
        shortage=st.sampled_from([0, 0, 0, 1]),
    )
    def unwrap(
        self, item: Wrapped, consumer: int, kind: str, flip: int | None, shortage: int
    ) -> None:
        consumer = consumer or item.consumer
        password = self.password(consumer, kind)
        blob = bytearray(item.blob)
        if flip is not None:
            blob[flip % len(blob)] ^= 0x10
        self.machine.guest.write(BLOB_GPA, bytes(blob))
        self.machine.guest.write(OUT_GPA, b"\xee" * 128)
        auth = self.machine.put_auth(consumer, password)
        size = len(item.data)
        registers = (auth, 0, BLOB_GPA, len(blob), OUT_GPA, size - shortage)
        key = self.naive.may_use_key(item.consumer, item.label)
        is_entered = self.naive.may_enter(consumer, password)
        # An altered object may be refused before the busy answers, or after them.
        is_allowed = is_entered and consumer == item.consumer and key is H.SUCCESS
        if flip is None or shortage:
            outcome = self.carry_out(
                pks.UNWRAP_OBJECT, *registers, is_allowed=is_allowed and not shortage
            )
        else:
            outcome = self.machine.hcall(pks.UNWRAP_OBJECT, *registers, 0)
            while outcome.code is H.LONG_BUSY_ORDER_1_MSEC:
                token = outcome.registers[0][1]
                outcome = self.machine.hcall(pks.UNWRAP_OBJECT, *registers, token)
        seen = self.machine.guest.read(OUT_GPA, 128)
        found = self.naive.objects.get((item.consumer, item.label))
        if shortage:
            self.check(outcome, H.P6, ((4, 0),))
        elif not is_entered or consumer != item.consumer:
            if flip is None or not is_entered:
                self.check(outcome, H.AUTHORITY, ((4, 0),))
            assert outcome.code is not H.SUCCESS
        elif flip is not None:
            assert outcome.code in (H.BAD_DATA, H.UNSUPPORTED, H.NOT_FOUND, H.AUTHORITY)
            assert outcome.registers == ((4, 0),)
        elif key is not H.SUCCESS:
            self.check(outcome, key, ((4, 0),))
        elif found is None or found[1] != item.key:
            self.check(outcome, H.BAD_DATA, ((4, 0),))
        elif consumer not in self.naive.passwords or (
            self.naive.secure_boot < {0x5: 1, 0x3: 2}.get(item.flags >> 60, 0)
        ):
            self.check(outcome, H.AUTHORITY, ((4, 0),))
        else:
            self.check(outcome, H.SUCCESS, ((4, 0), (5, size)))
            assert seen == item.data.ljust(128, b"\xee")
            return
        assert seen == b"\xee" * 128

    @rule(number=st.integers(0, 1 << 16), kind=PASSWORDS)
    def signed_update(self, number: int, kind: str) -> None:
        self.send_update(updates()[number % len(updates())], self.password(3, kind))

    @precondition(lambda self: self.naive.latch)
    @rule()
    def install_pk(self) -> None:
        self.send_update(updates()[0], self.password(3, "right"))

    def update_registers(self, update: Update, password: bytes) -> tuple[int, ...]:
        self.machine.guest.write(DATA_GPA, update.message)
        auth = self.machine.put_auth(3, password)
        place = self.machine.put_label(update.label)
        size = len(update.message)
        return (auth, *place, update.policy, int(update.is_append), DATA_GPA, size)

    def send_update(self, update: Update, password: bytes) -> None:
        registers = self.update_registers(update, password)
        found = self.naive.objects.get((3, update.label))
        is_allowed = (
            self.naive.may_enter(3, password)
            and self.naive.signed_updates
            and (found is None or found[0] == update.policy)
        )
        code = self.naive.update(update) if self.naive.may_enter(3, password) else H.AUTHORITY
        outcome = self.carry_out(pks.SIGNED_UPDATE, *registers, is_allowed=is_allowed)
        self.check(outcome, code, ((4, 0),))

    @precondition(lambda self: self.naive.busy_answers)
    @rule(
        target=begun,
        consumer=st.sampled_from(CONSUMERS),
        name=st.sampled_from(LABELS),
        pick=PICKS,
        data=st.binary(min_size=1, max_size=16),
    )
    def begin_to_wrap(
        self, consumer: int, name: bytes, pick: int | None, data: bytes
    ) -> MultipleResults[Begun] | Begun:
        """And go on with it later, or never."""
        consumer, name = self.existing(pick, consumer, name, WRAPPING)
        password = self.password(consumer, "right")
        flags = 0x1000_0000_0000_0001
        registers = self.wrap_registers(consumer, name, password, flags, data)
        outcome = self.machine.hcall(pks.WRAP_OBJECT, *registers, 0)
        code = self.naive.may_use_key(consumer, name)
        if code is not H.SUCCESS:
            self.check(outcome, code, ((4, 0),))
            return multiple()
        memory = tuple(
            (gpa, self.machine.guest.read(gpa, size))
            for gpa, size in ((registers[0], 96), registers[1:3], (DATA_GPA, len(data)))
        )
        return self.begun_by(pks.WRAP_OBJECT, registers, outcome, memory)

    def begun_by(
        self,
        hcall: Hcall,
        registers: tuple[int, ...],
        outcome: Outcome,
        memory: tuple[tuple[int, bytes], ...],
        left: int | None = None,
    ) -> Begun:
        assert outcome.code is H.LONG_BUSY_ORDER_1_MSEC
        ((_, token),) = outcome.registers
        assert token
        assert token not in self.used_tokens
        self.used_tokens.add(token)
        left = self.naive.busy_answers - 1 if left is None else left
        return Begun(hcall, registers, token, self.naive.run, left, memory)

    @rule(target=begun, item=consumes(begun), change=st.sampled_from([0, 0, 0, 8]))
    def go_on(self, item: Begun, change: int) -> MultipleResults[Begun] | Begun:
        """With the same arguments, or with one changed."""
        for gpa, data in item.memory:
            self.machine.guest.write(gpa, data)
        consumer = item.memory[0][1][1]
        name = item.memory[1][1]
        self.machine.put_auth(consumer, self.password(consumer, "right"))
        registers = list(item.registers)
        registers[7] += change
        outcome = self.machine.hcall(item.hcall, *registers, item.token)
        if item.run != self.naive.run:
            self.check(outcome, H.P9, ((4, 0),))
            return multiple()
        if change:
            self.check(outcome, H.P9, ((4, 0),))
            return item
        code = self.naive.may_use_key(consumer, name)
        if code is not H.SUCCESS:
            self.check(outcome, code, ((4, 0),))
            return item
        again = self.machine.hcall(item.hcall, *registers, item.token)
        self.check(again, H.P9, ((4, 0),))
        if item.left:
            return self.begun_by(item.hcall, item.registers, outcome, item.memory, item.left - 1)
        self.check(outcome, H.SUCCESS, ((4, 0), (5, len(item.memory[2][1]) + 1024)))
        return multiple()

    @rule(token=st.integers(1, (1 << 64) - 1))
    def invent_a_token(self, token: int) -> None:
        if token in self.used_tokens:
            return
        registers = self.wrap_registers(3, LABELS[0], b"", 0x1000_0000_0000_0001, b"x")
        self.check(self.machine.hcall(pks.WRAP_OBJECT, *registers, token), H.P9, ((4, 0),))

    # -- ends and beginnings --------------------------------------------------------------

    @rule()
    def restart_the_daemon(self) -> None:
        self.machine.reload()

    @rule()
    def reset_the_machine(self) -> None:
        self.machine.reset()
        self.naive.run += 1
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
        assert self.real_objects() == self.naive.objects
        assert self.machine.changes() == []
        assert self.machine.keystore.has_latch is self.naive.latch

    def real_objects(self) -> dict[tuple[int, bytes], tuple[int, bytes]]:
        return {
            (int(item.consumer), item.label): (item.stored.policy, item.stored.data)
            for item in self.machine.keystore.objects()
        }


TestKeystore = KeystoreMachine.TestCase
