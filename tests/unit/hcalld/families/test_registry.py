# SPDX-License-Identifier: Apache-2.0
"""What is declared as served has a handler, and the other way round."""

from __future__ import annotations

import inspect

import pytest

from hcalld.core.handlers import Model
from hcalld.domain.attributes import PartitionAttributes
from hcalld.families.registry import SERVED, Served
from hcallproto.abi.registry import CALLS, FAMILIES
from hcallproto.abi.spec import Hcall

HANDLED = [hcall for served in SERVED for hcall in served.handlers.by_call]


@pytest.mark.parametrize("hcall", CALLS, ids=lambda hcall: hcall.name)
def test_a_call_has_one_handler_unless_it_is_decode_only(hcall: Hcall):
    assert HANDLED.count(hcall) == (0 if hcall.decode_only else 1)


def test_every_handler_belongs_to_a_declared_call():
    assert set(HANDLED) <= set(CALLS)


@pytest.mark.parametrize("served", SERVED, ids=lambda served: served.handlers.family.name)
def test_a_family_is_registered_whole(served: Served[Model]):
    assert served.handlers.family in FAMILIES
    assert [s.handlers.family for s in SERVED].count(served.handlers.family) == 1
    model = served.build(PartitionAttributes(), [])
    assert model.take_changes() == []


@pytest.mark.parametrize("served", SERVED, ids=lambda served: served.handlers.family.name)
def test_handlers_of_one_call_are_coroutines_named_like_it(served: Served[Model]):
    handlers = served.handlers.by_call
    for hcall, handler in handlers.items():
        assert inspect.iscoroutinefunction(handler)
        if list(handlers.values()).count(handler) == 1:
            assert handler.__name__ == hcall.name.lower()
        assert handler.__doc__
