# SPDX-License-Identifier: Apache-2.0
"""A guest as the control socket shows it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from hcalld.control.messages import Guest, Pef, PefState
from hcalld.core.errors import HcalldError
from hcalld.domain.pef.figures import PefFigures
from hcalld.domain.ultravisor.vm_states import VmState
from hcalld.runtime.session import Session

STATES: Final[Mapping[VmState, PefState]] = MappingProxyType(
    {
        VmState.NORMAL: "normal",
        VmState.ACTIVE: "entering",
        VmState.SECURE: "secure",
        VmState.ABORT: "ended",
    }
)


def pef_of(figures: PefFigures | None) -> Pef:
    """A secure VM."""
    if figures is None:
        return Pef(state="none")
    return Pef(
        state=STATES[figures.state],
        secure=figures.secure,
        shared=figures.shared,
        out=figures.out,
        shared_4k=figures.shared_4k,
        paged_out=figures.paged_out,
        limit=figures.limit,
    )


def guest_of(partition: str, session: Session) -> Guest:
    """A guest; what cannot be read of it is told as its problem."""
    problem = ""
    try:
        pef = pef_of(session.pef_figures())
    except HcalldError as error:
        pef, problem = Pef(state="none"), str(error)
    owned = session.partition
    tpm = None if owned is None else owned.tpm
    return Guest(
        partition=partition,
        peer=session.transport.peer,
        vcpus=session.vcpu_count,
        calls=session.answered_count,
        waiting=session.pending_count,
        tpm="none" if tpm is None else tpm.state.value,
        pef=pef,
        problem=problem,
    )
