# SPDX-License-Identifier: Apache-2.0
"""Which rule a call meets."""

from __future__ import annotations

import pytest

from hcalld.core.errors import ConfigError
from hcalld.faults.engine import Faults, Met, load
from hcalld.faults.rules import MAX_RULES, Close, Rule
from hcallproto.abi.families import pks, uv
from hcallproto.abi.spec import Hcall
from hcallproto.payloads.pks import Policy


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
    faults = Faults([Rule(close=Close.BEFORE, after=2, times=3)])
    assert [met(faults) for _ in range(7)] == [0, 0, 1, 1, 1, 0, 0]
    (active,) = faults
    assert (active.matched, active.met, active.is_spent) == (5, 3, True)


@pytest.mark.parametrize(
    ("rule", "is_met"),
    [
        (Rule(close=Close.BEFORE), True),
        (Rule(close=Close.BEFORE, call="H_PKS_READ_OBJECT"), True),
        (Rule(close=Close.BEFORE, call="pks"), True),
        (Rule(close=Close.BEFORE, call="uv"), False),
        (Rule(close=Close.BEFORE, guest="a"), True),
        (Rule(close=Close.BEFORE, guest="b"), False),
        (Rule(close=Close.BEFORE, vcpu=0), True),
        (Rule(close=Close.BEFORE, vcpu=1), False),
        (Rule(close=Close.BEFORE, arguments={"label_size": 3}), True),
        (Rule(close=Close.BEFORE, arguments={"label_size": 4}), False),
        (Rule(close=Close.BEFORE, arguments={"consumer": 3}), False),
    ],
)
def test_a_rule_is_for_some_calls_only(rule: Rule, is_met: bool):
    assert met(Faults([rule]), label_size=3) == int(is_met)


def test_an_argument_may_be_named():
    rule = Rule(close=Close.BEFORE, call="H_PKS_GEN_PASSWORD", arguments={"consumer": "OS"})
    assert met(Faults([rule]), pks.GEN_PASSWORD, consumer=3) == 1
    assert met(Faults([rule]), pks.GEN_PASSWORD, consumer=2) == 0


def test_names_of_flags_may_be_joined():
    rule = Rule(close=Close.BEFORE, arguments={"policy": "WORLDREADABLE | SIGNEDUPDATE"})
    both = Policy.WORLDREADABLE | Policy.SIGNEDUPDATE
    assert met(Faults([rule]), pks.SIGNED_UPDATE, policy=int(both)) == 1
    assert met(Faults([rule]), pks.SIGNED_UPDATE, policy=int(Policy.SIGNEDUPDATE)) == 0


def test_a_negative_value_is_the_registers_bits():
    rule = Rule(close=Close.BEFORE, arguments={"label_size": -1})
    assert met(Faults([rule]), label_size=(1 << 64) - 1) == 1
    assert met(Faults([rule]), label_size=1) == 0


def test_chance_is_drawn_from_the_seed():
    def run(seed: int) -> list[int]:
        faults = Faults([Rule(close=Close.BEFORE, probability=0.5, seed=seed)])
        return [met(faults) for _ in range(64)]

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert 10 < sum(run(1)) < 54


def test_the_first_rule_holds_and_the_next_comes_when_it_is_spent():
    faults = Faults([Rule(close=Close.BEFORE, times=1), Rule(drop_reply=True)])
    assert [met(faults) for _ in range(3)] == [1, 2, 2]


def test_a_rule_that_another_covers_is_refused():
    faults = Faults([Rule(close=Close.BEFORE, call="pks", guest="a")])
    with pytest.raises(ConfigError, match=r"rule 1 \(close before\) takes every call"):
        faults.add(Rule(drop_reply=True, call="H_PKS_READ_OBJECT", guest="a", vcpu=1))
    faults.add(Rule(drop_reply=True, call="H_PKS_READ_OBJECT"))
    faults.add(Rule(drop_reply=True, call="UV_ESM", guest="a"))
    assert len(faults) == 3


def test_rules_come_and_go_by_number():
    faults = Faults([Rule(close=Close.BEFORE, call="uv"), Rule(close=Close.BEFORE, call="pks")])
    assert faults.remove(1).rule.call == "uv"
    assert met(faults, uv.ESM) == 0
    assert met(faults) == 2
    with pytest.raises(ConfigError, match="no rule 1; in force are: 2"):
        faults.remove(1)
    assert [active.number for active in faults.clear()] == [2]
    assert met(faults) == 0
    with pytest.raises(ConfigError, match="in force are: none"):
        faults.remove(2)
    assert faults.add(Rule(close=Close.BEFORE)).number == 3, "numbers are not used again"


def test_rules_are_bounded():
    faults = Faults([Rule(close=Close.BEFORE, times=1)] * MAX_RULES)
    with pytest.raises(ConfigError, match="256 rules are in force already"):
        faults.add(Rule(close=Close.BEFORE))


def test_nobody_asks_when_there_are_no_rules():
    faults = Faults()
    assert not faults.is_active
    faults.add(Rule(close=Close.BEFORE))
    assert faults.is_active
    faults.clear()
    assert not faults.is_active


def test_who_meets_a_rule_gets_all_that_decides():
    rule = Rule(returns="H_BUSY", call="pks")
    faults = Faults([rule])
    values = registers(pks.READ_OBJECT)
    assert faults.meet("a", 0, pks.READ_OBJECT, values) == Met(1, rule, 1)
    assert faults.meet("a", 0, pks.READ_OBJECT, values) == Met(1, rule, 2)
    assert Met(1, rule).note() == "fault 1: return H_BUSY"


def test_a_file_with_a_rule_that_another_covers_is_refused():
    text = '[[fault]]\nclose = "before"\n[[fault]]\ncall = "pks"\ngone = "space"\n'
    with pytest.raises(ConfigError, match=r"f\.toml: rule 2: rule 1 \(close before\) takes every"):
        load(text, "f.toml")
    text = text.replace('"before"', '"before"\nafter = 1')
    assert [active.number for active in load(text, "f.toml")] == [1, 2]
