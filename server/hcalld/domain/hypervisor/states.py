# SPDX-License-Identifier: Apache-2.0
"""KVM's states of a VM that becomes secure, and of its pages, with their tables.

KVM's own code does not test for a second INIT_START or INIT_DONE; the table in its
comments calls them errors, and here they are H_STATE.

Source: Linux 7.2 ``book3s_hv_uvmem.c``, the two tables in its head.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from hcallproto.abi.returns import H


class VmPhase(enum.IntEnum):
    """``kvm->arch.secure_guest``."""

    NORMAL = 0
    STARTED = 1
    """KVMPPC_SECURE_INIT_START."""
    DONE = 3
    """And KVMPPC_SECURE_INIT_DONE."""


class VmCall(enum.Enum):
    """What happens to a VM."""

    # There is one of each: the name that Enum hashes is a call of Python for each look-up.
    __hash__ = object.__hash__

    INIT_START = "H_SVM_INIT_START"
    INIT_DONE = "H_SVM_INIT_DONE"
    INIT_ABORT = "H_SVM_INIT_ABORT"
    PAGE = "H_SVM_PAGE_IN or H_SVM_PAGE_OUT"
    OFF = "KVM_PPC_SVM_OFF"


_P = VmPhase
_C = VmCall

PHASES: Final[Mapping[tuple[VmPhase, VmCall], tuple[VmPhase, H]]] = MappingProxyType(
    {
        (_P.NORMAL, _C.INIT_START): (_P.STARTED, H.SUCCESS),
        (_P.NORMAL, _C.INIT_DONE): (_P.NORMAL, H.UNSUPPORTED),
        (_P.NORMAL, _C.INIT_ABORT): (_P.NORMAL, H.UNSUPPORTED),
        (_P.NORMAL, _C.PAGE): (_P.NORMAL, H.UNSUPPORTED),
        (_P.NORMAL, _C.OFF): (_P.NORMAL, H.SUCCESS),
        (_P.STARTED, _C.INIT_START): (_P.STARTED, H.STATE),
        (_P.STARTED, _C.INIT_DONE): (_P.DONE, H.SUCCESS),
        # What the VM's UV_ESM returns; to the ultravisor the call does not return.
        (_P.STARTED, _C.INIT_ABORT): (_P.NORMAL, H.PARAMETER),
        (_P.STARTED, _C.PAGE): (_P.STARTED, H.SUCCESS),
        (_P.STARTED, _C.OFF): (_P.NORMAL, H.SUCCESS),
        (_P.DONE, _C.INIT_START): (_P.DONE, H.STATE),
        (_P.DONE, _C.INIT_DONE): (_P.DONE, H.STATE),
        (_P.DONE, _C.INIT_ABORT): (_P.DONE, H.STATE),
        (_P.DONE, _C.PAGE): (_P.DONE, H.SUCCESS),
        (_P.DONE, _C.OFF): (_P.NORMAL, H.SUCCESS),
    }
)
"""(phase, call) to the phase after it and the code; whole."""


class GfnState(enum.IntEnum):
    """What a VM's page is to the hypervisor."""

    NORMAL = 0
    SECURE = 1
    """KVMPPC_GFN_UVMEM_PFN: a device page stands for it."""
    SHARED = 2
    """KVMPPC_GFN_SHARED."""
    OUT = 3
    """KVMPPC_GFN_MEM_PFN: it is in a normal page, encrypted."""


class GfnEvent(enum.Enum):
    """What happens to a VM's page."""

    # There is one of each: the name that Enum hashes is a call of Python for each look-up.
    __hash__ = object.__hash__

    PAGE_IN = "H_SVM_PAGE_IN, not shared"
    SHARE = "H_SVM_PAGE_IN, shared"
    PAGE_OUT = "H_SVM_PAGE_OUT, or the hypervisor's own need"
    MOVE = "H_SVM_INIT_DONE: what was not asked for goes without UV_PAGE_IN"
    DROP = "the VM is no longer secure, or the memory is gone"


_G = GfnState
_E = GfnEvent

GFNS: Final[Mapping[tuple[GfnState, GfnEvent], tuple[GfnState, H]]] = MappingProxyType(
    {
        (_G.NORMAL, _E.PAGE_IN): (_G.SECURE, H.SUCCESS),
        (_G.NORMAL, _E.SHARE): (_G.SHARED, H.SUCCESS),
        (_G.NORMAL, _E.PAGE_OUT): (_G.NORMAL, H.SUCCESS),
        (_G.NORMAL, _E.MOVE): (_G.SECURE, H.SUCCESS),
        (_G.NORMAL, _E.DROP): (_G.NORMAL, H.SUCCESS),
        (_G.SECURE, _E.PAGE_IN): (_G.SECURE, H.PARAMETER),
        (_G.SECURE, _E.SHARE): (_G.SHARED, H.SUCCESS),
        (_G.SECURE, _E.PAGE_OUT): (_G.OUT, H.SUCCESS),
        (_G.SECURE, _E.MOVE): (_G.SECURE, H.SUCCESS),
        (_G.SECURE, _E.DROP): (_G.NORMAL, H.SUCCESS),
        (_G.SHARED, _E.PAGE_IN): (_G.SECURE, H.SUCCESS),
        (_G.SHARED, _E.SHARE): (_G.SHARED, H.SUCCESS),
        (_G.SHARED, _E.PAGE_OUT): (_G.SHARED, H.SUCCESS),
        (_G.SHARED, _E.MOVE): (_G.SHARED, H.SUCCESS),
        (_G.SHARED, _E.DROP): (_G.NORMAL, H.SUCCESS),
        (_G.OUT, _E.PAGE_IN): (_G.SECURE, H.SUCCESS),
        (_G.OUT, _E.SHARE): (_G.SHARED, H.SUCCESS),
        (_G.OUT, _E.PAGE_OUT): (_G.OUT, H.SUCCESS),
        (_G.OUT, _E.MOVE): (_G.OUT, H.SUCCESS),
        (_G.OUT, _E.DROP): (_G.NORMAL, H.SUCCESS),
    }
)
"""(state, event) to the state after it, if the ultravisor agrees, and the code; whole."""
