# SPDX-License-Identifier: Apache-2.0
"""``hcalld fault add``: one more rule."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any

import click

from hcalld.cli.ctl.daemon import daemon_options

if TYPE_CHECKING:
    from hcalld.faults.rules import Rule


def _number_or_name(text: str) -> int | str:
    try:
        return int(text, 0)
    except ValueError:
        return text


def _number(text: str) -> int:
    """A number in any base that Python's literals have."""
    number = _number_or_name(text)
    if not isinstance(number, int):
        raise click.BadParameter(f"{text!r} is no number; expected one such as 7 or 0x80")
    return number


def _arguments(pairs: tuple[str, ...]) -> dict[str, int | str]:
    found: dict[str, int | str] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise click.UsageError(f"--arg {pair}: expected NAME=VALUE, such as consumer=OS")
        if name in found:
            raise click.UsageError(f"--arg {name}: given twice; a rule wants one value of it")
        found[name] = _number_or_name(value)
    return found


@click.command(name="add", short_help="Put a rule in force.")
@daemon_options
@click.argument("call", default="")
@click.option("--guest", help="Of this partition's guest only.")
@click.option("--vcpu", type=int, help="Of this virtual CPU only.")
@click.option(
    "--arg",
    "args",
    multiple=True,
    metavar="NAME=VALUE",
    help="Only with this value of an argument, a number or a name; may be repeated.",
)
@click.option("--after", type=int, help="Let so many of these calls pass first.")
@click.option("--times", type=int, help="So many calls, and no more.")
@click.option("--probability", type=float, help="Of each call, above 0 up to 1.")
@click.option("--seed", type=int, help="What the chance is drawn from.")
@click.option("--delay-ms", type=int, help="Before the call is looked at, beside the rest.")
@click.option("--return", "returns", metavar="CODE", help="Instead of carrying the call out.")
@click.option("--drop-reply", is_flag=True, help="Carry it out, and never say so.")
@click.option(
    "--corrupt", metavar="NAME", help="Turn bits of an output register, or of a buffer's byte."
)
@click.option(
    "--offset", type=_number, metavar="N", help="Of the byte, for --corrupt (default: 0)."
)
@click.option("--bits", type=_number, metavar="N", help="Which, for --corrupt (default: 1).")
@click.option(
    "--close",
    type=click.Choice(["before", "after"]),
    help="End the connection before the call is carried out, or after.",
)
@click.option(
    "--gone",
    type=click.Choice(["tpm", "space", "disk"]),
    help="No TPM, a full store, or a disk that fails to flush, for the call.",
)
def command(
    *, control: pathlib.Path, args: tuple[str, ...], returns: str | None, **words: Any
) -> None:
    """Have CALL go wrong: a call's name, a family's, or without one every call.

    For example: H_PKS_WRAP_OBJECT --after 3 --return H_LONG_BUSY_ORDER_10_MSEC --times 5
    """
    from hcalld.control.client import ask
    from hcalld.control.messages import AddFault

    rule = _rule({**words, "return": None if returns is None else _number_or_name(returns)}, args)
    added = ask(control, AddFault(rule=rule))
    click.echo(f"{added.fault.number}: {added.fault.rule.summary()}")
    for warning in added.warnings:
        click.echo(f"hcalld: {warning}", err=True)


def _rule(words: dict[str, Any], args: tuple[str, ...]) -> Rule:
    import msgspec

    from hcalld.core.errors import ConfigError
    from hcalld.faults.rules import Rule, placed

    given = {name: value for name, value in words.items() if value is not None}
    if not given.pop("drop_reply"):
        given.pop("drop_reply", None)
    else:
        given["drop_reply"] = True
    turned = {name: given.pop(name) for name in ("offset", "bits") if name in given}
    if "corrupt" in given:
        given["corrupt"] = {"name": given["corrupt"], **turned}
    elif turned:
        raise click.UsageError("--offset and --bits are for --corrupt")
    if args:
        given["arguments"] = _arguments(args)
    try:
        return msgspec.convert(given, Rule)
    except msgspec.ValidationError as error:
        raise ConfigError(placed(str(error))) from None
