# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the long tests."""

from tests.e2e.lab import lab
from tests.e2e.sevhosts import hosts

__all__ = ["hosts", "lab"]
