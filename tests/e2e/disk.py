# SPDX-License-Identifier: Apache-2.0
"""A directory on a disk that may lose its power: what is on it, and what only in memory.

POSIX promises of a file what was written before an ``fsync`` of it, and of a name what
was done to its directory before an ``fsync`` of that. Everything else may be on the disk
after a power cut or not, in any order: each write, each 512 bytes of a write, each change
of a file's size, each name that was made, moved or removed. Real file systems lose less.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import random
from pathlib import Path, PurePosixPath

from tests.e2e.disklog import Call

SECTOR = 512


class Loss(enum.Enum):
    """What becomes of that which no sync has covered."""

    NOTHING = enum.auto()
    """It is all there: the machine had time to write."""
    EVERYTHING = enum.auto()
    """None of it is there."""
    SOME = enum.auto()
    """Each write, size and name by itself is there or not."""
    SECTORS = enum.auto()
    """The same, and writes are torn."""
    OLDEST_STAY = enum.auto()
    """All before a moment is there, nothing after it."""


@dataclasses.dataclass(slots=True)
class _Write:
    place: int
    offset: int
    data: bytes

    def apply(self, content: bytearray) -> None:
        end = self.offset + len(self.data)
        if len(content) < end:
            content.extend(bytes(end - len(content)))
        content[self.offset : end] = self.data


@dataclasses.dataclass(slots=True)
class _Resize:
    place: int
    size: int

    def apply(self, content: bytearray) -> None:
        if self.size <= len(content):
            del content[self.size :]
        else:
            content.extend(bytes(self.size - len(content)))


@dataclasses.dataclass(slots=True, eq=False)
class File:
    """A file: what is on the disk, and what was done since."""

    durable: bytearray = dataclasses.field(default_factory=bytearray)
    pending: list[_Write | _Resize] = dataclasses.field(default_factory=list)

    def sync(self, before: int) -> None:
        """All that was done before a place is on the disk."""
        for change in self.pending:
            if change.place < before:
                change.apply(self.durable)
        self.pending = [change for change in self.pending if change.place >= before]


@dataclasses.dataclass(slots=True)
class _Names:
    """A change of a directory: what its names mean after it; None: nothing."""

    place: int
    changes: dict[str, Node | None]


@dataclasses.dataclass(slots=True, eq=False)
class Directory:
    """A directory: its names on the disk, as they are, and what was done since."""

    durable: dict[str, Node] = dataclasses.field(default_factory=dict)
    now: dict[str, Node] = dataclasses.field(default_factory=dict)
    pending: list[_Names] = dataclasses.field(default_factory=list)

    def change(self, place: int, changes: dict[str, Node | None]) -> None:
        """Change names, together."""
        _apply(self.now, changes)
        self.pending.append(_Names(place, changes))

    def sync(self, before: int) -> None:
        """All that was done before a place is on the disk."""
        for change in self.pending:
            if change.place < before:
                _apply(self.durable, change.changes)
        self.pending = [change for change in self.pending if change.place >= before]


Node = File | Directory


def _apply(names: dict[str, Node], changes: dict[str, Node | None]) -> None:
    for name, node in changes.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


@dataclasses.dataclass(slots=True)
class _Open:
    """An open file of the traced process."""

    node: Node
    path: str
    """As it was opened, or renamed to."""
    offset: int = 0


_IGNORED = frozenset({"lseek", "fcntl", "mmap"})


class Disk:
    """The directory ``root`` and all below it; empty and on the disk at first."""

    def __init__(self, root: Path) -> None:
        self._root = PurePosixPath(root)
        self.top = Directory()
        self._open: dict[int, _Open] = {}
        self._place = 0
        """Grows with every record that is replayed."""
        self._base = 0

    @classmethod
    def of(cls, root: Path) -> Disk:
        """A disk that holds a directory as it is."""
        disk = cls(root)
        disk.top = _read(root)
        return disk

    # -- replaying ------------------------------------------------------------------------

    def begin_record(self) -> None:
        """The record of another process begins: its descriptors are its own."""
        self._open.clear()
        self._base = self._place + 1

    def replay(self, call: Call) -> str:
        """Carry out a call; gives the path of what it synced, or "".

        Raises:
            ValueError: a call that this model does not know touched the directory.
        """
        self._place = self._base + call.place
        start = self._base + call.start
        name, arguments = call.name, call.arguments
        match name:
            case "open" | "openat" | "creat":
                self._do_open(call)
            case "close":
                self._open.pop(call.number(0), None)
            case "dup" | "dup2" | "dup3":
                self._duplicate(call.number(0), call.result)
            case "fcntl" if "F_DUPFD" in arguments[1]:
                self._duplicate(call.number(0), call.result)
            case "pwrite64":
                self._write(call, call.number(3))
            case "write":
                self._write(call, None)
            case "lseek":
                if (opened := self._open.get(call.number(0))) is not None:
                    opened.offset = call.result
            case "ftruncate":
                if (opened := self._open.get(call.number(0))) is not None:
                    assert isinstance(opened.node, File)
                    opened.node.pending.append(_Resize(self._place, call.number(1)))
            case "rename":
                self._rename(call.path(0), call.path(1))
            case "renameat" | "renameat2":
                self._rename(self._at(call, 0), self._at(call, 2))
            case "link":
                self._link(call.path(0), call.path(1))
            case "linkat":
                self._link(self._at(call, 0), self._at(call, 2))
            case "unlink" | "rmdir":
                self._remove(call.path(0))
            case "unlinkat":
                self._remove(self._at(call, 0))
            case "mkdir":
                self._make(call.path(0), Directory())
            case "mkdirat":
                self._make(self._at(call, 0), Directory())
            case "fsync" | "fdatasync":
                opened = self._open.get(call.number(0))
                if opened is not None:
                    opened.node.sync(start)
                    return opened.path
            case "mmap":
                fd = call.number(4)
                shared = "MAP_SHARED" in arguments[3] and "PROT_WRITE" in arguments[2]
                if shared and fd in self._open:
                    raise ValueError("a file was mapped, and may be changed past the record")
            case _ if name in _IGNORED:
                pass
            case "sync" | "syncfs" | "msync":
                raise ValueError(f"{name} is nothing that hcalld does")
            case _:
                if arguments[0].isdigit() and int(arguments[0]) not in self._open:
                    return ""
                raise ValueError(f"{name}({str(arguments)[:100]}): not known here")
        return ""

    def _find(self, path: str) -> tuple[Directory, str] | None:
        """The directory and name of a path below the root; None: it is elsewhere."""
        try:
            parts = PurePosixPath(path).relative_to(self._root).parts
        except ValueError:
            if not path.startswith("/"):
                raise ValueError(f"{path}: a relative path, expected an absolute one") from None
            return None
        node: Node = self.top
        for part in parts[:-1]:
            assert isinstance(node, Directory)
            node = node.now[part]
        assert isinstance(node, Directory)
        return node, parts[-1] if parts else ""

    @staticmethod
    def _at(call: Call, index: int) -> str:
        path = call.path(index + 1)
        if not path.startswith("/"):
            raise ValueError(f"{call.name}: a path relative to a descriptor")
        return path

    def _do_open(self, call: Call) -> None:
        path_index = 1 if call.name == "openat" else 0
        self._open.pop(call.result, None)
        path = call.path(path_index)
        if not path.startswith("/"):
            return  # of the interpreter's own; the state directory is named by its whole path
        found = self._find(path)
        if found is None:
            return
        directory, name = found
        flags = "" if call.name == "creat" else call.arguments[path_index + 1]
        node = directory.now.get(name) if name else directory
        if node is None:
            node = File()
            directory.change(self._place, {name: node})
        if "O_TRUNC" in flags:
            assert isinstance(node, File)
            node.pending.append(_Resize(self._place, 0))
        if "O_APPEND" in flags:
            raise ValueError("O_APPEND is not known here")
        self._open[call.result] = _Open(node, path)

    def _duplicate(self, old: int, new: int) -> None:
        self._open.pop(new, None)
        if old in self._open:
            self._open[new] = self._open[old]

    def _write(self, call: Call, offset: int | None) -> None:
        opened = self._open.get(call.number(0))
        if opened is None:
            return
        assert isinstance(opened.node, File)
        data = call.data(1)[: call.result]
        if offset is None:
            offset = opened.offset
            opened.offset += len(data)
        opened.node.pending.append(_Write(self._place, offset, data))

    def _rename(self, old: str, new: str) -> None:
        source, target = self._find(old), self._find(new)
        if source is None or target is None or source[0] is not target[0]:
            raise ValueError(f"{old} renamed to {new}: not known here")
        directory = source[0]
        for opened in self._open.values():
            if opened.node is directory.now[source[1]]:
                opened.path = new
        directory.change(self._place, {source[1]: None, target[1]: directory.now[source[1]]})

    def _link(self, old: str, new: str) -> None:
        source, target = self._find(old), self._find(new)
        assert source is not None
        assert target is not None
        target[0].change(self._place, {target[1]: source[0].now[source[1]]})

    def _remove(self, path: str) -> None:
        found = self._find(path)
        if found is not None:
            found[0].change(self._place, {found[1]: None})

    def _make(self, path: str, node: Node) -> None:
        found = self._find(path)
        if found is not None:
            found[0].change(self._place, {found[1]: node})

    # -- power cuts -----------------------------------------------------------------------

    def write_image(self, to: Path, loss: Loss, rng: random.Random) -> None:
        """Write what the disk may hold if the power goes now."""
        moment = rng.choice(_pending(self.top) or [0])
        _Cut(loss, rng, moment).directory(self.top, to)

    def differs_from(self, path: Path) -> str:
        """How a real directory differs from this one with nothing lost; "" if it does not."""
        return _difference(self.top, path)


class _Cut:
    """One power cut."""

    def __init__(self, loss: Loss, rng: random.Random, moment: int) -> None:
        self._loss = loss
        self._rng = rng
        self._moment = moment
        # Mostly lost, mostly kept, or half of it.
        self._share = rng.choice((0.1, 0.5, 0.9))

    def _stays(self, place: int) -> bool:
        match self._loss:
            case Loss.NOTHING:
                return True
            case Loss.EVERYTHING:
                return False
            case Loss.OLDEST_STAY:
                return place <= self._moment
            case _:
                return self._rng.random() < self._share

    def directory(self, node: Directory, to: Path) -> None:
        to.mkdir()
        names = dict(node.durable)
        for change in node.pending:
            if self._stays(change.place):
                _apply(names, change.changes)
        for name, child in names.items():
            if isinstance(child, Directory):
                self.directory(child, to / name)
            else:
                (to / name).write_bytes(self._content(child))
                (to / name).chmod(0o600)

    def _content(self, file: File) -> bytes:
        content = bytearray(file.durable)
        for change in file.pending:
            if self._loss is Loss.SECTORS and isinstance(change, _Write):
                self._tear(change, content)
            elif self._stays(change.place):
                change.apply(content)
        return bytes(content)

    def _tear(self, write: _Write, content: bytearray) -> None:
        offset = write.offset
        end = offset + len(write.data)
        while offset < end:
            stop = min(end, (offset // SECTOR + 1) * SECTOR)
            if self._stays(write.place):
                data = write.data[offset - write.offset : stop - write.offset]
                _Write(write.place, offset, data).apply(content)
            offset = stop


def _pending(node: Node) -> list[int]:
    """The places of all that is not on the disk."""
    places = [change.place for change in node.pending]
    if isinstance(node, Directory):
        for child in node.now.values():
            places += _pending(child)
    return places


def _read(path: Path) -> Directory:
    directory = Directory()
    for entry in os.scandir(path):
        node: Node
        if entry.is_dir(follow_symlinks=False):
            node = _read(Path(entry.path))
        else:
            node = File(bytearray(Path(entry.path).read_bytes()))
        directory.durable[entry.name] = directory.now[entry.name] = node
    return directory


def _difference(node: Directory, path: Path) -> str:
    there = sorted(os.listdir(path))
    if there != sorted(node.now):
        return f"{path} has {there}, the record {sorted(node.now)}"
    for name, child in node.now.items():
        if isinstance(child, Directory):
            if found := _difference(child, path / name):
                return found
            continue
        content = bytearray(child.durable)
        for change in child.pending:
            change.apply(content)
        if content != (path / name).read_bytes():
            return f"{path / name} has other content than the record"
    return ""
