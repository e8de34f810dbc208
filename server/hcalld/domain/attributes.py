# SPDX-License-Identifier: Apache-2.0
"""A partition's attributes, as an HMC has them, and ours for what PowerVM leaves open.

The names of the top level are the HMC's (``chsyscfg -r lpar``, ``lssyscfg``), and as
there 0 and 1 say no and yes. What the keystore tells the guest about itself is derived
here too, from the attributes and from what the table serves: a call without a handler
is not advertised.
"""

from __future__ import annotations

import struct
from typing import Annotated, Literal

import msgspec

from hcalld.core.call import Limits
from hcallproto.abi.families import pks
from hcallproto.abi.spec import Limit
from hcallproto.payloads.pks import (
    ALL_POLICIES,
    AUTH_HEADER_SIZE,
    CONFIG_FLAG_WRAP,
    LARGE_OBJECT_SIZE,
    PAGE_SIZE,
    SIGNED_UPDATE_RSA2048,
    SIGNED_UPDATE_RSA4096,
    WRAP_OVERHEAD,
    Config,
    Policy,
)

Flag = Literal[0, 1]
"""0 no, 1 yes, as the HMC writes it."""

MIN_KEYSTORE_KBYTES = 4
"""Linux refuses a totalsize below 4096 (plpks.c ``_plpks_get_config()``)."""
MAX_KEYSTORE_KBYTES = 128
"""The HMC's greatest on Power11; 64 before."""
MAX_PASSWORD_SIZE = PAGE_SIZE - AUTH_HEADER_SIZE
"""The authorization structure must not cross a page."""
MAX_LABEL_SIZE = 512
"""Linux refuses less than 255, and allocates 512 bytes for a label (plpks.c)."""
MAX_OBJECT_SIZE = LARGE_OBJECT_SIZE

_WRAPPING_AES_GCM_256 = 1 << 63
"""The bits of ``wrappingfeatures`` are not public; Linux only prints them."""
_U16_MAX = 0xFFFF

MAX_BUSY_ANSWERS = 1000
"""Linux repeats WRAP and UNWRAP at once and for ever: an end must be in sight."""

PolicyName = Literal[
    "OSSECBOOTAUDIT",
    "OSSECBOOTENFORCE",
    "PWSET",
    "WORLDREADABLE",
    "IMMUTABLE",
    "TRANSIENT",
    "SIGNEDUPDATE",
    "WRAPPINGKEY",
    "HVPROVISIONED",
]
"""The names of ``Policy``."""


def served_policies() -> int:
    """The policy bits whose calls have handlers."""
    policies = ALL_POLICIES
    if pks.SIGNED_UPDATE.decode_only:
        policies &= ~int(Policy.SIGNEDUPDATE)
    if pks.GEN_KEY.decode_only:
        policies &= ~int(Policy.WRAPPINGKEY)
    return policies


def serves_wrapping() -> bool:
    """True if keys can be made, and used to wrap and unwrap."""
    return not any(hcall.decode_only for hcall in (pks.GEN_KEY, pks.WRAP_OBJECT, pks.UNWRAP_OBJECT))


class PksAttributes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A profile's table ``[pks]``: what GET_CONFIG tells, within what Linux accepts."""

    object_overhead: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 32
    """Bytes charged for each object beside its label and data."""
    max_password_size: Annotated[int, msgspec.Meta(ge=32, le=MAX_PASSWORD_SIZE)] = 64
    max_label_size: Annotated[int, msgspec.Meta(ge=255, le=MAX_LABEL_SIZE)] = 255
    max_object_size: Annotated[int, msgspec.Meta(ge=1024, le=MAX_OBJECT_SIZE)] = MAX_OBJECT_SIZE
    supported_policies: tuple[PolicyName, ...] | None = None
    """Policy names; by default all that are served."""
    busy_answers: Annotated[int, msgspec.Meta(ge=0, le=MAX_BUSY_ANSWERS)] = 0
    """How often a long operation (signed update, wrap, unwrap) is answered busy, with a
    continue token, before it is carried out."""
    busy_hint_ms: Literal[0, 1, 10, 100, 1000, 10_000, 100_000] = 1
    """Which busy code: H_LONG_BUSY_ORDER_* of so many milliseconds; 0 is H_BUSY."""

    def __post_init__(self) -> None:
        for name in self.supported_policies or ():
            if not served_policies() & Policy[name]:
                raise ValueError(
                    f"supported_policies has {name}, whose calls this version does not serve; "
                    "remove it"
                )

    @property
    def policies(self) -> int:
        """The supported policies as a mask."""
        if self.supported_policies is None:
            return served_policies()
        mask = 0
        for name in self.supported_policies:
            mask |= int(Policy[name])
        return mask


class PartitionAttributes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator sets for one partition."""

    keystore_kbytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_KEYSTORE_KBYTES)] = 64
    """Size of the keystore in KiB, 4 to 128; 0 switches it off."""
    keystore_signed_updates: Flag = 1
    """1: H_PKS_SIGNED_UPDATE is permitted."""
    keystore_signed_updates_without_verification: Flag = 0
    """1: the next update of PK is taken without a signature."""
    linux_dynamic_key_secure_boot: Flag = 0
    """1: secure boot takes its keys from the keystore."""
    secure_boot: Literal[0, 1, 2] = 0
    """0 off, 1 audit, 2 enforce."""
    pks: PksAttributes = PksAttributes()

    def __post_init__(self) -> None:
        if 0 < self.keystore_kbytes < MIN_KEYSTORE_KBYTES:
            raise ValueError(
                f"keystore_kbytes is {self.keystore_kbytes}, expected 0 (off) or "
                f"{MIN_KEYSTORE_KBYTES} to {MAX_KEYSTORE_KBYTES}"
            )
        if not pks.SIGNED_UPDATE.decode_only:
            return
        for name in (
            "keystore_signed_updates_without_verification",
            "linux_dynamic_key_secure_boot",
        ):
            if getattr(self, name):
                raise ValueError(
                    f"{name} is 1, but this version does not serve {pks.SIGNED_UPDATE.name}; "
                    "set it to 0"
                )

    @property
    def total_size(self) -> int:
        """Bytes of the keystore."""
        return self.keystore_kbytes * 1024

    def limits(self) -> Limits:
        """The bounds that the table leaves to the partition."""
        return {
            Limit.MAX_PASSWORD_SIZE: self.pks.max_password_size,
            Limit.MAX_LABEL_SIZE: self.pks.max_label_size,
            Limit.MAX_OBJECT_SIZE: self.pks.max_object_size,
            Limit.MAX_WRAPPED_SIZE: self.pks.max_object_size + WRAP_OVERHEAD,
            Limit.SUPPORTED_POLICIES: self.pks.policies,
        }

    def keystore_config(self, used_space: int) -> Config:
        """What H_PKS_GET_CONFIG returns.

        Linux wants ``maxobjsize`` to be 0xffff if ``maxlargeobjectsize`` is 65536 or
        more, and does not look at the latter if it is less (plpks.c
        ``_plpks_get_config()``).
        """
        size = self.pks.max_object_size
        algorithms = 0
        if not pks.SIGNED_UPDATE.decode_only and self.keystore_signed_updates:
            algorithms = SIGNED_UPDATE_RSA2048 | SIGNED_UPDATE_RSA4096
        wraps = serves_wrapping()
        return Config(
            flags=CONFIG_FLAG_WRAP if wraps else 0,
            objoverhead=self.pks.object_overhead,
            maxpwsize=self.pks.max_password_size,
            maxobjlabelsize=self.pks.max_label_size,
            maxobjsize=min(size, _U16_MAX),
            totalsize=self.total_size,
            usedspace=used_space,
            supportedpolicies=self.pks.policies,
            maxlargeobjectsize=size if size >= LARGE_OBJECT_SIZE else 0,
            signedupdatealgorithms=algorithms,
            wrappingfeatures=_WRAPPING_AES_GCM_256 if wraps else 0,
        )

    def root_properties(self) -> tuple[tuple[str, bytes], ...]:
        """Device-tree properties of the root node.

        Linux's ``is_ppc_secureboot_enabled()`` reads ``ibm,secure-boot`` and takes
        values above 1 as enabled (arch/powerpc/kernel/secure_boot.c).
        """
        return (("ibm,secure-boot", struct.pack(">I", self.secure_boot)),)
