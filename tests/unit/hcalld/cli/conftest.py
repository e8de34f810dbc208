# SPDX-License-Identifier: Apache-2.0
"""What commands leave behind in the process of the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hcalld.observe import log


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """Commands configure the log of their process; other tests look at it."""
    with log.restored():
        yield
