# SPDX-License-Identifier: Apache-2.0
"""Every command in every state of a VM, its guest and the platform."""

from __future__ import annotations

import pytest
from tests.unit.hcalld.families.sev.stages import (
    CALLS,
    ES,
    GOOD,
    IN_STATE,
    OK,
    give,
    host,
    launched,
    measured,
    refused,
    running,
    sending,
    succeed,
)

from hcalld.core.call import Call
from hcalld.core.effects import ReadGuest
from hcalld.domain.sev.settings import SevSettings
from hcalld.domain.sev.states import GUEST_TABLE, PLATFORM_TABLE, VmKind
from hcalld.families.sev.handlers import HANDLERS
from hcalld.families.sev.handlerset import OF_VM
from hcalld.testing.sev import ADDRESSES, MEMORY, SevClient, SevHost
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.payloads.sev import GuestState, PlatformState

INITS = {sev.INIT.name: VmKind.SEV, sev.ES_INIT.name: VmKind.SEV_ES, sev.INIT2.name: None}


@pytest.mark.parametrize(("name", "state"), [(name, state) for name, state in GUEST_TABLE], ids=str)
def test_a_command_of_a_guest_in_a_state(name: str, state: GuestState):
    client = IN_STATE[state](host().connect())
    step = GUEST_TABLE[name, state]
    if isinstance(step, SevCode):
        refused(client, CALLS[name], step)
        return
    code, _, why = give(client, CALLS[name])
    assert code is OK, why
    assert client.vm.state is step


def test_the_table_of_guests_is_whole():
    named = {name for name, _ in GUEST_TABLE}
    assert named == OF_VM - INITS.keys() - {
        sev.CERT_EXPORT.name,
        sev.REG_REGION.name,
        sev.UNREG_REGION.name,
    }
    assert GUEST_TABLE.keys() == {(name, state) for name in named for state in GuestState}
    others = CALLS.keys() - OF_VM
    assert PLATFORM_TABLE.keys() == {
        (name, state)
        for name in {*others, *INITS, "KVM_SEV_LAUNCH_START", "KVM_SEV_RECEIVE_START"}
        | {sev.CERT_EXPORT.name}
        for state in PlatformState
    }


def test_what_the_specification_says_of_states():
    """Some entries, spelled out: the test above takes the table for granted."""
    client = launched(host().connect())
    refused(client, sev.LAUNCH_FINISH, SevCode.INVALID_GUEST_STATE)
    refused(client, sev.LAUNCH_SECRET, SevCode.INVALID_GUEST_STATE)
    client.launch_measure()
    refused(client, sev.LAUNCH_MEASURE, SevCode.INVALID_GUEST_STATE)
    refused(client, sev.LAUNCH_UPDATE_DATA, SevCode.INVALID_GUEST_STATE)


@pytest.mark.parametrize("state", [state for state in GuestState if state], ids=str)
def test_a_second_guest_of_a_vm_is_refused_and_the_first_goes_on(state: GuestState):
    client = IN_STATE[state](host().connect())
    refused(client, sev.LAUNCH_START, SevCode.ASID_OWNED)
    refused(client, sev.RECEIVE_START, SevCode.ASID_OWNED)
    fields = succeed(client, sev.GUEST_STATUS)
    assert fields == {"handle": 1, "policy": ES, "state": state}


@pytest.mark.parametrize("name", sorted(OF_VM - INITS.keys()))
def test_a_vm_that_is_not_initialized(name: str):
    client = host().connect()
    expected = SevCode.EINVAL if name == "KVM_SEV_RECEIVE_UPDATE_DATA" else SevCode.ENOTTY
    refused(client, CALLS[name], expected)


@pytest.mark.parametrize("first", INITS)
@pytest.mark.parametrize("second", INITS)
def test_a_vm_is_initialized_once(first: str, second: str):
    client = host().connect()
    succeed(client, CALLS[first])
    refused(client, CALLS[second], SevCode.EINVAL)


@pytest.mark.parametrize(
    "name",
    ["KVM_SEV_LAUNCH_UPDATE_VMSA", "KVM_SEV_SEND_UPDATE_VMSA", "KVM_SEV_RECEIVE_UPDATE_VMSA"],
)
def test_a_vm_of_sev_has_no_save_areas(name: str):
    client = host().connect()
    succeed(client, sev.INIT)
    refused(client, CALLS[name], SevCode.ENOTTY)


@pytest.mark.parametrize(
    ("version", "policy", "kind"),
    [
        (0, 0, VmKind.SEV),
        (0, ES, VmKind.SEV_ES),
        (1, 0, VmKind.SEV_ES),
        (2, ES, VmKind.SEV_ES),
    ],
)
def test_init2_makes_what_the_version_or_the_policy_says(version: int, policy: int, kind: VmKind):
    client = host().connect()
    succeed(client, sev.INIT2, ghcb_version=version)
    assert client.launch_start(policy).code is OK
    assert client.vm.kind is kind


# -- a platform without SEV-ES ----------------------------------------------------------


def test_no_vm_of_sev_es_without_sev_es():
    client = host(SevSettings(es=False)).connect()
    refused(client, sev.ES_INIT, SevCode.ENOTTY)
    refused(client, sev.INIT2, SevCode.ENOTTY, ghcb_version=2)
    assert succeed(client, sev.PLATFORM_STATUS)["flags"] == 0
    succeed(client, sev.INIT2)
    assert client.launch_start(ES).code is OK
    refused(client, sev.LAUNCH_UPDATE_VMSA, SevCode.INVALID_CONFIG)


# -- the platform -----------------------------------------------------------------------


def in_platform_state(state: PlatformState) -> tuple[SevHost, SevClient]:
    made = host(SevSettings(init_on_probe=state is not PlatformState.UNINIT))
    if state is PlatformState.WORKING:
        running(made.connect())
    assert made.platform.state is state
    return made, made.connect()


@pytest.mark.parametrize(("name", "state"), list(PLATFORM_TABLE), ids=str)
def test_a_command_in_a_state_of_the_platform(name: str, state: PlatformState):
    made, client = in_platform_state(state)
    if name in (sev.LAUNCH_START.name, sev.RECEIVE_START.name, sev.CERT_EXPORT.name):
        client.vm.kind = VmKind.SEV_ES
    step = PLATFORM_TABLE[name, state]
    if name == sev.PEK_CERT_IMPORT.name:
        # Its own tests have the owner that it needs.
        address = client.put(made.platform.identity.pek)
        fields = {"pek_cert_address": address, "pek_cert_len": 2084} | {
            "oca_cert_address": client.put(made.platform.identity.oca),
            "oca_cert_len": 2084,
        }
        before = client.snapshot()
        expected = step if isinstance(step, SevCode) else SevCode.INVALID_CERTIFICATE
        assert client.command(CALLS[name], **fields).code is expected
        assert client.snapshot() == before
        return
    if isinstance(step, SevCode):
        refused(client, CALLS[name], step)
        return
    code, _, why = give(client, CALLS[name])
    assert code is OK, why
    assert made.platform.state is step


def test_every_command_has_good_arguments():
    assert CALLS.keys() - GOOD.keys() == {sev.PEK_CERT_IMPORT.name}


# -- the life of guests -----------------------------------------------------------------


def test_the_platform_works_as_long_as_there_are_guests():
    made = host()
    first, second = running(made.connect()), measured(made.connect())
    assert succeed(first, sev.PLATFORM_STATUS)["guest_count"] == 2
    second.close()
    assert succeed(first, sev.PLATFORM_STATUS)["guest_count"] == 1
    refused(first, sev.FACTORY_RESET, SevCode.EBUSY)
    first.close()
    assert succeed(first, sev.PLATFORM_STATUS)["state"] == PlatformState.INIT
    assert succeed(first, sev.PLATFORM_STATUS)["guest_count"] == 0


def test_a_guest_that_is_sent_still_has_its_handle():
    made = host()
    client = sending(made.connect())
    succeed(client, sev.SEND_FINISH)
    assert made.platform.state is PlatformState.WORKING
    assert succeed(client, sev.GUEST_STATUS)["state"] == GuestState.SENT


def test_asids_run_out_and_come_back():
    made = host(SevSettings(asids=2))
    clients = [running(made.connect()) for _ in range(2)]
    late = made.connect()
    succeed(late, sev.ES_INIT)
    refused(late, sev.LAUNCH_START, SevCode.RESOURCE_LIMIT)
    refused(late, sev.RECEIVE_START, SevCode.RESOURCE_LIMIT)
    clients[0].close()
    assert late.launch_start(ES).code is OK
    assert [guest.asid for guest in made.platform.guests] == [2, 1]
    assert [guest.handle for guest in made.platform.guests] == [2, 3]


def test_one_command_of_a_vm_at_a_time():
    client = launched(host().connect())
    client.vm.enter()
    refused(client, sev.LAUNCH_UPDATE_DATA, SevCode.EINVAL)
    refused(client, sev.GUEST_STATUS, SevCode.EINVAL)
    client.vm.is_busy = False
    succeed(client, sev.GUEST_STATUS)


def test_a_command_that_is_given_up_is_over():
    """The client goes away while its memory is read."""
    client = launched(host().connect())
    hcall = sev.LAUNCH_UPDATE_DATA
    before = client.snapshot()
    call = Call(hcall, {"uaddr": MEMORY, "len": 4096}, 0, ADDRESSES)
    coroutine = HANDLERS.by_call[hcall](call, client.vm)
    assert coroutine.send(None) == ReadGuest(MEMORY, 4096)
    assert client.vm.is_busy
    coroutine.close()
    assert client.snapshot() == before
    succeed(client, hcall, uaddr=MEMORY, len=4096)
