# SPDX-License-Identifier: Apache-2.0
"""``hcalld sev vm``: a guest without a processor, for where there is no ``/dev/kvm``."""

from __future__ import annotations

import base64
import dataclasses
import pathlib
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import click

from hcalld.cli.files import check_target, read_whole, write_file
from hcalld.cli.sev.launching import MAX_FIRMWARE_SIZE, launch_options
from hcalld.cli.sev.options import (
    U32_MAX,
    U64_MAX,
    about,
    number,
    optional_policy_option,
    path_type,
    platform_option,
    socket_option,
)
from hcalld.cli.sev.wishes import Wishes, carry_out, print_status, wishes_options
from hcalld.cli.state.running import subcommand
from hcalld.domain.sev.settings import MAX_VCPUS

if TYPE_CHECKING:
    from hcalld.cli.sev.launching import LaunchOptions
    from hcalld.sevvm.machine import Machine
    from hcallproto.payloads.sev.constants import Version

DEFAULT_POLICY: Final = 1
"""QEMU's."""
MAX_MEMORY_MIB: Final = 4096
MAX_BLOB_SIZE: Final = 32768
"""Of a file with base64 of what the kernel takes at most."""
POLL_SECONDS: Final = 0.1

_memory_option = click.option(
    "--memory",
    metavar="MIB",
    type=click.IntRange(1, MAX_MEMORY_MIB),
    default=16,
    show_default=True,
    help="How much memory the guest has; its firmware is at the end of it.",
)


@contextmanager
def _machine(socket: pathlib.Path | None, platform: str, memory: int) -> Iterator[Machine]:
    from hcalld.cli.paths import socket_path
    from hcalld.guestowner.client import SevClient
    from hcalld.sevvm.machine import MIB, Machine

    with SevClient(socket or socket_path(), platform) as client:
        yield Machine(client, memory * MIB)


# -- the commands ---------------------------------------------------------------------------------


@subcommand("launch", "Launch a guest that has no processor.")
@socket_option
@platform_option
@launch_options
@optional_policy_option
@click.option("--dh-cert", type=path_type, help="The owner's certificate: QEMU's dh-cert-file,")
@click.option("--session", type=path_type, help="and session, both in base64: its session-file.")
@click.option("--handle", default="0", help="Share the key of the guest with this handle.")
@_memory_option
@click.option("--measurement-out", type=path_type, help="File for the measurement, in base64.")
@click.option(
    "--wait-secret",
    type=path_type,
    nargs=2,
    metavar="HEADER PAYLOAD",
    help="Wait until there are these files of hcalld sev secret, and put the secret into memory,",
)
@click.option("--gpa", metavar="ADDRESS", help="there (default: where the firmware says).")
@wishes_options
def launch(
    *,
    socket: pathlib.Path | None,
    platform: str,
    files: LaunchOptions,
    policy: int | None,
    dh_cert: pathlib.Path | None,
    session: pathlib.Path | None,
    handle: str,
    memory: int,
    measurement_out: pathlib.Path | None,
    wait_secret: tuple[pathlib.Path, pathlib.Path] | None,
    gpa: str | None,
    wishes: Wishes,
) -> None:
    """Launch a guest on the daemon's platform with the commands that QEMU gives, and measure it.

    Its memory is in this process; it has no processor, so it runs nowhere. What
    its owner does is the same: hcalld sev session before, hcalld sev validate or
    virt-qemu-sev-validate and hcalld sev secret after the measurement, which is printed.
    """
    from hcalld.guestowner.platform import Platform
    from hcalld.sevvm.launching import Plan, secret_address
    from hcalld.sevvm.launching import launch as launch_in

    policy = DEFAULT_POLICY if policy is None else policy
    wishes.check()
    if (dh_cert is None) != (session is None):
        raise click.UsageError("--dh-cert and --session go together")
    if gpa is not None and wait_secret is None:
        raise click.UsageError("--gpa goes with --wait-secret")
    if measurement_out is not None:
        check_target(measurement_out, force=wishes.force)
    wanted = files.read(policy)
    assert files.firmware is not None, "files.read() has looked"
    firmware = read_whole(files.firmware, MAX_FIRMWARE_SIZE)
    address = None if gpa is None else number(gpa, "address", U64_MAX)
    if wait_secret is not None and address is None:
        with about(files.firmware):
            address = secret_address(firmware, 0)
    plan = Plan(
        firmware=firmware,
        policy=policy,
        kernel=wanted.kernel,
        processors=wanted.processors,
        dh=b"" if dh_cert is None else _decoded(dh_cert),
        session=b"" if session is None else _decoded(session),
        by_init2=files.init == "init2",
        handle=number(handle, "handle", U32_MAX),
    )
    with _machine(socket, platform, memory) as machine:
        version = Platform(machine.client).status().version
        blob = base64.b64encode(launch_in(machine, plan)).decode()
        print_status(machine)
        click.echo(f"measurement: {blob}")
        if measurement_out is not None:
            write_file(measurement_out, blob.encode() + b"\n", force=wishes.force)
        if dh_cert is None:
            click.echo("nobody can validate it: there was no --dh-cert and --session")
        else:
            click.echo(f"validate it: {_validation(blob, files, policy, version)}")
        if wait_secret is not None:
            assert address is not None
            _inject(machine, wait_secret, firmware if gpa is None else None, address)
        machine.launch_finish()
        print_status(machine)
        carry_out(machine, wishes, files.vcpus or 0)


@subcommand("receive", "Receive a guest that another platform sends.")
@socket_option
@platform_option
@click.option(
    "--from",
    "source",
    metavar="WHERE",
    required=True,
    help="The file that it was sent to, or unix:SOCKET, where it is waited for.",
)
@_memory_option
@click.option(
    "--vcpus",
    type=click.IntRange(1, MAX_VCPUS),
    default=1,
    show_default=True,
    help="How many processors a guest of SEV-ES has.",
)
@wishes_options
def receive(
    *,
    socket: pathlib.Path | None,
    platform: str,
    source: str,
    memory: int,
    vcpus: int,
    wishes: Wishes,
) -> None:
    """Receive a guest that hcalld sev vm launch --send-to sent.

    Its memory and processors must be as many as there: what is sent does not say where its end is.
    """
    from hcalld.sevvm.moving import receive as receive_in
    from hcalld.sevvm.streams import incoming

    wishes.check()
    with _machine(socket, platform, memory) as machine:
        with incoming(source) as reader, about(source):
            count = receive_in(machine, reader, vcpus=vcpus)
        click.echo(f"received from {source}: {count} packets")
        print_status(machine)
        carry_out(machine, wishes, vcpus)


# -- what both do ---------------------------------------------------------------------------------


def _validation(blob: str, files: LaunchOptions, policy: int, version: Version) -> str:
    """The command that validates a measurement."""
    words = ["hcalld", "sev", "validate", blob, "--tk", "FILE", "--policy", str(policy)]
    words += ["--api-major", str(version.api_major), "--api-minor", str(version.api_minor)]
    words += ["--build-id", str(version.build)]
    for field in dataclasses.fields(files):
        value = getattr(files, field.name)
        if value is not None and (field.name != "init" or files.vcpus):
            words += [f"--{field.name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def _inject(
    machine: Machine,
    paths: tuple[pathlib.Path, pathlib.Path],
    firmware: bytes | None,
    address: int,
) -> None:
    """Wait for a secret's files, and put it into memory.

    Args:
        machine: the VM.
        paths: header and payload.
        firmware: says where it goes, and for how large a one there is room; None: ``address`` does.
        address: where it goes.
    """
    from hcalld.sevvm.launching import secret_address

    header_path, payload_path = paths
    click.echo(f"waiting for a secret: {header_path}, {payload_path}")
    _wait_for(paths)
    header, payload = _decoded(header_path), _decoded(payload_path)
    if firmware is not None:
        with about("the firmware"):
            address = secret_address(firmware, len(payload))
    machine.launch_secret(address, header, payload)
    click.echo(f"secret: {len(payload)} bytes at {address:#x}")


def _wait_for(paths: tuple[pathlib.Path, ...]) -> None:
    """Wait until files are there, and nobody has changed them for a moment."""
    seen: list[tuple[int, int]] = []
    while True:
        try:
            stats = [path.stat() for path in paths]
        except FileNotFoundError:
            stats = []
        now = [(stat.st_size, stat.st_mtime_ns) for stat in stats]
        if now and now == seen and all(size for size, _ in now):
            return
        seen = now
        time.sleep(POLL_SECONDS)


def _decoded(path: pathlib.Path) -> bytes:
    """What is in a file of base64.

    Raises:
        ConfigError: it is none.
    """
    from hcalld.core.errors import ConfigError

    text = b"".join(read_whole(path, MAX_BLOB_SIZE).split())
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise ConfigError(f"{path}: no base64; expected a file as QEMU takes it") from None


@click.group(name="vm", short_help="Launch, send and receive a guest that has no processor.")
def command() -> None:
    """Launch, send and receive guests that have memory and no processor.

    They need a daemon, and no /dev/kvm: to try what a guest's owner does, and its platforms.
    """


command.add_command(launch)
command.add_command(receive)
