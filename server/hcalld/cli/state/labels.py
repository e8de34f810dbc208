# SPDX-License-Identifier: Apache-2.0
"""How a user names an object: options that describe its label."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

CONSUMERS = ("os", "firmware", "bootloader")
OPERATING_SYSTEMS = {"linux": 0x02, "common": 0x04}

F = TypeVar("F", bound=Callable[..., Any])


def _number_or_name(_ctx: click.Context, _param: click.Parameter, value: str) -> int:
    if value in OPERATING_SYSTEMS:
        return OPERATING_SYSTEMS[value]
    try:
        number = int(value, 0)
    except ValueError:
        number = -1
    if not 0 <= number <= 0xFF:
        raise click.BadParameter(f"{value!r}: expected linux, common or a number up to 0xff")
    return number


def _hex(_ctx: click.Context, _param: click.Parameter, value: str | None) -> bytes | None:
    if value is None:
        return None
    try:
        return bytes.fromhex(value)
    except ValueError:
        raise click.BadParameter("expected hexadecimal digits, two for each byte") from None


def label_options(function: F) -> F:
    """The options from which ``label_of`` makes a label."""
    for option in (
        click.option("--label-hex", metavar="HEX", callback=_hex, help="The whole label's bytes."),
        click.option("--name-hex", metavar="HEX", callback=_hex, help="The label's name, bytes."),
        click.option("--name", help="The label's name."),
        click.option(
            "--os",
            "os_id",
            default="linux",
            show_default=True,
            callback=_number_or_name,
            help="Whose label: linux, common, or a number.",
        ),
        click.option("--prefix", default="", help="The label's prefix, at most 8 bytes."),
        click.option(
            "--secvar", metavar="NAME", help="The label of a secure variable, such as db."
        ),
        click.option("--sed", is_flag=True, help="The label of self-encrypting drives' PIN."),
        click.option(
            "--consumer",
            type=click.Choice(CONSUMERS),
            default="os",
            show_default=True,
            help="Whose object; labels of firmware and bootloader are bare names.",
        ),
    ):
        function = option(function)
    return function


def label_of(
    consumer: str,
    *,
    sed: bool,
    secvar: str | None,
    prefix: str,
    os_id: int,
    name: str | None,
    name_hex: bytes | None,
    label_hex: bytes | None,
) -> bytes:
    """The label that the options describe, in exactly one of the possible ways."""
    from hcalld.domain.labels import SED_LABEL, os_label
    from hcalld.domain.secvar.variables import encode_name

    whole = [sed, secvar is not None, label_hex is not None]
    if sum([*whole, name is not None, name_hex is not None]) != 1:
        raise click.UsageError(
            "give the label with one of --sed, --secvar, --name, --name-hex, --label-hex"
        )
    if prefix and (any(whole) or consumer != "os"):
        raise click.UsageError("--prefix goes with --name or --name-hex of consumer os")
    if sed:
        if consumer != "os":
            raise click.UsageError("--sed goes with consumer os")
        return SED_LABEL
    if secvar is not None:
        if consumer != "os":
            raise click.UsageError("--secvar goes with consumer os")
        try:
            return os_label(b"", encode_name(secvar))
        except UnicodeEncodeError:
            raise click.UsageError(f"--secvar {secvar!r}: expected text, such as db") from None
    if label_hex is not None:
        return label_hex
    # What a shell passes need not be text: its bytes are the name.
    raw = name_hex if name is None else os.fsencode(name)
    assert raw is not None
    if consumer != "os":
        return raw
    try:
        return os_label(os.fsencode(prefix), raw, os_id)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
