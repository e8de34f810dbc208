# SPDX-License-Identifier: Apache-2.0
"""No secret of a guest or of the user is in anything that hcalld writes.

A daemon with a trace, a capture and a debug log is given known secrets, in calls that succeed, that
are refused and that are malformed, by a peer that breaks the protocol too; it is killed;
the commands then work on what it left. Every byte that any of them wrote is searched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from tests import signing
from tests.e2e.daemon import Daemon, copy_state, run_hcalld
from tests.e2e.fakeshim import FakeShim, connect, hello
from tests.e2e.lab import Lab
from tests.e2e.leaks import Leak, Secrets
from tests.e2e.patience import patience
from tests.e2e.wire import PeerClosed
from tests.unit.hcalld.families.registers import SIGNED, variable_label

from hcalld.captures.events import Events
from hcalld.core.records import Lifetime
from hcalld.core.secret import Secret
from hcalld.crypto.locks import Passphrase
from hcalld.domain.keystore_records import NAMESPACE
from hcalld.domain.labels import os_label, sed_object
from hcalld.stores.directory import StateDirectory
from hcalld.stores.keys.describe import key_source
from hcalld.testing.pks import build_auth
from hcallproto.abi.families import pks
from hcallproto.abi.returns import H
from hcallproto.abi.spec import Arg, ArgKind, Buffer, Direction, Hcall
from hcallproto.payloads.pks import WRAP_OVERHEAD, Consumer, Policy, WrapFlag
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.encode import encode

PARTITION: Final = "planted"
PROFILE: Final = """
keystore_signed_updates_without_verification = 1
"""

AUTH, LABEL, IN, OUT, PASSWORD = 0x1000, 0x2000, 0x10000, 0x40000, 0x4000
CAPTURE: Final = "all.pcapng"
CLEAR_LABEL: Final = b"a label is in the clear"
BAD_NUMBERS: Final = (0, 1, 7, 0x7FFF_FFFF, 0xFFFF_FFF8, 0x1_0000_0010, (1 << 64) - 1)


@dataclasses.dataclass
class Stage:
    """A daemon, a guest that talks to it, and the secrets between them."""

    lab: Lab
    daemon: Daemon
    secrets: Secrets
    inputs: Path
    """Where the user's own files are: not what hcalld wrote."""
    shim: FakeShim
    password: bytes = b""
    succeeded: set[str] = dataclasses.field(default_factory=set)
    _random: random.Random = dataclasses.field(default_factory=lambda: random.Random(4))
    _count: Iterator[int] = dataclasses.field(default_factory=itertools.count)

    def plant(self, name: str, size: int = 40) -> bytes:
        """A new secret."""
        return self.secrets.add(f"{name} {next(self._count)}", self._random.randbytes(size))

    def put(self, gpa: int, data: bytes) -> int:
        """Writes guest memory."""
        self.shim.ram[gpa : gpa + len(data)] = data
        return gpa

    def auth(self, password: bytes | None = None, consumer: int = Consumer.OS) -> int:
        """The authorization structure."""
        return self.put(AUTH, build_auth(consumer, self.password if password is None else password))

    def label(self, label: bytes) -> tuple[int, int]:
        """A label's arguments."""
        return self.put(LABEL, label), len(label)

    def taken(self, name: str, size: int) -> bytes:
        """What the daemon has just written to the guest, a secret from now on."""
        return self.secrets.add(
            f"{name} {next(self._count)}", bytes(self.shim.ram[OUT : OUT + size])
        )

    def good(self, call: Hcall, *arguments: int) -> None:
        """A call that succeeds."""
        reply = self.shim.call(call.number, *arguments)
        assert reply.status == H.SUCCESS, (call.name, reply)
        self.succeeded.add(call.name)

    def refused(self, call: Hcall, code: H, *arguments: int) -> None:
        """A call that is refused."""
        reply = self.shim.call(call.number, *arguments)
        assert reply.status == code, (call.name, reply)


@pytest.fixture
def stage(lab: Lab, tmp_path: Path) -> Iterator[Stage]:
    secrets = Secrets()
    passphrase = secrets.add("passphrase of the state directory", b"qV7-xK2m-9tLw-Hr4d-Yp8s-z3")
    (tmp_path / "hcalld.pass").write_bytes(passphrase + b"\n")
    (tmp_path / "hcalld.pass").chmod(0o600)
    capture_passphrase = secrets.add("passphrase of the capture", b"uP5.wC3z.8yBn.Kf6d.Vs1a.g7")
    (tmp_path / "capture.pass").write_bytes(capture_passphrase)
    (tmp_path / "capture.pass").chmod(0o600)
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / f"{PARTITION}.toml").write_text(PROFILE)
    daemon = lab.daemon(
        *("--log-format", "json", "--log-level", "debug"),
        *("--capture", str(lab.artifacts / CAPTURE)),
        *("--key", f"passphrase-file:{tmp_path / 'hcalld.pass'}"),
        *("--profile-dir", str(tmp_path / "profiles")),
        *("--capture-secrets", f"passphrase-file:{tmp_path / 'capture.pass'}"),
    )
    with FakeShim(connect(daemon.socket)) as shim:
        shim.negotiate(hello(PARTITION))
        yield Stage(lab, daemon, secrets, tmp_path, shim)


# -- calls that succeed -------------------------------------------------------------------------


def set_password(stage: Stage) -> None:
    secret = stage.plant("password of the OS")
    stage.good(pks.SET_PASSWORD, Consumer.OS, 0, stage.put(PASSWORD, secret), len(secret))
    stage.password = secret


def gen_password(stage: Stage) -> None:
    stage.good(pks.GEN_PASSWORD, Consumer.FIRMWARE, 0, OUT, 64)
    secret = stage.taken("password of the firmware", 64)
    # It is a secret of use: the wrong one is refused, the right one is not.
    name = stage.label(b"firmware's")
    auth = stage.auth(secret[:-1], Consumer.FIRMWARE)
    stage.refused(pks.REMOVE_OBJECT, H.AUTHORITY, auth, *name)
    auth = stage.auth(secret, Consumer.FIRMWARE)
    stage.refused(pks.REMOVE_OBJECT, H.NOT_FOUND, auth, *name)


def write_and_read(stage: Stage) -> None:
    secret = stage.plant("object's data", 300)
    name = os_label(b"clear", CLEAR_LABEL)
    stage.put(IN, secret)
    stage.good(pks.WRITE_OBJECT, stage.auth(), *stage.label(name), 0, IN, len(secret))
    stage.good(pks.READ_OBJECT, stage.auth(), *stage.label(name), OUT, 4000)
    assert stage.shim.ram[OUT : OUT + len(secret)] == secret
    stage.refused(pks.WRITE_OBJECT, H.RESOURCE, stage.auth(), *stage.label(name), 0, IN, 300)
    stage.refused(pks.READ_OBJECT, H.TOO_BIG, stage.auth(), *stage.label(name), OUT, 8)
    wrong = stage.plant("wrong password")
    for call, more in ((pks.READ_OBJECT, (OUT, 4000)), (pks.WRITE_OBJECT, (0, IN, 300))):
        stage.refused(call, H.AUTHORITY, stage.auth(wrong), *stage.label(name), *more)
    stage.good(pks.CONFIRM_OBJECT_FLUSHED, stage.auth(), *stage.label(name))


def write_pin(stage: Stage) -> None:
    data = sed_object(stage.plant("PIN of drives", 32))
    name = os_label(b"pin", b"of drives")
    stage.put(IN, data)
    policy = Policy.WORLDREADABLE
    stage.good(pks.WRITE_OBJECT, stage.auth(), *stage.label(name), policy, IN, len(data))
    stage.good(pks.READ_OBJECT, stage.auth(b""), *stage.label(name), OUT, 4000)


def write_transient(stage: Stage) -> None:
    secret = stage.plant("TRANSIENT data")
    name = os_label(b"t", b"transient")
    stage.put(IN, secret)
    policy = Policy.TRANSIENT
    stage.good(pks.WRITE_OBJECT, stage.auth(), *stage.label(name), policy, IN, len(secret))


def write_and_remove(stage: Stage) -> None:
    secret = stage.plant("removed data", 2000)
    name = os_label(b"r", b"removed")
    stage.put(IN, secret)
    stage.good(pks.WRITE_OBJECT, stage.auth(), *stage.label(name), 0, IN, len(secret))
    stage.good(pks.REMOVE_OBJECT, stage.auth(), *stage.label(name))


def gen_key(stage: Stage) -> None:
    name = os_label(b"k", b"generated")
    stage.good(pks.GEN_KEY, stage.auth(), *stage.label(name), 0, OUT, 48)
    stage.taken("generated key", 48)


def wrap_and_unwrap(stage: Stage) -> None:
    name = os_label(b"w", b"wrapping")
    policy = Policy.WRAPPINGKEY
    stage.good(pks.GEN_KEY, stage.auth(), *stage.label(name), policy, 0, 32)
    secret = stage.plant("wrapped data", 128)
    stage.put(IN, secret)
    size = len(secret) + WRAP_OVERHEAD
    flags = WrapFlag.AES_GCM_256 | WrapFlag.PASSWORD
    arguments = (*stage.label(name), flags, IN, len(secret), OUT, size, 0)
    stage.good(pks.WRAP_OBJECT, stage.auth(), *arguments)
    blob = bytes(stage.shim.ram[OUT : OUT + size])
    stage.put(IN, blob)
    stage.put(OUT, bytes(size))
    stage.good(pks.UNWRAP_OBJECT, stage.auth(), 0, IN, size, OUT, 4000, 0)
    assert stage.shim.ram[OUT : OUT + len(secret)] == secret
    stage.put(IN, blob[:-1] + bytes((blob[-1] ^ 1,)))
    stage.refused(pks.UNWRAP_OBJECT, H.BAD_DATA, stage.auth(), 0, IN, size, OUT, 4000, 0)


def signed_update(stage: Stage) -> None:
    data = signing.certificates("PK")
    message = signing.update("PK", data, "PK", signing.moment(1), is_append=False)
    stage.put(IN, message)
    name = stage.label(variable_label("PK"))
    stage.good(pks.SIGNED_UPDATE, stage.auth(), *name, SIGNED, 0, IN, len(message), 0)


def get_config(stage: Stage) -> None:
    stage.good(pks.GET_CONFIG, OUT, 512)


SUCCESSES: Final[tuple[Callable[[Stage], None], ...]] = (
    set_password,  # the others need it
    get_config,
    gen_password,
    write_and_read,
    write_pin,
    write_transient,
    write_and_remove,
    gen_key,
    wrap_and_unwrap,
    signed_update,
)
"""Between them every call that is served succeeds; a call that is added needs one more."""

SERVED: Final = tuple(call for call in pks.FAMILY.calls if not call.decode_only)


# -- calls that are refused, made of the table of calls -------------------------------------------


def content_of(stage: Stage, call: Hcall, buffer: Buffer) -> bytes:
    """What a guest puts into a buffer: new secrets, if the table says that they are."""
    name = f"{call.name} {buffer.address}"
    if buffer.address == "auth":
        return build_auth(Consumer.OS, stage.plant(f"password of {name}"))
    if buffer.address == "label":
        return os_label(b"sweep", call.name.encode())
    return stage.plant(name, 200) if buffer.secret else bytes(200)


def plausible(call: Hcall, arg: Arg, sizes: dict[str, int], places: dict[str, int]) -> int:
    """An argument as a guest gives it that means well."""
    if arg.kind is ArgKind.ADDRESS:
        return places[arg.name]
    if arg.kind is ArgKind.SIZE:
        return sizes.get(arg.name, 4000)
    return arg.minimum if arg.kind is ArgKind.VALUE else 0


def sweep(stage: Stage, call: Hcall) -> None:
    """Has each argument of a call wrong in turn, with secrets in the buffers."""
    wrongs = [(None, 0), *itertools.product(call.args, BAD_NUMBERS)]
    for wrong, number in wrongs:
        sizes: dict[str, int] = {}
        places = {
            arg.name: 0x20000 + 0x8000 * place
            for place, arg in enumerate(arg for arg in call.args if arg.kind is ArgKind.ADDRESS)
        }
        for buffer in call.buffers:
            if buffer.direction is Direction.IN:
                content = content_of(stage, call, buffer)
                stage.put(places[buffer.address], content)
                if buffer.size is not None:
                    sizes[buffer.size] = len(content)
        arguments = [
            number if arg is wrong else plausible(call, arg, sizes, places) for arg in call.args
        ]
        stage.shim.call(call.number, *arguments)


def break_the_protocol(stage: Stage) -> None:
    """A call whose frame is not as it must be, from guests of other names."""
    secret = stage.plant("data in a broken frame", 600)
    for number, offset in enumerate([*range(0, s.HEADER_SIZE + 48, 2), -700]):
        with FakeShim(connect(stage.daemon.socket)) as shim:
            shim.negotiate(hello(f"broken{number}", instance=number.to_bytes(16, "big")))
            shim.ram[AUTH : AUTH + 16] = build_auth(Consumer.OS)
            shim.ram[LABEL : LABEL + 20] = os_label(b"x", b"four")
            shim.ram[IN : IN + 600] = secret
            call = pks.WRITE_OBJECT.number
            frame = bytearray(encode(shim.frame(call, AUTH, LABEL, 20, 0, IN, 600)))
            frame[offset] ^= 0xFF
            # Whatever it answers, and when it hangs up, is not what this is about.
            with contextlib.suppress(PeerClosed, ConnectionError):
                shim.send_bytes(bytes(frame))
                shim.send_bytes(secret)  # in place of a header
                shim.sock.shutdown(socket.SHUT_WR)
                shim.sock.settimeout(patience(20))
                while shim.sock.recv(1 << 16):
                    pass


# -- what the user does ---------------------------------------------------------------------------


def use_commands(stage: Stage) -> list[tuple[str, bytes]]:
    """Every command on the dead daemon's state; gives what it printed."""
    folder = stage.inputs
    pin = stage.plant("PIN given to hcalld state put", 32)
    (folder / "pin.bin").write_bytes(pin)
    export_pass = stage.secrets.add("passphrase of the export", b"mW4_eR8n_6cXb_Tf2j_Ga5u_k9")
    (folder / "export.pass").write_bytes(export_pass)
    (folder / "wrong.pass").write_bytes(
        stage.secrets.add("wrong passphrase", b"oB3.hZ7q.5vNs.Jd9y.Lx1e.t6")
    )
    for name in ("export.pass", "wrong.pass"):
        (folder / name).chmod(0o600)
    state = str(stage.daemon.state_dir)
    key, wrong_key = (
        ("--key", f"passphrase-file:{folder / name}.pass") for name in ("hcalld", "wrong")
    )
    export_with, wrong_with = (
        ("--with", f"passphrase-file:{folder / name}.pass") for name in ("export", "wrong")
    )
    out, copy = str(stage.lab.artifacts / "out.hcx"), str(stage.lab.artifacts / "copy.bak")
    printed = []
    for status, words in (
        (0, ("put", *key, "-p", "seeded", "--sed-key", str(folder / "pin.bin"))),
        (1, ("put", *key, "-p", "seeded", "--sed-key", str(folder / "pin.bin"))),
        (0, ("list", *key)),
        (1, ("list", *wrong_key)),
        (0, ("list", *key, "--json", PARTITION)),
        (0, ("show", *key, "-p", "seeded", "--sed")),
        (0, ("verify", *key)),
        (0, ("export", *key, *export_with, PARTITION, out)),
        (1, ("import", *key, *wrong_with, "-p", "copy", out)),
        (0, ("import", *key, *export_with, "-p", "copy", out)),
        (0, ("backup", *key, PARTITION, copy)),
        (0, ("restore", *key, "--replace", PARTITION, copy)),
        (1, ("list", "--key", f"passphrase:{export_pass.decode()}")),
        (0, ("remove", *key, "-p", "seeded", "--sed")),
    ):
        ended = run_hcalld("state", *words, environ={"HCALLD_STATE_DIR": state})
        assert ended.returncode == status, (words, ended)
        printed.append((f"hcalld state {words[0]}", (ended.stdout + ended.stderr).encode()))
    return printed


def add_what_is_stored(stage: Stage) -> None:
    """The keys that no call and no command shows: the master key, wrapping keys."""
    directory = StateDirectory(
        stage.daemon.state_dir, key_source(f"passphrase-file:{stage.inputs / 'hcalld.pass'}")
    )
    stage.secrets.add("master key", directory.keyring.load(may_create=False).reveal())
    store = directory.open(PARTITION, create=False)
    for record in store.load().records:
        if record.namespace == NAMESPACE and record.lifetime is Lifetime.PERSISTENT:
            policy = struct.unpack_from(">BxxxI", record.value)[1]
            if policy & Policy.WRAPPINGKEY:
                stage.secrets.add("wrapping key", record.value[8:])
    store.close()


def end_capture(stage: Stage) -> None:
    """Has the daemon write all of its capture, which it does not do at once."""
    ended = run_hcalld("ctl", "capture", "stop", "--state-dir", str(stage.daemon.state_dir))
    assert ended.returncode == 0, ended.stderr
    assert ", 0 of them dropped" in ended.stdout


# -- the test -----------------------------------------------------------------------------------


def leaks_of(stage: Stage) -> list[Leak]:
    """Every secret in every file that hcalld wrote."""
    return stage.secrets.find_in(stage.lab.artifacts)


@pytest.mark.timeout(400)
def test_no_secret_is_written(stage: Stage) -> None:
    for succeed in SUCCESSES:
        succeed(stage)
    assert {call.name for call in SERVED} == stage.succeeded, "a call is not in SUCCESSES"
    for call in SERVED:
        sweep(stage, call)
    break_the_protocol(stage)
    end_capture(stage)
    stage.daemon.kill()
    assert list(stage.daemon.state_dir.rglob("*-wal")), "it was killed with a log"
    copy_state(stage.daemon.state_dir, stage.lab.artifacts / "killed")
    printed = use_commands(stage)
    add_what_is_stored(stage)
    found = leaks_of(stage)
    for where, text in printed:
        found += stage.secrets.find(text, where)

    assert found == [], "\n".join(map(str, found))
    # What was searched has it all: the calls by name, refused and not; and the labels.
    trace = stage.daemon.trace.read_bytes()
    for call in SERVED:
        assert call.name.encode() in trace
    assert len(stage.daemon.trace_lines()) > 100
    decoded = run_hcalld("decode", str(stage.lab.artifacts / CAPTURE))
    assert decoded.returncode == 0, decoded.stderr
    for call in SERVED:
        assert f" {call.name}(" in decoded.stdout
    found = stage.secrets.find(decoded.stdout.encode(), "hcalld decode")
    assert found == [], "\n".join(map(str, found))
    assert {"master key", "wrapping key"} <= stage.secrets.names
    assert b"protocol breach" in stage.daemon.log.read_bytes()


def test_the_search_finds_what_is_there(stage: Stage) -> None:
    """The control: labels are documented to be in the clear, and --reveal reveals."""
    set_password(stage)
    write_and_read(stage)
    end_capture(stage)
    stage.daemon.kill()
    stage.secrets.add("label", CLEAR_LABEL)
    places = {leak.where.partition("/")[0] for leak in leaks_of(stage)}
    assert places == {"daemon.trace", "daemon.state", CAPTURE}
    key = ("--key", f"passphrase-file:{stage.inputs / 'hcalld.pass'}")
    words = ("-p", PARTITION, "--prefix", "clear", "--name", CLEAR_LABEL.decode(), "--reveal")
    ended = run_hcalld("state", "show", *key, *words, "--state-dir", str(stage.daemon.state_dir))
    found = stage.secrets.find(ended.stdout.encode(), "stdout")
    assert {leak.dress for leak in found if leak.secret.startswith("object's data")} == {
        "hexadecimal"
    }
    # The capture has them for who has its key.
    opened = Events(
        [(stage.lab.artifacts / CAPTURE).read_bytes()],
        Passphrase(Secret((stage.inputs / "capture.pass").read_bytes())),
    )
    frames = b"".join(
        encode(event.what) for event in opened if isinstance(event.what, f.Call | f.Reply)
    )
    assert opened.inexact == {}
    assert {leak.secret.rstrip(" 0123456789") for leak in stage.secrets.find(frames, "")} >= {
        "object's data",
        "password of the OS",
        "wrong password",
    }
