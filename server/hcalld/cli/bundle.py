# SPDX-License-Identifier: Apache-2.0
"""Options that belong together, for commands that want what they say and not each of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def bundle(name: str, make: Callable[..., Any], options: Sequence[Decorator]) -> Decorator:
    """Adds options to a command.

    Args:
        name: the command's argument that gets what ``make`` makes of them.
        make: a function, or class, that takes each by its name.
        options: the click options and arguments, in the order in which help shows them.
    """
    taken = tuple(inspect.signature(make).parameters)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **values: Any) -> Any:
            made = make(**{one: values.pop(one) for one in taken})
            return function(*args, **{name: made}, **values)

        decorated: Callable[..., Any] = run
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate
