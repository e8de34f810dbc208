# SPDX-License-Identifier: Apache-2.0
"""The head of every TPM 2.0 response, and the few commands that keep a TPM in order.

Source: TPM 2.0 Library Part 1, 18 (command and response structure), Part 3 for each
command. A guest's own commands are passed on as they are.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

from hcallproto.payloads import tpm

HEADER_SIZE: Final = tpm.HEAD_SIZE
"""Tag, size and code: no command and no response is shorter."""
MAX_SIZE: Final = tpm.MAX_SIZE
ST_NO_SESSIONS: Final = tpm.Tag.NO_SESSIONS

_HEADER: Final = struct.Struct(">HII")
_CAPABILITY: Final = struct.Struct(">BII")
_MAX_HANDLES: Final = 254
_CAP_HANDLES: Final = 1
_SU_CLEAR: Final = b"\0\0"


class Command(enum.IntEnum):
    """Command codes (TPM_CC)."""

    STARTUP = 0x144
    SHUTDOWN = 0x145
    FLUSH_CONTEXT = tpm.Cc.FLUSH_CONTEXT
    GET_CAPABILITY = 0x17A


class Code(enum.IntEnum):
    """Response codes (TPM_RC) that the daemon knows."""

    SUCCESS = 0
    INITIALIZE = 0x100
    """Startup of a TPM that has been started up."""


class HandleType(enum.IntEnum):
    """Handles that belong to a session: first of the range (TPM_HT << 24)."""

    LOADED_SESSION = 0x0200_0000
    SAVED_SESSION = 0x0300_0000
    TRANSIENT = 0x8000_0000


def command(code: int, parameters: bytes = b"") -> bytes:
    """A command without authorization sessions."""
    return _HEADER.pack(ST_NO_SESSIONS, HEADER_SIZE + len(parameters), code) + parameters


STARTUP_CLEAR: Final = command(Command.STARTUP, _SU_CLEAR)
SHUTDOWN_CLEAR: Final = command(Command.SHUTDOWN, _SU_CLEAR)


def get_handles(kind: HandleType) -> bytes:
    """TPM2_GetCapability of all handles of a kind."""
    return command(Command.GET_CAPABILITY, struct.pack(">III", _CAP_HANDLES, kind, _MAX_HANDLES))


def flush_context(handle: int) -> bytes:
    """TPM2_FlushContext."""
    return command(Command.FLUSH_CONTEXT, struct.pack(">I", handle))


def response_size(head: bytes) -> int:
    """The size that a response's first ten bytes claim.

    Raises:
        ValueError: it is not between ten bytes and the greatest response.
    """
    size: int = _HEADER.unpack_from(head)[1]
    if not HEADER_SIZE <= size <= MAX_SIZE:
        raise ValueError(f"the response claims {size} bytes, expected {HEADER_SIZE} to {MAX_SIZE}")
    return size


def response_code(response: bytes) -> int:
    """The code of a whole response."""
    code: int = _HEADER.unpack_from(response)[2]
    return code


def parse_handles(response: bytes) -> list[int]:
    """The handles in a response to ``get_handles``.

    Raises:
        ValueError: it is no such response.
    """
    if response_code(response):
        raise ValueError(f"the TPM lists no handles: code 0x{response_code(response):x}")
    try:
        _, capability, count = _CAPABILITY.unpack_from(response, HEADER_SIZE)
        if capability != _CAP_HANDLES:
            raise ValueError(f"the TPM answers with capability {capability}, asked for handles")
        start = HEADER_SIZE + _CAPABILITY.size
        return list(struct.unpack_from(f">{min(count, _MAX_HANDLES)}I", response, start))
    except struct.error:
        raise ValueError("the TPM's list of handles is cut short") from None
