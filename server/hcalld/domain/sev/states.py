# SPDX-License-Identifier: Apache-2.0
"""States of the platform and of a guest, and what each command makes of them.

``INITIALIZES``: a VM is made one of SEV or of SEV-ES once, by the kernel. ``GUEST_TABLE``: commands
of a guest. ``PLATFORM_TABLE``: commands of ``/dev/sev``, with what the driver does before and after
the firmware. What the last two hold is the state afterwards, or the code that refuses. Commands are
there by name.

The life of a guest::

    UNINIT --LAUNCH_START--> LUPDATE --LAUNCH_MEASURE--> LSECRET --LAUNCH_FINISH--> RUNNING
    UNINIT --RECEIVE_START--> RUPDATE --RECEIVE_FINISH--> RUNNING
    RUNNING --SEND_START--> SUPDATE --SEND_FINISH--> SENT
    RUNNING <--SEND_CANCEL-- SUPDATE

Sources: AMDESE/sev-tool ``sevapi.h`` (states and commands), Linux 7.2 ``svm/sev.c`` (ACTIVATE
refuses a second guest of a VM) and ``sev-dev.c`` (the driver initializes and shuts down).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from hcalld.core.errors import HcallError
from hcalld.domain.sev.settings import CSR_STATES, DEBUG_STATES, REPORT_STATES
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.abi.spec import Hcall
from hcallproto.payloads.sev import GuestState, PlatformState


class VmKind(enum.Enum):
    """What the kernel has made of a VM."""

    NONE = "not initialized for SEV"
    SEV = "one of SEV"
    SEV_ES = "one of SEV-ES"
    BY_POLICY = "one of SEV or SEV-ES, as its guest's policy will say"
    """INIT2 goes by the type that the VM was created with, which no command tells."""


_K = VmKind
_S = SevCode
_G = GuestState
_P = PlatformState

INITIALIZES: Final[Mapping[str, VmKind]] = MappingProxyType(
    {sev.INIT.name: _K.SEV, sev.ES_INIT.name: _K.SEV_ES, sev.INIT2.name: _K.BY_POLICY}
)
"""Command to what it makes of a VM that is not initialized; the kernel refuses all others."""

NEEDS_ES: Final = frozenset(
    command.name
    for command in (sev.LAUNCH_UPDATE_VMSA, sev.SEND_UPDATE_VMSA, sev.RECEIVE_UPDATE_VMSA)
)
"""Commands that the kernel refuses for a VM without SEV-ES."""

UNINITIALIZED: Final[Mapping[str, SevCode]] = MappingProxyType(
    {sev.RECEIVE_UPDATE_DATA.name: _S.EINVAL}
)
"""What the kernel answers of a VM that is not initialized, where it is not -ENOTTY."""

GuestStep = GuestState | SevCode
PlatformStep = PlatformState | SevCode


def _row(
    after: Mapping[GuestState, GuestState],
    *,
    without: SevCode = _S.INVALID_GUEST,
    otherwise: SevCode = _S.INVALID_GUEST_STATE,
) -> dict[GuestState, GuestStep]:
    """A command's row: ``after`` by state; what is not in it is refused."""
    row: dict[GuestState, GuestStep] = dict.fromkeys(GuestState, otherwise)
    row[_G.UNINIT] = without
    row.update(after)
    return row


def _stay(*states: GuestState) -> dict[GuestState, GuestState]:
    return {state: state for state in states}


_ROWS: Final[Mapping[Hcall, dict[GuestState, GuestStep]]] = {
    sev.LAUNCH_START: _row({_G.UNINIT: _G.LUPDATE}, otherwise=_S.ASID_OWNED),
    sev.LAUNCH_UPDATE_DATA: _row(_stay(_G.LUPDATE)),
    sev.LAUNCH_UPDATE_VMSA: _row(_stay(_G.LUPDATE)),
    sev.LAUNCH_MEASURE: _row({_G.LUPDATE: _G.LSECRET}),
    sev.LAUNCH_SECRET: _row(_stay(_G.LSECRET)),
    sev.LAUNCH_FINISH: _row({_G.LSECRET: _G.RUNNING}),
    sev.GET_ATTESTATION_REPORT: _row(_stay(*REPORT_STATES)),
    sev.SEND_START: _row({_G.RUNNING: _G.SUPDATE}),
    sev.SEND_UPDATE_DATA: _row(_stay(_G.SUPDATE)),
    sev.SEND_UPDATE_VMSA: _row(_stay(_G.SUPDATE)),
    sev.SEND_FINISH: _row({_G.SUPDATE: _G.SENT}),
    sev.SEND_CANCEL: _row({_G.SUPDATE: _G.RUNNING}),
    sev.RECEIVE_START: _row({_G.UNINIT: _G.RUPDATE}, otherwise=_S.ASID_OWNED),
    sev.RECEIVE_UPDATE_DATA: _row(_stay(_G.RUPDATE)),
    sev.RECEIVE_UPDATE_VMSA: _row(_stay(_G.RUPDATE)),
    sev.RECEIVE_FINISH: _row({_G.RUPDATE: _G.RUNNING}),
    sev.GUEST_STATUS: _row(_stay(*(state for state in GuestState if state))),
    sev.DBG_DECRYPT: _row(_stay(*DEBUG_STATES)),
    sev.DBG_ENCRYPT: _row(_stay(*DEBUG_STATES)),
}

GUEST_TABLE: Final[Mapping[tuple[str, GuestState], GuestStep]] = MappingProxyType(
    {(command.name, state): step for command, row in _ROWS.items() for state, step in row.items()}
)
"""(command, guest's state) to the state after it, or the firmware's code."""

_STEPS: Final = {
    command.name: tuple(row[state] for state in sorted(GuestState))
    for command, row in _ROWS.items()
}
"""The same, by a state's number: every command asks, and an enum's hash takes its time."""

_ANYWHERE: Final = {state: state for state in PlatformState}
_ONLY_INIT: Final[dict[PlatformState, PlatformStep]] = {
    _P.UNINIT: _P.UNINIT,  # The driver initializes it, and shuts it down again.
    _P.INIT: _P.INIT,
    _P.WORKING: _S.INVALID_PLATFORM_STATE,
}
_WITH_GUEST: Final[dict[PlatformState, PlatformStep]] = {
    _P.UNINIT: _S.INVALID_PLATFORM_STATE,
    _P.INIT: _P.WORKING,
    _P.WORKING: _P.WORKING,
}
_INITIALIZING: Final = {_P.UNINIT: _P.INIT, _P.INIT: _P.INIT, _P.WORKING: _P.WORKING}

_PLATFORM_ROWS: Final[Mapping[Hcall, Mapping[PlatformState, PlatformStep]]] = {
    sev.FACTORY_RESET: {_P.UNINIT: _P.UNINIT, _P.INIT: _P.UNINIT, _P.WORKING: _S.EBUSY},
    sev.PLATFORM_STATUS: _ANYWHERE,
    sev.PEK_GEN: _ONLY_INIT,
    sev.PEK_CSR: {
        state: state if state in CSR_STATES else _S.INVALID_PLATFORM_STATE
        for state in PlatformState
    },
    sev.PDH_GEN: _ANYWHERE,
    sev.PDH_CERT_EXPORT: _ANYWHERE,
    sev.PEK_CERT_IMPORT: _ONLY_INIT,
    sev.GET_ID: _ANYWHERE,
    sev.GET_ID2: _ANYWHERE,
    sev.INIT: _INITIALIZING,
    sev.ES_INIT: _INITIALIZING,
    sev.INIT2: _INITIALIZING,
    sev.LAUNCH_START: _WITH_GUEST,
    sev.RECEIVE_START: _WITH_GUEST,
    sev.CERT_EXPORT: {
        _P.UNINIT: _S.INVALID_PLATFORM_STATE,
        _P.INIT: _P.INIT,
        _P.WORKING: _P.WORKING,
    },
}

PLATFORM_TABLE: Final[Mapping[tuple[str, PlatformState], PlatformStep]] = MappingProxyType(
    {
        (command.name, state): step
        for command, row in _PLATFORM_ROWS.items()
        for state, step in row.items()
    }
)
"""(command, platform's state) to the state after it, or the code that refuses it. PEK_CSR is
refused while guests exist, as sev-tool's table has it; notes on 55766 allow it."""


def guest_after(command: Hcall, state: GuestState) -> GuestState:
    """The guest's state after a command.

    Raises:
        HcallError: it is refused in this state.
    """
    step = _STEPS[command.name][state]
    if isinstance(step, SevCode):
        if state is GuestState.UNINIT:
            raise HcallError(step, "the VM has no guest: launch or receive one first")
        raise HcallError(step, f"the guest is {state.name}")
    return step


def platform_after(command: Hcall, state: PlatformState) -> PlatformState:
    """The platform's state after a command.

    Raises:
        HcallError: it is refused in this state.
    """
    step = PLATFORM_TABLE[command.name, state]
    if isinstance(step, SevCode):
        raise HcallError(step, f"the platform is {state.name}")
    return step
