# SPDX-License-Identifier: Apache-2.0
"""Numbers of SEV's firmware interface, each with the name that AMD gives it."""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

BLOB_MAX_SIZE: Final = 16384
"""The kernel passes no greater blob to the firmware (SEV_FW_BLOB_MAX_SIZE)."""
PAGE_SIZE: Final = 4096
"""Of x86; a save area (VMSA) has one to itself."""


class Usage(enum.IntEnum):
    """Whose key: a certificate's, or a signer's (55766 appendix C, sevapi.h ``SEV_USAGE``)."""

    ARK = 0x0000
    """AMD root."""
    ASK = 0x0013
    """AMD SEV signing key."""
    INVALID = 0x1000
    """Of an empty signature slot."""
    OCA = 0x1001
    """Owner's certificate authority."""
    PEK = 0x1002
    """Platform endorsement key."""
    PDH = 0x1003
    """Platform Diffie-Hellman key; a guest owner's too."""
    CEK = 0x1004
    """Chip endorsement key."""


class Algorithm(enum.IntEnum):
    """What a key is for, with which hash (55766 appendix C, sevapi.h ``SEV_SIG_ALGO``)."""

    INVALID = 0x000
    RSA_SHA256 = 0x001
    ECDSA_SHA256 = 0x002
    ECDH_SHA256 = 0x003
    RSA_SHA384 = 0x101
    ECDSA_SHA384 = 0x102
    ECDH_SHA384 = 0x103

    @property
    def is_rsa(self) -> bool:
        """Whether the key is an RSA key."""
        return self & 0xFF == Algorithm.RSA_SHA256

    @property
    def is_ecdh(self) -> bool:
        """Whether the key agrees on secrets and signs nothing."""
        return self & 0xFF == Algorithm.ECDH_SHA256

    @property
    def is_sha384(self) -> bool:
        """Whether the hash is SHA-384; if not, it is SHA-256."""
        return self >= Algorithm.RSA_SHA384


class Curve(enum.IntEnum):
    """Curves of public keys (55766 appendix C, sevapi.h ``SEV_EC``); all real keys are P-384."""

    P256 = 1
    P384 = 2


class GuestState(enum.IntEnum):
    """A guest's state (sevapi.h ``SEV_GSTATE``, QEMU's ``SevState``).

    Linux's documents name RECEIVING before SENDING; the firmware's numbers are these.
    """

    UNINIT = 0
    LUPDATE = 1
    LSECRET = 2
    RUNNING = 3
    SUPDATE = 4
    RUPDATE = 5
    SENT = 6


class PlatformState(enum.IntEnum):
    """The platform's state (psp-sev.h ``enum sev_state``)."""

    UNINIT = 0
    INIT = 1
    WORKING = 2
    """At least one guest exists."""


class PlatformFlag(enum.IntFlag):
    """Flags of PLATFORM_STATUS (psp-sev.h ``SEV_STATUS_FLAGS_CONFIG_ES``, sevapi.h)."""

    OWNER = 1 << 0
    """Externally owned: a PEK was imported."""
    CONFIG_ES = 1 << 8
    """SEV-ES is on."""


class PacketFlag(enum.IntFlag):
    """Flags of a packet's header (55766 table 55)."""

    COMPRESSED = 1 << 0


class PacketContext(enum.IntEnum):
    """First byte of what a MAC is made of, which keeps MACs of different uses apart."""

    SECRET = 0x01
    """LAUNCH_SECRET."""
    DATA = 0x02
    """SEND_UPDATE_DATA."""
    VMSA = 0x03
    """SEND_UPDATE_VMSA; chosen here, see docs."""
    MEASURE = 0x04
    """LAUNCH_MEASURE."""


class Api(NamedTuple):
    """Version of the firmware's interface; versions compare as they should."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


ANY_API: Final = Api(0, 0)
"""A policy that asks for no version."""


class Version(NamedTuple):
    """Version of a platform's firmware (PLATFORM_STATUS)."""

    api_major: int
    api_minor: int
    build: int

    @property
    def api(self) -> Api:
        """Without the build."""
        return Api(self.api_major, self.api_minor)

    def __str__(self) -> str:
        return f"{self.api} build {self.build}"


_FLAG_BITS = 0xFFFF


class Policy(enum.IntFlag):
    """A guest's policy, 32 bits (55766 chapter 3, table 2).

    Reserved bits are kept: every MAC covers them.
    """

    NODBG = 1 << 0
    """No DBG_DECRYPT, no DBG_ENCRYPT."""
    NOKS = 1 << 1
    """No second guest with the same key."""
    ES = 1 << 2
    """SEV-ES: the registers are encrypted too."""
    NOSEND = 1 << 3
    """No SEND_START."""
    DOMAIN = 1 << 4
    """Sent only to platforms of the same owner."""
    SEV = 1 << 5
    """Sent only to genuine platforms."""

    @classmethod
    def of(cls, flags: int, api: Api = ANY_API) -> Policy:
        """Flags with the least API version that a platform must have."""
        return cls(flags & _FLAG_BITS | api.major << 16 | api.minor << 24)

    @property
    def flags(self) -> Policy:
        """Without the version."""
        return Policy(self & _FLAG_BITS)

    @property
    def api(self) -> Api:
        """The least API version that a platform must have."""
        return Api(self >> 16 & 0xFF, self >> 24 & 0xFF)
