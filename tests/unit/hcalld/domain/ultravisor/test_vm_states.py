# SPDX-License-Identifier: Apache-2.0
"""The table of VM states, entry by entry."""

from __future__ import annotations

import itertools

import pytest

from hcalld.core.errors import HcallError
from hcalld.domain.ultravisor.vm_states import TABLE, VmEvent, VmState, VmStateError, after
from hcallproto.abi.returns import U

EXPECTED = {
    "NORMAL ESM": VmState.ACTIVE,
    "NORMAL TERMINATE": VmState.NORMAL,
    "ACTIVE ESM": U.RETRY,
    "ACTIVE COMMIT": VmState.SECURE,
    "ACTIVE ABORT": VmState.ABORT,
    "ACTIVE BREACH": VmState.ABORT,
    "ACTIVE TERMINATE": VmState.NORMAL,
    "SECURE ESM": U.RETRY,
    "SECURE BREACH": VmState.ABORT,
    "SECURE TERMINATE": VmState.NORMAL,
    "ABORT ESM": U.RETRY,
    "ABORT BREACH": VmState.ABORT,
    "ABORT TERMINATE": VmState.NORMAL,
}


@pytest.mark.parametrize(
    ("state", "event"),
    list(itertools.product(VmState, VmEvent)),
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_entry(state: VmState, event: VmEvent):
    expected = EXPECTED.get(f"{state.name} {event.name}")
    if isinstance(expected, VmState):
        assert after(state, event) is expected
    elif isinstance(expected, U):
        with pytest.raises(HcallError) as raised:
            after(state, event)
        assert raised.value.code is expected
    else:
        with pytest.raises(VmStateError, match=state.name):
            after(state, event)


def test_table_has_nothing_else():
    assert len(TABLE) == len(EXPECTED)
