# SPDX-License-Identifier: Apache-2.0
"""Calls that QEMU itself makes for a secure VM; ``shim_calls`` carries them out."""

from hcallproto.abi.shim import ATTEND, FAMILY, PAGE_IN

__all__ = ["ATTEND", "FAMILY", "PAGE_IN"]
