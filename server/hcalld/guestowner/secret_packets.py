# SPDX-License-Identifier: Apache-2.0
"""Secrets for a launched guest: a table, packed so that only its platform can put it there."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable
from typing import Final

from hcalld.crypto.sev.kdf import TransportKeys
from hcalld.crypto.sev.packets import Packet, seal_secret
from hcalld.guestowner.errors import GuestOwnerError
from hcallproto.payloads.sev.blobs import NONCE_SIZE
from hcallproto.payloads.sev.constants import Version
from hcallproto.payloads.sev.errors import SevFormatError
from hcallproto.payloads.sev.tables import LUKS_KEY_GUID, SecretEntry, build_secrets

KNOWN: Final = {"luks-key": LUKS_KEY_GUID}
"""Names that stand for GUIDs."""


def guid_of(name: str) -> uuid.UUID:
    """The GUID that a name stands for, or that it spells.

    Raises:
        GuestOwnerError: neither.
    """
    known = KNOWN.get(name)
    if known is not None:
        return known
    if not re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", name):
        raise GuestOwnerError(f"{name!r} names no secret; expected a GUID, or {', '.join(KNOWN)}")
    return uuid.UUID(name)


def pack(
    entries: Iterable[SecretEntry],
    keys: TransportKeys,
    *,
    measurement: bytes,
    version: Version,
    entropy: Callable[[int], bytes],
) -> Packet:
    """A packet for LAUNCH_SECRET, which no other launch takes.

    Args:
        entries: the secrets.
        keys: the session's.
        measurement: the launch's, 32 bytes.
        version: the platform's.
        entropy: where an IV comes from.

    Raises:
        GuestOwnerError: there is none, two are of one GUID, or they are too large.
    """
    found = list(entries)
    if not found:
        raise GuestOwnerError("there is no secret to pack; expected at least one")
    if len({entry.guid for entry in found}) < len(found):
        raise GuestOwnerError("two secrets have one GUID: the guest would find one of them")
    try:
        table = build_secrets(found)
    except SevFormatError as error:
        raise GuestOwnerError(
            f"{error}; give the guest a key, and the rest encrypted with it"
        ) from None
    return seal_secret(
        keys, table, iv=entropy(NONCE_SIZE), measurement=measurement, api=version.api
    )
