# SPDX-License-Identifier: Apache-2.0
"""``hcalld ctl capture``: keep the frames of a daemon's guests, from now on."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import click

from hcalld.cli.ctl.daemon import daemon_options
from hcalld.cli.locks import recipient_of

if TYPE_CHECKING:
    from hcalld.control.messages import CaptureState, PassphraseFile, RecipientKey

BYTES_PER_MIB = 1 << 20


@click.group(name="capture", short_help="Start and stop a capture.")
def command() -> None:
    """Start and stop a daemon's capture, or show how it goes."""


@command.command(name="start", short_help="Keep all guests' frames from now on.")
@daemon_options
@click.option("--size", "mib", type=click.IntRange(1), help="Begin a new file after so many MiB.")
@click.option("--files", type=click.IntRange(1), help="Keep so many of these; the oldest go.")
@click.option(
    "--secrets",
    metavar="HOW",
    help="Keep secrets too, encrypted, and all that a replay needs. What opens it: "
    "passphrase-file:PATH (that the daemon reads) or recipient:FILE (X25519 public key, PEM).",
)
@click.argument("path", type=click.Path(path_type=pathlib.Path))
def start(
    *,
    control: pathlib.Path,
    mib: int | None,
    files: int | None,
    secrets: str | None,
    path: pathlib.Path,
) -> None:
    """Write the frames of all guests to PATH from now on.

    What may be secret is blanked. The daemon makes the file.
    """
    from hcalld.control.client import ask
    from hcalld.control.messages import BeginCapture

    if files is not None and mib is None:
        raise click.UsageError("--files needs --size")
    size = None if mib is None else mib * BYTES_PER_MIB
    # The daemon may run elsewhere in the file system.
    request = BeginCapture(
        path=str(path.absolute()), file_bytes=size, files=files, secrets=_secrets(secrets)
    )
    state = ask(control, request)
    click.echo(f"writing {state.path}; end it with 'hcalld ctl capture stop'")


def _secrets(how: str | None) -> RecipientKey | PassphraseFile | None:
    """What the daemon is told of the lock: never a passphrase."""
    if how is None:
        return None
    from hcalld.control.messages import PassphraseFile, RecipientKey

    kind, _, where = how.partition(":")
    if kind == "passphrase-file" and where:
        return PassphraseFile(path=str(pathlib.Path(where).absolute()))
    if kind == "recipient" and where:
        return RecipientKey(key=recipient_of(how, "--secrets").public_bytes_raw().hex())
    # A passphrase may have been typed here by mistake: it is not repeated.
    raise click.UsageError(
        "--secrets: expected passphrase-file:PATH or recipient:FILE; the daemon is told where a "
        "passphrase is, and never the passphrase"
    )


@command.command(name="stop", short_help="End the capture.")
@daemon_options
def stop(*, control: pathlib.Path) -> None:
    """End the capture; all of it is in its file then.

    A file that takes nothing for 10 s, such as a pipe whose reader sleeps, is given up, and the
    exit status is 1.
    """
    from hcalld.control.client import ask
    from hcalld.control.messages import EndCapture
    from hcalld.core.errors import HcalldError

    state = ask(control, EndCapture(), seconds=None)
    _show(state)
    if not state.is_whole:
        raise HcalldError(
            f"{state.path}: the capture is not whole: {state.not_written} frames not written; the "
            "log has the reason. Make room, or have its reader read, and capture anew"
        )


@command.command(name="show", short_help="Show how the capture goes.")
@daemon_options
def show(*, control: pathlib.Path) -> None:
    """Show the capture that goes on."""
    from hcalld.control.client import ask
    from hcalld.control.messages import ShowCapture

    state = ask(control, ShowCapture())
    if state.path is None:
        click.echo("no capture goes on; start one with 'hcalld ctl capture start FILE'")
    else:
        _show(state)


def _show(state: CaptureState) -> None:
    lost = f", and {state.answers_dropped} answers" if state.answers_dropped else ""
    click.echo(f"{state.path}: {state.frames} frames, {state.dropped} of them dropped{lost}")
