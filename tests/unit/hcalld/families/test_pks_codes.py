# SPDX-License-Identifier: Apache-2.0
"""Every code that the table declares is given, and a refusal leaves all as it was.

A code that no scenario reaches, and that is not in ``NEVER`` with a reason, fails a test;
so does a scenario for a code that is not declared.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.unit.hcalld.families.registers import (
    BAD,
    BLOB_GPA,
    CALLS,
    GOOD,
    KEY_LABEL,
    LABEL,
    SIGNED,
    UPDATE_GPA,
    WRAPPED_SIZE,
    prepared,
    update,
    variable_label,
)

from hcalld.core.errors import StoreError
from hcalld.core.outcome import Outcome
from hcalld.domain.attributes import PartitionAttributes, PksAttributes
from hcalld.testing.pks import AUTH_GPA, DATA_GPA, LABEL_GPA, OUT_GPA, PksMachine, build_auth
from hcallproto.abi.families import pks
from hcallproto.abi.returns import H
from hcallproto.payloads.pks import Policy

BUSY_CODES = {
    0: H.BUSY,
    1: H.LONG_BUSY_ORDER_1_MSEC,
    10: H.LONG_BUSY_ORDER_10_MSEC,
    100: H.LONG_BUSY_ORDER_100_MSEC,
    1000: H.LONG_BUSY_ORDER_1_SEC,
    10_000: H.LONG_BUSY_ORDER_10_SEC,
    100_000: H.LONG_BUSY_ORDER_100_SEC,
}
LONG = ("H_PKS_SIGNED_UPDATE", "H_PKS_WRAP_OBJECT", "H_PKS_UNWRAP_OBJECT")

FUNCTION = "a partition without the facility is not announced any call, so no handler gives it"
R_STATE = "no state of a partition blocks modification alone"
ABORTED = "the runtime gives it for a store that failed, and the shim when nobody answers"

NEVER: dict[tuple[str, H], str] = {
    **{(name, H.FUNCTION): FUNCTION for name in CALLS},
    **{
        (name, H.R_STATE): R_STATE
        for name in CALLS
        if name not in ("H_PKS_GET_CONFIG", "H_PKS_SET_PASSWORD", "H_PKS_GEN_PASSWORD")
        and name not in ("H_PKS_READ_OBJECT", "H_PKS_CONFIRM_OBJECT_FLUSHED")
    },
    **{
        (name, H.ABORTED): ABORTED
        for name in CALLS
        if name not in ("H_PKS_GET_CONFIG", "H_PKS_CONFIRM_OBJECT_FLUSHED")
    },
    ("H_PKS_GEN_KEY", H.BUSY): "Linux does not repeat this call, so it is never answered busy",
}


@dataclasses.dataclass
class Scenario:
    """A call that gets a code: the machine it is made on, and what differs from good values."""

    machine: PksMachine
    values: dict[str, int] = dataclasses.field(default_factory=dict)

    def run(self, name: str) -> Outcome:
        return self.machine.hcall(CALLS[name], *(GOOD[name] | self.values).values())


Build = Callable[[str], Scenario]


def good(name: str) -> Scenario:
    return Scenario(prepared(name))


def switched_off(_name: str) -> Scenario:
    return Scenario(PksMachine(PartitionAttributes(keystore_kbytes=0)))


def has_password(name: str) -> Scenario:
    machine = prepared(name)
    machine.gen_password()
    return Scenario(machine)


def wrong_password(name: str) -> Scenario:
    scenario = has_password(name)
    scenario.machine.guest.write(AUTH_GPA, build_auth(password=b"w" * 32))
    return scenario


def absent(name: str) -> Scenario:
    return Scenario(prepared(name), {"label_size": GOOD[name]["label_size"] - 1})


def existing(name: str) -> Scenario:
    return Scenario(prepared(name), {"label_size": len(LABEL)})


def full(name: str) -> Scenario:
    machine = prepared(name)
    filler = LABEL[:-1] + b"!"
    while (room := 8192 - machine.used_space() - 32 - len(filler)) > 0:
        filler += b"!"
        assert machine.write(filler, bytes(min(room - 1, 2000))).code is H.SUCCESS
    machine.put_auth()
    machine.put_label(LABEL)
    for gpa, data in memory_of(prepared(name)):
        machine.guest.write(gpa, data)
    return Scenario(machine)


def memory_of(machine: PksMachine) -> Iterator[tuple[int, bytes]]:
    for gpa in (DATA_GPA, UPDATE_GPA):
        yield gpa, machine.guest.read(gpa, 0x800)


def short_buffer(name: str) -> Scenario:
    return Scenario(prepared(name), {"out_size": 99})


def disk_gone(name: str) -> Scenario:
    machine = prepared(name)

    def flush() -> None:
        raise StoreError("the disk is gone")

    machine.store.flush = flush  # type: ignore[method-assign]
    return Scenario(machine)


def removed_key(name: str) -> Scenario:
    machine = prepared(name)
    assert machine.remove(KEY_LABEL).code is H.SUCCESS
    machine.put_label(LABEL)
    return Scenario(machine)


def damaged(place: int) -> Build:
    def build(name: str) -> Scenario:
        machine = prepared(name)
        gpa = BLOB_GPA + place
        machine.guest.write(gpa, bytes((machine.guest.read(gpa, 1)[0] ^ 0x40,)))
        return Scenario(machine)

    return build


def busy(hint_ms: int) -> Build:
    def build(name: str) -> Scenario:
        machine = prepared(name)
        limits = machine.attributes.pks
        changed = {"busy_answers": 1, "busy_hint_ms": hint_ms}
        pks_attributes = PksAttributes(
            max_password_size=limits.max_password_size,
            max_label_size=limits.max_label_size,
            max_object_size=limits.max_object_size,
            **changed,  # type: ignore[arg-type]  # hints that exist
        )
        machine.keystore.attributes = PartitionAttributes(keystore_kbytes=8, pks=pks_attributes)
        return Scenario(machine)

    return build


def scenarios() -> dict[tuple[str, H], list[tuple[str, Build]]]:
    table: dict[tuple[str, H], list[tuple[str, Build]]] = {}

    def add(name: str, code: H, build: Build) -> None:
        table.setdefault((name, code), []).append((build.__name__, build))

    for name, hcall in CALLS.items():
        add(name, H.SUCCESS, good)
        add(name, H.STATE, switched_off)
        for argument, values, code in BAD[name]:

            def bad(name: str, argument: str = argument, value: int = values[0]) -> Scenario:
                return Scenario(prepared(name), {argument: value})

            bad.__name__ = f"bad_{argument}"
            add(name, code, bad)
        if any(arg.name == "auth" for arg in hcall.args):
            add(name, H.AUTHORITY, wrong_password)
    for name in ("H_PKS_SET_PASSWORD", "H_PKS_GEN_PASSWORD"):
        add(name, H.IN_USE, has_password)
    for name in ("H_PKS_WRITE_OBJECT", "H_PKS_GEN_KEY"):
        add(name, H.RESOURCE, existing)
        add(name, H.NO_MEM, full)
    add("H_PKS_SIGNED_UPDATE", H.NO_MEM, full)
    for name in ("H_PKS_READ_OBJECT", "H_PKS_REMOVE_OBJECT", "H_PKS_CONFIRM_OBJECT_FLUSHED"):
        add(name, H.NOT_FOUND, absent)
    add("H_PKS_WRAP_OBJECT", H.NOT_FOUND, absent)
    add("H_PKS_UNWRAP_OBJECT", H.NOT_FOUND, removed_key)
    add("H_PKS_READ_OBJECT", H.TOO_BIG, short_buffer)
    add("H_PKS_CONFIRM_OBJECT_FLUSHED", H.ABORTED, disk_gone)
    add("H_PKS_UNWRAP_OBJECT", H.UNSUPPORTED, damaged(8))
    add("H_PKS_UNWRAP_OBJECT", H.BAD_DATA, damaged(0))
    add("H_PKS_UNWRAP_OBJECT", H.BAD_DATA, damaged(WRAPPED_SIZE - 1))
    add("H_PKS_UNWRAP_OBJECT", H.AUTHORITY, damaged(10))  # its consumer
    add("H_PKS_UNWRAP_OBJECT", H.NOT_FOUND, damaged(60))  # its label
    for name, (hint_ms, code) in itertools.product(LONG, BUSY_CODES.items()):
        add(name, code, busy(hint_ms))
    return table


SCENARIOS = scenarios()
EACH = [
    pytest.param(name, code, build, id=f"{name}-{code.name}-{place}-{what}")
    for (name, code), builds in SCENARIOS.items()
    for place, (what, build) in enumerate(builds)
]


def test_each_declared_code_has_a_scenario_or_a_reason():
    declared = {(name, entry.code) for name, hcall in CALLS.items() for entry in hcall.codes}

    assert declared - NEVER.keys() == set(SCENARIOS)
    assert declared >= NEVER.keys()
    assert all(NEVER.values())


def state_of(machine: PksMachine) -> tuple[Any, ...]:
    loaded = machine.store.load()
    records = sorted((r.namespace, r.key, r.value, r.lifetime) for r in loaded.records)
    return (records, list(loaded.replies), loaded.generation, machine.keystore.config())


@pytest.mark.parametrize(("name", "code", "build"), EACH)
def test_the_code_is_given_and_a_refusal_leaves_all_as_it_was(name: str, code: H, build: Build):
    scenario = build(name)
    machine = scenario.machine
    before, memory = state_of(machine), machine.guest.snapshot()
    outcome = scenario.run(name)

    assert outcome.code is code, outcome.why
    hcall = CALLS[name]
    given = dict(outcome.registers)
    if code is H.SUCCESS:
        assert set(given) == {output.register for output in hcall.outputs}
        return
    assert outcome.why
    assert outcome.writes == ()
    assert machine.guest.snapshot() == memory
    for output in hcall.outputs:
        if output.otherwise is not None and code not in output.also_with:
            assert given[output.register] == output.otherwise
    if code in BUSY_CODES.values():
        assert given[4] != 0
        assert machine.keystore.config() == before[3]
    else:
        assert state_of(machine) == before
    machine.reload()
    assert machine.keystore.config() == before[3]


@pytest.mark.parametrize(("name", "code", "build"), EACH)
def test_a_refusal_can_be_repeated_and_tells_the_same(name: str, code: H, build: Build):
    """Nothing wears out: not the password, not the object, not the token."""
    if code is H.SUCCESS:
        return
    scenario = build(name)
    first = scenario.run(name)
    second = scenario.run(name)

    assert first.code is second.code is code
    if code not in BUSY_CODES.values():
        assert first == second


@pytest.mark.parametrize(("name", "code", "build"), EACH)
def test_a_reason_shows_no_secret(name: str, code: H, build: Build):
    scenario = build(name)
    machine = scenario.machine
    secrets = [machine.password, b"w" * 32, b"d" * 16]
    secrets += [item.stored.data[:16] for item in machine.keystore.objects()]
    outcome = scenario.run(name)
    shown = outcome.why + repr(outcome)

    for secret in filter(None, secrets):
        assert secret.hex() not in shown.replace(" ", "")
        assert repr(secret)[2:-1] not in shown


# -- order of checks ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, values in GOOD.items() if "auth" in values])
def test_memory_is_judged_in_order_and_before_the_password(name: str):
    machine = prepared(name)
    machine.gen_password()
    values = GOOD[name]
    machine.guest.write(AUTH_GPA, build_auth(version=9))
    if "label" in values:
        version = values["label"] + 8
        machine.guest.write(version, b"\x77")
        assert machine.hcall(CALLS[name], *values.values()).code is H.PARAMETER
        machine.guest.write(AUTH_GPA, build_auth(password=b"w" * 32))
        assert machine.hcall(CALLS[name], *values.values()).code is H.P2
        machine.guest.write(version, b"\0")
    else:
        assert machine.hcall(CALLS[name], *values.values()).code is H.PARAMETER
        machine.guest.write(AUTH_GPA, build_auth(password=b"w" * 32))
    assert machine.hcall(CALLS[name], *values.values()).code is H.AUTHORITY
    machine.put_auth()
    assert machine.hcall(CALLS[name], *values.values()).code is H.SUCCESS


@pytest.mark.parametrize("name", LONG)
def test_the_token_is_judged_before_the_password(name: str):
    scenario = wrong_password(name)
    token_code = BAD[name][-1][2]

    scenario.values["token"] = 1
    assert scenario.run(name).code is token_code
    scenario.values["token"] = 0
    assert scenario.run(name).code is H.AUTHORITY


@pytest.mark.parametrize("name", ["H_PKS_WRAP_OBJECT", "H_PKS_UNWRAP_OBJECT"])
def test_the_password_is_judged_before_the_wrapping_key(name: str):
    scenario = removed_key(name)
    scenario.machine.gen_password()
    scenario.machine.guest.write(AUTH_GPA, build_auth(password=b"w" * 32))

    assert scenario.run(name).code is H.AUTHORITY
    scenario.machine.put_auth()
    assert scenario.run(name).code is H.NOT_FOUND


def test_the_password_is_judged_before_a_signed_update_is_looked_at():
    scenario = wrong_password("H_PKS_SIGNED_UPDATE")
    scenario.machine.guest.write(UPDATE_GPA, bytes(2000))

    assert scenario.run("H_PKS_SIGNED_UPDATE").code is H.AUTHORITY
    scenario.machine.put_auth()
    assert scenario.run("H_PKS_SIGNED_UPDATE").code is H.P6


def test_the_stored_policy_is_judged_before_the_content_and_that_before_room():
    name = "H_PKS_SIGNED_UPDATE"
    scenario = full(name)
    scenario.machine.guest.write(UPDATE_GPA, bytes(16))  # another time than was signed
    assert scenario.run(name).code is H.AUTHORITY
    scenario.machine.guest.write(UPDATE_GPA, update())
    assert scenario.run(name).code is H.NO_MEM

    kek = variable_label("KEK")
    scenario.values = {"label": LABEL_GPA, "label_size": len(kek)}
    scenario.machine.put_label(kek)
    scenario.machine.guest.write(UPDATE_GPA, bytes(64))
    scenario.values["policy"] = SIGNED | Policy.WORLDREADABLE
    assert scenario.run(name).code is H.P4
    scenario.values["policy"] = SIGNED
    assert scenario.run(name).code is H.P6


def test_existence_is_judged_before_room_and_policy_for_new_keys():
    scenario = full("H_PKS_GEN_KEY")
    scenario.values["label_size"] = len(LABEL)

    assert scenario.run("H_PKS_GEN_KEY").code is H.RESOURCE
    scenario.values["label_size"] = len(LABEL) + 1
    assert scenario.run("H_PKS_GEN_KEY").code is H.NO_MEM


def test_a_wrapping_keys_bytes_are_refused_before_the_buffers_size_is_looked_at():
    machine = prepared()
    machine.put_label(KEY_LABEL)
    outcome = machine.hcall(
        pks.READ_OBJECT, machine.put_auth(), LABEL_GPA, len(KEY_LABEL), OUT_GPA, 0
    )

    assert (outcome.code, outcome.registers) == (H.AUTHORITY, ((5, Policy.WRAPPINGKEY),))
