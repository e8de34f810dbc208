# SPDX-License-Identifier: Apache-2.0
"""Random registers and memory, for every call that is served.

Whatever a guest does: no exception, a declared code, and after a refusal no byte of
memory and no record has changed.
"""

from __future__ import annotations

import collections
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcalld.core.outcome import Outcome
from hcalld.domain.attributes import PartitionAttributes
from hcalld.families.registry import SERVED
from hcalld.testing import FakeGuest, PureMachine
from hcalld.testing.pks import AUTH_GPA, DATA_GPA, LABEL_GPA, OUT_GPA, build_auth, label
from hcallproto.abi.returns import H
from hcallproto.abi.spec import Arg, ArgKind, Hcall

CALLS = [hcall for served in SERVED for hcall in served.handlers.by_call]
RAM = [(0, 0x30000), (0x1_0000_0000, 0x2000)]
ADDRESSES = [
    *(AUTH_GPA, LABEL_GPA, DATA_GPA, OUT_GPA, AUTH_GPA + 0xFF0, LABEL_GPA + 0xFF8),
    *(0, 1, 0x2FFFF, 0x30000, 0x2FFF0, 0x1_0000_0000, 0x1_0000_1FFF, 0x1_0000_2000),
    *(1 << 59, 1 << 60, (1 << 64) - 1, (1 << 64) - 4096, 0x8000_0000),
]
NUMBERS = [
    *(0, 1, 2, 3, 4, 16, 31, 32, 33, 44, 64, 65, 255, 256, 520, 4095, 4096, 65535, 65536, 65537),
    *(0x7F80_0008, 0x0800_0000, 0x1000_0000, 0x0100_0000, 8, 1 << 31, 1 << 32, 1 << 63),
    *((1 << 32) + 32, (1 << 64) - 1, len(label())),
]


def fresh() -> PureMachine:
    """A machine whose memory has a sound structure and label to find."""
    guest = FakeGuest(RAM)
    guest.write(AUTH_GPA, build_auth())
    guest.write(AUTH_GPA + 0xFF0, build_auth(password_size=64))
    guest.write(LABEL_GPA, label())
    return PureMachine(PartitionAttributes(keystore_kbytes=8), guest=guest)


def check(machine: PureMachine, hcall: Hcall, registers: list[int]) -> Outcome:
    memory, generation = machine.guest.snapshot(), machine.store.generation
    outcome = machine.hcall(hcall, *registers)
    if outcome.code is not H.SUCCESS:
        assert outcome.why
        assert machine.guest.snapshot() == memory
        assert machine.store.generation == generation
    assert all(model.take_changes() == [] for model in machine.models.values())
    return outcome


@given(data=st.data())
def test_any_sequence_of_calls_is_answered(data: st.DataObject):
    machine = fresh()
    for _ in range(data.draw(st.integers(1, 8))):
        hcall = data.draw(st.sampled_from(CALLS))
        registers = [
            data.draw(
                st.sampled_from(ADDRESSES if arg.kind is ArgKind.ADDRESS else NUMBERS)
                | st.integers(0, (1 << 64) - 1)
            )
            for arg in hcall.args
        ]
        check(machine, hcall, registers)


GOOD = {
    "auth": AUTH_GPA,
    "label": LABEL_GPA,
    "label_size": len(label()),
    "policy": 0,
    "data": DATA_GPA,
    "data_size": 100,
    "out": OUT_GPA,
    "out_size": 4096,
    "buffer": OUT_GPA,
    "buffer_size": 520,
    "consumer": 3,
    "reserved": 0,
    "password": OUT_GPA,
    "password_size": 32,
}


def some_register(rng: random.Random, arg: Arg) -> int:
    """Mostly a good value, sometimes an interesting one, now and then any."""
    chance = rng.random()
    if chance < 0.85:
        return GOOD[arg.name]
    if chance < 0.98:
        return rng.choice(ADDRESSES if arg.kind is ArgKind.ADDRESS else NUMBERS)
    return rng.getrandbits(64)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_million_random_calls_raise_nothing():
    """Seeded, with resets and restarts in between; memory is damaged at random too."""
    rng = random.Random(20260101)
    machine = fresh()
    codes: collections.Counter[int] = collections.Counter()
    for count in range(1_000_000):
        hcall = rng.choice(CALLS)
        chance = rng.random()
        if chance < 0.02:
            gpa = rng.choice((AUTH_GPA, LABEL_GPA)) + rng.randrange(64)
            machine.guest.write(gpa, bytes((rng.getrandbits(8),)))
        elif chance < 0.06:
            # The password as last generated, if nothing was written over it.
            password = machine.guest.read(OUT_GPA, 32) if rng.random() < 0.7 else b""
            machine.guest.write(AUTH_GPA, build_auth(password=password))
            machine.guest.write(LABEL_GPA, label(bytes((rng.randrange(4),)) * 4))
        elif chance < 0.065:
            machine.reset()
        elif chance < 0.07:
            machine.reload()
        outcome = machine.hcall(hcall, *(some_register(rng, arg) for arg in hcall.args))
        codes[outcome.code] += 1
        assert all(model.take_changes() == [] for model in machine.models.values()), count
    declared = {entry.code for hcall in CALLS for entry in hcall.codes}
    never = {H.FUNCTION, H.STATE, H.R_STATE, H.ABORTED}
    assert set(codes) == declared - never
