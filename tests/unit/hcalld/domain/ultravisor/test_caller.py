# SPDX-License-Identifier: Apache-2.0
"""Who may make which ultracall: every call in every state of the machine."""

from __future__ import annotations

import itertools

import pytest

from hcalld.core.errors import HcallError
from hcalld.domain.ultravisor.caller import ADMITTED, MSR_TS, WHO, check_caller, context
from hcallproto.abi.families import uv
from hcallproto.abi.registers import MSR_HV, MSR_PR, MSR_S
from hcallproto.abi.returns import U
from hcallproto.abi.spec import Caller, Hcall

CONTEXTS = list(itertools.product([0, MSR_S], [0, MSR_HV], [0, MSR_PR]))
OF_A_VM = {"UV_ESM", "UV_SHARE_PAGE", "UV_UNSHARE_PAGE", "UV_UNSHARE_ALL_PAGES"}


def may(hcall: Hcall, s: int, hv: int, pr: int) -> bool:
    if hcall.name == "UV_ESMB_GET_FILE":
        return True
    if pr:
        return False
    if hcall.name == "UV_ESM":
        return not hv
    if hcall.name in OF_A_VM:
        return bool(s) and not hv
    return bool(hv)


@pytest.mark.parametrize("hcall", uv.FAMILY.calls, ids=lambda hcall: hcall.name)
@pytest.mark.parametrize(("s", "hv", "pr"), CONTEXTS)
def test_context(hcall: Hcall, s: int, hv: int, pr: int):
    msr = s | hv | pr | 0x8000000000003001
    if may(hcall, s, hv, pr):
        check_caller(hcall, msr)
        return
    with pytest.raises(HcallError) as raised:
        check_caller(hcall, msr)
    assert raised.value.code is U.PERMISSION
    assert WHO[context(msr)] in raised.value.why


@pytest.mark.parametrize("state", [1 << 33, 1 << 34])
def test_hypervisor_in_a_transaction(state: int):
    assert state & MSR_TS
    with pytest.raises(HcallError) as raised:
        check_caller(uv.PAGE_IN, MSR_HV | state)
    assert raised.value.code is U.BAD_MODE
    check_caller(uv.SHARE_PAGE, MSR_S | state)
    check_caller(uv.RETURN, MSR_HV | state)


def test_every_kind_of_caller_is_known():
    assert set(ADMITTED) == set(Caller)
    assert len(WHO) == 8
