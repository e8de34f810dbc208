# SPDX-License-Identifier: Apache-2.0
"""The ultravisor's states of a VM, and their table.

A normal VM has no record. UV_ESM makes one, ACTIVE; when all is checked it is SECURE. An
ABORT VM still has one because the hypervisor has not yet said UV_SVM_TERMINATE: it gets
nothing more out of the VM's pages than that they are gone.

Source: open-power/ultravisor ``include/svm_host.h`` (``SVM_ACTIVE``, ``SVM_SECURE``,
``SVM_ABORT``), ``svm/svm-esm.c``; Linux 7.2 ``book3s_hv_uvmem.c``, "life cycle of SVM".
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from hcalld.core.errors import HcallError
from hcallproto.abi.returns import U


class VmState(enum.IntEnum):
    """What the ultravisor knows of a VM."""

    NORMAL = 0
    """There is no record."""
    ACTIVE = 1
    """It is being made secure, and does not run."""
    SECURE = 2
    ABORT = 3


class VmEvent(enum.Enum):
    """What happens to a VM."""

    ESM = "UV_ESM"
    COMMIT = "everything is checked, and the hypervisor agrees"
    ABORT = "the VM cannot be made secure"
    BREACH = "a page was altered, or the hypervisor refuses what it must not"
    TERMINATE = "UV_SVM_TERMINATE"


_V = VmState
_E = VmEvent

TABLE: Final[Mapping[tuple[VmState, VmEvent], VmState | U]] = MappingProxyType(
    {
        (_V.NORMAL, _E.ESM): _V.ACTIVE,
        (_V.NORMAL, _E.TERMINATE): _V.NORMAL,
        (_V.ACTIVE, _E.ESM): U.RETRY,
        (_V.ACTIVE, _E.COMMIT): _V.SECURE,
        (_V.ACTIVE, _E.ABORT): _V.ABORT,
        (_V.ACTIVE, _E.BREACH): _V.ABORT,
        (_V.ACTIVE, _E.TERMINATE): _V.NORMAL,
        (_V.SECURE, _E.ESM): U.RETRY,
        (_V.SECURE, _E.BREACH): _V.ABORT,
        (_V.SECURE, _E.TERMINATE): _V.NORMAL,
        (_V.ABORT, _E.ESM): U.RETRY,
        (_V.ABORT, _E.BREACH): _V.ABORT,
        (_V.ABORT, _E.TERMINATE): _V.NORMAL,
    }
)
"""(state, event) to the state after it, or the code that refuses it."""


class VmStateError(Exception):
    """Something happened to a VM that cannot, in its state: a bug of ours."""


def after(state: VmState, event: VmEvent) -> VmState:
    """The state after an event.

    Raises:
        HcallError: it is refused.
        VmStateError: it cannot happen in this state.
    """
    try:
        found = TABLE[state, event]
    except KeyError:
        raise VmStateError(f"a VM that is {state.name} had {event.name}") from None
    if isinstance(found, U):
        raise HcallError(found, f"{event.value}, but the VM is {state.name}")
    return found
