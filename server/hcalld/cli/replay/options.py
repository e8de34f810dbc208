# SPDX-License-Identifier: Apache-2.0
"""What all subcommands of ``hcalld replay`` have in common: options, and how they end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import click

from hcalld.cli import exits
from hcalld.cli.bundle import bundle
from hcalld.cli.capturefiles import chunks
from hcalld.cli.locks import UNLOCKS, unlock_of
from hcalld.core.errors import HcalldError
from hcalld.replay.errors import Stopped
from hcalld.replay.ignoring import Ignored, IgnoreError, parse_ignored
from hcalld.replay.pace import PaceError, parse_pace
from hcallproto.payloads.quoting import printable

if TYPE_CHECKING:
    from hcalld.captures.events import Events
    from hcalld.replay.differences import Difference


def _ignored(ctx: click.Context, param: click.Parameter, words: tuple[str, ...]) -> Ignored:
    try:
        return parse_ignored(words)
    except IgnoreError as error:
        raise click.BadParameter(str(error)) from None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be replayed, and how differences are told.

    Attributes:
        capture: an open file.
        guest: whose connections; None: there are no others.
        ignored: fields that are not compared.
        stop: the first difference is enough.
        as_json: for programs.
        secrets: what opens those of the capture; None: they are left out.
    """

    capture: BinaryIO
    guest: str | None
    ignored: Ignored
    stop: bool
    as_json: bool
    secrets: str | None

    @property
    def is_blanked(self) -> bool:
        """Secrets are zeros."""
        return self.secrets is None

    @property
    def name(self) -> str:
        """Of the capture, for messages."""
        return getattr(self.capture, "name", "standard input")

    def events(self) -> Events:
        """Reads the capture.

        Raises:
            HcalldError: what opens it cannot be read.
        """
        from hcalld.captures.events import Events

        secrets = self.secrets
        unlock = None if secrets is None else unlock_of(secrets, "passphrase of the capture")
        return Events(chunks(self.capture), unlock)

    @contextlib.contextmanager
    def broken_is_2(self) -> Iterator[None]:
        """End with exit status 2 if the capture cannot be read or played, or nobody is there."""
        from hcallproto.errors import CaptureError

        try:
            yield
        except (CaptureError, HcalldError) as error:
            self.is_broken(str(error))

    def is_broken(self, why: str) -> NoReturn:
        """End with exit status 2."""
        click.echo(f"hcalld: {self.name}: {why}", err=True)
        sys.exit(exits.BROKEN)


replay_options = bundle(
    "wanted",
    Wanted,
    (
        click.option("--guest", help="Play this guest's connections; needed if there are more."),
        click.option(
            "--ignore",
            "ignored",
            multiple=True,
            metavar="FIELD",
            callback=_ignored,
            help="Don't compare this field: FIELD, or CALL.FIELD such as "
            "H_PKS_GET_CONFIG.usedspace; status, rN, memory, pages, nip, msr, and the table's "
            "names of results and buffers.",
        ),
        click.option("--stop", is_flag=True, help="Stop at the first difference."),
        click.option("--json", "as_json", is_flag=True, help="A JSON object on each line."),
        click.option(
            "--secrets",
            is_flag=False,
            flag_value="passphrase:",
            metavar="[HOW]",
            help="Open what --capture-secrets has sealed, and play it with its secrets. "
            f"By: {UNLOCKS}.",
        ),
        click.argument("capture", type=click.File("rb")),
    ),
)
"""CAPTURE and the options of all replays; the command gets them as ``wanted``."""


class Reporter:
    """Prints differences as they are found."""

    def __init__(self, *, as_json: bool, stop: bool = False) -> None:
        self.differences = 0
        self._as_json = as_json
        self._stop = stop

    def difference(self, where: str, difference: Difference) -> None:
        """Print one; those by nature are not counted.

        Args:
            where: guest, virtual CPU and number of the call.
            difference: what is not the same.

        Raises:
            Stopped: it is the first, and one is enough.
        """
        self.differences += not difference.by_nature
        if self._as_json:
            self._json(
                kind="by nature" if difference.by_nature else "difference",
                where=where,
                call=difference.call,
                field=difference.field,
                expected=difference.expected,
                got=difference.got,
            )
        elif not difference.by_nature:
            # A capture's names and texts are anybody's.
            click.echo(printable(f"{where} {difference}"))
        if self._stop and self.differences:
            raise Stopped

    def note(self, text: str) -> None:
        """Print something that is no difference."""
        if self._as_json:
            self._json(kind="note", text=text)
        else:
            click.echo(printable(text))

    def summary(self, **figures: object) -> None:
        """Print how it went: numbers by name."""
        if self._as_json:
            self._json(kind="summary", differences=self.differences, **figures)
            return
        shown = [f"{value} {name.replace('_', ' ')}" for name, value in figures.items()]
        what = f"{self.differences or 'no'} difference{'s' * (self.differences != 1)}"
        click.echo(", ".join([what, *shown]))

    def _json(self, **fields: object) -> None:
        click.echo(json.dumps(fields))


class _PaceType(click.ParamType):  # type: ignore[type-arg]  # generic in its stubs alone
    name = "real|fast|FACTOR"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        try:
            return parse_pace(value)
        except PaceError as error:
            self.fail(str(error), param, ctx)


pace_option = click.option(
    "--pace",
    type=_PaceType(),
    default="fast",
    show_default=True,
    help="real: wait as long as there was between frames; fast: don't; or so many times as fast.",
)

socket_option = click.option(
    "--socket-path",
    type=click.Path(path_type=pathlib.Path),
    required=True,
    metavar="SOCKET",
    help="The unix socket that a daemon listens on.",
)
