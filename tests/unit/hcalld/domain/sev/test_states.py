# SPDX-License-Identifier: Apache-2.0
"""The tables of states, spelled out as a person reads them in sev.md, and what applies them."""

from __future__ import annotations

import pytest

from hcalld.core.errors import HcallError
from hcalld.domain.sev.states import (
    GUEST_TABLE,
    INITIALIZES,
    NEEDS_ES,
    PLATFORM_TABLE,
    VmKind,
    guest_after,
    platform_after,
)
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.abi.spec import Hcall
from hcallproto.payloads.sev import GuestState, PlatformState

ALLOWED = """
LAUNCH_START            UNINIT->LUPDATE
LAUNCH_UPDATE_DATA      LUPDATE->LUPDATE
LAUNCH_UPDATE_VMSA      LUPDATE->LUPDATE
LAUNCH_MEASURE          LUPDATE->LSECRET
LAUNCH_SECRET           LSECRET->LSECRET
LAUNCH_FINISH           LSECRET->RUNNING
SEND_START              RUNNING->SUPDATE
SEND_UPDATE_DATA        SUPDATE->SUPDATE
SEND_UPDATE_VMSA        SUPDATE->SUPDATE
SEND_FINISH             SUPDATE->SENT
SEND_CANCEL             SUPDATE->RUNNING
RECEIVE_START           UNINIT->RUPDATE
RECEIVE_UPDATE_DATA     RUPDATE->RUPDATE
RECEIVE_UPDATE_VMSA     RUPDATE->RUPDATE
RECEIVE_FINISH          RUPDATE->RUNNING
GUEST_STATUS            LUPDATE->LUPDATE LSECRET->LSECRET RUNNING->RUNNING
GUEST_STATUS            SUPDATE->SUPDATE RUPDATE->RUPDATE SENT->SENT
DBG_DECRYPT             RUNNING->RUNNING SUPDATE->SUPDATE
DBG_ENCRYPT             RUNNING->RUNNING SUPDATE->SUPDATE
GET_ATTESTATION_REPORT  LSECRET->LSECRET RUNNING->RUNNING
"""


def test_what_a_guest_may_do_when():
    expected = {}
    for line in ALLOWED.strip().splitlines():
        name, *steps = line.split()
        for step in steps:
            before, after = step.split("->")
            expected[f"KVM_SEV_{name}", GuestState[before]] = GuestState[after]
    found = {key: step for key, step in GUEST_TABLE.items() if isinstance(step, GuestState)}
    assert found == expected


def test_what_refuses_all_else():
    for (name, state), step in GUEST_TABLE.items():
        if isinstance(step, GuestState):
            continue
        if state is GuestState.UNINIT:
            assert step is SevCode.INVALID_GUEST
        elif name in ("KVM_SEV_LAUNCH_START", "KVM_SEV_RECEIVE_START"):
            assert step is SevCode.ASID_OWNED
        else:
            assert step is SevCode.INVALID_GUEST_STATE


def test_what_a_platform_refuses():
    refused = {key: step for key, step in PLATFORM_TABLE.items() if isinstance(step, SevCode)}
    wrong = SevCode.INVALID_PLATFORM_STATE
    uninit, working = PlatformState.UNINIT, PlatformState.WORKING
    assert refused == {
        ("SEV_FACTORY_RESET", working): SevCode.EBUSY,
        ("SEV_PEK_GEN", working): wrong,
        ("SEV_PEK_CSR", working): wrong,
        ("SEV_PEK_CERT_IMPORT", working): wrong,
        ("KVM_SEV_LAUNCH_START", uninit): wrong,
        ("KVM_SEV_RECEIVE_START", uninit): wrong,
        ("KVM_SEV_CERT_EXPORT", uninit): wrong,
    }


def test_what_changes_a_platform_s_state():
    changed = {
        key: step
        for key, step in PLATFORM_TABLE.items()
        if isinstance(step, PlatformState) and step is not key[1]
    }
    for name in INITIALIZES:
        assert changed.pop((name, PlatformState.UNINIT)) is PlatformState.INIT
    for name in ("KVM_SEV_LAUNCH_START", "KVM_SEV_RECEIVE_START"):
        assert changed.pop((name, PlatformState.INIT)) is PlatformState.WORKING
    reset = ("SEV_FACTORY_RESET", PlatformState.INIT)
    assert changed == {reset: PlatformState.UNINIT}


def test_an_entry_is_applied():
    assert guest_after(sev.LAUNCH_START, GuestState.UNINIT) is GuestState.LUPDATE
    assert platform_after(sev.FACTORY_RESET, PlatformState.INIT) is PlatformState.UNINIT
    with pytest.raises(HcallError, match=r"INVALID_GUEST: .*no guest"):
        guest_after(sev.LAUNCH_FINISH, GuestState.UNINIT)
    with pytest.raises(HcallError, match=r"INVALID_GUEST_STATE: the guest is LUPDATE"):
        guest_after(sev.LAUNCH_FINISH, GuestState.LUPDATE)
    with pytest.raises(HcallError, match=r"EBUSY: the platform is WORKING"):
        platform_after(sev.FACTORY_RESET, PlatformState.WORKING)


@pytest.mark.parametrize("hcall", [sev.INIT, sev.PLATFORM_STATUS, sev.REG_REGION])
def test_a_command_that_is_none_of_a_guest_is_a_bug(hcall: Hcall):
    with pytest.raises(KeyError):
        guest_after(hcall, GuestState.RUNNING)


def test_kinds_of_vms():
    assert set(INITIALIZES.values()) == {VmKind.SEV, VmKind.SEV_ES, VmKind.BY_POLICY}
    assert {name for name in NEEDS_ES if "VMSA" not in name} == set()
    assert len(NEEDS_ES) == 3
