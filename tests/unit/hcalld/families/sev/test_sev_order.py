# SPDX-License-Identifier: Apache-2.0
"""Several things wrong at once: which of them a command tells of.

No source has the order of the firmware's checks; ours is what the kernel looks at, the handle, the
platform's state, the guest's, the policy, lengths, alignment, contents (``handlerset.py``).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from tests.unit.hcalld.families.sev.stages import (
    ES,
    PAGE,
    initialized,
    launched,
    measured,
    packet,
    receiving,
    refused,
    running,
    secret,
    sending,
)
from tests.unit.hcalld.families.sev.stages import host as fresh

from hcalld.domain.sev.settings import MAX_VCPUS, SevSettings
from hcalld.testing.sev import MEMORY, SevClient
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode as S
from hcallproto.abi.spec import Hcall
from hcallproto.payloads.sev import PacketContext, Policy

Stage = Callable[[SevClient], SevClient]
Fields = dict[str, int]


class Fault(NamedTuple):
    """A field that is wrong, and what comes of it alone."""

    name: str
    make: Callable[[SevClient], int]
    code: S


class Ladder(NamedTuple):
    """A command's faults, in the order in which they are looked for."""

    hcall: Hcall
    stage: Stage
    faults: tuple[Fault, ...]


def fault(name: str, value: int | bytes, code: S) -> Fault:
    """A field with a number, or with the address of bytes."""
    if isinstance(value, bytes):
        return Fault(name, lambda client: client.put(value), code)
    return Fault(name, lambda _: value, code)


def header(make: Callable[[SevClient], tuple[bytes, bytes]], flags: int, code: S) -> Fault:
    """A packet's header with flags."""
    return Fault(
        "hdr_uaddr", lambda client: client.put(bytes((flags,)) + make(client)[0][1:]), code
    )


def _start(prefix: str) -> tuple[Fault, ...]:
    return (
        fault(f"{prefix}_len", 0, S.EINVAL),
        fault("handle", 99, S.INVALID_GUEST),
        fault("policy", ES | 0xFF << 16, S.POLICY_FAILURE),
        fault(f"{prefix}_len", 2083, S.INVALID_LEN),
        fault("session_len", 127, S.INVALID_LEN),
        fault(f"{prefix}_uaddr", bytes(2084), S.INVALID_CERTIFICATE),
        fault("session_uaddr", bytes(128), S.BAD_MEASUREMENT),
    )


def _secret(client: SevClient) -> tuple[bytes, bytes]:
    return secret(client, b"open sesame 1234")


def _page(client: SevClient) -> tuple[bytes, bytes]:
    return packet(client, PAGE)


def _area(client: SevClient) -> tuple[bytes, bytes]:
    return packet(client, PAGE, PacketContext.VMSA)


LADDERS = (
    Ladder(sev.LAUNCH_START, initialized, _start("dh")),
    Ladder(sev.RECEIVE_START, initialized, _start("pdh")),
    Ladder(
        sev.LAUNCH_UPDATE_DATA,
        launched,
        (
            fault("len", 0, S.EINVAL),
            fault("len", 17, S.INVALID_LEN),
            fault("uaddr", MEMORY + 8, S.INVALID_ADDRESS),
        ),
    ),
    Ladder(
        sev.LAUNCH_SECRET,
        measured,
        (
            fault("trans_uaddr", 0, S.EINVAL),
            fault("hdr_len", 51, S.INVALID_LEN),
            fault("guest_len", 32, S.INVALID_LEN),
            fault("guest_uaddr", MEMORY + 1, S.INVALID_ADDRESS),
            header(_secret, 1, S.UNSUPPORTED),
            header(_secret, 2, S.INVALID_PARAM),
            fault("trans_uaddr", bytes(16), S.BAD_MEASUREMENT),
        ),
    ),
    Ladder(
        sev.RECEIVE_UPDATE_DATA,
        receiving,
        (
            fault("trans_uaddr", 0, S.EINVAL),
            fault("hdr_len", 51, S.INVALID_LEN),
            fault("guest_len", 4080, S.INVALID_LEN),
            fault("guest_uaddr", MEMORY + 1, S.INVALID_ADDRESS),
            header(_page, 1, S.UNSUPPORTED),
            header(_page, 2, S.INVALID_PARAM),
            fault("trans_uaddr", bytes(4096), S.BAD_MEASUREMENT),
        ),
    ),
    Ladder(
        sev.RECEIVE_UPDATE_VMSA,
        receiving,
        (
            fault("trans_uaddr", 0, S.EINVAL),
            fault("trans_len", 4095, S.INVALID_LEN),
            fault("vcpu_id", MAX_VCPUS, S.INVALID_PARAM),
            fault("trans_uaddr", bytes(4096), S.BAD_MEASUREMENT),
        ),
    ),
    Ladder(
        sev.SEND_START,
        running,
        (
            fault("amd_certs_uaddr", 0, S.EINVAL),
            fault("session_len", 127, S.INVALID_LEN),
            fault("plat_certs_len", 6251, S.INVALID_LEN),
            fault("pdh_cert_uaddr", bytes(2084), S.INVALID_CERTIFICATE),
        ),
    ),
    Ladder(
        sev.SEND_UPDATE_DATA,
        sending,
        (
            fault("hdr_uaddr", 0, S.EINVAL),
            fault("trans_len", 4095, S.INVALID_LEN),
            fault("guest_uaddr", MEMORY + 1, S.INVALID_ADDRESS),
        ),
    ),
)


def _pairs() -> Iterator[tuple[Ladder, Fault, Fault]]:
    for ladder in LADDERS:
        for first, second in itertools.combinations(ladder.faults, 2):
            if first.name != second.name:
                yield ladder, first, second


def _named(value: object) -> str:
    match value:
        case Ladder():
            return value.hcall.name
        case Fault():
            return f"{value.name} {value.code.name}"
        case Hcall() | S():
            return value.name
    return getattr(value, "__name__", "").strip("_")


@pytest.mark.parametrize(
    ("ladder", "fault"),
    [(ladder, fault) for ladder in LADDERS for fault in ladder.faults],
    ids=_named,
)
def test_a_fault_alone(ladder: Ladder, fault: Fault):
    client = ladder.stage(fresh().connect())
    refused(client, ladder.hcall, fault.code, **{fault.name: fault.make(client)})


@pytest.mark.parametrize(("ladder", "first", "second"), list(_pairs()), ids=_named)
def test_of_two_faults_the_one_that_is_looked_for_first(
    ladder: Ladder, first: Fault, second: Fault
):
    client = ladder.stage(fresh().connect())
    wrong = {one.name: one.make(client) for one in (second, first)}
    refused(client, ladder.hcall, first.code, **wrong)


# -- faults of the guest, its VM and the platform -----------------------------------------------

KERNEL = (S.EINVAL, S.EFAULT)
"""What is said before the firmware is asked."""
HANDLE = (*KERNEL, S.INVALID_GUEST)


def _nosend(client: SevClient) -> SevClient:
    return running(client, ES | Policy.NOSEND)


def _uninitialized(client: SevClient) -> SevClient:
    """FACTORY_RESET has shut the platform down."""
    client = initialized(client)
    client.command(sev.FACTORY_RESET)
    return client


STANDING = [
    (sev.LAUNCH_START, _uninitialized, S.INVALID_PLATFORM_STATE, HANDLE),
    (sev.RECEIVE_START, _uninitialized, S.INVALID_PLATFORM_STATE, HANDLE),
    (sev.LAUNCH_START, running, S.ASID_OWNED, HANDLE),
    (sev.RECEIVE_START, running, S.ASID_OWNED, HANDLE),
    (sev.LAUNCH_UPDATE_DATA, running, S.INVALID_GUEST_STATE, KERNEL),
    (sev.LAUNCH_UPDATE_DATA, initialized, S.INVALID_GUEST, KERNEL),
    (sev.LAUNCH_SECRET, launched, S.INVALID_GUEST_STATE, KERNEL),
    (sev.RECEIVE_UPDATE_DATA, running, S.INVALID_GUEST_STATE, KERNEL),
    (sev.RECEIVE_UPDATE_VMSA, running, S.INVALID_GUEST_STATE, KERNEL),
    (sev.SEND_START, launched, S.INVALID_GUEST_STATE, KERNEL),
    (sev.SEND_START, _nosend, S.POLICY_FAILURE, KERNEL),
    (sev.SEND_UPDATE_DATA, running, S.INVALID_GUEST_STATE, KERNEL),
]


@pytest.mark.parametrize(("hcall", "stage", "code", "earlier"), STANDING, ids=_named)
def test_what_stands_against_a_command_comes_between_its_faults(
    hcall: Hcall, stage: Stage, code: S, earlier: tuple[S, ...]
):
    """Before policy, lengths, alignment and contents; after what the kernel looks at."""
    (ladder,) = (one for one in LADDERS if one.hcall is hcall)
    client = stage(fresh().connect())
    refused(client, hcall, code)
    for one in ladder.faults:
        expected = one.code if one.code in earlier else code
        refused(client, hcall, expected, **{one.name: one.make(client)})


def test_a_state_comes_before_the_policy():
    nodbg = ES | Policy.NODBG
    for stage in (launched, measured):
        client = stage(fresh().connect(), nodbg)
        refused(client, sev.DBG_DECRYPT, S.INVALID_GUEST_STATE)
        refused(client, sev.SEND_START, S.INVALID_GUEST_STATE)
    refused(running(fresh().connect(), nodbg), sev.DBG_DECRYPT, S.POLICY_FAILURE)


def test_no_asid_is_free_after_all_else_was_good():
    made = fresh(SevSettings(asids=1))
    running(made.connect())
    late = initialized(made.connect())
    refused(late, sev.LAUNCH_START, S.RESOURCE_LIMIT)
    for one in _start("dh"):
        refused(late, sev.LAUNCH_START, one.code, **{one.name: one.make(late)})
