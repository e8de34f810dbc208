# SPDX-License-Identifier: Apache-2.0
"""Wrapped objects: what H_PKS_WRAP_OBJECT makes and H_PKS_UNWRAP_OBJECT opens.

PowerVM's own format is not public and nothing but the hypervisor reads it; the guest
knows its size alone, data + 1024. Ours, all numbers big-endian::

    HEAD         1008 bytes, authenticated, padded with zeros
    ciphertext   as many bytes as the data
    tag          16 bytes

It is AES-256-GCM under a key of its own for each object, derived from the wrapping key and
256 random bits of salt (NIST SP 800-108, HMAC-SHA256 in counter mode: one block, for the
wrapping key is random already), with the whole head as additional data. A (key, nonce)
pair could repeat only with a salt, so not because the daemon was killed, nor after a
restored backup, nor with a clone of the store: no counter exists that could be set back.
That rests on the system's generator alone.

The wrapping key is one partition's and is random, so an object opens on no other.
"""

from __future__ import annotations

import dataclasses
import hmac
import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hcalld.core.secret import Secret
from hcallproto.payloads.pks import WRAP_OVERHEAD, WrapFlag

MAGIC: Final = b"hcwrap\r\n"
VERSION: Final = 1
ALGORITHM: Final = int(WrapFlag.AES_GCM_256)
SALT_SIZE: Final = 32
TAG_SIZE: Final = 16
KEY_SIZE: Final = 32
HEAD_SIZE: Final = WRAP_OVERHEAD - TAG_SIZE

HEAD: Final = struct.Struct(">8sBBBxIQ32sH512s")
"""Magic, version, algorithm, consumer, 0, size of the data, wrap flags, salt, label size,
label; zeros up to HEAD_SIZE."""

_PADDING: Final = bytes(HEAD_SIZE - HEAD.size)
_NONCE: Final = bytes(12)
"""The same always: a key encrypts once."""

_BEFORE_SALT: Final = (1).to_bytes(4, "big") + b"hcalld:wrapped object" + b"\0"
_AFTER_SALT: Final = (8 * KEY_SIZE).to_bytes(4, "big")


class WrapFormatError(Exception):
    """A wrapped object of a format or algorithm that is not known."""


class WrapDataError(Exception):
    """A wrapped object that is malformed, was altered, or was made with another key."""


@dataclasses.dataclass(frozen=True, slots=True)
class Wrapped:
    """A wrapped object, well-formed; nothing of it is proven before ``unwrap``."""

    consumer: int
    label: bytes
    """Of the wrapping key."""
    flags: int
    size: int
    """Bytes of the data."""
    salt: bytes
    blob: bytes = dataclasses.field(repr=False)


def _cipher(key: Secret, salt: bytes) -> AESGCM:
    # Not cryptography's KBKDFHMAC, to which a test holds it: that takes three times as long.
    return AESGCM(hmac.digest(key.reveal(), _BEFORE_SALT + salt + _AFTER_SALT, "sha256"))


def wrap(key: Secret, salt: bytes, consumer: int, label: bytes, flags: int, data: bytes) -> bytes:
    """Encrypt ``data``; the result has 1024 bytes more.

    Args:
        key: the wrapping key.
        salt: 32 random bytes, used for nothing else.
        consumer: whose wrapping key it is.
        label: of the wrapping key, at most 512 bytes.
        flags: conditions of unwrapping; they are kept in the result.
        data: at most 4 GiB.
    """
    head = (
        HEAD.pack(*(MAGIC, VERSION, ALGORITHM, consumer, len(data), flags, salt, len(label), label))
        + _PADDING
    )
    return head + _cipher(key, salt).encrypt(_NONCE, data, head)


def parse(blob: bytes) -> Wrapped:
    """Take a wrapped object apart.

    Raises:
        WrapFormatError: another version or algorithm.
        WrapDataError: not a wrapped object.
    """
    if len(blob) < WRAP_OVERHEAD:
        raise WrapDataError(f"{len(blob)} bytes, expected at least {WRAP_OVERHEAD}")
    magic, version, algorithm, consumer, size, flags, salt, label_size, label = HEAD.unpack_from(
        blob
    )
    if magic != MAGIC:
        raise WrapDataError("it does not begin as a wrapped object does")
    if version != VERSION or algorithm != ALGORITHM:
        raise WrapFormatError(
            f"format {version} with algorithm {algorithm}, expected {VERSION} with {ALGORITHM}"
        )
    if size != len(blob) - WRAP_OVERHEAD or not 1 <= label_size <= len(label):
        raise WrapDataError(
            f"it says {size} bytes of data and {label_size} of label, and has {len(blob)} bytes"
        )
    return Wrapped(consumer, label[:label_size], flags, size, salt, blob)


def unwrap(key: Secret, wrapped: Wrapped) -> bytes:
    """The data of a wrapped object; all that ``wrapped`` says is proven then.

    Raises:
        WrapDataError: altered, or made with another key.
    """
    blob = memoryview(wrapped.blob)  # a slice of it is no copy
    try:
        return _cipher(key, wrapped.salt).decrypt(_NONCE, blob[HEAD_SIZE:], blob[:HEAD_SIZE])
    except InvalidTag:
        raise WrapDataError("it was altered, or wrapped with another key") from None
