# SPDX-License-Identifier: Apache-2.0
"""The registration of handlers: one set a family, bound to declared calls.

What happens to a call before its handler: the family's gate (is the facility there, and
on, for this partition?), then the checks of ``Plan``. Both may raise ``HcallError``.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Generic, Protocol, TypeVar

from hcalld.core.call import Call
from hcalld.core.effects import Effect
from hcalld.core.outcome import Outcome
from hcalld.core.records import Change
from hcallproto.abi.spec import Family, Hcall


class Model(Protocol):
    """What a session needs of a family's model, which is built anew for each run."""

    def take_changes(self) -> list[Change]:
        """The changes since the last time, to be committed together; empties the list."""


ModelT = TypeVar("ModelT", bound=Model)

Handler = Callable[[Call, ModelT], Coroutine[Effect[Any], Any, Outcome]]

Gate = Callable[[ModelT], None]
"""Raises HcallError when no call of the family is served at all."""

Admission = Callable[[Hcall, int, ModelT], None]
"""Raises HcallError when the caller, by its MSR, may not make this call."""


class HandlerSet(Generic[ModelT]):
    """Handlers of one family over one model.

    Usage::

        HANDLERS: HandlerSet[Keystore] = HandlerSet(pks.FAMILY, gate=check_enabled)

        @HANDLERS.handles(pks.GET_CONFIG)
        async def h_pks_get_config(call: Call, keystore: Keystore) -> Outcome: ...
    """

    def __init__(
        self,
        family: Family,
        *,
        gate: Gate[ModelT] | None = None,
        admission: Admission[ModelT] | None = None,
    ) -> None:
        self.family = family
        self.gate = gate
        """Run before the arguments are looked at."""
        self.admission = admission
        """Run after the gate, before the arguments are looked at."""
        self.by_call: dict[Hcall, Handler[ModelT]] = {}

    def handles(self, *hcalls: Hcall) -> Callable[[Handler[ModelT]], Handler[ModelT]]:
        """Decorator: bind a coroutine function to calls of the family."""
        for hcall in hcalls:
            if hcall not in self.family.calls:
                raise ValueError(f"{hcall.name} is not declared in family {self.family.name}")
            if hcall in self.by_call:
                raise ValueError(f"{hcall.name} has a handler already")
            if hcall.decode_only:
                raise ValueError(f"{hcall.name} is declared decode_only")

        def bind(handler: Handler[ModelT]) -> Handler[ModelT]:
            self.by_call.update(dict.fromkeys(hcalls, handler))
            return handler

        return bind
