# SPDX-License-Identifier: Apache-2.0
"""Two vCPUs' calls at once: whatever the order of their effects, it is as if one came first.

A handler may be held up wherever it asks for something, and others run meanwhile. Every
interleaving of the effects of two calls is tried.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from tests import signing
from tests.unit.hcalld.families.registers import (
    CALLS,
    GOOD,
    KEY_LABEL,
    KEY_LABEL_GPA,
    SIGNED,
    VARIABLE,
    VARIABLE_GPA,
    prepared,
)

from hcalld.core.call import Call, Plan
from hcalld.core.effects import Effect
from hcalld.core.errors import HcallError
from hcalld.core.outcome import Outcome, refusal
from hcalld.core.records import RecordedReply
from hcalld.families.registry import SERVED
from hcalld.testing.pks import PksMachine
from hcallproto.abi.returns import H
from hcallproto.payloads.pks import Policy

HANDLERS = {call.name: run for served in SERVED for call, run in served.handlers.by_call.items()}
SECOND_UPDATE_GPA = 0x40000
LATER_UPDATE = signing.update("db", signing.digests(2), "PK", signing.moment(200))

Arguments = dict[str, int]
Issue = tuple[str, Arguments]


class Running:
    """One call, an effect at a time."""

    def __init__(self, machine: PksMachine, issue: Issue, vcpu: int) -> None:
        name, values = issue
        hcall = CALLS[name]
        registers = {arg.register: (GOOD[name] | values)[arg.name] for arg in hcall.args}
        self.plan = Plan(hcall, machine.attributes.limits())
        self.call = Call(
            hcall, self.plan.arguments(registers, machine.guest.ram), vcpu, machine.guest.ram
        )
        self.machine = machine
        self.outcome: Outcome | None = None
        handler: Callable[..., Coroutine[Effect[Any], Any, Outcome]] = HANDLERS[name]
        self._coroutine = handler(self.call, machine.keystore)
        self._effect: Effect[Any] | None = None

    def step(self) -> None:
        """Answer what it asked for, and let it go on."""
        answer = None
        if self._effect is not None:
            answer = self.machine._perform(self.plan, self.call, self._effect)
        try:
            self._effect = self._coroutine.send(answer)
        except StopIteration as stop:
            self._end(stop.value)
        except HcallError as error:
            self._end(refusal(self.call.hcall, error))

    def _end(self, outcome: Outcome) -> None:
        """Commit and write, as the runtime does without waiting for anything."""
        changes = self.machine.changes()
        if outcome.code is not H.SUCCESS and outcome.code < 0:
            assert changes == []
        if changes:
            self.machine.store.commit(changes, RecordedReply(self.call.vcpu, 1, b"reply"))
        for gpa, data in outcome.writes:
            self.machine.guest.write(gpa, data)
        self.outcome = outcome


def result(machine: PksMachine, running: list[Running]) -> tuple[Any, ...]:
    """What can be seen afterwards, without what is random."""
    codes = []
    for one in running:
        assert one.outcome is not None
        codes.append(one.outcome.code)
    machine_sees = [
        (one.consumer, one.label, one.stored.policy, len(one.stored.data))
        for one in machine.keystore.objects()
    ]
    db = machine.keystore.variable(b"d\0b\0")
    used = machine.keystore.used_space
    tokens = sum(r.key[:1] == b"t" for r in machine.store.load().records)
    machine.reload()
    assert machine.keystore.used_space == used
    assert machine.keystore.variable(b"d\0b\0") == db
    return (tuple(codes), tuple(machine_sees), db, used, tokens)


def orders(machine: PksMachine, pair: tuple[Issue, Issue]) -> Iterator[tuple[int, ...]]:
    """All orders of the steps that two calls take when alone."""
    counts = []
    for vcpu, issue in enumerate(pair):
        alone = Running(machine, issue, vcpu)
        count = 0
        while alone.outcome is None:
            alone.step()
            count += 1
        counts.append(count)
    total = sum(counts)
    for places in itertools.combinations(range(total), counts[0]):
        yield tuple(0 if step in places else 1 for step in range(total))


def run(make: Callable[[], PksMachine], pair: tuple[Issue, Issue], order: tuple[int, ...]) -> Any:
    machine = make()
    running = [Running(machine, issue, vcpu) for vcpu, issue in enumerate(pair)]
    for which in order:
        if running[which].outcome is None:
            running[which].step()
    for one in running:
        while one.outcome is None:
            one.step()
    return result(machine, running)


def plain() -> PksMachine:
    machine = prepared("H_PKS_UNWRAP_OBJECT")
    machine.guest.write(SECOND_UPDATE_GPA, LATER_UPDATE)
    return machine


def with_db() -> PksMachine:
    machine = plain()
    name = "H_PKS_SIGNED_UPDATE"
    first = signing.update("db", signing.digests(9), "PK", signing.moment(150))
    machine.guest.write(0x50000, first)
    values = GOOD[name] | {"in": 0x50000, "in_size": len(first)}
    assert machine.hcall(CALLS[name], *values.values()).code is H.SUCCESS
    return machine


def busy() -> PksMachine:
    return prepared("H_PKS_UNWRAP_OBJECT", busy_answers=2)


def token_of(machine: PksMachine, name: str) -> int:
    return dict(machine.hcall(CALLS[name], *GOOD[name].values()).registers)[4]


UPDATE: Issue = ("H_PKS_SIGNED_UPDATE", {})
SAME_SECOND: Issue = (
    "H_PKS_SIGNED_UPDATE",
    {"in": SECOND_UPDATE_GPA, "in_size": len(LATER_UPDATE)},
)
WRITE: Issue = ("H_PKS_WRITE_OBJECT", {})
KEY: Issue = ("H_PKS_GEN_KEY", {})
REMOVE: Issue = ("H_PKS_REMOVE_OBJECT", {})
ON_KEY = {"label": KEY_LABEL_GPA, "label_size": len(KEY_LABEL)}
REMOVE_KEY: Issue = ("H_PKS_REMOVE_OBJECT", ON_KEY)
NEW_KEY: Issue = ("H_PKS_GEN_KEY", {**ON_KEY, "policy": int(Policy.WRAPPINGKEY)})
WRAP: Issue = ("H_PKS_WRAP_OBJECT", {})
UNWRAP: Issue = ("H_PKS_UNWRAP_OBJECT", {})
PASSWORD: Issue = ("H_PKS_GEN_PASSWORD", {"consumer": 2})
OTHER_PASSWORD: Issue = ("H_PKS_SET_PASSWORD", {"consumer": 2})
WRITE_DB: Issue = ("H_PKS_WRITE_OBJECT", {"label": VARIABLE_GPA, "label_size": len(VARIABLE)})
APPEND: Issue = ("H_PKS_SIGNED_UPDATE", {"policy": SIGNED})

PAIRS: list[tuple[str, Callable[[], PksMachine], tuple[Issue, Issue]]] = [
    ("one label, two writers", plain, (WRITE, WRITE)),
    ("one label, a writer and a key", plain, (WRITE, KEY)),
    ("two keys", plain, (KEY, KEY)),
    ("two passwords", plain, (PASSWORD, PASSWORD)),
    ("a password of either kind", plain, (PASSWORD, OTHER_PASSWORD)),
    ("removed twice", plain, (REMOVE, REMOVE)),
    ("one update twice", plain, (UPDATE, UPDATE)),
    ("two updates of one second", plain, (UPDATE, SAME_SECOND)),
    ("two updates of what is there", with_db, (UPDATE, SAME_SECOND)),
    ("an update, and a write in its place", plain, (UPDATE, WRITE_DB)),
    ("two policies", plain, (UPDATE, APPEND)),
    ("wrap, and its key removed", plain, (WRAP, REMOVE_KEY)),
    ("unwrap, and its key removed", plain, (UNWRAP, REMOVE_KEY)),
    ("a key removed, and made", plain, (REMOVE_KEY, NEW_KEY)),
]


@pytest.mark.parametrize(
    ("make", "pair"), [pytest.param(make, pair, id=name) for name, make, pair in PAIRS]
)
def test_two_calls_are_as_if_one_came_first(
    make: Callable[[], PksMachine], pair: tuple[Issue, Issue]
):
    every = list(orders(make(), pair))
    first = sum(which == 0 for which in every[0])
    serial = {
        run(make, pair, (0,) * first + (1,) * (len(every[0]) - first)),
        run(make, pair, (1,) * (len(every[0]) - first) + (0,) * first),
    }
    for order in every:
        assert run(make, pair, order) in serial, order


@pytest.mark.parametrize(
    "name", ["H_PKS_SIGNED_UPDATE", "H_PKS_WRAP_OBJECT", "H_PKS_UNWRAP_OBJECT"]
)
def test_one_token_from_two_cpus_is_good_for_one_of_them(name: str):
    machine = busy()
    issue = (name, {"token": token_of(machine, name)})
    every = list(orders(busy_with(name)[0], (issue, issue)))
    for order in every:
        machine, token = busy_with(name)
        issue = (name, {"token": token})
        codes = run(lambda machine=machine: machine, (issue, issue), order)[0]  # type: ignore[misc]
        assert sorted(codes) == sorted((H.LONG_BUSY_ORDER_1_MSEC, REFUSED[name])), order


REFUSED = {"H_PKS_SIGNED_UPDATE": H.P8, "H_PKS_WRAP_OBJECT": H.P9, "H_PKS_UNWRAP_OBJECT": H.P7}


def busy_with(name: str) -> tuple[PksMachine, int]:
    machine = busy()
    return machine, token_of(machine, name)


def test_the_last_room_is_given_once():
    def make() -> PksMachine:
        machine = prepared("H_PKS_UNWRAP_OBJECT")
        head = KEY_LABEL[:16]
        # 300 bytes are left then: room for one object of 180 bytes, not for two.
        for number in range(3):
            part = min(8192 - machine.used_space() - 300 - 52, 3000)
            name = head + number.to_bytes(4, "big")
            assert machine.write(name, bytes(max(part, 1))).code is H.SUCCESS
        machine.put_auth()
        machine.put_label(KEY_LABEL[:16] + b"here")
        return machine

    longer: Issue = ("H_PKS_WRITE_OBJECT", {"label_size": 20, "data_size": 180})
    other: Issue = ("H_PKS_WRITE_OBJECT", {"label_size": 19, "data_size": 180})
    pair = (longer, other)
    for order in orders(make(), pair):
        codes, *_ = run(make, pair, order)
        assert sorted(codes) == [H.NO_MEM, H.SUCCESS]
