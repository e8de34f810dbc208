# SPDX-License-Identifier: Apache-2.0
"""``hcalld state``: look into a partition's keystore, and seed it, while its guest is off.

Works on the files, with the same ownership as the daemon: a partition whose guest is
running is refused. Secrets are shown only with ``--reveal``.
"""

from __future__ import annotations

import functools
import pathlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hcalld.cli import paths

if TYPE_CHECKING:
    from hcalld.domain.keystore import Keystore, NamedObject
    from hcalld.stores.directory import StateDirectory
    from hcalld.stores.sqlite import SqliteStore

CONSUMERS = ("os", "firmware", "bootloader")
OPERATING_SYSTEMS = {"linux": 0x02, "common": 0x04}
MAX_INPUT_SIZE = 65536

F = TypeVar("F", bound=Callable[..., None])


# -- options ------------------------------------------------------------------------------


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


_STATE_DIR = click.option(
    "--state-dir",
    type=click.Path(path_type=pathlib.Path),
    envvar="HCALLD_STATE_DIR",
    help="Where partitions' stores are kept (default: the user's state directory).",
)
_PARTITION = click.option("--partition", "-p", required=True, help="The guest's name.")


def _label_options(function: F) -> F:
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


def _label(
    consumer: str,
    *,
    sed: bool,
    prefix: str,
    os_id: int,
    name: str | None,
    name_hex: bytes | None,
    label_hex: bytes | None,
) -> bytes:
    """The label that the options describe, in exactly one of the possible ways."""
    from hcalld.domain.labels import SED_LABEL, os_label

    ways = [sed, name is not None, name_hex is not None, label_hex is not None]
    if sum(ways) != 1:
        raise click.UsageError("give the label with one of --sed, --name, --name-hex, --label-hex")
    if prefix and (sed or label_hex is not None or consumer != "os"):
        raise click.UsageError("--prefix goes with --name or --name-hex of consumer os")
    if sed:
        if consumer != "os":
            raise click.UsageError("--sed goes with consumer os")
        return SED_LABEL
    if label_hex is not None:
        return label_hex
    raw = name_hex if name is None else name.encode()
    assert raw is not None
    if consumer != "os":
        return raw
    try:
        return os_label(prefix.encode(), raw, os_id)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


# -- stores -------------------------------------------------------------------------------


def _directory(state_dir: pathlib.Path | None) -> StateDirectory:
    from hcalld.stores.directory import StateDirectory

    return StateDirectory(state_dir or paths.state_dir())


@contextmanager
def _keystore(
    directory: StateDirectory, partition: str, *, create: bool = False
) -> Iterator[tuple[SqliteStore, Keystore]]:
    """A partition's store and keystore, without its profile: as large as can be."""
    from hcalld.domain.attributes import MAX_KEYSTORE_KBYTES, PartitionAttributes, PksAttributes
    from hcalld.domain.keystore import Keystore

    attributes = PartitionAttributes(
        keystore_kbytes=MAX_KEYSTORE_KBYTES, pks=PksAttributes(object_overhead=0)
    )
    store = directory.open(partition, create=create)
    try:
        yield store, Keystore(attributes, store.load().records)
    finally:
        store.close()


def _commit(store: SqliteStore, keystore: Keystore) -> None:
    store.commit(keystore.take_changes(), None)
    store.flush()


# -- what is shown ------------------------------------------------------------------------


def _shown_label(item: NamedObject) -> str:
    from hcalld.domain.labels import split_os_label
    from hcallproto.payloads.pks import Consumer, describe_label
    from hcallproto.payloads.quoting import quote

    if item.consumer is not Consumer.OS or split_os_label(item.label) is None:
        return quote(item.label)
    return describe_label(item.label)


def _shown_policy(policy: int) -> str:
    from hcallproto.payloads.pks import Policy

    return " ".join(bit.name or "" for bit in Policy if policy & bit) or "-"


def _objects_table(keystore: Keystore) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table("consumer", "label", "bytes", "policy", box=None, pad_edge=False)
    for item in keystore.objects():
        table.add_row(
            item.consumer.name.lower(),
            Text(_shown_label(item)),
            str(len(item.stored.data)),
            _shown_policy(item.stored.policy),
        )
    return table


def _print(renderable: Any) -> None:
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(renderable)


# -- commands -----------------------------------------------------------------------------


@click.group(name="state", short_help="Look into partitions' keystores, and seed them.")
def state() -> None:
    """Look into partitions' keystores, and seed them, while their guests are off."""


def _command(name: str, help_line: str) -> Callable[[Callable[..., None]], click.Command]:
    """A subcommand; errors of hcalld end as one line and exit status 1."""

    def decorate(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            from hcalld.core.errors import HcalldError, HcallError

            try:
                return function(*args, **kwargs)
            except HcalldError as error:
                click.echo(f"hcalld: {error}", err=True)
            except HcallError as error:
                click.echo(f"hcalld: {error.why}", err=True)
            sys.exit(1)

        return state.command(name=name, short_help=help_line)(run)

    return decorate


@_command("list", "List partitions, or one partition's objects.")
@_STATE_DIR
@click.argument("partition", required=False)
def list_partitions(*, state_dir: pathlib.Path | None, partition: str | None) -> None:
    """List all partitions, or the objects of one PARTITION."""
    directory = _directory(state_dir)
    if partition is not None:
        with _keystore(directory, partition) as (_, keystore):
            _print(_objects_table(keystore))
        return
    from rich.table import Table
    from rich.text import Text

    from hcalld.core.errors import HcalldError

    table = Table("partition", "objects", "generation", "state", box=None, pad_edge=False)
    errors = []
    for name in directory.partitions():
        holder = directory.holder_of(name)
        if holder is not None:
            table.add_row(Text(name), "?", "?", f"in use by process {holder}")
            continue
        try:
            with _keystore(directory, name) as (store, keystore):
                count = sum(1 for _ in keystore.objects())
                table.add_row(Text(name), str(count), str(store.generation), "free")
        except HcalldError as error:
            table.add_row(Text(name), "?", "?", "not readable")
            errors.append(f"hcalld: {error}")
    _print(table)
    if errors:
        click.echo("\n".join(errors), err=True)
        sys.exit(1)


@_command("show", "Show one object.")
@_STATE_DIR
@_PARTITION
@_label_options
@click.option("--reveal", is_flag=True, help="Show the data too, in hexadecimal.")
@click.option("--raw", is_flag=True, help="Write the data, and nothing else, to stdout.")
def show(
    *,
    state_dir: pathlib.Path | None,
    partition: str,
    consumer: str,
    reveal: bool,
    raw: bool,
    **label: Any,
) -> None:
    """Show one object: its size and policy, and with --reveal or --raw its data."""
    wanted = _label(consumer, **label)
    with _keystore(_directory(state_dir), partition) as (_, keystore):
        item = _find(keystore, consumer, wanted)
    if raw:
        sys.stdout.buffer.write(item.stored.data)
        return
    click.echo(f"consumer  {item.consumer.name.lower()}")
    click.echo(f"label     {_shown_label(item)}")
    click.echo(f"policy    {_shown_policy(item.stored.policy)}")
    click.echo(f"bytes     {len(item.stored.data)}")
    if reveal:
        click.echo(f"data      {item.stored.data.hex()}")


def _consumer(name: str) -> int:
    from hcallproto.payloads.pks import Consumer

    return Consumer[name.upper()]


def _find(keystore: Keystore, consumer: str, label: bytes) -> NamedObject:
    from hcalld.core.errors import ConfigError

    for item in keystore.objects():
        if (item.consumer, item.label) == (_consumer(consumer), label):
            return item
    raise ConfigError(f"consumer {consumer} has no object with label {label.hex()}")


@_command("put", "Create an object.")
@_STATE_DIR
@_PARTITION
@_label_options
@click.option("--policy", multiple=True, metavar="NAME", help="Policy bit; may be repeated.")
@click.option(
    "--sed-key", type=click.File("rb"), help="Key of a self-encrypting drive, 1-32 bytes."
)
@click.option("--replace", is_flag=True, help="Replace an object that is there.")
@click.argument("file", type=click.File("rb"), required=False)
def put(
    *,
    state_dir: pathlib.Path | None,
    partition: str,
    consumer: str,
    policy: tuple[str, ...],
    sed_key: Any,
    replace: bool,
    file: Any,
    **label: Any,
) -> None:
    """Create an object with the bytes of FILE (- for stdin).

    With --sed-key the object is the PIN of self-encrypting drives, which Linux reads at
    boot: label and policy follow from that.
    """
    from hcalld.core.errors import ConfigError
    from hcalld.domain.labels import sed_object
    from hcallproto.payloads.pks import Policy

    if (file is None) == (sed_key is None):
        raise click.UsageError("give the data with FILE or with --sed-key, one of them")
    if sed_key is not None:
        label["sed"] = True
    wanted = _label(consumer, **label)
    bits = _policy(policy)
    if bits & Policy.TRANSIENT:
        raise click.UsageError("a TRANSIENT object would be dropped when the guest starts")
    data = (file or sed_key).read(MAX_INPUT_SIZE + 1)
    if sed_key is not None:
        bits |= Policy.WORLDREADABLE
        try:
            data = sed_object(data)
        except ValueError as error:
            raise ConfigError(f"--sed-key: {error}") from None
    if not 1 <= len(data) <= MAX_INPUT_SIZE:
        raise ConfigError(
            f"the data have {'no' if not data else 'too many'} bytes, expected 1 to "
            f"{MAX_INPUT_SIZE}"
        )
    _check_label_size(wanted)
    with _keystore(_directory(state_dir), partition, create=True) as (store, keystore):
        number = _consumer(consumer)
        if replace and keystore.exists(number, wanted):
            keystore.discard(number, wanted)
        keystore.create(number, wanted, bits, data)
        _commit(store, keystore)


def _check_label_size(label: bytes) -> None:
    from hcalld.core.errors import ConfigError

    if not 1 <= len(label) <= 255:
        raise ConfigError(f"the label has {len(label)} bytes, expected 1 to 255")


def _policy(names: tuple[str, ...]) -> int:
    from hcallproto.payloads.pks import Policy

    bits = 0
    for name in names:
        try:
            bits |= Policy[name.upper()]
        except KeyError:
            known = ", ".join(bit.name or "" for bit in Policy)
            raise click.UsageError(f"no policy {name!r}; policies are: {known}") from None
    return bits


@_command("remove", "Remove an object.")
@_STATE_DIR
@_PARTITION
@_label_options
def remove(*, state_dir: pathlib.Path | None, partition: str, consumer: str, **label: Any) -> None:
    """Remove an object, whatever its policy says."""
    wanted = _label(consumer, **label)
    with _keystore(_directory(state_dir), partition) as (store, keystore):
        _find(keystore, consumer, wanted)
        keystore.discard(_consumer(consumer), wanted)
        _commit(store, keystore)


@_command("verify", "Check that stores can be read, to the last byte.")
@_STATE_DIR
@click.argument("partition", required=False)
def verify(*, state_dir: pathlib.Path | None, partition: str | None) -> None:
    """Check every page and open every value of PARTITION, or of all partitions."""
    from hcalld.core.errors import HcalldError

    directory = _directory(state_dir)
    bad = False
    for name in directory.partitions() if partition is None else [partition]:
        try:
            with _keystore(directory, name) as (store, keystore):
                store.verify()
                count = sum(1 for _ in keystore.objects())
                click.echo(f"{name}: good (objects: {count}, generation: {store.generation})")
        except HcalldError as error:
            bad = True
            click.echo(f"hcalld: {error}", err=True)
    if bad:
        sys.exit(1)


command = state
