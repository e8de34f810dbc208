# SPDX-License-Identifier: Apache-2.0
"""Captures as Wireshark reads them, with no more than the Lua file.

Lua takes its time over thousands of frames, so a test reads all that it asks for at once.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tests.e2e.lab import Lab

from hcallproto.capture import DISSECTOR

_TROUBLE: Final = ("hcalld.rest", "_ws.malformed")
"""Of a frame that is not understood, or not to its end."""

Row = dict[str, str]


def read(lab: Lab, path: Path, fields: Iterable[str], *, passes: int = 1) -> list[Row]:
    """Fields of each frame, by name; all frames must be understood.

    Args:
        lab: Has tshark.
        path: The capture.
        fields: Which; one that a frame does not have is empty.
        passes: 2: frames know what comes after them, as in Wireshark's window.
    """
    # Errors of the script are experts' messages.
    names = dict.fromkeys((*fields, *_TROUBLE, "_ws.expert.message"))
    words = [word for name in names for word in ("-e", name)]
    done = subprocess.run(
        [
            *(lab.require("tshark"), "-r", path, "-X", f"lua_script:{DISSECTOR}"),
            *(*(["-2"] * (passes == 2)), "-T", "fields", *words),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Lua" not in done.stdout + done.stderr
    rows = [dict(zip(names, line.split("\t"), strict=True)) for line in done.stdout.splitlines()]
    assert rows
    assert not [row for row in rows if any(row[name] for name in _TROUBLE)]
    return rows
