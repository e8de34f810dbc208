# SPDX-License-Identifier: Apache-2.0
"""Labels and objects that Linux knows by name, for those who seed a keystore.

Sources: Linux 7.2 plpks.c ``construct_label()``, plpks_sed_ops.c. The hypervisor side
takes a label as bytes; only whoever makes one needs its parts.
"""

from __future__ import annotations

import struct
from typing import Final

from hcallproto.payloads.pks import SED_OBJECT

OS_LINUX: Final = 0x02
OS_COMMON: Final = 0x04

_ATTRIBUTES_FAST: Final = struct.Struct(">8sBBB5x")
"""``LABEL_ATTRIBUTES``, to which a test holds it."""

PREFIX_SIZE: Final = 8
SED_KEY_MAX_SIZE: Final = 32

SED_AUTHORITY: Final = 0x0000_0009_0001_0001
"""Admin1 (TCG Opal SSC UID), plpks_sed_ops.c ``PLPKS_SED_AUTHORITY``."""
SED_RANGE: Final = 0x0000_0802_0000_0001
"""The global range, plpks_sed_ops.c ``PLPKS_SED_RANGE``."""


def os_label(prefix: bytes, name: bytes, os: int = OS_LINUX) -> bytes:
    """An OS consumer's label: 16 bytes of attributes, then the name.

    Raises:
        ValueError: the prefix has more than 8 bytes, or ``os`` more than one.
    """
    if len(prefix) > PREFIX_SIZE:
        raise ValueError(
            f"prefix {prefix!r} has {len(prefix)} bytes, expected at most {PREFIX_SIZE}"
        )
    if not 0 <= os <= 0xFF:
        raise ValueError(f"operating system 0x{os:x}, expected 0 to 0xff")
    return _ATTRIBUTES_FAST.pack(prefix, 0, os, _ATTRIBUTES_FAST.size) + name


SED_LABEL: Final = os_label(b"sed-opal", b"/default/pri\0", OS_COMMON)
"""Linux swaps the name in but keeps the length of ``opal-boot-pin``: hence the NUL."""


def sed_object(key: bytes) -> bytes:
    """A self-encrypting drive's PIN as Linux reads it at boot.

    Raises:
        ValueError: the key is empty or has more than 32 bytes.
    """
    if not 1 <= len(key) <= SED_KEY_MAX_SIZE:
        raise ValueError(
            f"the key has {len(key)} bytes, expected 1 to {SED_KEY_MAX_SIZE} (without a newline)"
        )
    data: bytes = SED_OBJECT.build(
        {
            "authority": SED_AUTHORITY,
            "range": SED_RANGE,
            "key_len": len(key),
            "key": key.ljust(SED_KEY_MAX_SIZE, b"\0"),
        }
    )
    return data


def split_os_label(label: bytes) -> tuple[bytes, int, bytes] | None:
    """Prefix, operating system and name of an OS label; None if it is not one."""
    if len(label) < _ATTRIBUTES_FAST.size:
        return None
    prefix, version, os, length = _ATTRIBUTES_FAST.unpack_from(label)
    if version or length != _ATTRIBUTES_FAST.size or any(label[11 : _ATTRIBUTES_FAST.size]):
        return None
    return prefix.rstrip(b"\0"), os, label[_ATTRIBUTES_FAST.size :]
