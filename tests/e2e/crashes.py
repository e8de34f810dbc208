# SPDX-License-Identifier: Apache-2.0
"""A daemon dies at each boundary of each call that changes something; what is left is judged.

For each scenario the daemon runs once undisturbed, which counts its boundaries and shows
how the store looks after each call. Then it runs once a boundary: it dies there, the store
is looked at as the death left it, the next daemon is started, and the shim, here a few
lines, sends again what had no reply, as QEMU does.

What must be true of the store that a death leaves: it is one of those that an undisturbed
run shows, at least as far as the guest was told, and it has the reply of a call if, and
only if, it has its changes. And in the end: every call was answered as ever, each
change is there once, and no secret of the guest's is in any file.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from tests.e2e.crashing_hcalld import NEVER, Child, Nursery
from tests.e2e.daemon import copy_state
from tests.e2e.fakeshim import FakeShim, connect, hello
from tests.e2e.patience import patience
from tests.e2e.wire import PeerClosed

from hcalld.core.records import Lifetime, Put, Record
from hcalld.domain.keystore_records import NAMESPACE, encode_object, object_key
from hcalld.stores.directory import StateDirectory
from hcallproto.abi.spec import Hcall
from hcallproto.errors import RemoteProtocolError
from hcallproto.payloads.pks import Consumer
from hcallproto.wire import frames as f

PARTITION = "default"
INSTANCE = bytes(range(16))
SETTLED_S = 0.03
"""A daemon that has reached no boundary for so long will reach no more."""


class CrashError(AssertionError):
    """What a death left is not what it must be."""


# -- what is stored ---------------------------------------------------------------------------

RecordName = tuple[str, bytes]
Blur = Callable[[Record], bytes]
"""What must be the same of a record whenever it is made; random bytes are not."""


def exactly(record: Record) -> bytes:
    """Every byte of a record."""
    return record.value


def size_only(record: Record) -> bytes:
    """The head of a record and its size: the rest is random."""
    return record.value[:4] + len(record.value).to_bytes(4, "big")


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """What a store holds."""

    generation: int
    records: dict[RecordName, Record]
    replies: dict[int, int]
    """vCPU to sequence number of its recorded reply."""

    def same_of(self, namespace: str, other: Stored) -> bool:
        """Whether both hold the same in a namespace."""
        mine, theirs = (
            {name: record for name, record in stored.records.items() if name[0] == namespace}
            for stored in (self, other)
        )
        return mine == theirs

    def matches(self, other: Stored, blur: Blur) -> bool:
        """Whether both are the same but for what is random in them."""

        def seen(stored: Stored) -> object:
            # A token's name is random too.
            return sorted(
                (space, b"t" if key[:1] == b"t" else key, record.lifetime, blur(record))
                for (space, key), record in stored.records.items()
            )

        return self.generation == other.generation and seen(self) == seen(other)


def look(state_dir: Path, scratch: Path) -> Stored:
    """Open a copy of a state directory, as it is at this moment."""
    shutil.rmtree(scratch, ignore_errors=True)
    copy_state(state_dir, scratch)
    store = StateDirectory(scratch).open(PARTITION, create=False)
    try:
        store.verify()
        loaded = store.load()
    finally:
        store.close()
    return Stored(
        loaded.generation,
        {(record.namespace, record.key): record for record in loaded.records},
        {reply.vcpu: reply.seq for reply in loaded.replies},
    )


# -- the guest --------------------------------------------------------------------------------


class Guest:
    """One guest with one vCPU, whose shim survives its daemons.

    Args:
        path: the daemon's socket.
        revive: called when the daemon has died; starts the next one.
    """

    def __init__(self, path: Path, revive: Callable[[], None]) -> None:
        self.replies: list[f.Reply] = []
        self.resent = 0
        self._path = path
        self._revive = revive
        self._shim: FakeShim | None = None
        self._connections = 0
        self._seq = 0
        self.ram = bytearray(1 << 20)

    def write(self, gpa: int, data: bytes) -> None:
        """Put bytes into memory."""
        self.ram[gpa : gpa + len(data)] = data

    def read(self, gpa: int, size: int) -> bytes:
        """Take bytes from memory."""
        return bytes(self.ram[gpa : gpa + size])

    def connect(self, pending: int = 0, *, instance: bytes = INSTANCE, reset: int = 0) -> FakeShim:
        """Connect, again if need be, and negotiate."""
        self.disconnect()
        shim = self._shim = FakeShim(self._reach())
        shim.ram = self.ram
        greeting = hello(instance=instance, connection=self._connections, reset=reset, vcpus=1)
        self._connections += 1
        shim.negotiate(greeting._replace(pending=pending))
        return shim

    def _reach(self) -> socket.socket:
        end = time.monotonic() + patience(20)
        while True:
            try:
                return connect(self._path)
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.002)

    def disconnect(self) -> None:
        """End the connection, as a QEMU that dies does."""
        if self._shim is not None:
            self._shim.close()
            self._shim = None

    def hcall(self, hcall: Hcall, *registers: int) -> f.Reply:
        """Make a call; if the daemon dies, send it again to the next one."""
        self._seq += 1
        frame = self._frame(hcall, registers)
        while True:
            try:
                assert self._shim is not None
                self._shim.send(frame)
                reply = self._shim.finish()
            except (PeerClosed, RemoteProtocolError):  # the latter in the middle of a frame
                self._revive()
                self.connect(pending=1)
                frame = frame._replace(is_resent=True)
                self.resent += 1
            else:
                self.replies.append(reply)
                return reply

    def _frame(self, hcall: Hcall, registers: Sequence[int]) -> f.Call:
        assert self._shim is not None
        self._shim._seq = self._seq - 1
        return self._shim.frame(hcall.number, *registers)

    def send_again(self, hcall: Hcall, *registers: int) -> f.Reply:
        """Send the last call again as if its reply had been lost."""
        shim = self.connect(pending=1)
        shim.send(self._frame(hcall, registers)._replace(is_resent=True))
        return shim.finish()


# -- scenarios --------------------------------------------------------------------------------

Step = Callable[[Guest], tuple[Hcall, tuple[int, ...]]]
"""Prepares memory; gives a call and its registers."""


Seed = tuple[bytes, int, bytes]
"""Label, policy and data of an object of the OS."""


@dataclasses.dataclass(frozen=True)
class Scenario:
    """Calls during which the daemon dies.

    Attributes:
        name: what they do.
        seed: objects that are there before the guest's first start.
        setup: calls before, of a daemon that lives.
        steps: the calls.
        codes: what each is answered.
        profile: the partition's, as TOML.
        blur: what can be compared of records.
        secrets: what must be in no file: not in the store, nor in a log, nor in a trace.
        judge: looks at the guest's memory and makes more calls, at the very end.
    """

    name: str
    steps: tuple[Step, ...]
    codes: tuple[int, ...]
    seed: Callable[[], tuple[Seed, ...]] = tuple
    setup: tuple[Step, ...] = ()
    profile: str = ""
    blur: Blur = exactly
    secrets: Callable[[Guest], tuple[bytes, ...]] = lambda _guest: ()
    judge: Callable[[Guest], None] = lambda _guest: None


class Rig:
    """Runs scenarios.

    Args:
        nursery: starts daemons.
        folder: for state, logs and copies.
        run_dir: a directory with a short path, for sockets.
    """

    def __init__(self, nursery: Nursery, folder: Path, run_dir: Path) -> None:
        self._nursery = nursery
        self._folder = folder
        self._state = folder / "state"
        self._scratch = folder / "scratch"
        self._template = folder / "template"
        self._profiles = folder / "profiles"
        self.log = folder / "daemon.log"
        self._trace = folder / "daemon.trace"
        self._socket = run_dir / "crash.sock"
        self._numbers = itertools.count()
        self._child: Child | None = None
        self._boundaries = folder / "boundaries"

    # -- daemons --------------------------------------------------------------------------

    def _start(self, *, at: int | None = None, from_start: bool = False) -> None:
        self._socket.unlink(missing_ok=True)
        arguments = ("serve", "--socket-path", str(self._socket), "--state-dir", str(self._state))
        self._child = self._nursery.start(
            (*arguments, "--profile-dir", str(self._profiles), "--trace", str(self._trace)),
            self.log,
            boundaries=None if at is None else self._boundaries,
            at=NEVER if at is None else at,
            from_start=from_start,
        )

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _reap(self) -> None:
        """The daemon has died, and by its own hand."""
        assert self._child is not None
        status = self._child.wait()
        self._child = None
        if status != -signal.SIGKILL:
            log = self.log.read_text("utf-8", "replace")[-3000:]
            raise CrashError(f"the daemon ended with {status}: {log}")

    # -- runs -------------------------------------------------------------------------------

    def prepare(self, scenario: Scenario) -> Guest:
        """Carry out a scenario's setup, and keep the state and the guest that it leaves."""
        for folder in (self._state, self._template, self._profiles):
            shutil.rmtree(folder, ignore_errors=True)
        self._profiles.mkdir()
        (self._profiles / "default.toml").write_text(scenario.profile, "utf-8")
        self._seed(scenario.seed())
        self._start()
        guest = Guest(self._socket, self._reap)
        try:
            guest.connect()
            for step in scenario.setup:
                hcall, registers = step(guest)
                reply = guest.hcall(hcall, *registers)
                if reply.status:
                    raise CrashError(f"{scenario.name}: setup {hcall.name} gave {reply.status}")
        finally:
            guest.disconnect()
            self._end()
        copy_state(self._state, self._template)
        return guest

    def _seed(self, seeds: Sequence[Seed]) -> None:
        changes = [
            Put(Record(NAMESPACE, object_key(Consumer.OS, name), encode_object(policy, data)))
            for name, policy, data in seeds
        ]
        store = StateDirectory(self._state).open(PARTITION)
        try:
            store.commit(changes, None)
        finally:
            store.close()

    def _restore(self) -> None:
        shutil.rmtree(self._state)
        shutil.copytree(self._template, self._state)

    def template(self) -> Stored:
        """What the store holds after the setup."""
        return look(self._template, self._scratch)

    def _again(self, prepared: Guest, revive: Callable[[], None]) -> Guest:
        """The guest as it was after the setup."""
        guest = Guest(self._socket, revive)
        guest.ram[:] = prepared.ram
        guest._seq = prepared._seq
        guest._connections = prepared._connections
        return guest

    def undisturbed(self, scenario: Scenario, prepared: Guest) -> tuple[list[str], list[Stored]]:
        """Run without a death.

        Returns:
            The names of the boundaries, and the store before and after each call.
        """
        self._restore()
        self._boundaries.unlink(missing_ok=True)
        self._start(at=NEVER)
        guest = self._again(prepared, self._reap)
        try:
            guest.connect()
            states = [look(self._state, self._scratch)]
            for step in scenario.steps:
                hcall, registers = step(guest)
                guest.hcall(hcall, *registers)
                states.append(look(self._state, self._scratch))
            names = self._names()
            self._judge_replies(scenario, guest)
            scenario.judge(guest)
        finally:
            guest.disconnect()
            self._end()
        return names, states

    def _names(self) -> list[str]:
        """The boundaries so far; the last ones come just after the reply."""
        names: list[str] = []
        while not names or len(names) != len(self._boundaries.read_text().splitlines()):
            names = self._boundaries.read_text().splitlines()
            time.sleep(SETTLED_S)
        return names

    def crash(
        self, scenario: Scenario, prepared: Guest, states: Sequence[Stored], at: int
    ) -> Guest:
        """Run with a death at one boundary, and judge what it leaves.

        Raises:
            CrashError: something was lost, done twice, or half done.
        """
        self._restore()
        self._boundaries.unlink(missing_ok=True)
        self._start(at=at)

        def revive() -> None:
            self._reap()
            self._judge_state(scenario, guest, states)
            self._start()

        guest = self._again(prepared, revive)
        try:
            guest.connect()
            calls = []
            for step in scenario.steps:
                calls.append(step(guest))
                guest.hcall(calls[-1][0], *calls[-1][1])
            if not guest.resent:
                # It dies behind the last reply: at once.
                self._reap()
                self._judge_state(scenario, guest, states)
                self._start()
                guest.connect()
            elif guest.resent > 1:
                raise CrashError(f"it died {guest.resent} times")
            self._judge_replies(scenario, guest)
            last = look(self._state, self._scratch)
            if not last.matches(states[-1], scenario.blur):
                raise CrashError(f"in the end the store holds {last}, expected {states[-1]}")
            hcall, registers = calls[-1]
            if guest._seq in last.replies.values():
                told = guest.send_again(hcall, *registers)
                if told != guest.replies[-1]:
                    raise CrashError(f"told again: {told}, at first {guest.replies[-1]}")
                if look(self._state, self._scratch).generation != last.generation:
                    raise CrashError("it was carried out once more")
            secrets = scenario.secrets(guest)
            scenario.judge(guest)
            self._judge_secrets((*secrets, *scenario.secrets(guest)))
        finally:
            guest.disconnect()
            self._end()
        return guest

    def begin(
        self, prepared: Guest, at: int, *, instance: bytes, reset: int
    ) -> tuple[list[str], Stored, Stored]:
        """Die while the machine is reset or powered on.

        Returns:
            The names of the boundaries, and the store after the death and in the end.
        """
        self._restore()
        self._boundaries.unlink(missing_ok=True)
        self._start(at=at, from_start=True)
        guest = self._again(prepared, self._reap)
        try:
            try:
                guest.connect(instance=instance, reset=reset)
                names = self._names()
            except (PeerClosed, RemoteProtocolError, ConnectionError):
                names = []
            if at != NEVER:
                self._reap()
            left = look(self._state, self._scratch)
            if at != NEVER:
                self._start()
                guest.connect(instance=instance, reset=reset)
            return names, left, look(self._state, self._scratch)
        finally:
            guest.disconnect()
            self._end()

    # -- judgements -------------------------------------------------------------------------

    def _judge_state(self, scenario: Scenario, guest: Guest, states: Sequence[Stored]) -> None:
        found = look(self._state, self._scratch)
        told = len(guest.replies)
        fitting = [
            index
            for index, state in enumerate(states)
            if index in (told, told + 1) and found.matches(state, scenario.blur)
        ]
        if not fitting:
            raise CrashError(f"the guest was told of {told} calls, and the store holds {found}")
        # Of a call that changes something the reply is there if the change is.
        is_changed = found.generation != states[told].generation
        has_reply = guest._seq in found.replies.values()
        if told < len(scenario.steps) and is_changed and not has_reply:
            raise CrashError("a change without its reply")
        if has_reply and told < len(scenario.steps) and not is_changed:
            raise CrashError("a reply without its change")

    def _judge_secrets(self, secrets: Sequence[bytes]) -> None:
        if not self._trace.read_bytes():
            raise CrashError("the trace is empty")
        for path in sorted(self._folder.rglob("*")):
            content = path.read_bytes() if path.is_file() else b""
            for secret in secrets:
                if any(form in content for form in (secret, secret.hex().encode())):
                    raise CrashError(f"{path.name} has a secret of the guest's in it")

    def _judge_replies(self, scenario: Scenario, guest: Guest) -> None:
        codes = tuple(reply.status for reply in guest.replies)
        if codes != scenario.codes:
            raise CrashError(f"the guest was told {codes}, expected {scenario.codes}")


def every(
    rig: Rig, scenario: Scenario, choose: Callable[[Sequence[str]], Iterable[int]]
) -> Iterator[str]:
    """Crash at the boundaries that ``choose`` chooses, by their numbers, from their names.

    Yields:
        The name of each boundary, when what it left has been judged.

    Raises:
        CrashError: what is left is wrong; it says at which boundary.
    """
    prepared = rig.prepare(scenario)
    names, states = rig.undisturbed(scenario, prepared)
    for at in choose(names):
        try:
            rig.crash(scenario, prepared, states, at)
        except (AssertionError, TimeoutError, OSError) as error:
            error.add_note(f"{scenario.name}, boundary {at} of {len(names)}: {names[at - 1]}")
            raise
        yield names[at - 1]


def every_beginning(
    rig: Rig,
    scenario: Scenario,
    choose: Callable[[Sequence[str]], Iterable[int]],
    *,
    is_power_on: bool,
) -> Iterator[str]:
    """Crash while what a scenario's setup left is reset, or powered on anew.

    Yields:
        The name of each boundary, when what it left has been judged.

    Raises:
        CrashError: some of a run is left, or something else is gone.
    """
    instance = bytes(16) if is_power_on else INSTANCE
    reset = 0 if is_power_on else 1
    prepared = rig.prepare(scenario)
    old = rig.template()
    names, _, new = rig.begin(prepared, NEVER, instance=instance, reset=reset)
    if not any(record.lifetime is Lifetime.RUN for record in old.records.values()):
        raise CrashError("nothing ends with the run: the scenario shows nothing")
    for at in choose(names):
        where = f"{scenario.name}, boundary {at} of {len(names)}: {names[at - 1]}"
        _, left, last = rig.begin(prepared, at, instance=instance, reset=reset)
        if not (left.same_of("pks", old) or left.same_of("pks", new)):
            raise CrashError(f"{where}: neither the old run nor the new one: {left}")
        if not (left.same_of("partition", old) or left.same_of("partition", new)):
            raise CrashError(f"{where}: attributes are half changed: {left}")
        if last.records != new.records or last.replies or last.generation != new.generation:
            raise CrashError(f"{where}: in the end {last}, expected {new}")
        yield names[at - 1]
