# SPDX-License-Identifier: Apache-2.0
"""How subcommands are loaded: without the garbage collector, which is back afterwards."""

from __future__ import annotations

import gc

import pytest

from hcalld.cli.lazy import loading


def test_loading_when_it_goes_on_then_nothing_is_collected_and_later_it_is():
    with loading():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_loading_when_a_module_is_broken_then_collecting_goes_on_all_the_same():
    with pytest.raises(ImportError), loading():
        raise ImportError("broken")
    assert gc.isenabled()


def test_loading_when_nothing_was_collected_before_then_it_stays_so():
    gc.disable()
    try:
        with loading():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
