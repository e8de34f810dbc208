# SPDX-License-Identifier: Apache-2.0
"""The codes that the table of calls declares, against the tables that decide."""

from __future__ import annotations

import pytest
from tests.unit.hcalld.families.sev.stages import CALLS

from hcalld.domain.sev.policy import DEMANDS, FORBIDS
from hcalld.domain.sev.states import (
    GUEST_TABLE,
    INITIALIZES,
    NEEDS_ES,
    PLATFORM_TABLE,
    UNINITIALIZED,
    VmKind,
)
from hcalld.families.sev.checks import QUERIES
from hcalld.families.sev.handlerset import OF_VM
from hcallproto.abi.returns import SevCode as S

STARTS = {"KVM_SEV_LAUNCH_START", "KVM_SEV_RECEIVE_START"}
PACKETS = {
    "KVM_SEV_LAUNCH_SECRET",
    "KVM_SEV_RECEIVE_UPDATE_DATA",
    "KVM_SEV_RECEIVE_UPDATE_VMSA",
}
MEMORY = {"KVM_SEV_LAUNCH_UPDATE_DATA", "KVM_SEV_SEND_UPDATE_DATA"} | PACKETS - {
    "KVM_SEV_RECEIVE_UPDATE_VMSA"
}
CERTIFICATES = {"KVM_SEV_SEND_START", "SEV_PEK_CERT_IMPORT"}


def names_of(code: S) -> set[str]:
    return {name for name, hcall in CALLS.items() if code in {c.code for c in hcall.codes}}


def in_tables(code: S) -> set[str]:
    tables = [*GUEST_TABLE.items(), *PLATFORM_TABLE.items()]
    return {name for (name, _), step in tables if isinstance(step, S) and step is code}


EXPECTED = {
    S.INVALID_PLATFORM_STATE: in_tables(S.INVALID_PLATFORM_STATE),
    S.INVALID_GUEST_STATE: in_tables(S.INVALID_GUEST_STATE),
    # Of a start it is the handle that it names.
    S.INVALID_GUEST: in_tables(S.INVALID_GUEST) | STARTS,
    S.ASID_OWNED: in_tables(S.ASID_OWNED),
    S.EBUSY: in_tables(S.EBUSY),
    # Without SEV-ES a VM cannot be made one of it.
    S.ENOTTY: (OF_VM - UNINITIALIZED.keys() - INITIALIZES.keys())
    | {name for name, kind in INITIALIZES.items() if kind is not VmKind.SEV},
    S.POLICY_FAILURE: {*FORBIDS, *DEMANDS} | STARTS,
    S.INVALID_CONFIG: set(DEMANDS),
    S.INVALID_LEN: QUERIES.keys() | STARTS | PACKETS | MEMORY | CERTIFICATES | set(DEMANDS),
    S.INVALID_ADDRESS: MEMORY,
    S.INVALID_CERTIFICATE: STARTS | CERTIFICATES,
    S.BAD_SIGNATURE: CERTIFICATES,
    S.BAD_MEASUREMENT: STARTS | PACKETS,
    S.UNSUPPORTED: PACKETS,
    S.INVALID_PARAM: PACKETS | {"KVM_SEV_SEND_UPDATE_VMSA"},
    S.ALREADY_OWNED: {"SEV_PEK_CERT_IMPORT"},
    S.RESOURCE_LIMIT: STARTS,
    # One more command while another is under way.
    S.EINVAL: set(CALLS),
}


@pytest.mark.parametrize("code", EXPECTED)
def test_a_code_is_declared_where_a_command_gives_it(code: S):
    assert names_of(code) == EXPECTED[code]


def test_no_other_code_is_declared():
    everywhere = {S.SUCCESS, S.EFAULT, S.ETIMEDOUT, S.HWERROR_PLATFORM}
    declared = {entry.code for hcall in CALLS.values() for entry in hcall.codes}
    assert declared <= EXPECTED.keys() | everywhere | {S.EPERM}
    for code in everywhere:
        assert names_of(code) == set(CALLS)


def test_save_areas_are_sev_es_s():
    assert set(DEMANDS) < NEEDS_ES
