# SPDX-License-Identifier: Apache-2.0
"""Handlers of calls that are not served yet."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from hcalld.core.call import Call
from hcalld.core.guestmem import RamMap
from hcalld.core.handlers import HandlerSet
from hcalld.core.outcome import Outcome
from hcallproto.abi.families import pks, uv
from hcallproto.abi.returns import U

UNDONE = dataclasses.replace(pks.GET_CONFIG, decode_only=True)
FAMILY = dataclasses.replace(pks.FAMILY, calls=(UNDONE,))


async def handler(call: Call, model: Any) -> Outcome:
    return Outcome(U.SUCCESS)


def test_prepares_binds_a_call_that_is_decode_only():
    handlers: HandlerSet[Any] = HandlerSet(FAMILY)
    assert handlers.prepares(UNDONE)(handler) is handler
    assert handlers.prepared == {UNDONE: handler}
    assert handlers.by_call == {}
    with pytest.raises(ValueError, match="already"):
        handlers.prepares(UNDONE)


def test_prepares_refuses_others():
    with pytest.raises(ValueError, match="not declared in family uv"):
        HandlerSet(uv.FAMILY).prepares(UNDONE)
    with pytest.raises(ValueError, match="declared as served"):
        HandlerSet(pks.FAMILY).prepares(pks.GET_CONFIG)


def test_ram_tells_its_ranges():
    ram = RamMap(iter([(0, 8), (8, 8), (32, 4)]))
    assert ram.regions == ((0, 8), (8, 16), (32, 36))
    assert ram.contains(4, 12)
    assert not ram.contains(4, 13)
    assert RamMap([]).regions == ()
