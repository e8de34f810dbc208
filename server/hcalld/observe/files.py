# SPDX-License-Identifier: Apache-2.0
"""The names of a capture's files. None that is there is written over."""

from __future__ import annotations

import collections
import itertools
import pathlib
import re


class CaptureFiles:
    """Names a capture's files, and removes those that are not kept.

    One file has the name that was asked for; what has that name already is renamed. Ring files
    have numbers, and go on from those that are there.

    Args:
        path: what was asked for.
        is_ring: a number comes before its suffix.
        keep: so many ring files are kept, earlier ones counted; None: all.
    """

    def __init__(self, path: pathlib.Path, *, is_ring: bool, keep: int | None) -> None:
        self.paths: collections.deque[pathlib.Path] = collections.deque()
        """Of the files that are kept, the oldest first."""
        self.put_aside: pathlib.Path | None = None
        """What ``path`` named before is here."""
        self._path = path
        self._is_ring = is_ring
        self._keep = keep
        self._number = 0
        if is_ring:
            earlier = sorted((number, one) for one in self._siblings() for number in _number(one))
            self.paths.extend(one for _, one in earlier)
            self._number = earlier[-1][0] if earlier else 0

    def next_path(self) -> pathlib.Path:
        """The name of the next file; nothing of value has it.

        Raises:
            OSError: what has it cannot be renamed.
        """
        path = self._path
        if self._is_ring:
            self._number += 1
            return path.with_name(f"{path.stem}_{self._number:05}{path.suffix}")
        # A named pipe or a device is what it is.
        if path.is_file() and path.stat().st_size:
            names = (path.with_name(f"{path.stem}.{n}{path.suffix}") for n in itertools.count(1))
            self.put_aside = next(name for name in names if not name.exists())
            path.rename(self.put_aside)
        return path

    def begun(self, path: pathlib.Path) -> None:
        """A file has been made; those that are too many are removed.

        Raises:
            OSError: one cannot be.
        """
        self.paths.append(path)
        while self._keep is not None and len(self.paths) > self._keep:
            self.paths.popleft().unlink(missing_ok=True)

    def _siblings(self) -> list[pathlib.Path]:
        path = self._path
        named = re.compile(rf"{re.escape(path.stem)}_\d{{5,}}{re.escape(path.suffix)}")
        try:
            return [one for one in path.parent.iterdir() if named.fullmatch(one.name)]
        except OSError:
            # Making the first file will say it.
            return []


def _number(path: pathlib.Path) -> list[int]:
    digits = path.stem.rpartition("_")[2]
    return [int(digits)] if len(digits) < 10 else []
