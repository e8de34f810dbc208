# SPDX-License-Identifier: Apache-2.0
"""TPM 2.0 commands and responses: as many as a wrapping key needs.

Source: TPM 2.0 Library Specification, Part 1 (architecture), Part 2 (structures), Part 3
(commands), revision 1.59. Commands are built, responses are read; who carries them is not
known here, nor is any key. A TPM is another program and may be any program: what a response
says of its sizes is compared with what there is.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import struct
from typing import Final

from construct import Int16ub, Int32ub, Struct

HEAD = Struct(
    "tag" / Int16ub * "sessions or not",
    "size" / Int32ub * "bytes of all, with this head",
    "code" / Int32ub * "which command, or the response code",
)
"""Part 1, 18.3 and 18.9: the head of commands and responses."""

HEAD_SIZE: Final = 10
MAX_SIZE: Final = 4096
"""Greatest command or response that is taken: TPM2_MAX_COMMAND_SIZE of every common TPM."""
_HEAD = struct.Struct(">HII")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")


class Tag(enum.IntEnum):
    """TPM_ST (Part 2, 6.9)."""

    NO_SESSIONS = 0x8001
    SESSIONS = 0x8002


class Cc(enum.IntEnum):
    """TPM_CC (Part 2, 6.5.2)."""

    EVICT_CONTROL = 0x120
    CREATE_PRIMARY = 0x131
    OBJECT_CHANGE_AUTH = 0x150
    CREATE = 0x153
    LOAD = 0x157
    RSA_DECRYPT = 0x159
    FLUSH_CONTEXT = 0x165
    POLICY_AUTH_VALUE = 0x16B
    POLICY_COMMAND_CODE = 0x16C
    POLICY_OR = 0x171
    READ_PUBLIC = 0x173
    START_AUTH_SESSION = 0x176
    POLICY_PCR = 0x17F


class Alg(enum.IntEnum):
    """TPM_ALG_ID (Part 2, 6.3)."""

    RSA = 0x0001
    AES = 0x0006
    SHA256 = 0x000B
    NULL = 0x0010
    OAEP = 0x0017
    CFB = 0x0043


class Rh(enum.IntEnum):
    """TPM_RH (Part 2, 7.4)."""

    NULL = 0x40000007
    PASSWORD = 0x40000009
    PLATFORM = 0x4000000C


class Attribute(enum.IntFlag):
    """TPMA_OBJECT (Part 2, 8.3)."""

    FIXED_TPM = 1 << 1
    FIXED_PARENT = 1 << 4
    SENSITIVE_DATA_ORIGIN = 1 << 5
    USER_WITH_AUTH = 1 << 6
    NO_DA = 1 << 10
    ENCRYPTED_DUPLICATION = 1 << 11
    RESTRICTED = 1 << 16
    DECRYPT = 1 << 17


class SessionFlag(enum.IntFlag):
    """TPMA_SESSION (Part 2, 8.4)."""

    CONTINUE = 1 << 0
    ENCRYPT = 1 << 6


POLICY_SESSION: Final = 1
"""TPM_SE_POLICY (Part 2, 6.11)."""

RC_HANDLE: Final = 0x18B
"""TPM_RC_HANDLE for the first handle: there is no such object."""
RC_RETRY: Final = 0x922
"""TPM_RC_RETRY: the command was not started; send it again."""


class TpmError(Exception):
    """What a TPM gives cannot be used; the text says why."""


class TpmFormatError(TpmError):
    """A response is not one."""


class TpmRefusedError(TpmError):
    """The TPM refuses a command."""

    def __init__(self, command: Cc, rc: int) -> None:
        super().__init__(f"the TPM refuses {command.name}: {describe_rc(rc)}")
        self.command = command
        self.rc = rc

    @property
    def is_about_session(self) -> bool:
        """Whether the authorization is at fault, and not what was asked."""
        return self.rc & 0x880 == 0x880


_EXPLAINED: Final = {
    0x101: "failure; another TPM's, or altered",
    0x18B: "no object has this handle",
    0x99D: "the policy is not fulfilled",
    0x9A2: "wrong password",
    RC_RETRY: "busy",
}
"""Part 2, 6.6; what they mean where a wrapping key is used."""


def describe_rc(rc: int) -> str:
    """A response code for people."""
    words = _EXPLAINED.get(rc)
    return f"0x{rc:x} ({words})" if words else f"0x{rc:x}"


# -- commands -------------------------------------------------------------------------------


def u16(value: int) -> bytes:
    """A UINT16."""
    return _U16.pack(value)


def u32(value: int) -> bytes:
    """A UINT32, also a handle."""
    return _U32.pack(value)


def sized(data: bytes) -> bytes:
    """A TPM2B: its size in two bytes, and it."""
    return _U16.pack(len(data)) + data


@dataclasses.dataclass(frozen=True, slots=True)
class Authorization:
    """TPMS_AUTH_COMMAND (Part 2, 10.13.2)."""

    session: int = Rh.PASSWORD
    nonce: bytes = b""
    flags: SessionFlag = SessionFlag.CONTINUE
    hmac: bytes = dataclasses.field(default=b"", repr=False)
    """Or the password, which is empty here."""

    def build(self) -> bytes:
        """The structure."""
        return u32(self.session) + sized(self.nonce) + bytes([self.flags]) + sized(self.hmac)


EMPTY_PASSWORD: Final = Authorization()
"""For what nobody gave a password: the platform hierarchy, and a parent below it."""


def command(
    code: Cc, handles: bytes = b"", parameters: bytes = b"", auth: Authorization | None = None
) -> bytes:
    """A command with at most one authorization."""
    tag, area = Tag.NO_SESSIONS, b""
    if auth is not None:
        tag, area = Tag.SESSIONS, auth.build()
        area = u32(len(area)) + area
    size = HEAD_SIZE + len(handles) + len(area) + len(parameters)
    return _HEAD.pack(tag, size, code) + handles + area + parameters


# -- responses ------------------------------------------------------------------------------


class Reader:
    """Reads a response's fields, never beyond its end."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._offset = 0
        self._what = what

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes.

        Raises:
            TpmFormatError: there are fewer.
        """
        left = len(self._data) - self._offset
        if size > left:
            raise TpmFormatError(
                f"the response to {self._what} has {left} bytes where {size} should be"
            )
        self._offset += size
        return self._data[self._offset - size : self._offset]

    def u8(self) -> int:
        """A BYTE."""
        return self.take(1)[0]

    def u16(self) -> int:
        """A UINT16."""
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        """A UINT32."""
        return int.from_bytes(self.take(4), "big")

    def sized(self) -> bytes:
        """What a TPM2B holds."""
        return self.take(self.u16())

    def end(self) -> None:
        """Raises TpmFormatError if something is left."""
        if left := len(self._data) - self._offset:
            raise TpmFormatError(f"the response to {self._what} has {left} bytes too many")


@dataclasses.dataclass(frozen=True, slots=True)
class SessionReply:
    """TPMS_AUTH_RESPONSE (Part 2, 10.13.3)."""

    nonce: bytes
    flags: int
    hmac: bytes = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Response:
    """A response of success, taken apart."""

    handle: int
    """0 if the command gives none."""
    parameters: bytes = dataclasses.field(repr=False)
    session: SessionReply | None


_GIVES_HANDLE: Final = frozenset({Cc.CREATE_PRIMARY, Cc.LOAD, Cc.START_AUTH_SESSION})


def parse_response(data: bytes, code: Cc, *, has_session: bool = False) -> Response:
    """Take the response to a command apart.

    Args:
        data: what the TPM answered.
        code: the command.
        has_session: whether it had an authorization, and the answer so has one too.

    Raises:
        TpmRefusedError: the TPM's own error.
        TpmFormatError: it is not a response to this command.
    """
    if len(data) < HEAD_SIZE:
        raise TpmFormatError(
            f"the response to {code.name} has {len(data)} bytes, expected at least {HEAD_SIZE}"
        )
    tag, size, rc = _HEAD.unpack_from(data)
    if size != len(data) or size > MAX_SIZE:
        raise TpmFormatError(
            f"the response to {code.name} has {len(data)} bytes and claims {size}, expected both "
            f"the same and at most {MAX_SIZE}"
        )
    if rc:
        raise TpmRefusedError(code, rc)
    if tag != (Tag.SESSIONS if has_session else Tag.NO_SESSIONS):
        raise TpmFormatError(f"the response to {code.name} has tag 0x{tag:04x}")
    reader = Reader(data[HEAD_SIZE:], code.name)
    handle = reader.u32() if code in _GIVES_HANDLE else 0
    if not has_session:
        return Response(handle, data[HEAD_SIZE + (4 if code in _GIVES_HANDLE else 0) :], None)
    parameters = reader.take(reader.u32())
    session = SessionReply(reader.sized(), reader.u8(), reader.sized())
    reader.end()
    return Response(handle, parameters, session)


# -- public areas ---------------------------------------------------------------------------

DEFAULT_EXPONENT: Final = 65537
"""What the exponent 0 stands for (Part 2, 12.2.3.5)."""


@dataclasses.dataclass(frozen=True, slots=True)
class RsaTemplate:
    """TPMT_PUBLIC of an RSA-2048 key with a SHA-256 name (Part 2, 12.2.4)."""

    attributes: Attribute
    policy: bytes = b""
    is_parent: bool = False
    """A storage key, AES-128-CFB for its children; if not, a key for RSA-OAEP, SHA-256."""

    def build(self) -> bytes:
        """The public area that a new key is asked for with."""
        parameters = (
            u16(Alg.AES) + u16(128) + u16(Alg.CFB) + u16(Alg.NULL)
            if self.is_parent
            else u16(Alg.NULL) + u16(Alg.OAEP) + u16(Alg.SHA256)
        )
        head = u16(Alg.RSA) + u16(Alg.SHA256) + u32(self.attributes) + sized(self.policy)
        return head + parameters + u16(2048) + u32(0) + sized(b"")


@dataclasses.dataclass(frozen=True, slots=True)
class RsaPublic:
    """A key's public area, as far as it says what the key is."""

    attributes: int
    policy: bytes
    modulus: int
    exponent: int
    name: bytes
    """What the TPM calls it: the digest of the area, after the algorithm's number."""


def parse_public(area: bytes) -> RsaPublic:
    """Read the public area of a key made with ``RsaTemplate(is_parent=False)``.

    Raises:
        TpmFormatError: it is of another key.
    """
    reader = Reader(area, "READ_PUBLIC")
    kind, name_alg = reader.u16(), reader.u16()
    if (kind, name_alg) != (Alg.RSA, Alg.SHA256):
        raise TpmFormatError(
            f"the key has type 0x{kind:04x} and name algorithm 0x{name_alg:04x}, expected RSA "
            "and SHA-256"
        )
    attributes, policy = reader.u32(), reader.sized()
    if reader.take(6) != u16(Alg.NULL) + u16(Alg.OAEP) + u16(Alg.SHA256):
        raise TpmFormatError("the key is not for RSA-OAEP with SHA-256")
    bits, exponent, modulus = reader.u16(), reader.u32(), reader.sized()
    reader.end()
    if bits != 2048 or len(modulus) != bits // 8 or modulus[0] < 0x80:
        raise TpmFormatError(f"the key has {bits} bits and {len(modulus)} bytes, expected 2048")
    return RsaPublic(
        attributes,
        policy,
        int.from_bytes(modulus, "big"),
        exponent or DEFAULT_EXPONENT,
        u16(Alg.SHA256) + hashlib.sha256(area).digest(),
    )
