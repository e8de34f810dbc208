# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests with Linux."""

from tests.e2e.lab import lab

__all__ = ["lab"]
