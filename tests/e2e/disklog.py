# SPDX-License-Identifier: Apache-2.0
"""What a process did to a directory, from strace's record of its system calls.

strace and not a preloaded library, for it sees what every library does, SQLite and
Python alike, with the bytes, in one order over all threads, and goes on to the moment of
a kill. Whether the record is complete is checked: ``disk.py`` replays it, and what comes
out must be the directory as it is. A call that would change files past the record, such
as a shared mapping, is refused here.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

CALLS = (
    "open,openat,creat,close,dup,dup2,dup3,fcntl,write,pwrite64,writev,pwritev,pwritev2,lseek,"
    "ftruncate,truncate,fallocate,rename,renameat,renameat2,link,linkat,symlink,symlinkat,"
    "unlink,unlinkat,mkdir,mkdirat,rmdir,fsync,fdatasync,sync,syncfs,sync_file_range,msync,"
    "mmap,copy_file_range,sendfile,splice"
)


def command(strace: Path, output: Path) -> list[str]:
    """The words that come before a command whose calls are to be recorded."""
    words = [str(strace), "-f", "-qq", "-xx", "-s", str(1 << 25), "-e", "signal=none"]
    return [*words, "-e", f"trace={CALLS}", "-o", str(output)]


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """One system call that has returned.

    Attributes:
        start: the line of the record at which it began.
        place: the line at which it returned.
        is_open: it had not returned when the process was killed: it may have been carried
            out, or not.
    """

    name: str
    arguments: Sequence[str]
    result: int
    start: int
    place: int
    is_open: bool = False

    def path(self, index: int) -> str:
        """An argument that is a path."""
        return os.fsdecode(self.data(index))

    def data(self, index: int) -> bytes:
        """An argument that is a string."""
        text = self.arguments[index]
        if not text.startswith('"') or not text.endswith('"'):
            raise ValueError(f"{self.name}: {text[:80]} is no whole string")
        return bytes.fromhex(text[1:-1].replace("\\x", ""))

    def number(self, index: int) -> int:
        """An argument that is a number."""
        return int(self.arguments[index], 0)


_LINE = re.compile(r"(?P<pid>\d+) +(?P<rest>.*)", re.DOTALL)
_WHOLE = re.compile(r"(?P<name>[\w?]+)\((?P<arguments>.*)\) += (?P<result>-?\d+|\?)", re.DOTALL)
_BEGUN = re.compile(r"(?P<name>\w+)\((?P<arguments>.*) <(?:unfinished|detached) \.\.\.>", re.DOTALL)
_RESUMED = re.compile(r"<\.\.\. (?P<name>\w+) resumed>(?P<rest>.*)", re.DOTALL)


def read(record: Path) -> Iterator[Call]:
    """The calls of a record in the order in which they returned; failed ones are left out.

    Those that had not returned when the process was killed come last.
    """
    begun: dict[str, tuple[int, str]] = {}
    place = 0
    with record.open(encoding="ascii") as lines:
        for place, line in enumerate(lines):
            match = _LINE.match(line.rstrip("\n"))
            if match is None:
                raise ValueError(f"{record}: line {place + 1} is not strace's: {line[:80]}")
            pid, rest = match["pid"], match["rest"]
            start = place
            if resumed := _RESUMED.match(rest):
                start, before = begun.pop(pid)
                if not before:
                    continue
                rest = before + resumed["rest"]
            elif unfinished := _BEGUN.match(rest):
                if unfinished["name"] == "close":
                    # The number is free for other threads before the call has returned.
                    yield Call("close", _split(unfinished["arguments"]), 0, place, place)
                    begun[pid] = place, ""
                    continue
                begun[pid] = place, f"{unfinished['name']}({unfinished['arguments']}"
                continue
            whole = _WHOLE.match(rest)
            if whole is None:
                if rest.startswith(("+++", "---")):
                    continue
                raise ValueError(f"{record}: line {place + 1} is not strace's: {rest[:80]}")
            if whole["result"] == "?":
                begun[pid] = place, f"{whole['name']}({whole['arguments']}"
                continue
            if int(whole["result"]) < 0:
                continue
            arguments = _split(whole["arguments"])
            yield Call(whole["name"], arguments, int(whole["result"]), start, place)
    for start, text in begun.values():
        name, _, rest = text.partition("(")
        arguments = _split(rest.removesuffix(" <unfinished ...>"))
        if name in _SYNCS or not text:
            continue
        result = int(arguments[2]) if name in ("write", "pwrite64") else _NO_DESCRIPTOR
        yield Call(name, arguments, result, start, place + 1, is_open=True)


_SYNCS = frozenset({"fsync", "fdatasync"})
_NO_DESCRIPTOR = -2


def _split(arguments: str) -> list[str]:
    """Arguments, at the commas outside brackets; strings are in hexadecimal and have none."""
    if "[" not in arguments and "{" not in arguments:
        return arguments.split(", ")
    found, depth, last = [], 0, 0
    for place, char in enumerate(arguments):
        if char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        elif char == "," and not depth:
            found.append(arguments[last:place].strip())
            last = place + 1
    return [*found, arguments[last:].strip()]
