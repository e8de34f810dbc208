# SPDX-License-Identifier: Apache-2.0
"""Which rule a call meets."""

from __future__ import annotations

import pytest

from hcalld.core.errors import ConfigError
from hcalld.faults.engine import Faults
from hcalld.faults.rules import MAX_RULES, Rule
from hcallproto.abi.families import pks, uv
from hcallproto.abi.spec import Hcall


def registers(hcall: Hcall, **args: int) -> list[int]:
    values = [0] * 13
    for name, value in args.items():
        values[hcall.arg(name).register] = value
    return values


def met(
    faults: Faults, hcall: Hcall = pks.READ_OBJECT, guest: str = "a", vcpu: int = 0, **args: int
) -> int:
    """The number of the rule that a call meets, or 0."""
    active = faults.meet(guest, vcpu, hcall, registers(hcall, **args))
    return active.number if active else 0


def test_rules_count_what_they_let_pass_and_what_they_stop():
    faults = Faults([Rule(close=True, after=2, times=3)])
    assert [met(faults) for _ in range(7)] == [0, 0, 1, 1, 1, 0, 0]
    (active,) = faults
    assert (active.matched, active.met, active.is_spent) == (5, 3, True)


@pytest.mark.parametrize(
    ("rule", "is_met"),
    [
        (Rule(close=True), True),
        (Rule(close=True, call="H_PKS_READ_OBJECT"), True),
        (Rule(close=True, call="pks"), True),
        (Rule(close=True, call="uv"), False),
        (Rule(close=True, guest="a"), True),
        (Rule(close=True, guest="b"), False),
        (Rule(close=True, vcpu=0), True),
        (Rule(close=True, vcpu=1), False),
        (Rule(close=True, arguments={"label_size": 3}), True),
        (Rule(close=True, arguments={"label_size": 4}), False),
        (Rule(close=True, arguments={"consumer": 3}), False),
    ],
)
def test_a_rule_is_for_some_calls_only(rule: Rule, is_met: bool):
    assert met(Faults([rule]), label_size=3) == int(is_met)


def test_an_argument_may_be_named():
    rule = Rule(close=True, call="H_PKS_GEN_PASSWORD", arguments={"consumer": "OS"})
    assert met(Faults([rule]), pks.GEN_PASSWORD, consumer=3) == 1
    assert met(Faults([rule]), pks.GEN_PASSWORD, consumer=2) == 0
    rule = Rule(close=True, call="H_PKS_GEN_PASSWORD", arguments={"reserved": "OS"})
    assert met(Faults([rule]), pks.GEN_PASSWORD) == 0, "it has no names"


def test_chance_is_drawn_from_the_seed():
    def run(seed: int) -> list[int]:
        faults = Faults([Rule(close=True, probability=0.5, seed=seed)])
        return [met(faults) for _ in range(64)]

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert 10 < sum(run(1)) < 54


def test_the_first_rule_holds_and_the_next_comes_when_it_is_spent():
    faults = Faults([Rule(close=True, times=1), Rule(drop_reply=True)])
    assert [met(faults) for _ in range(3)] == [1, 2, 2]


def test_a_rule_that_another_covers_is_refused():
    faults = Faults([Rule(close=True, call="pks", guest="a")])
    with pytest.raises(ConfigError, match=r"rule 1 \(close\) takes every call"):
        faults.add(Rule(drop_reply=True, call="H_PKS_READ_OBJECT", guest="a", vcpu=1))
    faults.add(Rule(drop_reply=True, call="H_PKS_READ_OBJECT"))
    faults.add(Rule(drop_reply=True, call="UV_ESM", guest="a"))
    assert len(faults) == 3


def test_rules_come_and_go_by_number():
    faults = Faults([Rule(close=True, call="uv"), Rule(close=True, call="pks")])
    assert faults.remove(1).rule.call == "uv"
    assert met(faults, uv.ESM) == 0
    assert met(faults) == 2
    with pytest.raises(ConfigError, match="no rule 1; in force are: 2"):
        faults.remove(1)
    assert faults.clear() == 1
    assert met(faults) == 0
    with pytest.raises(ConfigError, match="in force are: none"):
        faults.remove(2)
    assert faults.add(Rule(close=True)).number == 3, "numbers are not used again"


def test_rules_are_bounded():
    faults = Faults([Rule(close=True, times=1)] * MAX_RULES)
    with pytest.raises(ConfigError, match="256 rules are in force already"):
        faults.add(Rule(close=True))


def test_the_note_names_the_rule():
    (active,) = Faults([Rule(returns="H_BUSY", call="pks")])
    assert active.note() == "fault 1: return H_BUSY"
