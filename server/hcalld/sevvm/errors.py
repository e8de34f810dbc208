# SPDX-License-Identifier: Apache-2.0
"""What goes wrong with a VM that has no processor."""

from __future__ import annotations

from hcalld.guestowner.errors import GuestOwnerError


class SevVmError(GuestOwnerError):
    """A file, a stream or what the user wants is not what it must be."""
