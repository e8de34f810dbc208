# SPDX-License-Identifier: Apache-2.0
"""The table of page states, entry by entry.

The text below is written from the firmware's code, in its numbering, and shares no code
with the table.
"""

from __future__ import annotations

import pytest

from hcalld.core.pages import PageBits
from hcalld.domain.ultravisor.page_states import (
    BITS,
    EXPLICIT,
    IMPLICIT,
    PSEUDO,
    TABLE,
    TRANSIENT,
    Action,
    PageEvent,
    PageState,
    PageStateError,
    step,
)
from hcallproto.abi.returns import U

# state: share, unshare, inval, page-in, page-in while securing, page-out;
# a number is the state after it (with what is to be done), a code a refusal.
EXPECTED = """
0   6:ask      0          P2  P2       0:copy     1:encrypt
1   1:first    1          P2  0:dec    0:dec      PARAMETER
2   2          9:ask      3   2:map    2:map      PARAMETER
3   3          9:ask      3   2:map    2:map      PARAMETER
4   4          P2         5   4:map    4:map      PARAMETER
5   5          P2         5   4:map    4:map      PARAMETER
6   P2         P2         P2  7:map    7:map      PARAMETER
7   P2         P2         8   7:map    7:map      PARAMETER
8   P2         P2         8   7:map    7:map      PARAMETER
9   P2         P2         10  9        9          PARAMETER
10  P2         P2         10  9        9          PARAMETER
11  P2         P2         P2  P2       11:copy    RETRY
12  12         P2         13  12:map   12:map     PARAMETER
13  13         P2         13  12:map   12:map     PARAMETER
"""
EVENTS = [
    PageEvent.SHARE,
    PageEvent.UNSHARE,
    PageEvent.INVAL,
    PageEvent.PAGE_IN,
    PageEvent.PAGE_IN_SECURING,
    PageEvent.PAGE_OUT,
]
ACTIONS = {
    "": Action.NONE,
    "ask": Action.ASK,
    "copy": Action.COPY,
    "dec": Action.DECRYPT,
    "encrypt": Action.ENCRYPT,
    "map": Action.MAP,
    "first": Action.PAGE_IN_FIRST,
}
ENTRIES = [
    (PageState(int(row.split()[0])), event, cell)
    for row in EXPECTED.strip().splitlines()
    for event, cell in zip(EVENTS, row.split()[1:], strict=True)
]
INTERNAL = {
    (PageState.HV_SHARED, PageEvent.COMMIT_SHARE): (PageState.SHARED, Action.ZERO),
    (PageState.HV_SHARED_INV, PageEvent.COMMIT_SHARE): (PageState.SHARED_INV, Action.ZERO),
    (PageState.HV_SHARING, PageEvent.REVERT_SHARE): (PageState.SECURE, Action.NONE),
    (PageState.HV_SHARED, PageEvent.REVERT_SHARE): (PageState.HV_UNSHARING, Action.ASK),
    (PageState.HV_SHARED_INV, PageEvent.REVERT_SHARE): (PageState.HV_UNSHARING_INV, Action.ASK),
    (PageState.HV_UNSHARING, PageEvent.CONSENT_UNSHARE): (PageState.HV_UNSHARED, Action.NONE),
    (PageState.HV_UNSHARING_INV, PageEvent.CONSENT_UNSHARE): (PageState.HV_UNSHARED, Action.NONE),
    (PageState.HV_UNSHARED, PageEvent.COMMIT_UNSHARE): (PageState.SECURE, Action.ZERO),
    (PageState.SECURE, PageEvent.SHARE_IMPLICITLY): (PageState.SHARED_IMPLICIT, Action.MAP),
    (PageState.SECURE, PageEvent.PSEUDO_SHARE): (PageState.PSEUDO_SHARED, Action.MAP),
}
MISSING = [
    (state, event)
    for state in PageState
    for event in PageEvent
    if event not in EVENTS and (state, event) not in INTERNAL
]


@pytest.mark.parametrize(
    ("state", "event", "cell"), ENTRIES, ids=lambda value: getattr(value, "name", str(value))
)
def test_entry(state: PageState, event: PageEvent, cell: str):
    taken = step(state, event)
    if cell[0].isdigit():
        number, _, action = cell.partition(":")
        assert taken == (PageState(int(number)), U.SUCCESS, ACTIONS[action])
    else:
        assert taken == (state, U[cell], Action.REFUSE)


@pytest.mark.parametrize(
    ("state", "event"), INTERNAL, ids=lambda value: getattr(value, "name", str(value))
)
def test_entry_of_the_ultravisors_own(state: PageState, event: PageEvent):
    after, action = INTERNAL[state, event]
    assert step(state, event) == (after, U.SUCCESS, action)


@pytest.mark.parametrize(
    ("state", "event"), MISSING, ids=lambda value: getattr(value, "name", str(value))
)
def test_missing_entry_raises(state: PageState, event: PageEvent):
    with pytest.raises(PageStateError, match=state.name):
        step(state, event)


def test_table_has_nothing_else():
    assert len(TABLE) == len(ENTRIES) + len(INTERNAL)
    assert len(ENTRIES) == 14 * 6


def test_every_state_is_reached_and_every_transient_one_is_left():
    reached = {taken.state for (state, _), taken in TABLE.items() if taken.state is not state}
    assert reached == set(PageState)
    for state in TRANSIENT:
        after = {taken.state for (before, _), taken in TABLE.items() if before is state}
        assert after - {state}


def test_kinds_are_told_apart():
    kinds = [*EXPLICIT, *IMPLICIT, *PSEUDO, *TRANSIENT, PageState.SECURE, PageState.PAGEDOUT]
    assert sorted(kinds) == sorted(PageState)


def test_qemu_hides_what_is_the_vms_own():
    assert {state for state, bits in BITS.items() if bits} == {
        PageState.SECURE,
        PageState.PAGEDOUT,
    }
    assert BITS[PageState.SECURE] == PageBits.UNSHARED
    assert BITS[PageState.PAGEDOUT] == PageBits.UNSHARED | PageBits.PAGED_OUT
    assert set(BITS) == set(PageState)
