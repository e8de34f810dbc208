# SPDX-License-Identifier: Apache-2.0
"""What goes wrong on a guest owner's side."""

from __future__ import annotations

from hcalld.core.errors import HcalldError


class GuestOwnerError(HcalldError):
    """A file, a certificate or an answer is not what it must be."""
