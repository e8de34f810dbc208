# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests with real sockets and a real QEMU."""

from tests.e2e.lab import lab
from tests.e2e.sevhosts import hosts, pair

__all__ = ["hosts", "lab", "pair"]
