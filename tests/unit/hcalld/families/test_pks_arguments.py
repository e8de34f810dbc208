# SPDX-License-Identifier: Apache-2.0
"""Every argument of every keystore call, below, at and above its bounds.

A call that is refused has written nothing, changed nothing and committed nothing.
"""

from __future__ import annotations

import pytest
from tests.unit.hcalld.families.registers import (
    BAD,
    CALLS,
    FLAGS,
    GOOD,
    HIGH_GPA,
    HIGH_SIZE,
    LABEL,
    MAX_LABEL,
    MAX_OBJECT,
    MAX_PASSWORD,
    PLAIN,
    RAM_SIZE,
    SIGNED,
    TOP,
    WRAPPED_SIZE,
    make,
    prepared,
)

from hcalld.domain.attributes import PartitionAttributes
from hcalld.testing import FakeGuest
from hcalld.testing.pks import (
    AUTH_GPA,
    DATA_GPA,
    LABEL_GPA,
    OUT_GPA,
    PASSWORD_GPA,
    PksMachine,
    build_auth,
    label,
)
from hcallproto.abi.families import pks
from hcallproto.abi.returns import H
from hcallproto.abi.spec import ArgKind
from hcallproto.payloads.pks import Consumer, Policy, WrapFlag


def test_the_tables_cover_every_argument_of_every_call():
    for name, hcall in CALLS.items():
        arguments = [arg.name for arg in hcall.args]
        assert list(GOOD[name]) == arguments
        assert [row[0] for row in BAD[name]] == arguments


@pytest.mark.parametrize("name", CALLS)
def test_the_good_arguments_are_good(name: str):
    assert prepared(name).hcall(CALLS[name], *GOOD[name].values()).code is H.SUCCESS


@pytest.mark.parametrize(
    ("name", "argument", "value", "code"),
    [
        pytest.param(name, argument, value, code, id=f"{name}-{argument}-0x{value:x}")
        for name, rows in BAD.items()
        for argument, values, code in rows
        for value in values
    ],
)
def test_a_bad_argument_gets_its_code_and_changes_nothing(
    name: str, argument: str, value: int, code: H
):
    machine = prepared(name)
    passwords = [machine.keystore.has_password(consumer) for consumer in Consumer]
    memory, config = machine.guest.snapshot(), machine.keystore.config()
    generation = machine.store.generation
    outcome = machine.hcall(CALLS[name], *(GOOD[name] | {argument: value}).values())

    assert outcome.code is code
    assert outcome.why
    assert machine.guest.snapshot() == memory
    assert machine.keystore.config() == config
    assert machine.changes() == []
    assert machine.store.generation == generation
    assert passwords == [machine.keystore.has_password(consumer) for consumer in Consumer]


def at(name: str, **values: int) -> pytest.param:  # type: ignore[valid-type]
    return pytest.param(name, values, id=f"{name}-{values}")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        at("H_PKS_GET_CONFIG", buffer_size=32),
        at("H_PKS_GET_CONFIG", buffer_size=65536),
        at("H_PKS_GET_CONFIG", buffer=RAM_SIZE - 512),
        at("H_PKS_GET_CONFIG", buffer=OUT_GPA + 1),
        at("H_PKS_GET_CONFIG", buffer=OUT_GPA - 1),  # crosses a page: allowed
        at("H_PKS_GET_CONFIG", buffer=TOP | OUT_GPA),
        at("H_PKS_GET_CONFIG", buffer=HIGH_GPA),
        at("H_PKS_GEN_PASSWORD", consumer=1),
        at("H_PKS_GEN_PASSWORD", password_size=MAX_PASSWORD),
        at("H_PKS_GEN_PASSWORD", password=PASSWORD_GPA - 32),
        at("H_PKS_GEN_PASSWORD", password=RAM_SIZE - 32),
        at("H_PKS_SET_PASSWORD", consumer=2, password_size=MAX_PASSWORD),
        at("H_PKS_SET_PASSWORD", password=PASSWORD_GPA - 32),
        at("H_PKS_WRITE_OBJECT", data_size=1),
        at("H_PKS_WRITE_OBJECT", data_size=MAX_OBJECT),
        at("H_PKS_WRITE_OBJECT", data=DATA_GPA + 7),
        at("H_PKS_WRITE_OBJECT", data=DATA_GPA - 50),  # a kernel stack may cross a page
        at("H_PKS_WRITE_OBJECT", data=HIGH_GPA + 0x10000 - 100),
        at("H_PKS_WRITE_OBJECT", label_size=MAX_LABEL),
        at("H_PKS_WRITE_OBJECT", label_size=16),
        *(
            at("H_PKS_WRITE_OBJECT", policy=bit)
            for bit in Policy
            if bit & ~(Policy.HVPROVISIONED | Policy.SIGNEDUPDATE | Policy.WRAPPINGKEY)
        ),
        at("H_PKS_GEN_KEY", out_size=1),
        at("H_PKS_GEN_KEY", out_size=MAX_OBJECT),
        at("H_PKS_GEN_KEY", out=HIGH_GPA + HIGH_SIZE - 32),
        at("H_PKS_GEN_KEY", policy=Policy.WRAPPINGKEY, out=0),  # as Linux passes it
        at("H_PKS_GEN_KEY", policy=Policy.WRAPPINGKEY, out=RAM_SIZE),  # not looked at
        at("H_PKS_GEN_KEY", policy=Policy.WRAPPINGKEY, out=(1 << 64) - 1),
        at("H_PKS_GEN_KEY", policy=Policy.WRAPPINGKEY | Policy.TRANSIENT),
        at("H_PKS_SIGNED_UPDATE", policy=SIGNED),
        at("H_PKS_WRAP_OBJECT", in_size=1),
        at("H_PKS_WRAP_OBJECT", in_size=MAX_OBJECT, out_size=MAX_OBJECT + 1024),
        at("H_PKS_WRAP_OBJECT", out_size=RAM_SIZE - OUT_GPA),
        at("H_PKS_WRAP_OBJECT", out=OUT_GPA + 1),
        at("H_PKS_WRAP_OBJECT", out=HIGH_GPA + HIGH_SIZE - WRAPPED_SIZE),
        at("H_PKS_WRAP_OBJECT", out=DATA_GPA),  # over the input
        at("H_PKS_WRAP_OBJECT", out=AUTH_GPA),
        at("H_PKS_WRAP_OBJECT", flags=FLAGS | WrapFlag.OSSECBOOTAUDIT),
        at("H_PKS_WRAP_OBJECT", flags=FLAGS | WrapFlag.OSSECBOOTENFORCE),
        at("H_PKS_UNWRAP_OBJECT", out_size=RAM_SIZE - OUT_GPA),
        at("H_PKS_UNWRAP_OBJECT", out=RAM_SIZE - len(PLAIN)),
        at("H_PKS_UNWRAP_OBJECT", out=TOP | OUT_GPA),
        at("H_PKS_READ_OBJECT", out_size=(1 << 20) - OUT_GPA),
        at("H_PKS_READ_OBJECT", out=RAM_SIZE - 100),
        at("H_PKS_READ_OBJECT", out=OUT_GPA + 3),
        at("H_PKS_READ_OBJECT", auth=TOP | AUTH_GPA, label=TOP | LABEL_GPA, out=TOP | OUT_GPA),
    ],
)
def test_arguments_at_their_bounds_are_taken(name: str, values: dict[str, int]):
    assert prepared(name).hcall(CALLS[name], *(GOOD[name] | values).values()).code is H.SUCCESS


@pytest.mark.parametrize("name", CALLS)
def test_a_switched_off_keystore_answers_h_state_before_any_argument(name: str):
    machine = PksMachine(PartitionAttributes(keystore_kbytes=0))
    bad = [RAM_SIZE] * len(CALLS[name].args)

    assert machine.hcall(CALLS[name], *bad).code is H.STATE
    assert machine.hcall(CALLS[name], *GOOD[name].values()).code is H.STATE
    assert machine.trail == []


@pytest.mark.parametrize("name", CALLS)
def test_registers_are_checked_before_memory_is_read(name: str):
    machine = prepared(name)
    hcall = CALLS[name]
    last, values, code = next(
        row for row in reversed(BAD[name]) if hcall.arg(row[0]).kind is not ArgKind.TOKEN
    )
    outcome = machine.hcall(hcall, *(GOOD[name] | {last: values[-1]}).values())

    assert outcome.code is code
    assert machine.trail == []


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        pytest.param(name, first, second, id=f"{name}-{rows[first][0]}-{rows[second][0]}")
        for name, rows in BAD.items()
        for first in range(len(rows))
        for second in range(first + 1, len(rows))
    ],
)
def test_of_two_bad_registers_the_first_names_the_code(name: str, first: int, second: int):
    """The first value of each row is one that its register alone shows to be bad."""
    rows = BAD[name]
    machine = prepared(name)
    for bad in (0, -1):
        values = {rows[first][0]: rows[first][1][0], rows[second][0]: rows[second][1][bad]}
        outcome = machine.hcall(CALLS[name], *(GOOD[name] | values).values())
        assert outcome.code is rows[first][2]


# -- authorization structures ---------------------------------------------------------------

OBJECT_CALLS = [name for name, values in GOOD.items() if "auth" in values]
LABEL_CALLS = [name for name, values in GOOD.items() if "label" in values]


def with_auth(machine: PksMachine, name: str, auth: bytes, gpa: int = AUTH_GPA) -> H:
    machine.guest.write(gpa, auth)
    outcome = machine.hcall(CALLS[name], *(GOOD[name] | {"auth": gpa}).values())
    assert isinstance(outcome.code, H)
    return outcome.code


@pytest.mark.parametrize("name", OBJECT_CALLS)
@pytest.mark.parametrize(
    "auth",
    [
        build_auth(version=0),
        build_auth(version=2),
        build_auth(version=255),
        build_auth(0),
        build_auth(4),
        build_auth(255),
        *(build_auth(reserved=bytes(n) + b"\1" + bytes(11 - n)) for n in range(12)),
        build_auth(password_size=MAX_PASSWORD + 1),
        build_auth(password_size=0xFFFF),
    ],
)
def test_a_malformed_authorization_structure_is_h_parameter(name: str, auth: bytes):
    machine = prepared(name)
    generation = machine.store.generation

    assert with_auth(machine, name, auth) is H.PARAMETER
    assert machine.store.generation == generation


@pytest.mark.parametrize("name", OBJECT_CALLS)
def test_an_authorization_structure_may_end_at_its_page_and_not_beyond(name: str):
    end = AUTH_GPA + 0x1000
    machine = prepared(name)
    good = build_auth(password=machine.password)

    assert with_auth(prepared(name), name, good, end - len(good)) is H.SUCCESS
    full = build_auth(password=b"x" * 16)
    assert with_auth(prepared(name), name, full, end - 32) is H.AUTHORITY
    long = build_auth(password=b"x" * 17)
    assert with_auth(prepared(name), name, long, end - 32) is H.PARAMETER


@pytest.mark.parametrize("name", OBJECT_CALLS)
def test_an_authorization_structure_is_cut_at_the_end_of_ram(name: str):
    good = build_auth(password=prepared(name).password)
    assert with_auth(prepared(name), name, good, RAM_SIZE - len(good)) is H.SUCCESS
    short = build_auth(password_size=1)
    assert with_auth(prepared(name), name, short, RAM_SIZE - 16) is H.PARAMETER


@pytest.mark.parametrize("name", OBJECT_CALLS)
def test_a_wrong_password_is_h_authority(name: str):
    machine = prepared(name)
    machine.gen_password()
    right = machine.password
    flipped = [
        right[:place] + bytes((right[place] ^ 1,)) + right[place + 1 :]
        for place in range(len(right))
    ]
    others = [b"", b"x" * 32, right[:-1], right[:1], right + b"\0", right + right, bytes(32)]
    for password in (*others, *flipped):
        if len(password) <= MAX_PASSWORD:
            assert with_auth(machine, name, build_auth(password=password)) is H.AUTHORITY
    assert with_auth(machine, name, build_auth(password=right)) is H.SUCCESS


@pytest.mark.parametrize("name", OBJECT_CALLS)
def test_another_consumers_password_is_h_authority(name: str):
    """The OS's password opens nothing of the firmware's, which has one of its own."""
    machine = prepared(name)
    machine.gen_password()
    machine.guest.write(PASSWORD_GPA, b"f" * 32)
    set_password = machine.hcall(pks.SET_PASSWORD, Consumer.FIRMWARE, 0, PASSWORD_GPA, 32)

    assert set_password.code is H.SUCCESS
    stolen = build_auth(Consumer.FIRMWARE, machine.password)
    expected = H.PARAMETER if name == "H_PKS_SIGNED_UPDATE" else H.AUTHORITY
    assert with_auth(machine, name, stolen) is expected
    assert with_auth(machine, name, build_auth(password=b"f" * 32)) is H.AUTHORITY


# -- labels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LABEL_CALLS)
@pytest.mark.parametrize("place", [8, 10, 11, 12, 13, 14, 15])
def test_malformed_label_attributes_of_the_os_are_h_p2(name: str, place: int):
    machine = prepared(name)
    gpa = GOOD[name]["label"] + place
    machine.guest.write(gpa, bytes((machine.guest.read(gpa, 1)[0] ^ 0x80,)))

    assert machine.hcall(CALLS[name], *GOOD[name].values()).code is H.P2


@pytest.mark.parametrize("name", LABEL_CALLS)
def test_a_label_of_the_os_must_not_cross_a_page(name: str):
    size = GOOD[name]["label_size"]
    end = 0x9000
    for gpa, code in ((end - size, H.SUCCESS), (end - size + 1, H.P2), (end - 1, H.P2)):
        machine = prepared(name)
        machine.guest.write(gpa, machine.guest.read(GOOD[name]["label"], size))
        outcome = machine.hcall(CALLS[name], *(GOOD[name] | {"label": gpa}).values())
        assert outcome.code is code


@pytest.mark.parametrize("consumer", [Consumer.FIRMWARE, Consumer.BOOTLOADER])
def test_labels_of_firmware_and_bootloader_are_bare_and_may_cross_a_page(consumer: Consumer):
    machine = prepared()
    gpa = LABEL_GPA + 0x1000 - 3
    machine.guest.write(gpa, b"SB_version")
    auth = machine.put_auth(consumer)

    for hcall, rest, code in (
        (pks.READ_OBJECT, (OUT_GPA, 16), H.NOT_FOUND),
        (pks.WRITE_OBJECT, (0, DATA_GPA, 1), H.SUCCESS),
        (pks.READ_OBJECT, (OUT_GPA, 16), H.SUCCESS),
        (pks.REMOVE_OBJECT, (), H.SUCCESS),
        (pks.CONFIRM_OBJECT_FLUSHED, (), H.NOT_FOUND),
    ):
        assert machine.hcall(hcall, auth, gpa, 10, *rest).code is code


@pytest.mark.parametrize(
    "name", [b"", b"\0", b"\xff" * 200, b"../../etc/passwd", b"a\0b", b"x" * (MAX_LABEL - 16)]
)
def test_a_name_is_any_bytes(name: bytes):
    machine = prepared()

    assert machine.write(label(name), b"data").code is H.SUCCESS
    assert machine.read(label(name)).code is H.SUCCESS
    assert machine.guest.read(OUT_GPA, 4) == b"data"


def test_a_buffer_that_leaves_ram_during_the_call_gets_its_arguments_code():
    class Unplugged(FakeGuest):
        def read(self, gpa: int, size: int) -> bytes:
            if gpa == DATA_GPA:
                self._check(1 << 60, size)
            return super().read(gpa, size)

    machine = PksMachine(guest=Unplugged())
    outcome = machine.write(LABEL, b"data")

    assert outcome.code is H.P5
    assert not machine.keystore.exists(Consumer.OS, LABEL)


def test_a_policy_outside_the_supported_ones_is_h_p4():
    machine = make(supported=("PWSET",))

    assert machine.write(LABEL, b"data", Policy.WORLDREADABLE).code is H.P4
    assert machine.write(LABEL, b"data", Policy.PWSET).code is H.SUCCESS


def test_every_refusal_code_of_these_tables_is_declared():
    for name, rows in BAD.items():
        declared = {entry.code for entry in CALLS[name].codes}
        assert {code for _, _, code in rows} <= declared
