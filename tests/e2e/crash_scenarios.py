# SPDX-License-Identifier: Apache-2.0
"""What the daemon dies in: every call that changes something, alone and with its CONFIRM."""

from __future__ import annotations

from collections.abc import Callable

from tests import signing
from tests.e2e.crashes import CrashError, Guest, Scenario, Seed, Step, size_only
from tests.signing import certificates, digests, moment

from hcalld.domain.labels import os_label
from hcalld.testing.pks import build_auth, label
from hcallproto.abi.families import pks
from hcallproto.abi.returns import H
from hcallproto.abi.spec import Hcall
from hcallproto.payloads.pks import Policy

AUTH, LABEL, DATA, OUT, PASSWORD, BLOB = 0x1000, 0x2000, 0x10000, 0x20000, 0x4000, 0x30000

NAME = label("object")
KEY_NAME = os_label(b"PLPKSWR", b"default-wrapping-key")
CONTENT = bytes(range(200)) * 5
SECRET = b"what is wrapped"
WRAP_FLAGS = 0x1000_0000_0000_0001
LATCH = "keystore_signed_updates_without_verification = 1\n"
BUSY = "[pks]\nbusy_answers = 2\n"
LONG_BUSY = H.LONG_BUSY_ORDER_1_MSEC


def password_of(guest: Guest) -> bytes:
    """The password that the guest was told, if it was."""
    password = guest.read(PASSWORD, 32)
    return password if any(password) else b""


def on(hcall: Hcall, name: bytes, *registers: int, data: bytes | None = None) -> Step:
    """A call on an object, with the password that the guest has."""

    def step(guest: Guest) -> tuple[Hcall, tuple[int, ...]]:
        guest.write(AUTH, build_auth(password=password_of(guest)))
        guest.write(LABEL, name)
        if data is not None:
            guest.write(DATA, data)
        return hcall, (AUTH, LABEL, len(name), *registers)

    return step


def write(policy: int = 0, name: bytes = NAME, data: bytes = CONTENT) -> Step:
    return on(pks.WRITE_OBJECT, name, policy, DATA, len(data), data=data)


def confirm(name: bytes = NAME) -> Step:
    return on(pks.CONFIRM_OBJECT_FLUSHED, name)


def remove(name: bytes = NAME) -> Step:
    return on(pks.REMOVE_OBJECT, name)


def gen_key(policy: int = 0, name: bytes = NAME) -> Step:
    return on(pks.GEN_KEY, name, policy, OUT, 32)


WRAPPING_KEY = gen_key(Policy.WRAPPINGKEY, KEY_NAME)


def gen_password(_guest: Guest) -> tuple[Hcall, tuple[int, ...]]:
    return pks.GEN_PASSWORD, (3, 0, PASSWORD, 32)


def set_password(guest: Guest) -> tuple[Hcall, tuple[int, ...]]:
    guest.write(PASSWORD, b"a password of thirty-two bytes!!")
    return pks.SET_PASSWORD, (3, 0, PASSWORD, 32)


def update(name: str, data: bytes, second: int, by: str = "PK", *, is_append: bool = False) -> Step:
    """A signed update; its message is made when it is needed."""
    policy = 0x0100_0000 if name in ("PK", "KEK") else 0x0900_0000

    def step(guest: Guest) -> tuple[Hcall, tuple[int, ...]]:
        message = signing.update(name, data, by, moment(second), is_append=is_append)
        registers = (policy, int(is_append), DATA, len(message), last_token(guest))
        raw = os_label(b"", name.encode("utf-16-le"))
        return on(pks.SIGNED_UPDATE, raw, *registers, data=message)(guest)

    return step


def last_token(guest: Guest) -> int:
    """The token of the last reply, if it was busy."""
    reply = guest.replies[-1] if guest.replies else None
    return dict(reply.registers).get(4, 0) if reply is not None and reply.status > 0 else 0


def wrap(guest: Guest) -> tuple[Hcall, tuple[int, ...]]:
    sizes = (DATA, len(SECRET), BLOB, len(SECRET) + 1024, last_token(guest))
    return on(pks.WRAP_OBJECT, KEY_NAME, WRAP_FLAGS, *sizes, data=SECRET)(guest)


def unwrap(guest: Guest) -> tuple[Hcall, tuple[int, ...]]:
    guest.write(AUTH, build_auth(password=password_of(guest)))
    sizes = (BLOB, len(SECRET) + 1024, OUT, len(SECRET), last_token(guest))
    return pks.UNWRAP_OBJECT, (AUTH, 0, *sizes)


def told_password(guest: Guest) -> tuple[bytes, ...]:
    return (password_of(guest),) if password_of(guest) else ()


def told_key(guest: Guest) -> tuple[bytes, ...]:
    return (guest.read(OUT, 32),)


def known(*secrets: bytes) -> Callable[[Guest], tuple[bytes, ...]]:
    """These, and the password if there is one."""
    return lambda guest: (*secrets, *told_password(guest))


# -- judgements ---------------------------------------------------------------------------------


def make(guest: Guest, step: Step, code: H = H.SUCCESS) -> None:
    """Make one more call."""
    hcall, registers = step(guest)
    status = guest.hcall(hcall, *registers).status
    if status != code:
        raise CrashError(f"afterwards {hcall.name} gave {status}, expected {code.name}")


def reads(name: bytes = NAME) -> Step:
    return on(pks.READ_OBJECT, name, OUT, 4096)


def holds(expected: bytes | None, name: bytes = NAME) -> Callable[[Guest], None]:
    """READ gives this; None: there is no object."""

    def judge(guest: Guest) -> None:
        make(guest, reads(name), H.NOT_FOUND if expected is None else H.SUCCESS)
        if expected is not None and guest.read(OUT, len(expected)) != expected:
            raise CrashError("READ gives something else than was written")

    return judge


def judge_key(guest: Guest) -> None:
    """The key that was told is the key that is there."""
    told = guest.read(OUT, 32)
    guest.write(OUT, bytes(32))
    make(guest, reads())
    if guest.read(OUT, 32) != told:
        raise CrashError("another key is stored than the guest was told")


def judge_password(guest: Guest) -> None:
    """The password that was told is the one that counts."""
    if len(password_of(guest)) != 32:
        raise CrashError("the guest was told no password")
    make(guest, confirm(), H.NOT_FOUND)


def judge_wrapping(guest: Guest) -> None:
    """The wrapping key that was made wraps, and opens what it wrapped."""
    make(guest, gen_password)
    make(guest, wrap)
    guest.write(OUT, bytes(64))
    make(guest, unwrap)
    judge_secret(guest)


def judge_secret(guest: Guest) -> None:
    if guest.read(OUT, len(SECRET)) != SECRET:
        raise CrashError("what was wrapped does not come out")


def judge_blob(guest: Guest) -> None:
    """What WRAP told opens, in as many issues as ever."""
    guest.write(OUT, bytes(64))
    for _ in range(2):
        make(guest, unwrap, LONG_BUSY)
    make(guest, unwrap)
    judge_secret(guest)


OK, GONE = int(H.SUCCESS), int(H.NOT_FOUND)
DB = os_label(b"", "db".encode("utf-16-le"))
DB_1 = update("db", digests(1), 2)


def seed_pk() -> tuple[Seed, ...]:
    """PK, put there before the guest's first start."""
    name = os_label(b"", "PK".encode("utf-16-le"))
    return ((name, 0x0100_0000, signing.stored(moment(1), certificates("PK"))),)


def seed_variables() -> tuple[Seed, ...]:
    return (*seed_pk(), (DB, 0x0900_0000, signing.stored(moment(2), digests(1))))


SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        "GEN_PASSWORD",
        (gen_password,),
        (OK,),
        blur=size_only,
        secrets=told_password,
        judge=judge_password,
    ),
    Scenario("SET_PASSWORD", (set_password,), (OK,), secrets=told_password, judge=judge_password),
    Scenario(
        "WRITE and CONFIRM",
        (write(), confirm()),
        (OK, OK),
        secrets=known(CONTENT[:32]),
        judge=holds(CONTENT),
    ),
    Scenario(
        "WRITE of a TRANSIENT object, with a password",
        (write(Policy.TRANSIENT), confirm()),
        (OK, OK),
        setup=(gen_password,),
        secrets=known(CONTENT[:32]),
        judge=holds(CONTENT),
    ),
    Scenario(
        "WRITE that is refused",
        (write(), write(name=NAME + b"!", data=b"more")),
        (int(H.RESOURCE), OK),
        setup=(write(data=b"first"),),
        secrets=known(CONTENT[:32]),
        judge=holds(b"first"),
    ),
    Scenario("GEN_KEY", (gen_key(),), (OK,), blur=size_only, secrets=told_key, judge=judge_key),
    Scenario(
        "GEN_KEY of a wrapping key",
        (WRAPPING_KEY, confirm(KEY_NAME)),
        (OK, OK),
        blur=size_only,
        secrets=told_password,
        judge=judge_wrapping,
    ),
    Scenario(
        "REMOVE and CONFIRM",
        (remove(), confirm()),
        (OK, GONE),
        setup=(write(),),
        judge=holds(None),
    ),
    Scenario(
        "REMOVE and WRITE",
        (remove(), write(data=b"new")),
        (OK, OK),
        setup=(write(),),
        judge=holds(b"new"),
    ),
    Scenario(
        "SIGNED_UPDATE of PK under the latch",
        (update("PK", certificates("new"), 0, "stranger"), update("db", digests(9), 3, "new")),
        (OK, OK),
        seed=seed_variables,
        profile=LATCH,
        judge=holds(signing.stored(moment(3), digests(9)), DB),
    ),
    Scenario(
        "SIGNED_UPDATE that creates, appends and replaces",
        (
            DB_1,
            update("db", digests(2), 3, is_append=True),
            update("db", digests(3), 4),
            confirm(DB),
        ),
        (OK, OK, OK, OK),
        seed=seed_pk,
        judge=holds(signing.stored(moment(4), digests(3)), DB),
    ),
    Scenario(
        "SIGNED_UPDATE that deletes",
        (update("db", b"", 5), confirm(DB), DB_1),
        (OK, GONE, OK),
        seed=seed_variables,
        judge=holds(signing.stored(moment(2), digests(1)), DB),
    ),
    Scenario(
        "SIGNED_UPDATE that is replayed",
        (update("db", digests(2), 3), DB_1),
        (OK, int(H.AUTHORITY)),
        seed=seed_variables,
        judge=holds(signing.stored(moment(3), digests(2)), DB),
    ),
    Scenario(
        "SIGNED_UPDATE that wipes everything",
        (update("PK", signing.WIPE, 0, "stranger"), confirm(DB)),
        (OK, GONE),
        setup=(write(),),
        seed=seed_variables,
        profile=LATCH + "linux_dynamic_key_secure_boot = 1\n",
        secrets=known(CONTENT[:32]),
        judge=holds(CONTENT),
    ),
    Scenario(
        "SIGNED_UPDATE with busy answers",
        (DB_1, DB_1, DB_1),
        (int(LONG_BUSY), int(LONG_BUSY), OK),
        seed=seed_pk,
        profile=BUSY,
        blur=size_only,
        judge=holds(signing.stored(moment(2), digests(1)), DB),
    ),
    Scenario(
        "WRAP with busy answers",
        (wrap, wrap, wrap),
        (int(LONG_BUSY), int(LONG_BUSY), OK),
        setup=(WRAPPING_KEY, gen_password),
        profile=BUSY,
        blur=size_only,
        secrets=known(SECRET),
        judge=judge_blob,
    ),
    Scenario(
        "UNWRAP without busy answers",
        (wrap, unwrap),
        (OK, OK),
        setup=(WRAPPING_KEY, gen_password),
        secrets=known(SECRET),
        judge=judge_secret,
    ),
)

RESET = Scenario(
    "reset",
    (),
    (),
    setup=(
        gen_password,
        write(),
        write(Policy.TRANSIENT, NAME + b"!", b"passing"),
        gen_key(Policy.WRAPPINGKEY | Policy.TRANSIENT, KEY_NAME),
    ),
    seed=seed_variables,
)
"""What ends with the run, beside what stays."""
