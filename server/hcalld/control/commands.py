# SPDX-License-Identifier: Apache-2.0
"""What carries the commands of the control socket out.

Each is a function over the daemon's parts and its request, and gives the reply that the
request is declared with. It refuses by Refusal or HcalldError, and is cancelled when its client
is gone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from hcalld.control import paging
from hcalld.control.figures import guest_of
from hcalld.control.listener import Answer, Refusal
from hcalld.control.messages import (
    GuestList,
    Kind,
    ListGuests,
    PagedOut,
    PageOut,
    Reply,
    ReplyT,
    Request,
)
from hcalld.runtime.server import Server


@dataclasses.dataclass(slots=True)
class Parts:
    """What of the daemon commands are about."""

    server: Server
    paging: set[str] = dataclasses.field(default_factory=set)
    """Partitions that are being paged out at a command."""


Function = Callable[[Parts, Any], Awaitable[Reply]]

FUNCTIONS: Final[dict[type[Request[Any]], Function]] = {}
"""Command to function."""


def _carries_out(
    command: type[Request[ReplyT]],
) -> Callable[
    [Callable[[Parts, Any], Awaitable[ReplyT]]], Callable[[Parts, Any], Awaitable[ReplyT]]
]:
    def register(
        function: Callable[[Parts, Any], Awaitable[ReplyT]],
    ) -> Callable[[Parts, Any], Awaitable[ReplyT]]:
        FUNCTIONS[command] = function
        return function

    return register


def bound_to(parts: Parts) -> Mapping[type[Request[Any]], Answer]:
    """The functions, for a daemon's parts."""
    return {command: functools.partial(function, parts) for command, function in FUNCTIONS.items()}


# -- guests ---------------------------------------------------------------------------------


@_carries_out(ListGuests)
async def guests(parts: Parts, request: ListGuests) -> GuestList:
    """Tell of all connected guests."""
    sessions = sorted(parts.server.sessions.items())
    return GuestList(guests=[guest_of(name, session) for name, session in sessions])


# -- page-out -------------------------------------------------------------------------------


@_carries_out(PageOut)
async def page_out(parts: Parts, request: PageOut) -> PagedOut:
    """Page a secure VM's pages out."""
    name = request.partition
    session = parts.server.sessions.get(name)
    if session is None:
        known = ", ".join(map(repr, sorted(parts.server.sessions))) or "none"
        raise Refusal(
            Kind.NO_GUEST, f"no guest is connected as partition {name!r}; connected are: {known}"
        )
    if name in parts.paging:
        raise Refusal(
            Kind.IN_PROGRESS, f"partition {name!r} is being paged out already; wait for its end"
        )
    parts.paging.add(name)
    try:
        return await paging.page_out(name, session, request.pages)
    finally:
        parts.paging.remove(name)
