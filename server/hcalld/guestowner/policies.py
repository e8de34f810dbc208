# SPDX-License-Identifier: Apache-2.0
"""A guest's policy as people write it."""

from __future__ import annotations

import re
from typing import Final

from hcalld.guestowner.errors import GuestOwnerError
from hcallproto.payloads.sev.constants import ANY_API, Api, Policy

_U32_MAX: Final = 0xFFFF_FFFF
_NAMES: Final = {flag.name.lower(): flag for flag in Policy if flag.name}


def parse(text: str) -> int:
    """A policy from a number, or from names and the least API version.

    Raises:
        GuestOwnerError: it is neither.
    """
    text = text.strip().lower()
    try:
        found = int(text, 0)
    except ValueError:
        return _from_words(text)
    if not 0 <= found <= _U32_MAX:
        raise GuestOwnerError(f"the policy {text} does not fit; expected 32 bits")
    return found


def _from_words(text: str) -> int:
    flags, api = Policy(0), ANY_API
    if not text:
        raise GuestOwnerError("the policy is empty; expected a number, or names: none for no bit")
    for word in filter(None, re.split(r"[,+|\s]+", text)):
        version = re.fullmatch(r"([0-9]{1,3})\.([0-9]{1,3})", word)
        if version:
            api = Api(int(version[1]), int(version[2]))
        elif word in _NAMES:
            flags |= _NAMES[word]
        elif word != "none":
            raise GuestOwnerError(
                f"{word!r} is no part of a policy; expected a number, or some of "
                f"{', '.join(_NAMES)}, and the least API version such as 1.51"
            )
    if max(api) > 0xFF:
        raise GuestOwnerError(f"the API version {api} does not fit; expected at most 255.255")
    return int(Policy.of(flags, api))


def describe(policy: int) -> str:
    """A policy for people."""
    found = Policy(policy)
    names = [flag.name.lower() for flag in Policy if flag.name and flag in found]
    # As numbers: the complement of an IntFlag has the known bits alone.
    if rest := int(found.flags) & ~sum(Policy):
        names.append(f"reserved {rest:#x}")
    if found.api != ANY_API:
        names.append(f"API {found.api} at least")
    return f"{policy:#x} ({', '.join(names) or 'none'})"
