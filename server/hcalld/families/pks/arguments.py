# SPDX-License-Identifier: Apache-2.0
"""What the arguments of H_PKS_* point at: authorization structures and labels.

The registers have been checked by the call's ``Plan`` before; here it is what is in
memory behind them that can be wrong.
"""

from __future__ import annotations

from hcalld.core.call import Call, page_rest
from hcalld.core.effects import ReadBuffer
from hcalld.domain.attributes import PartitionAttributes
from hcalld.domain.labels import os_label
from hcallproto.payloads.pks import (
    WRAP_ALGORITHM_MASK,
    Auth,
    Consumer,
    Policy,
    WrapFlag,
    parse_auth,
)

LABEL_ATTRIBUTES_SIZE = 16
"""Bytes before the name in a label of the OS (plpks.c ``struct label_attr``)."""
_LABEL_VERSION = b"\0"
_LABEL_REST = bytes((LABEL_ATTRIBUTES_SIZE, 0, 0, 0, 0, 0))
"""Attribute length and reserved bytes; the byte before them says which OS."""

# Plain numbers: each operation on an IntFlag makes an object, and every call pays for it.
_AES_GCM_256 = int(WrapFlag.AES_GCM_256)
_PASSWORD = int(WrapFlag.PASSWORD)
_BOTH_CONDITIONS = int(WrapFlag.OSSECBOOTAUDIT | WrapFlag.OSSECBOOTENFORCE)

_VARIABLE_ATTRIBUTES = os_label(b"", b"")

READ_AUTH = ReadBuffer("auth")
READ_LABEL = ReadBuffer("label")


async def read_auth(call: Call, attributes: PartitionAttributes) -> Auth:
    """The authorization structure, H_PARAMETER if it is malformed."""
    data = await READ_AUTH
    try:
        return parse_auth(data, attributes.pks.max_password_size)
    except ValueError as error:
        raise call.refuse("auth", str(error)) from None


async def read_label(call: Call, consumer: Consumer) -> bytes:
    """The label; H_P2 or H_P3 if it is not one that ``consumer`` may use.

    Linux promises for the OS that a label does not cross a page and begins with 16 bytes
    of attributes. Firmware and bootloader labels are bare names: SB_VERSION is read from
    wherever the kernel has the string.
    """
    label = await READ_LABEL
    if consumer is Consumer.OS:
        gpa = call["label"]
        if len(label) < LABEL_ATTRIBUTES_SIZE:
            raise call.refuse(
                "label_size",
                f"a label of the OS has at least {LABEL_ATTRIBUTES_SIZE} bytes, "
                f"this one {len(label)}",
            )
        if len(label) > page_rest(gpa):
            raise call.refuse("label", f"label 0x{gpa:x} + {len(label)} crosses a page")
        if label[8:9] != _LABEL_VERSION or label[10:16] != _LABEL_REST:
            raise call.refuse(
                "label",
                f"label attributes {label[8:16].hex()} are malformed: version is not 0, length "
                f"not {LABEL_ATTRIBUTES_SIZE}, or reserved bytes not 0",
            )
    return label


def check_policy(call: Call, refused: int) -> int:
    """The policy that an object is to have; H_P4 for bits that the call cannot give."""
    policy = call["policy"]
    if policy & refused:
        raise call.refuse("policy", f"{Policy(policy & refused).name} cannot be given by this call")
    return policy


def check_wrap_flags(call: Call) -> int:
    """The flags of a wrapped object, H_P4 if they do not go together.

    Linux calls the password condition mandatory, and refuses both conditions of secure
    boot together itself (plpks.c ``plpks_wrap_object()``).
    """
    flags = call["flags"]
    algorithm = flags & WRAP_ALGORITHM_MASK
    if algorithm != _AES_GCM_256:
        raise call.refuse("flags", f"wrapping algorithm {algorithm}, expected {_AES_GCM_256}")
    if not flags & _PASSWORD:
        raise call.refuse("flags", "the password condition is mandatory")
    if flags & _BOTH_CONDITIONS == _BOTH_CONDITIONS:
        raise call.refuse("flags", "both conditions of secure boot, expected one at most")
    return flags


def variable_name(call: Call, consumer: Consumer, label: bytes) -> bytes:
    """The name of the signed variable that a label is of, in UTF-16LE.

    They belong to the OS, and their labels have no prefix (plpks-secvar.c
    ``plpks_set_variable()``).
    """
    if consumer is not Consumer.OS:
        raise call.refuse("auth", f"consumer {consumer:d}, but signed variables are the OS's")
    if label[:LABEL_ATTRIBUTES_SIZE] != _VARIABLE_ATTRIBUTES:
        raise call.refuse(
            "label", f"label attributes {label[:10].hex()} are not those of a signed variable"
        )
    return label[LABEL_ATTRIBUTES_SIZE:]
