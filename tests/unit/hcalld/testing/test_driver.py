# SPDX-License-Identifier: Apache-2.0
"""The driver without an event loop."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hcalld.core.effects import Effect, Entropy, Now
from hcalld.core.errors import HcallError
from hcalld.core.outcome import Outcome
from hcalld.testing import Script, ScriptError, run_pure
from hcallproto.abi.returns import H


async def two_effects() -> Outcome:
    value = await Entropy(4)
    try:
        await Now()
    except ValueError:
        return Outcome(H.BUSY)
    return Outcome(H.SUCCESS, ((4, len(value)),))


def test_a_script_answers_in_order():
    trail: list[Effect[Any]] = []
    outcome = run_pure(two_effects(), [(Entropy(4), b"1234"), (Now(), 5)], trail=trail)

    assert outcome == Outcome(H.SUCCESS, ((4, 4),))
    assert trail == [Entropy(4), Now()]


def test_an_exception_in_the_script_is_raised_in_the_handler():
    assert run_pure(two_effects(), [(Entropy(4), b""), (Now(), ValueError())]).code is H.BUSY


def test_another_effect_than_foreseen_fails():
    with pytest.raises(ScriptError, match=r"step 0: expected Entropy\(size=5\)"):
        run_pure(two_effects(), [(Entropy(5), b"")])


def test_more_effects_than_foreseen_fail():
    with pytest.raises(ScriptError, match="at its end, the handler asks for Now"):
        run_pure(two_effects(), [(Entropy(4), b"")])


def test_fewer_effects_than_foreseen_fail():
    steps: list[tuple[Effect[Any], Any]] = [(Entropy(4), b""), (Now(), 1), (Now(), 2)]
    with pytest.raises(ScriptError, match="did not ask for Now"):
        run_pure(two_effects(), steps)


def test_a_script_can_be_used_by_hand():
    script = Script([(Now(), 3)])
    with pytest.raises(ScriptError):
        script.check_finished()
    assert script(Now()) == 3
    script.check_finished()


def test_a_function_may_perform_the_effects():
    answers: dict[type, Any] = {Entropy: b"12", Now: 1}

    assert run_pure(two_effects(), lambda e: answers[type(e)]).registers == ((4, 2),)


def test_a_refusal_comes_out():
    async def refuse() -> Outcome:
        raise HcallError(H.P2, "why")

    with pytest.raises(HcallError, match="H_P2: why"):
        run_pure(refuse())


def test_a_handler_that_awaits_something_else_fails():
    async def sleeper() -> Outcome:
        await asyncio.sleep(0)
        return Outcome(H.SUCCESS)

    with pytest.raises(TypeError, match="awaits effects only"):
        run_pure(sleeper())
