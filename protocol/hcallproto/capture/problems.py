# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a capture, in words; a bad file of any size has only so many."""

from __future__ import annotations

from typing import Final

MAX_PROBLEMS: Final = 20


class Problems(list[str]):
    """The first of them, and at last how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def add(self, offset: int, what: str) -> None:
        """Something is wrong at a place in the file."""
        self.total += 1
        if self.total <= MAX_PROBLEMS:
            self.append(f"at byte {offset}: {what}")
        elif self.total == MAX_PROBLEMS + 1:
            self.append("")
        if self.total > MAX_PROBLEMS:
            self[MAX_PROBLEMS] = f"and {self.total - MAX_PROBLEMS} more"
