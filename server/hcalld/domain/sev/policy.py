# SPDX-License-Identifier: Apache-2.0
"""What a guest's policy forbids.

Source: AMD publication 55766 chapter 3, and the commands' own chapters. The bits that are not in
``Policy`` mean nothing, but every MAC covers them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from hcalld.core.errors import HcallError
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.abi.spec import Hcall
from hcallproto.payloads.sev import Api, Policy

FORBIDS: Final[Mapping[str, Policy]] = MappingProxyType(
    {
        sev.DBG_DECRYPT.name: Policy.NODBG,
        sev.DBG_ENCRYPT.name: Policy.NODBG,
        sev.SEND_START.name: Policy.NOSEND,
    }
)
"""Command to the bit that forbids it."""

DEMANDS: Final[Mapping[str, Policy]] = MappingProxyType({sev.LAUNCH_UPDATE_VMSA.name: Policy.ES})
"""Command to the bit without which it is forbidden."""

_NOKS: Final = int(Policy.NOKS)


def check_command(command: Hcall, policy: int) -> None:
    """Refuse a command that the policy forbids.

    Raises:
        HcallError: POLICY_FAILURE.
    """
    bit = FORBIDS.get(command.name)
    if bit is not None and policy & int(bit):
        raise _failure(f"policy 0x{policy:x} has {bit.name}")
    bit = DEMANDS.get(command.name)
    if bit is not None and not policy & int(bit):
        raise _failure(f"policy 0x{policy:x} is without {bit.name}")


def check_sharing(policy: int, other: int, handle: int) -> None:
    """Refuse to share the key of a guest with the policy ``other``.

    Raises:
        HcallError: POLICY_FAILURE.
    """
    if policy & _NOKS:
        raise _failure(f"handle {handle} asks for a shared key, and policy 0x{policy:x} has NOKS")
    if policy != other:
        raise _failure(f"policy 0x{policy:x}, but guest {handle} has 0x{other:x}")


def check_api(policy: int, api: Api, whose: str) -> None:
    """Refuse a platform that is older than the policy allows.

    Raises:
        HcallError: POLICY_FAILURE.
    """
    least = Policy(policy).api
    if api < least:
        raise _failure(f"the policy demands API {least}, {whose} has {api}")


def _failure(why: str) -> HcallError:
    return HcallError(SevCode.POLICY_FAILURE, why)
