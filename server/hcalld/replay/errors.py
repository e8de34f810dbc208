# SPDX-License-Identifier: Apache-2.0
"""How a replay refuses a capture, and how it is stopped."""

from __future__ import annotations

from hcalld.core.errors import HcalldError


class ReplayError(HcalldError):
    """A capture cannot be played; the text says why, and what could be."""


class Stopped(Exception):
    """One difference is enough for whoever is told."""
