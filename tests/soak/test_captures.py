# SPDX-License-Identifier: Apache-2.0
"""A capture of 1 GiB is read in as much memory as a small one."""

from __future__ import annotations

import pytest
from tests.property.capture_sizes import MAX_RSS_KIB, decode_of

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]


@pytest.mark.parametrize("options", [(), ("--json",), ("--return", "H_NOT_FOUND")])
def test_decode_of_a_gibibyte_takes_no_more_memory_than_a_small_one(options: tuple[str, ...]):
    lines, calls, kib = decode_of(1 << 30, *options)
    assert lines == (0 if "H_NOT_FOUND" in options else calls)
    assert kib < MAX_RSS_KIB
