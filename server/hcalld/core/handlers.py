# SPDX-License-Identifier: Apache-2.0
"""The registration of handlers: one set a family, bound to declared calls."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from hcalld.core.call import Call
from hcalld.core.effects import Effect
from hcalld.core.outcome import Outcome
from hcallproto.abi.spec import Family, Hcall

ModelT = TypeVar("ModelT")

Handler = Callable[[Call, ModelT], Coroutine[Effect[Any], Any, Outcome]]


class HandlerSet(Generic[ModelT]):
    """Handlers of one family over one model.

    Usage::

        HANDLERS: HandlerSet[Keystore] = HandlerSet(pks.FAMILY)

        @HANDLERS.handles(pks.GET_CONFIG)
        async def h_pks_get_config(call: Call, keystore: Keystore) -> Outcome: ...
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        self.by_call: dict[Hcall, Handler[ModelT]] = {}

    def handles(self, hcall: Hcall) -> Callable[[Handler[ModelT]], Handler[ModelT]]:
        """Decorator: bind a coroutine function to a call of the family."""
        if hcall not in self.family.calls:
            raise ValueError(f"{hcall.name} is not declared in family {self.family.name}")
        if hcall in self.by_call:
            raise ValueError(f"{hcall.name} has a handler already")
        if hcall.decode_only:
            raise ValueError(f"{hcall.name} is declared decode_only")

        def bind(handler: Handler[ModelT]) -> Handler[ModelT]:
            self.by_call[hcall] = handler
            return handler

        return bind
