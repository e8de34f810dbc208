# SPDX-License-Identifier: Apache-2.0
"""A driver for handlers without an event loop."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from hcalld.core.effects import Effect
from hcalld.core.outcome import Outcome

Perform = Callable[[Effect[Any]], Any]
"""Performs an effect: returns its answer, or raises what the handler is to see."""


class ScriptError(AssertionError):
    """A handler asked for something else than the script foresees."""


class Script:
    """Effects that a handler must ask for, in this order, and what it gets.

    An answer that is an exception is raised in the handler.
    """

    def __init__(self, steps: Sequence[tuple[Effect[Any], Any]]) -> None:
        self._steps = list(steps)
        self._done = 0

    def __call__(self, effect: Effect[Any]) -> Any:
        """Answer the next effect."""
        if self._done == len(self._steps):
            raise ScriptError(f"the script is at its end, the handler asks for {effect}")
        expected, answer = self._steps[self._done]
        if effect != expected:
            raise ScriptError(f"step {self._done}: expected {expected}, got {effect}")
        self._done += 1
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def check_finished(self) -> None:
        """Raise ScriptError if steps are left."""
        if self._done < len(self._steps):
            raise ScriptError(f"the handler did not ask for {self._steps[self._done][0]}")


def run_pure(
    coroutine: Coroutine[Effect[Any], Any, Outcome],
    perform: Perform | Sequence[tuple[Effect[Any], Any]] = (),
    *,
    trail: list[Effect[Any]] | None = None,
) -> Outcome:
    """Run a handler to its end.

    Args:
        coroutine: the handler, called with its call and model.
        perform: performs each effect; or a script of (effect, answer), used up wholly.
        trail: gets every effect, in order.

    Returns:
        What the handler returned.

    Raises:
        HcallError: the handler refused.
        ScriptError: the handler asked for something else than the script foresees.
    """
    script = None if callable(perform) else Script(perform)
    answer_to: Any = perform if script is None else script
    answer: Any = None
    error: Exception | None = None
    try:
        while True:
            effect = coroutine.send(answer) if error is None else coroutine.throw(error)
            if not isinstance(effect, Effect):
                raise TypeError(f"a handler awaits effects only, this one awaited {effect!r}")
            if trail is not None:
                trail.append(effect)
            answer, error = None, None
            try:
                answer = answer_to(effect)
            except ScriptError:
                raise
            except Exception as raised:
                error = raised
    except StopIteration as stop:
        outcome: Outcome = stop.value
    finally:
        coroutine.close()
    if script is not None:
        script.check_finished()
    return outcome
