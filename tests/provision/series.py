# SPDX-License-Identifier: Apache-2.0
"""Puts a patch series onto a source tree that is built again and again.

A tree that was unpacked anew and patched would have to be compiled anew. So the tree that is built
stays, beside a pristine copy, and only the files that the old or the new series touches are
written, and only when their content changes; what was compiled from the others stays valid.

The order of steps is made for interruption at any point: the names of the files that may differ
from the pristine copy are on disk before the first of them is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from .cache import Cache
from .errors import ProvisionError
from .progress import run

TOUCHED_FILE = "touched.json"
"""Names, beside the two trees, the files of the one that may differ from the other."""

PATCH_FILE = re.compile(r"^(?:---|\+\+\+) (?:a|b)/(\S+)", re.MULTILINE)
PATCH_ADDITION = re.compile(r"^--- /dev/null\n\+\+\+ b/(\S+)", re.MULTILINE)
PATCH_RENAME = re.compile(r"^(?:rename|copy) (?:from|to) (\S+)$", re.MULTILINE)


def read_series(folder: Path) -> list[Path]:
    """Gives the patches that a folder's ``series`` file names, in its order.

    The form is quilt's: one name a line, empty lines and what follows a ``#`` ignored. No folder or
    no series file is an empty series.

    Raises:
        ProvisionError: A named patch is not there.
    """
    series = folder / "series"
    if not series.is_file():
        return []
    patches = []
    for line in series.read_text(encoding="utf-8").splitlines():
        name = line.partition("#")[0].strip()
        if not name:
            continue
        path = folder / name
        if not path.is_file():
            raise ProvisionError(
                f"{series} names {name}, which is not beside it; expected a patch file. Add it or "
                "correct the series"
            )
        patches.append(path)
    return patches


def digest_of_series(patches: list[Path]) -> str:
    """Gives the digest of the patches' content and order; their names do not matter."""
    digest = hashlib.sha256()
    for patch in patches:
        content = patch.read_bytes()
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()


def touched_files(text: str) -> set[str]:
    """Names the files that a patch in git's form changes, adds, removes or renames.

    Raises:
        ProvisionError: A name leaves the tree.
    """
    names = set(PATCH_FILE.findall(text)) | set(PATCH_RENAME.findall(text))
    for name in names:
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise ProvisionError(
                f"a patch of the series changes {name!r}, which is outside the tree; expected "
                "names below it"
            )
    return names


def synchronize(
    cache: Cache, patches: list[Path], *, pristine: Path, tree: Path, log: Path, fuzz: int = 0
) -> int:
    """Makes a tree equal to its pristine copy with a series on it.

    Args:
        cache: Gives the scratch directory that the patches are tried in.
        patches: The series.
        pristine: The tree without patches, never written.
        tree: The tree that is built, which a former series may be on.
        log: File that gets the output of patch(1).
        fuzz: Lines of context that may differ; none for the release that the series is made for.

    Returns:
        How many files were written or removed.

    Raises:
        ProvisionError: A patch does not apply. The tree is as it was.
    """
    wanted = {
        name for patch in patches for name in touched_files(patch.read_text(encoding="utf-8"))
    }
    note = tree.parent / TOUCHED_FILE
    former = _read_note(note)
    with cache.scratch() as stage:
        for name in wanted:
            if (pristine / name).is_file():
                (stage / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(pristine / name, stage / name)
        for patch in patches:
            words = ["patch", "-p1", "--force", "--no-backup-if-mismatch", f"--fuzz={fuzz}"]
            run(f"applying {patch.name}", [*words, "-i", patch], log=log, cwd=stage)
        _write_note(note, former | wanted)
        changed = sum(
            _copy_if_different(stage / name if name in wanted else pristine / name, tree / name)
            for name in sorted(former | wanted)
        )
    _write_note(note, wanted)
    return changed


def added_files(text: str) -> set[str]:
    """Names the files that a patch in git's form adds."""
    return set(PATCH_ADDITION.findall(text))


def mirror(source: Path, pristine: Path, *, tree: Path, leave_out: Callable[[Path], bool]) -> None:
    """Makes the pristine copy equal to somebody's tree, which is only read.

    Only what changed is copied. :func:`synchronize` learns of it, and has to follow.

    Args:
        source: The tree to copy.
        pristine: The copy.
        tree: The tree that is built, beside the copy.
        leave_out: Says whether a file or folder of the source is not wanted.
    """
    wanted: dict[str, Path] = {}
    for folder, folders, names in os.walk(source):
        folders[:] = [name for name in folders if not leave_out(Path(folder, name))]
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not leave_out(path):
                wanted[path.relative_to(source).as_posix()] = path
    there = {
        path.relative_to(pristine).as_posix() for path in pristine.rglob("*") if path.is_file()
    }
    changed = (there - wanted.keys()) | {
        name for name, path in wanted.items() if not _looks_same(path, pristine / name)
    }
    note = tree.parent / TOUCHED_FILE
    _write_note(note, _read_note(note) | changed)
    for name in changed:
        target = pristine / name
        target.unlink(missing_ok=True)
        if name in wanted:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(wanted[name], target)


def _looks_same(source: Path, copy: Path) -> bool:
    """Compares size and time, as make does: the copy was made with the source's time."""
    if not copy.is_file():
        return False
    one, other = source.stat(), copy.stat()
    return (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)


def _read_note(note: Path) -> set[str]:
    return set(json.loads(note.read_text(encoding="utf-8"))) if note.is_file() else set()


def _write_note(note: Path, names: set[str]) -> None:
    temporary = note.with_suffix(".new")
    temporary.write_text(json.dumps(sorted(names)) + "\n", encoding="utf-8")
    temporary.replace(note)


def _copy_if_different(source: Path, target: Path) -> bool:
    """Makes the target's content and mode the source's, or removes it, if it is not so already."""
    if not source.is_file():
        was_there = target.is_file()
        target.unlink(missing_ok=True)
        return was_there
    if (
        target.is_file()
        and target.read_bytes() == source.read_bytes()
        and target.stat().st_mode == source.stat().st_mode
    ):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    # A new file with the time of now, whatever time the source has: ninja goes by it.
    temporary = target.with_name(target.name + ".provision-new")
    shutil.copyfile(source, temporary)
    temporary.chmod(source.stat().st_mode & 0o777)
    temporary.replace(target)
    return True
