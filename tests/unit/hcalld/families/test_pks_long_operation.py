# SPDX-License-Identifier: Apache-2.0
"""Calls that take several issues: each token is for one issue of one call, in one run."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from tests import signing
from tests.unit.hcalld.families.registers import (
    BLOB_GPA,
    CALLS,
    GOOD,
    KEY_LABEL,
    PLAIN,
    UPDATE_GPA,
    VARIABLE,
    WRAPPED_SIZE,
    prepared,
)

from hcalld.core.effects import Entropy, ReadBuffer
from hcalld.core.outcome import Outcome
from hcalld.domain.continuations import MAX_TOKENS, TOKEN_TAG
from hcalld.testing.pks import AUTH_GPA, DATA_GPA, OUT_GPA, PksMachine, build_auth
from hcallproto.abi.returns import H
from hcallproto.abi.spec import ArgKind

LONG = ("H_PKS_SIGNED_UPDATE", "H_PKS_WRAP_OBJECT", "H_PKS_UNWRAP_OBJECT")
REFUSED = {"H_PKS_SIGNED_UPDATE": H.P8, "H_PKS_WRAP_OBJECT": H.P9, "H_PKS_UNWRAP_OBJECT": H.P7}
BUSY = H.LONG_BUSY_ORDER_1_MSEC

long_calls = pytest.mark.parametrize("name", LONG)


def issue(machine: PksMachine, name: str, token: int = 0, **values: int) -> Outcome:
    return machine.hcall(CALLS[name], *(GOOD[name] | values | {"token": token}).values())


def token_of(outcome: Outcome) -> int:
    assert outcome.code is BUSY
    ((register, token),) = outcome.registers
    assert register == 4
    assert token
    return token


def started(name: str, answers: int = 2) -> tuple[PksMachine, int]:
    """A machine with a long operation under way, and its token."""
    machine = prepared(name, busy_answers=answers)
    return machine, token_of(issue(machine, name))


def tokens_in(machine: PksMachine) -> list[bytes]:
    return [r.key for r in machine.store.load().records if r.key.startswith(TOKEN_TAG)]


def is_done(machine: PksMachine, name: str) -> bool:
    """Whether the operation has left what it is for."""
    if name == "H_PKS_SIGNED_UPDATE":
        return machine.keystore.exists(3, VARIABLE)
    size = WRAPPED_SIZE if name == "H_PKS_WRAP_OBJECT" else len(PLAIN)
    return any(machine.guest.read(OUT_GPA, size))


@long_calls
@pytest.mark.parametrize("answers", [0, 1, 2, 5])
def test_an_operation_is_answered_busy_so_often_and_then_carried_out(name: str, answers: int):
    machine = prepared(name, busy_answers=answers)
    tokens = [0]
    for _ in range(answers):
        assert not is_done(machine, name)
        tokens.append(token_of(issue(machine, name, tokens[-1])))
    outcome = issue(machine, name, tokens[-1])

    assert outcome.code is H.SUCCESS
    assert outcome.registers[0] == (4, 0)
    assert is_done(machine, name)
    assert len(set(tokens)) == answers + 1
    assert tokens_in(machine) == []


@long_calls
def test_a_token_is_good_once(name: str):
    machine, token = started(name)
    second = token_of(issue(machine, name, token))

    assert issue(machine, name, token).code is REFUSED[name]
    assert issue(machine, name, second).code is H.SUCCESS
    assert issue(machine, name, second).code is REFUSED[name]
    assert issue(machine, name, token).code is REFUSED[name]


@long_calls
def test_a_refused_token_disturbs_nobody(name: str):
    machine, token = started(name, 1)
    for wrong in (1, token ^ 1, token - 1, (1 << 64) - 1, token & 0xFFFF_FFFF):
        if wrong:
            assert issue(machine, name, wrong).code is REFUSED[name]

    assert issue(machine, name, token).code is H.SUCCESS


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        (name, arg.name)
        for name in LONG
        for arg in CALLS[name].args
        if arg.kind is not ArgKind.TOKEN
    ],
)
def test_a_token_is_bound_to_each_argument(name: str, argument: str):
    """The changed value is good in itself: a first issue with it is answered busy."""
    other = {
        "auth": AUTH_GPA + 0x800,
        "label": 0x9000,
        "label_size": GOOD[name].get("label_size", 0) - 2,
        "policy": 0x0100_0000,
        "flags": {
            "H_PKS_SIGNED_UPDATE": 1,
            "H_PKS_WRAP_OBJECT": 0x5000_0000_0000_0001,
            "H_PKS_UNWRAP_OBJECT": 1,
        }[name],
        "in": 0x15000,
        "in_size": GOOD[name]["in_size"] - 1,
        "out": OUT_GPA + 8,
        "out_size": GOOD[name].get("out_size", 0) + 8,
    }[argument]
    machine, token = started(name)
    auth = build_auth(password=machine.password)
    machine.guest.write(AUTH_GPA + 0x800, auth)
    if "label" in GOOD[name]:
        size = GOOD[name]["label_size"]
        machine.guest.write(0x9000, machine.guest.read(GOOD[name]["label"], size))
    machine.guest.write(0x15000, machine.guest.read(GOOD[name]["in"], GOOD[name]["in_size"]))
    outcome = issue(machine, name, token, **{argument: other})

    # For UNWRAP 0 is the only flag value there is.
    is_bad_itself = (name, argument) == ("H_PKS_UNWRAP_OBJECT", "flags")
    assert outcome.code is (H.P2 if is_bad_itself else REFUSED[name])
    assert issue(machine, name, token).code is BUSY


def test_a_token_is_bound_to_its_call():
    machine = prepared("H_PKS_UNWRAP_OBJECT", busy_answers=2)
    machine.put_auth()
    tokens = {name: token_of(issue(machine, name)) for name in LONG}

    for name, other in itertools.permutations(LONG, 2):
        assert issue(machine, name, tokens[other]).code is REFUSED[name]
    for name in LONG:
        assert token_of(issue(machine, name, tokens[name]))


@long_calls
def test_a_token_outlives_the_daemon(name: str):
    machine, token = started(name)
    machine.reload()
    second = token_of(issue(machine, name, token))
    machine.reload()

    assert issue(machine, name, token).code is REFUSED[name]
    assert issue(machine, name, second).code is H.SUCCESS
    machine.reload()
    assert issue(machine, name, second).code is REFUSED[name]


@long_calls
def test_an_operation_under_way_ends_as_it_was_begun(name: str):
    """An operator set ``busy_answers`` to 0 while the daemon was down, and the guest was not."""
    machine, token = started(name, 2)
    keystore = machine.keystore
    pks = msgspec.structs.replace(keystore.attributes.pks, busy_answers=0)
    keystore.attributes = msgspec.structs.replace(keystore.attributes, pks=pks)
    second = token_of(issue(machine, name, token))

    assert issue(machine, name, second).code is H.SUCCESS
    assert tokens_in(machine) == []


@long_calls
@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_token_dies_with_the_reset(name: str, is_restarted: bool):
    machine, token = started(name)
    machine.reset()
    if is_restarted:
        machine.reload()
    machine.password = b""
    machine.put_auth()

    assert issue(machine, name, token).code is REFUSED[name]
    assert tokens_in(machine) == []


@long_calls
def test_a_token_dies_with_the_power(name: str):
    machine, token = started(name)
    machine.power_on()

    assert issue(machine, name, token).code is REFUSED[name]


@long_calls
def test_the_next_issue_may_come_from_another_vcpu(name: str):
    """Linux may have moved the caller meanwhile."""
    machine, token = started(name, 1)
    registers = {arg.register: GOOD[name][arg.name] for arg in CALLS[name].args}
    registers[CALLS[name].arg("token").register] = token

    assert machine.issue(CALLS[name], registers, vcpu=3).code is H.SUCCESS


@long_calls
def test_each_issue_is_judged_anew(name: str):
    """The password at least: what was right at the first issue need not be at the last."""
    machine, token = started(name)
    machine.gen_password()
    machine.guest.write(AUTH_GPA, build_auth(password=b"w" * 32))

    assert issue(machine, name, token).code is H.AUTHORITY
    machine.put_auth()
    second = token_of(issue(machine, name, token))
    machine.guest.write(AUTH_GPA, build_auth(password=b""))
    assert issue(machine, name, second).code is H.AUTHORITY
    machine.put_auth()
    assert issue(machine, name, second).code is H.SUCCESS


def test_a_wrapping_key_that_is_removed_between_two_issues_is_not_found():
    for name in ("H_PKS_WRAP_OBJECT", "H_PKS_UNWRAP_OBJECT"):
        machine, token = started(name)
        assert machine.remove(KEY_LABEL).code is H.SUCCESS
        machine.put_label(KEY_LABEL)
        assert issue(machine, name, token).code is H.NOT_FOUND
        assert not is_done(machine, name)


def test_the_buffers_count_as_they_are_at_the_last_issue():
    machine, token = started("H_PKS_WRAP_OBJECT", 1)
    machine.guest.write(DATA_GPA, b"L" * len(PLAIN))
    assert issue(machine, "H_PKS_WRAP_OBJECT", token).code is H.SUCCESS
    machine.guest.write(BLOB_GPA, machine.guest.read(OUT_GPA, WRAPPED_SIZE))
    machine.gen_password()
    machine.put_auth()
    token = token_of(issue(machine, "H_PKS_UNWRAP_OBJECT"))
    assert issue(machine, "H_PKS_UNWRAP_OBJECT", token).code is H.SUCCESS

    assert machine.guest.read(OUT_GPA, len(PLAIN)) == b"L" * len(PLAIN)


def test_an_update_that_is_changed_between_two_issues_is_judged_as_it_is_then():
    name = "H_PKS_SIGNED_UPDATE"
    machine, token = started(name, 1)
    forged = signing.update("db", signing.digests(2), "stranger", signing.moment(300))
    size = GOOD[name]["in_size"]
    machine.guest.write(UPDATE_GPA, forged[:size].ljust(size, b"\0"))

    assert issue(machine, name, token).code in (H.AUTHORITY, H.P6, H.P7)
    assert not is_done(machine, name)
    assert len(tokens_in(machine)) == 1  # a refusal changes nothing, the token included


@long_calls
def test_a_busy_answer_costs_one_record_and_no_more(name: str):
    machine, token = started(name, 3)
    for _ in range(2):
        assert len(tokens_in(machine)) == 1
        generation = machine.store.generation
        token = token_of(issue(machine, name, token))
        assert machine.store.generation == generation + 1


def test_whoever_never_comes_back_leaves_256_tokens_at_most():
    machine = prepared(busy_answers=1000)
    tokens = [token_of(issue(machine, "H_PKS_WRAP_OBJECT")) for _ in range(MAX_TOKENS + 10)]

    assert len(tokens_in(machine)) == MAX_TOKENS
    for token in tokens[:10]:
        assert issue(machine, "H_PKS_WRAP_OBJECT", token).code is H.P9
    used = machine.used_space()
    assert token_of(issue(machine, "H_PKS_WRAP_OBJECT", tokens[-1]))
    assert machine.used_space() == used


@long_calls
def test_the_token_is_drawn_after_all_buffers_are_read(name: str):
    machine, _ = started(name)

    assert machine.trail[-1] == Entropy(8)
    assert all(isinstance(effect, ReadBuffer | Entropy) for effect in machine.trail)


@long_calls
def test_without_busy_answers_no_token_is_drawn(name: str):
    machine = prepared(name)
    issue(machine, name)

    assert Entropy(8) not in machine.trail


@long_calls
def test_a_profile_that_changes_meanwhile_does_not_lengthen_an_operation(name: str):
    machine, token = started(name, 1)
    attributes = prepared(name, busy_answers=900).attributes
    machine.keystore.attributes = attributes

    assert issue(machine, name, token).code is H.SUCCESS
