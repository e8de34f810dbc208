# SPDX-License-Identifier: Apache-2.0
"""What the guest stub's test ``soak`` was told, and what the store must hold then.

The log is described in guest_stub/README.md, "The soak log". It is the guest's word; the store is
read with the daemon's own classes after the daemon has ended.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hcalld.domain.keystore_records import (
    NAMESPACE,
    OBJECT_TAG,
    decode_object,
    split_object_key,
)
from hcalld.domain.labels import os_label
from hcalld.stores.directory import StateDirectory

MUTATING: Final = ("W", "D", "G", "K")
"""WRITE, REMOVE, GEN_PASSWORD, GEN_KEY."""

SUCCESS: Final = 0
CONSUMER_OS: Final = 3
_PREFIX: Final = b"STUB"

_CALL = re.compile(
    r"^> (?P<cpu>\d+) (?P<seq>\d+) (?P<op>[WRDCGKPU]) (?P<consumer>\d) (?P<label>\S+)"
    r"(?: (?P<policy>[0-9a-f]+) (?P<size>\d+)(?: (?P<hash>[0-9a-f]{16}))?)?$"
)
_TOLD = re.compile(
    r"^< (?P<cpu>\d+) (?P<seq>\d+) (?P<op>[WRDCGKPU]) (?P<code>-?\d+)(?: (?P<r4>\S+))?"
)


class SoakError(AssertionError):
    """The guest's log and the store do not agree."""


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
    """One call of the guest's.

    Attributes:
        hash: Of the data; None: the guest does not know them.
        code: What it was told; None: nothing, so far.
        flushed: It was told that the object is flushed.
    """

    cpu: int
    seq: int
    op: str
    consumer: int
    label: str
    policy: int
    size: int
    hash: int | None
    code: int | None = None
    flushed: bool = False


def fnv1a(data: bytes) -> int:
    """FNV-1a, 64 bits, as guest_stub/lib/prng.c has it."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def parse(text: str) -> list[Operation]:
    """Reads a log; operations are in the order in which they were begun.

    Raises:
        SoakError: An answer without its call, or a CPU with two calls at once.
    """
    operations: list[Operation] = []
    pending: dict[int, int] = {}
    for line in text.splitlines():
        if found := _CALL.match(line):
            cpu = int(found["cpu"])
            if cpu in pending:
                raise SoakError(f"CPU {cpu} makes two calls at once: {line}")
            pending[cpu] = len(operations)
            operations.append(
                Operation(
                    cpu,
                    int(found["seq"]),
                    found["op"],
                    int(found["consumer"]),
                    found["label"],
                    int(found["policy"] or "0", 16),
                    int(found["size"] or 0),
                    int(found["hash"], 16) if found["hash"] else None,
                )
            )
        elif found := _TOLD.match(line):
            index = pending.pop(int(found["cpu"]), None)
            if index is None or operations[index].seq != int(found["seq"]):
                raise SoakError(f"an answer without its call: {line}")
            told, op = found["r4"], found["op"]
            flushed = op == "C" and found["code"] == "0" and told == "1"
            one = dataclasses.replace(operations[index], code=int(found["code"]), flushed=flushed)
            if op == "K" and told is not None:
                # Which key it is, the guest is told with the answer.
                one = dataclasses.replace(one, hash=int(told, 16))
            operations[index] = one
    return operations


def successes(operations: list[Operation]) -> int:
    """Counts the changes that the guest was told of."""
    return sum(one.op in MUTATING and one.code == SUCCESS for one in operations)


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """What a partition's store holds.

    Attributes:
        generation: Commits in its life, the beginnings of runs included.
        objects: (consumer, label) to policy and data.
    """

    generation: int
    objects: dict[tuple[int, bytes], tuple[int, bytes]]


def read_store(state_dir: Path, partition: str) -> Stored:
    """Reads a partition's store, every value of it."""
    store = StateDirectory(state_dir).open(partition, create=False)
    try:
        store.verify()
        loaded = store.load()
        generation = store.generation
    finally:
        store.close()
    objects = {}
    for record in loaded.of(NAMESPACE):
        if record.key.startswith(OBJECT_TAG):
            consumer, label = split_object_key(record.key)
            objects[int(consumer), label] = decode_object(record)
    return Stored(generation, objects)


def label_bytes(consumer: int, name: str) -> bytes:
    """The label under which the stub keeps an object."""
    return os_label(_PREFIX, name.encode()) if consumer == CONSUMER_OS else name.encode()


def disagreements(operations: list[Operation], stored: Stored) -> Iterator[str]:
    """Says where the store is not as the guest was told.

    A call without an answer may have happened or not; its label is not judged.
    """
    last: dict[tuple[int, str], Operation] = {}
    unknown: set[tuple[int, str]] = set()
    for one in operations:
        key = (one.consumer, one.label)
        if one.op in ("W", "D", "K"):
            if one.code is None:
                unknown.add(key)
            elif one.code == SUCCESS:
                last[key] = one
                unknown.discard(key)
    known = set()
    for key, one in last.items():
        name = label_bytes(*key)
        known.add((one.consumer, name))
        if key in unknown:
            continue
        there = stored.objects.get((one.consumer, name))
        if one.op == "D":
            if there is not None:
                yield f"{one.label} was removed by call {one.seq} of CPU {one.cpu}, and is there"
        elif there is None:
            yield f"{one.label} was written by call {one.seq} of CPU {one.cpu}, and is missing"
        elif (there[0], len(there[1])) != (one.policy, one.size) or (
            one.hash is not None and fnv1a(there[1]) != one.hash
        ):
            yield f"{one.label} is not as call {one.seq} of CPU {one.cpu} wrote it"
    for consumer, name in stored.objects.keys() - known:
        if not any(label_bytes(*key) == name for key in unknown):
            yield f"consumer {consumer} has {name!r}, which nobody wrote"
