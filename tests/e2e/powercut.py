# SPDX-License-Identifier: Apache-2.0
"""Takes the power away from a state directory, and looks what hcalld makes of the rest.

A process with guests (``powerload.py``) runs under strace (``disklog.py``). Its calls are
replayed on a disk (``disk.py``); at syncs, just before them and in between, images are
written of what a power cut may leave, and opened with hcalld's own code. Of each must
hold:

* every partition opens, ``verify`` finds nothing, no journal is left over,
* every object is one that its vCPU wrote, wholly, or is not there,
* what a CONFIRM had told of as flushed is there, or something newer,
* no change is there without all that had been answered before it was begun,
* the password is the one of its run,
* and what was found is still there after a new run, a commit and another opening.

Then the next process goes on, on the same disk (the daemon was killed or ended) or on
what one of the power cuts left.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

from tests.e2e import disklog
from tests.e2e.disk import Disk, Loss
from tests.e2e.patience import patience
from tests.e2e.powerload import LABELS, PASSWORD, VCPUS, Plan, label, password, value

from hcalld.core.errors import HcallError
from hcalld.core.records import Lifetime, Put, Record, RecordedReply, Run
from hcalld.domain.attributes import PartitionAttributes
from hcalld.domain.keystore import Keystore
from hcalld.stores.directory import StateDirectory
from hcallproto.payloads.pks import Consumer

PARTITIONS = ("a", "b", "c")
KEYS = tuple(f"{vcpu}.{number}" for vcpu in range(VCPUS) for number in range(LABELS))

Value = tuple[str, int] | None
"""Of an object its tag and size, of a password its instance and reset; None: there is none."""


class Violation(AssertionError):
    """A power cut broke a promise."""


@dataclasses.dataclass(slots=True)
class _Change:
    """A change that a guest has asked for."""

    op: int
    to: Value
    issued: int
    answered: int = 0
    """When, in notes; 0: not yet."""


@dataclasses.dataclass(slots=True)
class _Key:
    """What is known of one object, or of the password."""

    first: Value = None
    changes: list[_Change] = dataclasses.field(default_factory=list)
    flushed: int = 0
    """So many changes are flushed."""

    def answered(self, before: int | None = None) -> int:
        """How many changes there are up to the last that was answered before a moment."""
        return max(
            (
                number
                for number, change in enumerate(self.changes, 1)
                if change.answered and (before is None or change.answered < before)
            ),
            default=0,
        )

    def values(self) -> list[Value]:
        """What it may be, from the oldest to the newest."""
        return [self.first, *(change.to for change in self.changes)]


class Partition:
    """What the guest of a partition knows."""

    def __init__(self) -> None:
        self.keys = {key: _Key() for key in (PASSWORD, *KEYS)}
        self.is_flushed = False
        self._confirms: dict[tuple[int, int], int] = {}

    def note(self, now: int, what: dict[str, object]) -> None:
        """Take a line of the notes in."""
        match what:
            case {"issue": int(op), "key": str(key), "to": to}:
                change = _Change(op, tuple(to) if isinstance(to, list) else None, now)
                self.keys[key].changes.append(change)
            case {"done": int(op), "ok": ok}:
                for known in self.keys.values():
                    for change in known.changes:
                        if change.op == op:
                            change.answered = now
                    if not ok:
                        known.changes = [c for c in known.changes if c.op != op]
            case {"confirm": int(op), "vcpu": int(vcpu)}:
                self._confirms[op, vcpu] = now
            case {"confirmed": int(op), "vcpu": int(vcpu)}:
                asked = self._confirms.pop((op, vcpu))
                self.is_flushed = True
                for known in self.keys.values():
                    known.flushed = max(known.flushed, known.answered(asked))
            case _:
                raise ValueError(what)

    def machine(self) -> tuple[str, int] | None:
        """Instance and reset count, if it is known in which run the guest is."""
        changes = self.keys[PASSWORD].changes
        return changes[-1].to if changes and changes[-1].answered else None

    def forget_answers(self, found: dict[str, Value]) -> None:
        """What was found on the disk is what there is."""
        self.keys = {key: _Key(first=value) for key, value in found.items()}

    # -- judging --------------------------------------------------------------------------

    def judge(self, found: dict[str, Value], *, is_kill: bool) -> None:
        """Compare what was found with what is known.

        Args:
            found: all that is in the store.
            is_kill: the kernel lived on: all that was answered must be there.

        Raises:
            Violation: it cannot be.
        """
        earliest, latest = {}, {}
        for key, known in self.keys.items():
            values = known.values()
            least = known.answered() if is_kill else known.flushed
            fitting = [n for n in range(least, len(values)) if values[n] == found[key]]
            if not fitting:
                raise Violation(
                    f"{key} is {found[key]}, expected one of {values[least:]}; {values[:least]} "
                    "are older"
                )
            earliest[key], latest[key] = fitting[0], fitting[-1]
        for key, known in self.keys.items():
            if not earliest[key]:
                continue
            change = known.changes[earliest[key] - 1]
            for other, its in self.keys.items():
                if latest[other] < its.answered(change.issued):
                    raise Violation(
                        f"{key} has change {change.op}, but {other} lacks one that was answered "
                        "before that was begun"
                    )


# -- looking ----------------------------------------------------------------------------------


def look(state: Path, known: dict[str, Partition]) -> dict[str, dict[str, Value]]:
    """Open all partitions of an image; gives what is in those that are there.

    Raises:
        StoreError: one does not open, or is damaged.
        Violation: something is there that nobody wrote.
    """
    directory = StateDirectory(state)
    found = {}
    for name in directory.partitions():
        store = directory.open(name, create=False)
        try:
            store.verify()
            found[name] = contents(Keystore(PartitionAttributes(), store.load().records), known)
        finally:
            store.close()
        # Another opening, another run and a commit change nothing of it.
        store = directory.open(name, create=False)
        try:
            store.begin_run(Run(b"after the cut...", 0))
            record = Record("test", b"key", b"value", Lifetime.RUN)
            store.commit([Put(record)], RecordedReply(0, 1, b"reply"))
            store.flush()
            store.rest()
            keystore = Keystore(PartitionAttributes(), store.load().records)
            again = contents(keystore, known)
            if again != {**found[name], PASSWORD: None}:
                raise Violation(f"{found[name]} became {again} by another opening and run")
        finally:
            store.close()
    left = list((state / "journals").glob("*.log")) if found else []
    if left:
        raise Violation(f"journals are left over: {left}")
    return found


def contents(keystore: Keystore, known: dict[str, Partition]) -> dict[str, Value]:
    """All that a keystore holds, as notes say it."""
    found: dict[str, Value] = dict.fromkeys((PASSWORD, *KEYS))
    labels = {label(key): key for key in KEYS}
    for item in keystore.objects():
        key = labels[item.label]
        for partition in known.values():
            for to in partition.keys[key].values():
                if to is not None and value(*to) == item.stored.data:
                    found[key] = to
        if found[key] is None:
            raise Violation(f"{key} holds {item.stored.data[:60]!r}..., which nobody wrote")
    if keystore.has_password(Consumer.OS):
        found[PASSWORD] = _password(keystore, known)
    return found


def _password(keystore: Keystore, known: dict[str, Partition]) -> Value:
    for partition in known.values():
        for to in partition.keys[PASSWORD].values():
            if to is not None:
                try:
                    keystore.authorize(Consumer.OS, password(*to))
                except HcallError:
                    continue
                return to
    raise Violation("there is a password that nobody set")


# -- running ----------------------------------------------------------------------------------


@dataclasses.dataclass
class Outcome:
    """What was done and found."""

    processes: int = 0
    kills: int = 0
    calls: int = 0
    syncs: int = 0
    cuts: int = 0
    images_gone_on: int = 0
    rounds: int = 0
    """Syncs of a journal."""
    confirms: int = 0
    violations: list[str] = dataclasses.field(default_factory=list)


class PowerCuts:
    """A state directory that loses its power again and again.

    Args:
        strace: the program.
        folder: an empty directory; what failed stays in it.
        seed: of all that is drawn here; what threads do when is not.
        cuts: about how many images are looked at for each process.
    """

    def __init__(self, strace: Path, folder: Path, seed: int, cuts: int) -> None:
        self.outcome = Outcome()
        self._strace = strace
        self._folder = folder
        self._rng = random.Random(seed)
        self._seed = seed
        self._cuts = cuts
        self._root = folder / "disk"
        self._root.mkdir()
        self._disk = Disk(self._root)
        self._known = {name: Partition() for name in PARTITIONS}
        self._noted = 0
        self._machines = {name: self._new_machine() for name in PARTITIONS}

    def run(self, lives: int) -> Outcome:
        """Run so many processes, one after the other."""
        for life in range(1, lives + 1):
            self._live(life)
        return self.outcome

    def _live(self, life: int) -> None:
        rng, outcome = self._rng, self.outcome
        kill_after = rng.choice((0, rng.randint(5, 120), rng.randint(30, 600)))
        plan = Plan(
            seed=self._seed,
            life=life,
            machines=self._machines,
            steps=rng.choice((4, 8, 12)),
            kill_after=kill_after,
        )
        record, notes = self._folder / "record", self._folder / "notes"
        status = self._process(plan, record, notes)
        outcome.processes += 1
        outcome.kills += bool(status)
        calls = list(disklog.read(record))
        outcome.calls += len(calls)
        self._disk.begin_record()
        self._replay(calls, notes)
        self._after()
        notes.unlink()

    def _process(self, plan: Plan, record: Path, notes: Path) -> int:
        words = disklog.command(self._strace, record)
        log = self._folder / "process.log"
        with log.open("wb") as output:
            status = subprocess.run(
                [
                    *words,
                    *(sys.executable, "-m", "tests.e2e.powerload"),
                    *(str(self._root / "state"), str(notes), json.dumps(dataclasses.asdict(plan))),
                ],
                stdout=output,
                stderr=output,
                timeout=patience(300),
                check=False,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            ).returncode
        if status not in (0, -9, 137):
            raise AssertionError(f"the process ended with {status}: {log.read_text()[-4000:]}")
        return status

    def _replay(self, calls: list[disklog.Call], notes: Path) -> None:
        """Replay a record, and cut the power at syncs and in between."""
        rng = self._rng
        syncs = [n for n, call in enumerate(calls) if call.name in ("fsync", "fdatasync")]
        before = set(rng.sample(syncs, min(len(syncs), self._cuts // 3)))
        after = set(rng.sample(syncs, min(len(syncs), self._cuts // 3)))
        # A journal is removed once, and then all must be in the partitions' files.
        names = [n for n, call in enumerate(calls) if call.name in ("unlink", "rename")]
        for places in (range(len(calls)), names):
            after |= set(rng.sample(places, min(len(places), self._cuts // 6)))
        descriptor = -1
        for number, call in enumerate(calls):
            if call.is_open:
                continue
            if number in before:
                self._cut()
            if call.name == "openat" and call.path(1) == str(notes):
                descriptor = call.result
            elif call.name == "write" and call.number(0) == descriptor:
                what = json.loads(call.data(1))
                self.outcome.confirms += "confirmed" in what
                self._noted += 1
                self._known[what.pop("partition")].note(self._noted, what)
            elif synced := self._disk.replay(call):
                self.outcome.syncs += 1
                self.outcome.rounds += synced.endswith(".log")
            if number in after:
                self._cut()
        self._finish([call for call in calls if call.is_open])

    def _finish(self, calls: list[disklog.Call]) -> None:
        """Find out which calls were carried out that a kill kept from returning."""
        subsets = [
            subset
            for size in range(len(calls) + 1)
            for subset in itertools.combinations(calls, size)
        ]
        for subset in subsets:
            disk = copy.deepcopy(self._disk) if subset else self._disk
            for call in subset:
                disk.replay(call)
            difference = disk.differs_from(self._root)
            if not difference:
                self._disk = disk
                return
        raise AssertionError(f"the record is not complete: {difference}")

    def _cut(self) -> None:
        """Look at one image of what a power cut may leave now."""
        image = self._folder / "image"
        loss = self._rng.choice(list(Loss))
        self._disk.write_image(image, loss, self._rng)
        self._judge(image, loss)
        shutil.rmtree(image)

    def _judge(
        self, image: Path, loss: Loss, *, is_kill: bool = False
    ) -> dict[str, dict[str, Value]]:
        self.outcome.cuts += 1
        saved = self._folder / f"violation{len(self.outcome.violations)}"
        shutil.copytree(image, saved)
        found: dict[str, dict[str, Value]] = {}
        name = "?"
        try:
            found = look(image / "state", self._known)
            for name, partition in self._known.items():
                if name in found:
                    partition.judge(found[name], is_kill=is_kill)
                elif partition.is_flushed:
                    raise Violation(f"partition {name} is not there")
        except Exception as error:
            what = (
                f"seed {self._seed}, process {self.outcome.processes}, note {self._noted}, "
                f"{loss.name}, partition {name}: {type(error).__name__}: {error} ({saved})"
            )
            self.outcome.violations.append(what)
            (saved / "why").write_text(what + "\n")
            if (self._folder / "notes").exists():
                shutil.copy(self._folder / "notes", saved)
        else:
            shutil.rmtree(saved)
        return found

    def _new_machine(self) -> tuple[str, int, bool]:
        return self._rng.randbytes(16).hex(), 0, True

    def _after(self) -> None:
        """What the next process finds: all, as after a kill, or what a power cut left."""
        rng = self._rng
        image, second = self._folder / "image", self._folder / "second"
        self._disk.write_image(image, Loss.NOTHING, rng)
        self._judge(image, Loss.NOTHING, is_kill=True)
        shutil.rmtree(image)
        for name, partition in self._known.items():
            machine = partition.machine()
            if machine is not None and rng.random() < 0.5:
                self._machines[name] = (*machine, False)
            else:
                self._machines[name] = self._new_machine()
        if rng.random() < 0.5:
            return
        self.outcome.images_gone_on += 1
        loss = rng.choice(list(Loss))
        self._disk.write_image(image, loss, rng)
        shutil.copytree(image, second)
        found = self._judge(second, loss)
        shutil.rmtree(second)
        nothing: dict[str, Value] = dict.fromkeys((PASSWORD, *KEYS))
        for name, partition in self._known.items():
            partition.forget_answers(found.get(name, nothing))
            self._machines[name] = self._new_machine()
        shutil.rmtree(self._root)
        image.rename(self._root)
        self._disk = Disk.of(self._root)
