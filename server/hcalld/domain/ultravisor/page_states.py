# SPDX-License-Identifier: Apache-2.0
"""The states of a secure VM's page, as the firmware numbers them, and their table.

A page is the VM's own (SECURE, PAGEDOUT) or a normal one. It becomes normal because the
VM asked (SHARED), because the ultravisor did (SHARED_IMPLICIT; the VM must not touch it),
or for the hypervisor only (PSEUDO_SHARED: the VM keeps its own). ``_INV``: the hypervisor
has taken the normal page away and not given another one yet. HV_*: between the VM's call
and the hypervisor's consent; a page is in such a state while a turn lasts, so only the
hypervisor, called in between, can see it.

Source: open-power/ultravisor ``core/page_encrypt.c``, ``svm_host.c``, ``pagein_track.c``.
Two faults of it are not copied: unsharing a paged-out page does not lose it, and a page
that was paged out before the VM was secure is decrypted when it comes back.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from hcalld.core.pages import PageBits
from hcallproto.abi.returns import U


class PageState(enum.IntEnum):
    """What a page is."""

    SECURE = 0
    PAGEDOUT = 1
    SHARED = 2
    SHARED_INV = 3
    SHARED_IMPLICIT = 4
    SHARED_IMPLICIT_INV = 5
    HV_SHARING = 6
    HV_SHARED = 7
    HV_SHARED_INV = 8
    HV_UNSHARING = 9
    HV_UNSHARING_INV = 10
    HV_UNSHARED = 11
    PSEUDO_SHARED = 12
    PSEUDO_SHARED_INV = 13


class PageEvent(enum.Enum):
    """What happens to a page."""

    # There is one of each: the name that Enum hashes is a call of Python for each look-up.
    __hash__ = object.__hash__

    SHARE = "UV_SHARE_PAGE"
    UNSHARE = "UV_UNSHARE_PAGE"
    INVAL = "UV_PAGE_INVAL"
    PAGE_IN_SECURING = "UV_PAGE_IN while the VM is being made secure"
    PAGE_IN = "UV_PAGE_IN once the VM is secure"
    PAGE_OUT = "UV_PAGE_OUT"
    COMMIT_SHARE = "all pages of a UV_SHARE_PAGE have been consented to"
    REVERT_SHARE = "one has not"
    CONSENT_UNSHARE = "the hypervisor has given a page back"
    COMMIT_UNSHARE = "the VM gets it, zeroed"
    SHARE_IMPLICITLY = "the ultravisor shares a page for itself"
    PSEUDO_SHARE = "the hypervisor is to see a normal page here, the VM its own"


class Action(enum.Enum):
    """What else is to be done; the event is refused or over if nothing."""

    # There is one of each: the name that Enum hashes is a call of Python for each look-up.
    __hash__ = object.__hash__

    NONE = "nothing"
    REFUSE = "refuse"
    COPY = "take the source's content"
    DECRYPT = "take the source's content, decrypted"
    ENCRYPT = "put the content, encrypted, to the destination"
    MAP = "use the source as the VM's page"
    PAGE_IN_FIRST = "page in, then do it again"
    ASK = "ask the hypervisor"
    ZERO = "zero the page"


class Step(NamedTuple):
    """One entry of the table."""

    state: PageState
    code: U = U.SUCCESS
    action: Action = Action.NONE


class PageStateError(Exception):
    """Something happened to a page that cannot, in its state: a bug of ours."""


_S = PageState
_E = PageEvent
_A = Action

EXPLICIT: Final = (_S.SHARED, _S.SHARED_INV)
IMPLICIT: Final = (_S.SHARED_IMPLICIT, _S.SHARED_IMPLICIT_INV)
PSEUDO: Final = (_S.PSEUDO_SHARED, _S.PSEUDO_SHARED_INV)
TRANSIENT: Final = (
    _S.HV_SHARING,
    _S.HV_SHARED,
    _S.HV_SHARED_INV,
    _S.HV_UNSHARING,
    _S.HV_UNSHARING_INV,
    _S.HV_UNSHARED,
)


def _refused(state: PageState, code: U) -> Step:
    return Step(state, code, _A.REFUSE)


def _kept(state: PageState) -> Step:
    return Step(state)


def _row(
    state: PageState,
    share: Step,
    unshare: Step,
    inval: Step,
    page_in: Step,
    page_out: Step,
    page_in_securing: Step | None = None,
) -> dict[tuple[PageState, PageEvent], Step]:
    return {
        (state, _E.SHARE): share,
        (state, _E.UNSHARE): unshare,
        (state, _E.INVAL): inval,
        (state, _E.PAGE_IN): page_in,
        (state, _E.PAGE_IN_SECURING): page_in if page_in_securing is None else page_in_securing,
        (state, _E.PAGE_OUT): page_out,
    }


def _normal(
    state: PageState, valid: PageState, invalid: PageState, unshare: Step
) -> dict[tuple[PageState, PageEvent], Step]:
    """A page that is normal, and will stay so."""
    return _row(
        state,
        share=_kept(state),
        unshare=unshare,
        inval=_kept(invalid),
        page_in=Step(valid, action=_A.MAP),
        page_out=_refused(state, U.PARAMETER),
    )


def _between(
    state: PageState,
    inval: Step,
    page_in: Step,
    page_out: U = U.PARAMETER,
    page_in_securing: Step | None = None,
) -> dict[tuple[PageState, PageEvent], Step]:
    """A page that the hypervisor is being asked about."""
    return _row(
        state,
        share=_refused(state, U.P2),
        unshare=_refused(state, U.P2),
        inval=inval,
        page_in=page_in,
        page_out=_refused(state, page_out),
        page_in_securing=page_in_securing,
    )


_UNSHARE = Step(_S.HV_UNSHARING, action=_A.ASK)
_TO_HV_SHARED = Step(_S.HV_SHARED, action=_A.MAP)

TABLE: Final[Mapping[tuple[PageState, PageEvent], Step]] = MappingProxyType(
    _row(
        _S.SECURE,
        share=Step(_S.HV_SHARING, action=_A.ASK),
        unshare=_kept(_S.SECURE),
        inval=_refused(_S.SECURE, U.P2),
        page_in=_refused(_S.SECURE, U.P2),
        page_in_securing=Step(_S.SECURE, action=_A.COPY),
        page_out=Step(_S.PAGEDOUT, action=_A.ENCRYPT),
    )
    | _row(
        _S.PAGEDOUT,
        share=Step(_S.PAGEDOUT, action=_A.PAGE_IN_FIRST),
        unshare=_kept(_S.PAGEDOUT),
        inval=_refused(_S.PAGEDOUT, U.P2),
        page_in=Step(_S.SECURE, action=_A.DECRYPT),
        page_out=_refused(_S.PAGEDOUT, U.PARAMETER),
    )
    | _normal(_S.SHARED, _S.SHARED, _S.SHARED_INV, _UNSHARE)
    | _normal(_S.SHARED_INV, _S.SHARED, _S.SHARED_INV, _UNSHARE)
    | _normal(
        _S.SHARED_IMPLICIT,
        _S.SHARED_IMPLICIT,
        _S.SHARED_IMPLICIT_INV,
        _refused(_S.SHARED_IMPLICIT, U.P2),
    )
    | _normal(
        _S.SHARED_IMPLICIT_INV,
        _S.SHARED_IMPLICIT,
        _S.SHARED_IMPLICIT_INV,
        _refused(_S.SHARED_IMPLICIT_INV, U.P2),
    )
    | _normal(
        _S.PSEUDO_SHARED,
        _S.PSEUDO_SHARED,
        _S.PSEUDO_SHARED_INV,
        _refused(_S.PSEUDO_SHARED, U.P2),
    )
    | _normal(
        _S.PSEUDO_SHARED_INV,
        _S.PSEUDO_SHARED,
        _S.PSEUDO_SHARED_INV,
        _refused(_S.PSEUDO_SHARED_INV, U.P2),
    )
    | _between(_S.HV_SHARING, _refused(_S.HV_SHARING, U.P2), _TO_HV_SHARED)
    | _between(_S.HV_SHARED, _kept(_S.HV_SHARED_INV), _TO_HV_SHARED)
    | _between(_S.HV_SHARED_INV, _kept(_S.HV_SHARED_INV), _TO_HV_SHARED)
    | _between(_S.HV_UNSHARING, _kept(_S.HV_UNSHARING_INV), _kept(_S.HV_UNSHARING))
    | _between(_S.HV_UNSHARING_INV, _kept(_S.HV_UNSHARING_INV), _kept(_S.HV_UNSHARING))
    | _between(
        _S.HV_UNSHARED,
        _refused(_S.HV_UNSHARED, U.P2),
        _refused(_S.HV_UNSHARED, U.P2),
        page_out=U.RETRY,
        page_in_securing=Step(_S.HV_UNSHARED, action=_A.COPY),
    )
    | {
        (_S.HV_SHARED, _E.COMMIT_SHARE): Step(_S.SHARED, action=_A.ZERO),
        (_S.HV_SHARED_INV, _E.COMMIT_SHARE): Step(_S.SHARED_INV, action=_A.ZERO),
        (_S.HV_SHARING, _E.REVERT_SHARE): Step(_S.SECURE),
        (_S.HV_SHARED, _E.REVERT_SHARE): Step(_S.HV_UNSHARING, action=_A.ASK),
        (_S.HV_SHARED_INV, _E.REVERT_SHARE): Step(_S.HV_UNSHARING_INV, action=_A.ASK),
        (_S.HV_UNSHARING, _E.CONSENT_UNSHARE): Step(_S.HV_UNSHARED),
        (_S.HV_UNSHARING_INV, _E.CONSENT_UNSHARE): Step(_S.HV_UNSHARED),
        (_S.HV_UNSHARED, _E.COMMIT_UNSHARE): Step(_S.SECURE, action=_A.ZERO),
        (_S.SECURE, _E.SHARE_IMPLICITLY): Step(_S.SHARED_IMPLICIT, action=_A.MAP),
        (_S.SECURE, _E.PSEUDO_SHARE): Step(_S.PSEUDO_SHARED, action=_A.MAP),
    }
)
"""(state, event) to what follows. The first six events can happen in every state."""


def step(state: PageState, event: PageEvent) -> Step:
    """What follows from an event.

    Raises:
        PageStateError: it cannot happen in this state.
    """
    try:
        return TABLE[state, event]
    except KeyError:
        raise PageStateError(f"a page that is {state.name} had {event.name}") from None


BITS: Final[Mapping[PageState, PageBits]] = MappingProxyType(
    dict.fromkeys(PageState, PageBits.NONE)
    | {_S.SECURE: PageBits.UNSHARED, _S.PAGEDOUT: PageBits.OUT}
)
"""What QEMU is told. A normal page is the guest's own RAM here, so an ``_INV`` one has not
gone anywhere, and the VM's access to it need not be held up."""
