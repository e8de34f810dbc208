# SPDX-License-Identifier: Apache-2.0
"""The guest that is not there."""

from __future__ import annotations

import pytest

from hcalld.core.call import Call
from hcalld.core.effects import (
    Effect,
    Entropy,
    Flush,
    GuestMemoryError,
    Note,
    Now,
    ReadGuest,
    WriteGuest,
    ZeroGuest,
)
from hcalld.core.errors import HcallError
from hcalld.core.handlers import HandlerSet
from hcalld.core.outcome import Outcome
from hcalld.core.records import Record
from hcalld.domain.attributes import PartitionAttributes
from hcalld.domain.keystore import Keystore
from hcalld.families.registry import Served
from hcalld.testing import FakeGuest, PureMachine, UndeclaredError
from hcalld.testing import machine as module
from hcallproto.abi.families import pks
from hcallproto.abi.returns import H


def test_fake_memory_is_read_and_written_over_neighbouring_regions():
    guest = FakeGuest([(0, 0x1000), (0x1000, 0x1000), (0x8000, 0x10)])
    guest.write(0xFFE, b"abcd")

    assert guest.read(0xFFC, 8) == b"\0\0abcd\0\0"
    assert guest.read(0x8000, 0) == b""
    assert [len(region) for region in guest.snapshot()] == [0x1000, 0x1000, 0x10]


@pytest.mark.parametrize(("gpa", "size"), [(0x1FFF, 2), (0x2000, 1), (0x800F, 2), (1 << 60, 1)])
def test_what_is_not_fake_memory_is_an_error_and_writes_nothing(gpa: int, size: int):
    guest = FakeGuest([(0, 0x2000), (0x8000, 0x10)])
    before = guest.snapshot()

    with pytest.raises(GuestMemoryError):
        guest.read(gpa, size)
    with pytest.raises(GuestMemoryError):
        guest.write(gpa, b"x" * size)
    assert guest.snapshot() == before
    assert guest.write_count == 0


class Odd(Effect[None]):
    """An effect that nobody knows."""


def machine_with(monkeypatch: pytest.MonkeyPatch, handler: object) -> PureMachine:
    handlers: HandlerSet[Keystore] = HandlerSet(pks.FAMILY)
    handlers.handles(pks.GET_CONFIG)(handler)  # type: ignore[arg-type]
    monkeypatch.setattr(module, "SERVED", (Served(handlers, Keystore),))
    return PureMachine()


def test_effects_are_performed_on_the_fake_guest(monkeypatch: pytest.MonkeyPatch):
    seen: list[object] = []

    async def handler(call: Call, keystore: Keystore) -> Outcome:
        await WriteGuest(0x100, b"abcd")
        await ZeroGuest(0x101, 2)
        seen.append(await ReadGuest(0x100, 4))
        seen.append(len(await Entropy(7)))
        seen.append(await Entropy(8) != await Entropy(8))
        seen.append(await Now())
        await Note("said")
        await Flush()
        try:
            await ReadGuest(1 << 40, 1)
        except GuestMemoryError:
            seen.append("not RAM")
        return Outcome(H.SUCCESS)

    machine = machine_with(monkeypatch, handler)
    assert machine.hcall(pks.GET_CONFIG, 0, 32).code is H.SUCCESS
    assert seen == [b"a\0\0d", 7, True, 1_700_000_000_000_000_001, "not RAM"]
    assert machine.notes == ["said"]
    assert machine.flush_count == 1


def test_an_unknown_effect_is_an_error(monkeypatch: pytest.MonkeyPatch):
    async def handler(call: Call, keystore: Keystore) -> Outcome:
        await Odd()
        return Outcome(H.SUCCESS)

    with pytest.raises(TypeError, match="no way to perform"):
        machine_with(monkeypatch, handler).hcall(pks.GET_CONFIG, 0, 32)


@pytest.mark.parametrize("raises", [True, False])
def test_a_code_that_the_table_does_not_declare_is_an_error(
    monkeypatch: pytest.MonkeyPatch, raises: bool
):
    async def handler(call: Call, keystore: Keystore) -> Outcome:
        if raises:
            raise HcallError(H.IN_USE, "why")
        return Outcome(H.IN_USE)

    with pytest.raises(UndeclaredError, match="H_PKS_GET_CONFIG"):
        machine_with(monkeypatch, handler).hcall(pks.GET_CONFIG, 0, 32)


def test_a_register_that_is_not_an_output_is_an_error(monkeypatch: pytest.MonkeyPatch):
    async def handler(call: Call, keystore: Keystore) -> Outcome:
        return Outcome(H.SUCCESS, ((4, 1),))

    with pytest.raises(UndeclaredError, match="r4"):
        machine_with(monkeypatch, handler).hcall(pks.GET_CONFIG, 0, 32)


def test_a_handler_without_a_gate_is_reached(monkeypatch: pytest.MonkeyPatch):
    async def handler(call: Call, keystore: Keystore) -> Outcome:
        return Outcome(H.SUCCESS)

    assert machine_with(monkeypatch, handler).hcall(pks.GET_CONFIG, 0, 32).code is H.SUCCESS


def test_models_are_built_from_the_store():
    machine = PureMachine(PartitionAttributes(keystore_kbytes=4))
    first = machine.models["pks"]
    machine.reload()

    assert isinstance(first, Keystore)
    assert machine.models["pks"] is not first
    assert machine.store.load().of("pks") == list[Record]()
