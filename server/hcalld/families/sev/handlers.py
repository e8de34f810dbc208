# SPDX-License-Identifier: Apache-2.0
"""Every command of SEV with its handler; the modules that are imported bind them."""

from __future__ import annotations

from hcalld.families.sev import debug, launch, platform, transport
from hcalld.families.sev.handlerset import HANDLERS

__all__ = ["HANDLERS", "debug", "launch", "platform", "transport"]
