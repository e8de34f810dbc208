# SPDX-License-Identifier: Apache-2.0
"""How long to wait for what should happen at once: long enough for a machine under load."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

SCALE = 4.0 if os.environ.get("HCALLD_ASAN") else 1.0
"""An instrumented QEMU is slower by about this."""


def patience(seconds: float) -> float:
    """Gives the time after which something that takes so long at most has hung."""
    return seconds * SCALE


def wait_until(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    """Waits until a condition holds.

    Raises:
        TimeoutError: It does not hold in time.
    """
    end = time.monotonic() + patience(seconds)
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not happen within {patience(seconds):.0f} s")
        time.sleep(0.01)
