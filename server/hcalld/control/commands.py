# SPDX-License-Identifier: Apache-2.0
"""What carries the commands of the control socket out.

Each is a function over the daemon's parts and its request, and gives the reply that the
request is declared with. It refuses by Refusal or HcalldError, and is cancelled when its client
is gone.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import pathlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import trio
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from hcalld.captures.sealing import CaptureKey
from hcalld.control import faulting, paging
from hcalld.control.figures import guest_of
from hcalld.control.listener import Answer, Refusal
from hcalld.control.messages import (
    AddFault,
    BeginCapture,
    CaptureState,
    ClearFaults,
    EndCapture,
    FaultAdded,
    FaultList,
    GuestList,
    Kind,
    ListFaults,
    ListGuests,
    PagedOut,
    PageOut,
    PassphraseFile,
    RecipientKey,
    RemoveFault,
    Reply,
    ReplyT,
    Request,
    SevRoot,
    ShowCapture,
    ShowSevRoot,
    ShowStats,
    Stats,
)
from hcalld.control.statistics import Statistics, capture_of
from hcalld.crypto.locks import Passphrase, Recipient
from hcalld.observe.capture import CaptureOptions
from hcalld.observe.capturing import Capturing
from hcalld.runtime.server import Server
from hcalld.stores.keys.passphrase import from_file


@dataclasses.dataclass(slots=True)
class Parts:
    """What of the daemon commands are about."""

    server: Server
    capturing: Capturing
    statistics: Statistics
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


# -- captures -------------------------------------------------------------------------------


@_carries_out(BeginCapture)
async def capture_begin(parts: Parts, request: BeginCapture) -> CaptureState:
    """Begin a capture."""
    parts.capturing.must_be_free()
    # A passphrase's key takes its time, and guests go on.
    key = None
    if request.secrets is not None:
        key = await trio.to_thread.run_sync(_key_of, request.secrets)
    parts.capturing.begin(
        CaptureOptions(
            path=pathlib.Path(request.path),
            file_bytes=request.file_bytes,
            files=request.files,
            key=key,
        )
    )
    return capture_of(parts.capturing.now)


def _key_of(secrets: PassphraseFile | RecipientKey) -> CaptureKey:
    if isinstance(secrets, RecipientKey):
        return CaptureKey(Recipient(X25519PublicKey.from_public_bytes(bytes.fromhex(secrets.key))))
    return CaptureKey(Passphrase(from_file(pathlib.Path(secrets.path)).get(is_new=True)))


@_carries_out(EndCapture)
async def capture_end(parts: Parts, request: EndCapture) -> CaptureState:
    """End the capture."""
    done = await parts.capturing.end()
    if done is None:
        raise Refusal(Kind.FAILED, "no capture goes on")
    return capture_of(done)


@_carries_out(ShowCapture)
async def capture_show(parts: Parts, request: ShowCapture) -> CaptureState:
    """Tell of the capture."""
    return capture_of(parts.capturing.now)


# -- numbers --------------------------------------------------------------------------------


@_carries_out(ShowStats)
async def stats(parts: Parts, request: ShowStats) -> Stats:
    """Tell the numbers of all guests."""
    return parts.statistics.now()


# -- faults ---------------------------------------------------------------------------------


@_carries_out(AddFault)
async def fault_add(parts: Parts, request: AddFault) -> FaultAdded:
    """Put a rule in force."""
    server = parts.server
    fault, warnings = faulting.add(server.faults, request.rule, server.sessions)
    return FaultAdded(fault=fault, warnings=warnings)


@_carries_out(ListFaults)
async def fault_list(parts: Parts, request: ListFaults) -> FaultList:
    """Tell of the rules in force."""
    return FaultList(faults=list(map(faulting.told, parts.server.faults)))


@_carries_out(RemoveFault)
async def fault_remove(parts: Parts, request: RemoveFault) -> FaultList:
    """Take a rule out of force."""
    removed = parts.server.faults.remove(request.number)
    faulting.end([removed])
    return FaultList(faults=[faulting.told(removed)])


@_carries_out(ClearFaults)
async def fault_clear(parts: Parts, request: ClearFaults) -> FaultList:
    """Take all rules out of force."""
    cleared = parts.server.faults.clear()
    faulting.end(cleared)
    return FaultList(faults=list(map(faulting.told, cleared)))


# -- SEV platforms --------------------------------------------------------------------------


@_carries_out(ShowSevRoot)
async def sev_root(parts: Parts, request: ShowSevRoot) -> SevRoot:
    """Tell of a platform's root."""
    name, roots = await parts.server.platform_roots(request.platform)
    ask, ark = (base64.b64encode(one).decode() for one in roots)
    return SevRoot(platform=name, ask=ask, ark=ark)
