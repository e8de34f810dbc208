# SPDX-License-Identifier: Apache-2.0
"""Words for the guest stub that several tests give it."""

from __future__ import annotations

from typing import Final

KEYSTORE: Final = "self dt pks every=64 pks=1 require=1"
"""All that judges itself; a check that cannot be made is a failure.

A few bytes of what is wrapped are altered: the boot ``pks`` of ``guest_stub/unittests.toml`` alters
each, which is half of all calls.
"""

CALLING: Final = "soak pks=1 seconds=600 pause-ms=5"
"""A guest that calls and calls."""
