# SPDX-License-Identifier: Apache-2.0
"""Structures and bits of the Platform KeyStore calls.

Source: Linux 7.2 ``arch/powerpc/platforms/pseries/plpks.c`` and
``arch/powerpc/include/asm/plpks.h`` (no public PAPR text covers H_PKS_*). All fields
are big-endian, for little-endian guests too.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
from typing import Final

from construct import Bytes, Const, Int8ub, Int16ub, Int32ub, Int64ub, Padding, Struct

from hcallproto.payloads.quoting import quote

PAGE_SIZE: Final = 4096
"""The page that an authorization structure, label or password buffer must not cross."""


class Consumer(enum.IntEnum):
    """Whose objects: each consumer has its own names and its own password."""

    FIRMWARE = 1
    BOOTLOADER = 2
    OS = 3


class Policy(enum.IntFlag):
    """Object policy bits (plpks.h ``PLPKS_*``; IBM bit n of 32 is ``1 << (31 - n)``)."""

    OSSECBOOTAUDIT = 0x4000_0000
    OSSECBOOTENFORCE = 0x2000_0000
    PWSET = 0x1000_0000
    WORLDREADABLE = 0x0800_0000
    IMMUTABLE = 0x0400_0000
    TRANSIENT = 0x0200_0000
    SIGNEDUPDATE = 0x0100_0000
    WRAPPINGKEY = 0x0080_0000
    HVPROVISIONED = 0x0000_0008


ALL_POLICIES: Final = 0x7F80_0008

CONFIG_FLAG_WRAP: Final = 0x10
"""Configuration flag (IBM bit 3 of 8): the H_PKS_WRAP_OBJECT interface is present."""

LARGE_OBJECT_SIZE: Final = 65536
"""With a larger ``maxlargeobjsize`` Linux wants ``maxobjsize`` to be 0xffff."""

SIGNED_UPDATE_RSA2048: Final = 1 << 63
SIGNED_UPDATE_RSA4096: Final = 1 << 62


class WrapFlag(enum.IntFlag):
    """Object wrap flags (plpks.c; IBM bit n of 64 is ``1 << (63 - n)``)."""

    OSSECBOOTAUDIT = 1 << 62
    """Unwrapping needs OS secure boot in audit or enforce."""
    OSSECBOOTENFORCE = 1 << 61
    PASSWORD = 1 << 60
    """Unwrapping needs the consumer's password; mandatory."""
    AES_GCM_256 = 1
    """The one algorithm there is, a number in IBM bits 60 to 63."""


WRAP_ALGORITHM_MASK: Final = 0xF
"""Where the algorithm is."""

WRAP_OVERHEAD: Final = 1024
"""Bytes that a wrapped object has more than its data (plpks.c ``plpks_wrap_object()``)."""

WRAPPING_KEY_SIZE: Final = 32
"""Bytes of a wrapping key (plpks.c ``plpks_gen_wrapping_key()``)."""

SIGNED_UPDATE_MIN_SIZE: Final = 40
"""EFI_TIME and the head of WIN_CERTIFICATE_UEFI_GUID: no update is shorter."""


AUTH_HEADER = Struct(
    "version" / Const(1, Int8ub) * "1",
    "consumer" / Int8ub * "1 firmware, 2 bootloader, 3 OS",
    "reserved" / Const(bytes(12)) * "zero",
    "password_size" / Int16ub * "bytes of the password, which follows",
)
"""The authorization structure before the password (plpks.c ``struct plpks_auth``).

Linux calls its reserved bytes rsvd0 (8) and rsvd1 (4).
"""

AUTH_HEADER_SIZE: Final = 16
AUTH_ALIGNMENT: Final = 16
AUTH_VERSION: Final = 1

LABEL_ATTRIBUTES = Struct(
    "prefix" / Bytes(8) * "component, padded with zeros; all zero for signed variables",
    "version" / Const(0, Int8ub) * "0",
    "os" / Int8ub * "2 Linux, 4 common",
    "length" / Const(16, Int8ub) * "16, bytes of these attributes",
    "reserved" / Padding(5),
)
"""First 16 bytes of an OS consumer's label (plpks.c ``struct label_attr``)."""

CONFIG = Struct(
    "version" / Int8ub * "3; from 2 on objoverhead is valid, from 3 on the last three fields",
    "flags" / Int8ub * "0x10: H_PKS_WRAP_OBJECT is there",
    "reserved" / Padding(2),
    "objoverhead" / Int16ub * "bytes charged for an object beside its label and data",
    "maxpwsize" / Int16ub * "greatest password; Linux wants at least 32",
    "maxobjlabelsize" / Int16ub * "greatest label; Linux wants at least 255",
    "maxobjsize" / Int16ub * "greatest object; 0xffff if maxlargeobjectsize counts",
    "totalsize" / Int32ub * "bytes of the keystore; Linux wants at least 4096",
    "usedspace" / Int32ub * "bytes in use",
    "supportedpolicies" / Int32ub * "policy bits that an object may have",
    "maxlargeobjectsize" / Int32ub * "greatest object, if 65536 or more",
    "signedupdatealgorithms" / Int64ub * "1 << 63 RSA-2048, 1 << 62 RSA-4096",
    "wrappingfeatures" / Int64ub * "wrapping algorithms; no assignment is published",
)
"""What GET_CONFIG returns (plpks.c ``struct config``), version 3, without the rest."""

CONFIG_MIN_SIZE: Final = 32
"""The first kernels with PLPKS (6.0) passed 32 bytes, later ones 512, 7.2 passes 520."""

CONFIG_MAX_SIZE: Final = 65536
"""Ours: zeroing what a guest asks for beyond this would stall its QEMU."""

SED_OBJECT = Struct(
    "version" / Const(0, Int8ub) * "0",
    "pad" / Padding(7),
    "authority" / Int64ub * "0x0000000900010001, Admin1",
    "range" / Int64ub * "0x0000080200000001, the global range",
    "key_len" / Int32ub * "bytes of the key; Linux does not check it",
    "key" / Bytes(32) * "the PIN",
    "tail" / Padding(4) * "alignment; Linux writes stack bytes",
)
"""Self-encrypting-drive PIN (plpks_sed_ops.c ``struct plpks_sed_object_data``)."""

_CONFIG_FAST = struct.Struct(">BBxxHHHHIIIIQQ")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The keystore's configuration; field names are plpks.c's."""

    version: int = 3
    flags: int
    objoverhead: int
    maxpwsize: int
    maxobjlabelsize: int
    maxobjsize: int
    totalsize: int
    usedspace: int
    supportedpolicies: int
    maxlargeobjectsize: int
    signedupdatealgorithms: int
    wrappingfeatures: int

    def build(self) -> bytes:
        """The structure's 44 bytes; held equal to ``CONFIG`` by a test."""
        return _CONFIG_FAST.pack(
            self.version,
            self.flags,
            self.objoverhead,
            self.maxpwsize,
            self.maxobjlabelsize,
            self.maxobjsize,
            self.totalsize,
            self.usedspace,
            self.supportedpolicies,
            self.maxlargeobjectsize,
            self.signedupdatealgorithms,
            self.wrappingfeatures,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Auth:
    """A parsed authorization structure."""

    consumer: Consumer
    password: bytes = dataclasses.field(repr=False)


_AUTH_FAST = struct.Struct(">BB8s4sH")
_ZEROS = b"\0" * 12


def parse_auth(data: bytes, max_password_size: int) -> Auth:
    """Parse an authorization structure from the bytes up to its page's end.

    Args:
        data: from the structure's first byte to the end of its page, at most
            16 + ``max_password_size`` bytes.
        max_password_size: greatest password the keystore takes.

    Raises:
        ValueError: the structure is malformed; the text says how, without the password.
    """
    if len(data) < AUTH_HEADER_SIZE:
        raise ValueError("authorization structure crosses its page")
    version, consumer, reserved0, reserved1, password_size = _AUTH_FAST.unpack_from(data)
    if version != AUTH_VERSION:
        raise ValueError(f"authorization version {version}, expected {AUTH_VERSION}")
    if not 1 <= consumer <= 3:
        raise ValueError(f"consumer {consumer}, expected 1 to 3")
    if reserved0 + reserved1 != _ZEROS:
        raise ValueError("reserved bytes of the authorization structure are not zero")
    if password_size > max_password_size:
        raise ValueError(f"password length {password_size} exceeds {max_password_size}")
    end = AUTH_HEADER_SIZE + password_size
    if end > len(data):
        raise ValueError("authorization structure crosses its page")
    return Auth(Consumer(consumer), bytes(data[AUTH_HEADER_SIZE:end]))


_LABEL_FAST = struct.Struct(">8sBBB5s")
_ATTRIBUTES_SIZE = 16


def describe_auth(data: bytes) -> str:
    """Render an authorization structure without its password: ``OS+32``.

    Args:
        data: the structure from its first byte, as much as there is.
    """
    if len(data) < AUTH_HEADER_SIZE:
        return f"malformed, {len(data)} bytes"
    version, consumer, reserved0, reserved1, password_size = _AUTH_FAST.unpack_from(data)
    if version != AUTH_VERSION:
        return f"malformed, version {version}"
    if reserved0 + reserved1 != _ZEROS:
        return "malformed, reserved bytes not 0"
    names = {1: "FIRMWARE", 2: "BOOTLOADER", 3: "OS"}
    return f"{names.get(consumer, consumer)}+{password_size}"


def describe_label(data: bytes) -> str:
    r"""Render an object label: ``"sed-opal"/"/default/pri\0"``, or a bare ``"SB_VERSION"``.

    A label of the OS begins with 16 bytes of attributes; those of firmware and
    bootloader are bare names. The label does not say which it is, so what looks like
    attributes is taken for them. Without a prefix the name is a signed variable's, in
    UTF-16LE: ``u"db"``.
    """
    if len(data) >= _ATTRIBUTES_SIZE:
        prefix, version, _os, length, reserved = _LABEL_FAST.unpack_from(data)
        if version == 0 and length == _ATTRIBUTES_SIZE and reserved == _ZEROS[:5]:
            name = data[_ATTRIBUTES_SIZE:]
            if any(prefix):
                return f"{quote(prefix.rstrip(bytes(1)))}/{quote(name)}"
            # UTF-16 of ASCII has every second byte 0; anything else stays bytes.
            if len(name) % 2 == 0 and not any(name[1::2]):
                return f"u{quote(name[::2])}"
            return quote(name)
    return quote(data)
