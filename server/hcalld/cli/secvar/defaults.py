# SPDX-License-Identifier: Apache-2.0
"""``hcalld secvar defaults``: a whole set of keys and updates for tests."""

from __future__ import annotations

import datetime
import pathlib
from typing import TYPE_CHECKING

import click

from hcalld.cli.files import write_file
from hcalld.cli.secvar.inputs import path_type
from hcalld.cli.state.running import subcommand

if TYPE_CHECKING:
    from hcalld.domain.secvar.defaults import Identities

_YEARS = 30

_README = """\
Secure boot's keys for tests
============================

Made by "hcalld secvar defaults" on {date}, with keys that nobody else has. The private
keys (*.key) are not encrypted: they are for tests.

PK      signs PK and KEK            KEK     signs everything else
ca      in trustedcadb, signs db    db      signs kernels (db), GRUB's files (grubdb)
                                            and modules (moduledb)

  *.crt      certificates, PEM        *.esl      what each variable holds
  *.key      private keys, PEM        *.update   signed updates, flags in front
  *.reset    signed updates that remove a variable
  PK.wipe    deletes all variables; needs the latch
  revoked.bin  the file that dbx and grubdbx revoke by its hash

With the guest off, put all in at once (no signature is needed on this side), and have
Linux use all of them:

{enroll}
  hcalld ctl set GUEST linux_dynamic_key_secure_boot=1

Or from the guest. With it off, before (the latch is for PK, which uses it up):

  hcalld ctl set --create GUEST linux_dynamic_key_secure_boot=1 \\
    keystore_signed_updates=1 keystore_signed_updates_without_verification=1

Then in it, in this order:

{updates}

Each update is taken once: after that, one must be of a later time. A reset removes the
variable with its time, so its update can be used again.
"""


@subcommand("defaults", "Make a set of keys and updates for tests.")
@click.option(
    "--bits",
    type=click.Choice(["2048", "3072", "4096"]),
    default="2048",
    show_default=True,
    help="Of the RSA keys.",
)
@click.argument("directory", type=path_type)
def command(*, bits: str, directory: pathlib.Path) -> None:
    """Make keys, certificates, signature lists and signed updates in DIRECTORY.

    The directory is made; it must not be there, or be empty. Its README.txt says what is
    what and how to enroll it. The keys are for tests: they are not encrypted.
    """
    from hcalld.core.errors import ConfigError
    from hcalld.domain.secvar.defaults import REVOKED, default_lists, default_updates
    from hcallproto.payloads.efi import EfiTime

    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        is_empty = not any(directory.iterdir())
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be made ({error.strerror})") from None
    if not is_empty:
        raise ConfigError(f"{directory}: is not empty; name a new directory")
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    identities = _make(int(bits), now)
    lists = default_lists(identities)
    time = EfiTime(*now.timetuple()[:6])
    later = EfiTime(*(now + datetime.timedelta(seconds=1)).timetuple()[:6])
    files = {
        **{
            f"{name}.{suffix}": content
            for name in ("pk", "kek", "ca", "db")
            for suffix, content in (
                ("crt", getattr(identities, name).certificate_pem),
                ("key", getattr(identities, name).key_pem),
            )
        },
        **{f"{name}.esl": data for name, data in lists.items()},
        **default_updates(identities, time, later),
        "revoked.bin": REVOKED,
        "README.txt": _readme(list(lists), now).encode(),
    }
    for name, content in files.items():
        write_file(directory / _proper(name), content, force=False)
    click.echo(f"{directory}: {len(files)} files; begin with {directory / 'README.txt'}")


def _proper(name: str) -> str:
    """PK and KEK keep their capitals in the names of files."""
    stem, _, suffix = name.partition(".")
    return f"{stem.upper()}.{suffix}" if stem in ("pk", "kek") else name


def _make(bits: int, now: datetime.datetime) -> Identities:
    from hcalld.crypto.signing import make_identity
    from hcalld.domain.secvar.defaults import Identities

    begin = now - datetime.timedelta(days=1)
    end = now + datetime.timedelta(days=365 * _YEARS)
    pk, kek, ca = (
        make_identity(f"hcalld test {name}", bits, is_ca=True, not_before=begin, not_after=end)
        for name in ("PK", "KEK", "CA")
    )
    db = make_identity(
        "hcalld test db", bits, is_ca=False, not_before=begin, not_after=end, issuer=ca
    )
    return Identities(pk, kek, ca, db)


def _readme(names: list[str], now: datetime.datetime) -> str:
    enroll = "".join(f" \\\n    --{name.lower()} {name}.esl" for name in names)
    updates = "\n".join(
        f"  cat {name}.update > /sys/firmware/secvar/vars/{name}/update" for name in names
    )
    return _README.format(
        date=now.date(), enroll=f"  hcalld secvar enroll -p GUEST{enroll}", updates=updates
    )
