# SPDX-License-Identifier: Apache-2.0
"""Where things are by default: the same for every subcommand."""

from __future__ import annotations

import os
import pathlib

import platformdirs


def state_dir() -> pathlib.Path:
    """Where partitions' stores are kept."""
    return pathlib.Path(platformdirs.user_state_dir("hcalld"))


def socket_path() -> pathlib.Path:
    """The daemon's socket: in the user's runtime directory, which others cannot enter."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return pathlib.Path(runtime) / "hcalld.sock" if runtime else state_dir() / "hcalld.sock"
