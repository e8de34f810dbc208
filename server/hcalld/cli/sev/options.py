# SPDX-License-Identifier: Apache-2.0
"""Options that several subcommands of ``hcalld sev`` share."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from hcalld.cli.bundle import Decorator, bundle

if TYPE_CHECKING:
    from hcalld.guestowner.platform import Platform
    from hcallproto.payloads.sev.constants import Version

path_type = click.Path(path_type=pathlib.Path)

U32_MAX: Final = 0xFFFF_FFFF
U64_MAX: Final = 0xFFFF_FFFF_FFFF_FFFF
U8_MAX: Final = 0xFF


@contextmanager
def about(path: pathlib.Path | str) -> Iterator[None]:
    """Errors of what is in a file as errors of the file."""
    from hcalld.core.errors import ConfigError
    from hcalld.guestowner.errors import GuestOwnerError
    from hcallproto.payloads.sev.errors import SevFormatError

    try:
        yield
    except (GuestOwnerError, SevFormatError) as error:
        raise ConfigError(f"{path}: {error}") from None


# -- numbers ------------------------------------------------------------------------------------


def number(value: str, what: str, maximum: int) -> int:
    """A number as C spells it.

    Raises:
        click.BadParameter: it is none, or too large.
    """
    try:
        found = int(value, 0)
    except ValueError:
        found = -1
    if not 0 <= found <= maximum:
        raise click.BadParameter(f"{value!r} is no {what}; expected 0 to {maximum:#x}")
    return found


def _policy(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    from hcalld.guestowner.errors import GuestOwnerError
    from hcalld.guestowner.policies import parse

    if value is None:
        return None
    try:
        return parse(value)
    except GuestOwnerError as error:
        raise click.BadParameter(str(error)) from None


POLICY_HELP: Final = (
    "The guest's policy: a number, or names such as nodbg,noks,es,nosend,domain,sev with the least "
    "API version as 1.51."
)

policy_option = click.option("--policy", callback=_policy, required=True, help=POLICY_HELP)
optional_policy_option = click.option("--policy", callback=_policy, help=POLICY_HELP)
policy_argument = click.argument("policy", callback=_policy)


def _hex(size: int) -> Callable[[click.Context, click.Parameter, str | None], bytes | None]:
    def convert(_ctx: click.Context, _param: click.Parameter, value: str | None) -> bytes | None:
        if value is None:
            return None
        try:
            data = bytes.fromhex(value)
        except ValueError:
            data = b""
        if len(data) != size:
            raise click.BadParameter(f"expected {2 * size} hexadecimal digits: {size} bytes")
        return data

    return convert


def hex_option(*names: str, size: int, **words: Any) -> Callable[..., Any]:
    """An option with so many bytes, in hexadecimal."""
    return click.option(*names, metavar="HEX", callback=_hex(size), **words)


def _nonce(ctx: click.Context, param: click.Parameter, value: str | None) -> bytes | None:
    from hcallproto.payloads.sev.blobs import NONCE_SIZE

    return _hex(NONCE_SIZE)(ctx, param, value)


def nonce_option(*names: str, **words: Any) -> Callable[..., Any]:
    """An option with a nonce, in hexadecimal."""
    return click.option(*names, metavar="HEX", callback=_nonce, **words)


# -- a platform's version -----------------------------------------------------------------------


def version_options(*, required: bool) -> Decorator:
    """``--api-major``, ``--api-minor`` and ``--build-id``; the command gets ``version``."""
    return bundle(
        "version",
        _version,
        [
            click.option(
                name,
                type=click.IntRange(0, U8_MAX),
                required=required,
                help=f"The {what}, as query-sev or hcalld sev status says it.",
            )
            for name, what in (
                ("--api-major", "major API version of the platform"),
                ("--api-minor", "minor API version of the platform"),
                ("--build-id", "build of the platform's firmware"),
            )
        ],
    )


def _version(api_major: int | None, api_minor: int | None, build_id: int | None) -> Version | None:
    from hcallproto.payloads.sev.constants import Version

    if api_major is None and api_minor is None and build_id is None:
        return None
    if api_major is None or api_minor is None or build_id is None:
        raise click.UsageError("--api-major, --api-minor and --build-id go together")
    return Version(api_major, api_minor, build_id)


# -- a platform ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Connect:
    """Which platform a user means; called, it is connected to.

    Attributes:
        socket: the daemon's; None: the default one.
        platform: its name; "" for the default one.
    """

    socket: pathlib.Path | None
    platform: str

    @contextmanager
    def __call__(self) -> Iterator[Platform]:
        """A connection, for as long as it is needed.

        Raises:
            ConnectionFailed: there is none.
        """
        from hcalld.cli.paths import socket_path
        from hcalld.guestowner.client import SevClient
        from hcalld.guestowner.platform import Platform

        with SevClient(self.socket or socket_path(), self.platform) as client:
            yield Platform(client)


socket_option = click.option(
    "--socket",
    type=path_type,
    envvar="HCALLD_SEV_SOCKET",
    help="The daemon's socket (default: where 'hcalld serve' listens).",
)
platform_option = click.option(
    "--platform",
    metavar="NAME",
    default="",
    envvar="HCALLD_SEV_PLATFORM",
    help="Which platform of the daemon's; the default one without.",
)
platform_options = bundle("connect", Connect, (socket_option, platform_option))
"""``--socket`` and ``--platform``; the command gets ``connect``."""

root_option = click.option(
    "--root",
    type=path_type,
    help="The ARK to trust, with its ASK: a file of hcalld sev root, or AMD's ASK and ARK.",
)
