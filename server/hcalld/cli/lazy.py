# SPDX-License-Identifier: Apache-2.0
"""Subcommands, each in a module that is loaded when it is used, and how modules are loaded."""

from __future__ import annotations

import contextlib
import gc
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import click


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Import modules without the garbage collector: next to nothing of them is garbage.

    Modules make so many objects that it looks at all of them again and again, for a seventh of
    the daemon's start.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class LazyGroup(click.Group):
    """A group that imports a subcommand's module when it is used.

    Args:
        modules: subcommand to the module that holds it, as an attribute named ``command``,
            or to ``module:attribute``.
    """

    def __init__(self, *args: Any, modules: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The subcommands, in the order in which help shows them."""
        return list(self._modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A subcommand, or None if there is none of this name."""
        where = self._modules.get(cmd_name)
        if where is None:
            return None
        module, _, attribute = where.partition(":")
        with loading():
            command: click.Command = getattr(
                importlib.import_module(module), attribute or "command"
            )
        return command
