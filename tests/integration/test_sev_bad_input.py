# SPDX-License-Identifier: Apache-2.0
"""Every command in every state of its VM, over the wire, as the specification has it.

The table here is written from the specification's text (states and transitions of AMD publication
55766 as sev-tool has them, Linux 7.2 for what it refuses by itself), not from the daemon's table:
each checks the other.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import pytest
from tests.e2e.sevhosts import ROOT, Host, Hosts, Pair, start
from tests.e2e.sevscenes import AREA, PAGE, Scene, quiet

from hcalld.crypto.sev.measurement import measure
from hcalld.guestowner.client import CommandRefused, SevClient
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.abi.spec import Hcall
from hcallproto.payloads.sev import GuestState, MeasurementBlob, PlatformState

MATRIX = """
                       none UNINIT LUPDATE LSECRET RUNNING SUPDATE RUPDATE SENT
INIT                   ok   again  again   again   again   again   again   again
ES_INIT                ok   again  again   again   again   again   again   again
INIT2                  ok   again  again   again   again   again   again   again
LAUNCH_START           tty  ok     owned   owned   owned   owned   owned   owned
LAUNCH_UPDATE_DATA     tty  guest  ok      state   state   state   state   state
LAUNCH_UPDATE_VMSA     tty  guest  ok      state   state   state   state   state
LAUNCH_SECRET          tty  guest  state   ok      state   state   state   state
LAUNCH_MEASURE         tty  guest  ok      state   state   state   state   state
LAUNCH_FINISH          tty  guest  state   ok      state   state   state   state
SEND_START             tty  guest  state   state   ok      state   state   state
SEND_UPDATE_DATA       tty  guest  state   state   state   ok      state   state
SEND_UPDATE_VMSA       tty  guest  state   state   state   ok      state   state
SEND_FINISH            tty  guest  state   state   state   ok      state   state
SEND_CANCEL            tty  guest  state   state   state   ok      state   state
RECEIVE_START          tty  *      owned   owned   owned   owned   owned   owned
RECEIVE_UPDATE_DATA    inval guest state   state   state   state   ok      state
RECEIVE_UPDATE_VMSA    tty  guest  state   state   state   state   ok      state
RECEIVE_FINISH         tty  guest  state   state   state   state   ok      state
GUEST_STATUS           tty  guest  ok      ok      ok      ok      ok      ok
DBG_DECRYPT            tty  guest  state   state   ok      ok      state   state
DBG_ENCRYPT            tty  guest  state   state   ok      ok      state   state
CERT_EXPORT            tty  ok     ok      ok      ok      ok      ok      ok
GET_ATTESTATION_REPORT tty  guest  state   ok      ok      state   state   state
"""
"""``*``: a session that an owner makes is as good as a source's; see test_sev_bad_input_blobs."""

CODES = {
    "ok": SevCode.SUCCESS,
    "*": SevCode.SUCCESS,
    "tty": SevCode.ENOTTY,
    "again": SevCode.EINVAL,
    "inval": SevCode.EINVAL,
    "owned": SevCode.ASID_OWNED,
    "guest": SevCode.INVALID_GUEST,
    "state": SevCode.INVALID_GUEST_STATE,
}

AFTER = {
    "LAUNCH_START": GuestState.LUPDATE,
    "RECEIVE_START": GuestState.RUPDATE,
    "LAUNCH_MEASURE": GuestState.LSECRET,
    "LAUNCH_FINISH": GuestState.RUNNING,
    "RECEIVE_FINISH": GuestState.RUNNING,
    "SEND_START": GuestState.SUPDATE,
    "SEND_CANCEL": GuestState.RUNNING,
    "SEND_FINISH": GuestState.SENT,
}
"""Those that change the guest's state."""


def _entries() -> Iterator[tuple[str, GuestState | None, SevCode]]:
    head, *rows = (line.split() for line in MATRIX.strip().splitlines())
    states = [None if name == "none" else GuestState[name] for name in head]
    for command, *words in rows:
        for state, word in zip(states, words, strict=True):
            yield command, state, CODES[word]


ENTRIES = list(_entries())
STATES = [None, *GuestState]


@pytest.fixture
def stack(pair: Pair) -> Iterator[contextlib.ExitStack]:
    with quiet(pair) as stack:
        yield stack


def test_the_matrix_has_every_command_of_a_vm() -> None:
    names = {name for name, _, _ in ENTRIES}
    of_kvm = sev.Ioctl.KVM_MEMORY_ENCRYPT_OP
    assert names == {
        hcall.name.removeprefix("KVM_SEV_")
        for hcall in sev.FAMILY.calls
        if hcall.number >> sev.COMMAND_SHIFT == of_kvm
    }


@pytest.mark.parametrize("state", STATES, ids=str)
def test_commands_that_a_state_refuses(
    pair: Pair, stack: contextlib.ExitStack, state: GuestState | None
) -> None:
    """One after the other, to one VM: none of them may change anything, nor end the connection."""
    scene = Scene(pair, stack, state)
    wrong = [(name, code) for name, at, code in ENTRIES if at is state and code]
    for name, code in wrong:
        scene.must_refuse(getattr(sev, name), code)
    assert len(wrong) >= 10


@pytest.mark.parametrize(
    ("name", "state"),
    [(name, state) for name, state, code in ENTRIES if not code],
    ids=str,
)
def test_a_command_that_a_state_takes(
    pair: Pair, stack: contextlib.ExitStack, name: str, state: GuestState | None
) -> None:
    scene = Scene(pair, stack, state)
    hcall = getattr(sev, name)
    code, _ = scene.give(hcall, **scene.good(hcall))
    assert code is SevCode.SUCCESS, code.name
    if state is not None and name not in ("CERT_EXPORT", "GUEST_STATUS"):
        after = AFTER.get(name, state)
        assert scene.machine.status().state is after


def test_refused_commands_leave_the_measurement_as_it_is(
    pair: Pair, stack: contextlib.ExitStack
) -> None:
    """What was refused is in no digest: the owner's own computation says so."""
    scene = Scene(pair, stack, GuestState.LUPDATE)
    for name, at, code in ENTRIES:
        if at is GuestState.LUPDATE and code:
            scene.must_refuse(getattr(sev, name), code)
    free = scene.good(sev.LAUNCH_UPDATE_DATA)["uaddr"]
    for fields, code in (
        ({"len": 17}, SevCode.INVALID_LEN),
        ({"uaddr": free + 8}, SevCode.INVALID_ADDRESS),
        ({"len": 1 << 26}, SevCode.EFAULT),
    ):
        scene.must_refuse(sev.LAUNCH_UPDATE_DATA, code, **fields)
    scene.must_refuse(sev.LAUNCH_UPDATE_VMSA, SevCode.INVALID_LEN, len=4095)
    blob = MeasurementBlob.parse(scene.machine.launch_measure())
    digest = hashlib.sha256(PAGE + AREA).digest()
    assert blob.measurement == measure(
        scene.keys.tik, scene.host.status().version, scene.policy, digest, blob.mnonce
    )


# -- the platform ---------------------------------------------------------------------------

PLATFORM_MATRIX = """
                 UNINIT INIT   WORKING
PLATFORM_STATUS  ok     ok     ok
PEK_GEN          ok     ok     state
PEK_CSR          ok     ok     state
PDH_GEN          ok     ok     ok
PDH_CERT_EXPORT  ok     ok     ok
GET_ID           ok     ok     ok
GET_ID2          ok     ok     ok
FACTORY_RESET    ok     reset  busy
"""
"""An UNINIT platform is initialized by the driver for a command, and shut down after it."""

PLATFORM_CODES = {
    "ok": SevCode.SUCCESS,
    "reset": SevCode.SUCCESS,
    "busy": SevCode.EBUSY,
    "state": SevCode.INVALID_PLATFORM_STATE,
}
ROOM = {
    "PEK_CSR": {"address": 0, "length": 2084},
    "PDH_CERT_EXPORT": {
        "pdh_cert_address": 0,
        "pdh_cert_len": 2084,
        "cert_chain_address": 0,
        "cert_chain_len": 6252,
    },
    "GET_ID": {"data": 0},
    "GET_ID2": {"address": 0, "length": 64},
}


def of_platform(client: SevClient, name: str) -> SevCode:
    """Give a command with room for its answer; its code comes back."""
    hcall: Hcall = getattr(sev, name)
    fields = {
        field: value or client.memory.place(bytes(8192))
        for field, value in ROOM.get(name, {}).items()
    }
    try:
        client.command(hcall, **fields)
    except CommandRefused as refused:
        return SevCode(refused.status)
    return SevCode.SUCCESS


def test_commands_of_the_platform_in_its_states(hosts: Hosts) -> None:
    head, *rows = (line.split() for line in PLATFORM_MATRIX.strip().splitlines())
    settings = f'[sev]\nroot = "{ROOT}"\n'
    daemon = hosts.daemon(
        "own", uninit=settings + "init_on_probe = false\n", init=settings, working=settings
    )
    with contextlib.ExitStack() as stack:
        for name in head:
            state = PlatformState[name]
            host = Host(daemon, name.lower())
            if state is PlatformState.WORKING:
                start(stack.enter_context(host.machine()), 0)
            client = stack.enter_context(host.client())
            for command, *words in rows:
                assert host.status().state == state
                word = words[head.index(name)]
                before = host.chain()
                code = of_platform(client, command)
                assert code is PLATFORM_CODES[word], f"{command} when {name}: {code.name}"
                if code:
                    assert host.chain() == before
                after = PlatformState.UNINIT if word == "reset" else state
                assert host.status().state == after, f"{command} when {name}"
                assert (host.chain() != before) is (
                    not code and command in ("PEK_GEN", "PDH_GEN", "FACTORY_RESET")
                )


def test_a_guest_when_the_platform_is_shut_down(hosts: Hosts) -> None:
    """FACTORY_RESET takes it from a VM that has no guest yet; an INIT brings it back."""
    daemon = hosts.daemon("own", mine=f'[sev]\nroot = "{ROOT}"\n')
    host = Host(daemon, "mine")
    with host.machine() as machine, host.machine() as later, host.platform() as platform:
        machine.init(sev.INIT)
        platform.factory_reset()
        assert host.status().state == PlatformState.UNINIT
        for hcall in (sev.LAUNCH_START, sev.CERT_EXPORT):
            with pytest.raises(CommandRefused) as refused:
                machine.client.command(hcall)
            assert refused.value.status == SevCode.INVALID_PLATFORM_STATE
        later.init(sev.INIT)
        machine.launch_start(0)
        assert host.status().state == PlatformState.WORKING
