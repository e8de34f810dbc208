# SPDX-License-Identifier: Apache-2.0
"""Which daemon a command asks."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import click

from hcalld.cli import paths
from hcalld.cli.options import state_dir_option

_control_option = click.option(
    "--control",
    type=click.Path(path_type=pathlib.Path),
    help="The daemon's control socket (default: 'control' in the state directory).",
)


def daemon_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--state-dir`` and ``--control``; the command gets the socket's path as ``control``."""

    @functools.wraps(function)
    def run(
        *args: Any, state_dir: pathlib.Path | None, control: pathlib.Path | None, **kwargs: Any
    ) -> Any:
        from hcalld.control.endpoint import NAME

        path = control or (state_dir or paths.state_dir()) / NAME
        return function(*args, control=path, **kwargs)

    return state_dir_option(_control_option(run))
