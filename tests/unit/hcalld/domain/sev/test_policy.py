# SPDX-License-Identifier: Apache-2.0
"""Each bit of a policy: what it forbids, and what it does not."""

from __future__ import annotations

import pytest

from hcalld.core.errors import HcallError
from hcalld.domain.sev.policy import check_api, check_command, check_sharing
from hcallproto.abi.families import sev
from hcallproto.abi.spec import Hcall
from hcallproto.payloads.sev import Api, Policy

FORBIDDEN = {
    (sev.DBG_DECRYPT.name, Policy.NODBG),
    (sev.DBG_ENCRYPT.name, Policy.NODBG),
    (sev.SEND_START.name, Policy.NOSEND),
}


@pytest.mark.parametrize("bit", list(Policy))
@pytest.mark.parametrize("hcall", sev.FAMILY.calls, ids=lambda hcall: hcall.name)
def test_a_bit_forbids_a_command_or_not(hcall: Hcall, bit: Policy):
    rest = Policy.ES if hcall is sev.LAUNCH_UPDATE_VMSA else 0
    check_command(hcall, rest)
    if (hcall.name, bit) in FORBIDDEN:
        with pytest.raises(HcallError, match=f"POLICY_FAILURE: .* has {bit.name}"):
            check_command(hcall, bit | rest)
    else:
        check_command(hcall, bit | rest)


def test_save_areas_demand_es():
    check_command(sev.LAUNCH_UPDATE_VMSA, Policy.ES)
    with pytest.raises(HcallError, match=r"POLICY_FAILURE: .* without ES"):
        check_command(sev.LAUNCH_UPDATE_VMSA, ~Policy.ES & 0xFFFF_FFFF)


@pytest.mark.parametrize("policy", [0, 1, 4, 0xFFC0, 0x3701_0000])
def test_the_same_policy_shares_a_key(policy: int):
    check_sharing(policy, policy, 1)


@pytest.mark.parametrize("bit", range(32))
def test_another_policy_shares_none(bit: int):
    with pytest.raises(HcallError, match="POLICY_FAILURE"):
        check_sharing(0, 1 << bit, 1)
    with pytest.raises(HcallError, match="POLICY_FAILURE"):
        check_sharing(1 << bit, 0, 1)


def test_noks_shares_none():
    with pytest.raises(HcallError, match=r"POLICY_FAILURE: .* NOKS"):
        check_sharing(Policy.NOKS, Policy.NOKS, 1)


@pytest.mark.parametrize(
    ("least", "is_allowed"),
    [
        (Api(0, 0), True),
        (Api(0, 99), True),
        (Api(1, 54), True),
        (Api(1, 55), True),
        (Api(1, 56), False),
        (Api(2, 0), False),
    ],
)
def test_versions_compare_by_the_greater_number_first(least: Api, is_allowed: bool):
    policy = int(Policy.of(Policy.ES, least))
    if is_allowed:
        check_api(policy, Api(1, 55), "the platform")
    else:
        with pytest.raises(HcallError, match=r"POLICY_FAILURE: .*the platform has 1\.55"):
            check_api(policy, Api(1, 55), "the platform")
