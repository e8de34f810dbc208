# SPDX-License-Identifier: Apache-2.0
"""Rules of faults: what may be said, and what could never be met."""

from __future__ import annotations

import pytest

from hcalld.core.errors import ConfigError
from hcalld.faults.rules import MAX_NAME, Close, Corrupt, Gone, Rule, calls_of, parse, status_of
from hcallproto.abi.families import pks, uv
from hcallproto.abi.registry import CALLS

TEXT = """
[[fault]]
call = "H_PKS_WRAP_OBJECT"
after = 3
times = 5
return = "H_LONG_BUSY_ORDER_10_MSEC"

[[fault]]
guest = "lpar7"
probability = 0.5
seed = 7
gone = "disk"
delay_ms = 20

[[fault]]
call = "H_PKS_READ_OBJECT"
arguments = { label_size = 3 }
corrupt = { name = "out", offset = 4, bits = 0x80 }
"""


def test_a_file_of_rules_is_read():
    first, second, third = parse(TEXT, "faults.toml")
    assert (first.after, first.times, first.returns) == (3, 5, "H_LONG_BUSY_ORDER_10_MSEC")
    assert (second.call, second.gone, second.probability) == ("", Gone.DISK, 0.5)
    assert third.corrupt == Corrupt(name="out", offset=4, bits=0x80)
    assert [rule.describe() for rule in (first, second, third)] == [
        "return H_LONG_BUSY_ORDER_10_MSEC",
        "delay 20 ms, no disk",
        "corrupt out",
    ]


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("", "nothing goes wrong"),
        ('return = "H_BUSY"\nclose = "before"', "return and close contradict each other"),
        ('call = "H_NONE"\nclose = "before"', "no call 'H_NONE'"),
        ('call = "UV_ESM"\nreturn = "H_BUSY"', "UV_ESM does not return H_BUSY"),
        ('return = "H_SUCCESS"', "does not return H_SUCCESS"),
        ('call = "pks"\nreturn = "NONSENSE"', "no return code 'NONSENSE'"),
        ("return = 9223372036854775808", "does not fit a register"),
        ('call = "pks"\narguments = { nonsense = 1 }\nclose = "before"', "no argument 'nonsense'"),
        ('call = "H_PKS_READ_OBJECT"\ncorrupt = { name = "label" }', "no result 'label'"),
        ('corrupt = { name = "nonsense" }', "no result 'nonsense' in any call"),
        (
            'call = "UV_ESM"\ncorrupt = { name = "x", bits = 0 }',
            "corrupt.bits: Expected `int` >= 1",
        ),
        (
            'call = "H_PKS_READ_OBJECT"\ncorrupt = { name = "out", bits = 256 }',
            "bits 0x100 are more",
        ),
        ('call = "H_PKS_READ_OBJECT"\ncorrupt = { name = "size", offset = 1 }', "has no offset"),
        ('arguments = { consumer = "THEM" }\nclose = "after"', "consumer has no value 'THEM'"),
        (
            'arguments = { reserved = "OS" }\nclose = "after"',
            "has no value 'OS'; expected a number",
        ),
        ('arguments = { policy = "WORLDREADABLE|X" }\nclose = "after"', "has no value"),
        ('arguments = { label_size = 18446744073709551616 }\nclose = "after"', "fit a register"),
        ('vcpu = 4096\nclose = "after"', "vcpu: Expected `int` <= 4095"),
        ('close = "sometimes"', "close: Invalid enum value 'sometimes'"),
        (f'guest = "{"x" * (MAX_NAME + 1)}"\nclose = "after"', "guest: Expected `str` of length"),
        ('call = "PAGE_IN"\nreturn = "U_BUSY"', "QEMU makes PAGE_IN itself"),
        ('call = "ATTEND"\ngone = "space"', "what can go wrong with it is drop_reply, close"),
        ('call = "H_PKS_READ_OBJECT"\ngone = "tpm"', "expected H_TPM_COMM or UV_ESM"),
        ('call = "uv"\ngone = "disk"', "expected H_PKS_CONFIRM_OBJECT_FLUSHED"),
        ('close = "before"\nprobability = 0.0', "Expected `float` > 0"),
        ('close = "before"\ntimes = 0', "Expected `int` >= 1"),
        ("delay_ms = 600001", "Expected `int` <= 600000"),
        ('gone = "sense"', "Invalid enum value 'sense'"),
        ("unknown = 1", "unknown field `unknown`"),
        ("close", "faults.toml: "),
    ],
)
def test_what_could_never_be_met_is_refused(rule: str, why: str):
    with pytest.raises(ConfigError, match=why) as raised:
        parse(f"[[fault]]\n{rule}\n", "faults.toml")
    assert str(raised.value).startswith("faults.toml: ")


def test_what_is_wrong_is_named_by_rule_and_field():
    text = TEXT + "[[fault]]\ntimes = 0\ndelay_ms = 1\n"
    with pytest.raises(ConfigError) as raised:
        parse(text, "f.toml")
    assert str(raised.value) == "f.toml: rule 4: times: Expected `int` >= 1"
    text = TEXT + '[[fault]]\ncall = "H_NONE"\ndelay_ms = 1\n'
    with pytest.raises(ConfigError, match=r"^f\.toml: rule 4: call: no call 'H_NONE'; expected a"):
        parse(text, "f.toml")
    with pytest.raises(ConfigError, match=r"^f\.toml: Object contains unknown field `faults`"):
        parse("[[faults]]\n", "f.toml")


def test_qemus_own_calls_are_meant_only_by_name():
    assert [call.name for call in calls_of("PAGE_IN")] == ["PAGE_IN"]
    assert Rule(call="ATTEND", drop_reply=True, delay_ms=1).describe() == "delay 1 ms, no reply"
    assert {"PAGE_IN", "ATTEND"}.isdisjoint(call.name for call in calls_of(""))
    assert {"PAGE_IN", "ATTEND"}.isdisjoint(call.name for call in calls_of("uv"))


def test_calls_are_meant_by_name_by_family_or_all():
    assert calls_of("H_PKS_READ_OBJECT") == (pks.READ_OBJECT,)
    assert calls_of("uv") == uv.FAMILY.calls
    assert calls_of("") == CALLS


def test_a_code_is_a_name_or_a_number():
    assert status_of("H_BUSY", pks.READ_OBJECT) == 1
    assert status_of("U_P2", uv.SHARE_PAGE) == -55
    assert status_of(-1234, pks.READ_OBJECT) == -1234


def test_a_rule_is_endless_if_every_call_meets_it():
    assert Rule(close=Close.BEFORE).is_endless
    for rule in (
        Rule(close=Close.BEFORE, times=1),
        Rule(close=Close.BEFORE, after=1),
        Rule(close=Close.BEFORE, probability=0.5),
    ):
        assert not rule.is_endless


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Rule(drop_reply=True), "no reply"),
        (Rule(close=Close.AFTER), "close after"),
        (Rule(delay_ms=5), "delay 5 ms"),
        (Rule(returns=-4, delay_ms=5), "delay 5 ms, return -4"),
    ],
)
def test_describe(rule: Rule, words: str):
    assert rule.describe() == words
