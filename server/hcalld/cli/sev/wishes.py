# SPDX-License-Identifier: Apache-2.0
"""What the subcommands of ``hcalld sev vm`` do with a guest that runs."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import sys
from typing import TYPE_CHECKING, Final

import click

from hcalld.cli.bundle import bundle
from hcalld.cli.files import check_target, force_option, write_file
from hcalld.cli.sev.options import nonce_option, path_type

if TYPE_CHECKING:
    from hcalld.sevvm.machine import Machine


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What shall be done with a guest that runs."""

    report_out: pathlib.Path | None
    mnonce: bytes | None
    memory_out: pathlib.Path | None
    decrypt: bool
    send_to: str | None
    target_chain: pathlib.Path | None
    packet_size: int
    hold: bool
    force: bool

    def check(self) -> None:
        """See that they can be fulfilled, before anything is begun.

        Raises:
            ConfigError: a file cannot be written.
            click.UsageError: options contradict each other.
        """
        if (self.send_to is None) != (self.target_chain is None):
            raise click.UsageError(
                "--send-to and --target-chain go together: keys are made for one target"
            )
        if self.mnonce is not None and self.report_out is None:
            raise click.UsageError("--mnonce goes with --report-out")
        if self.decrypt and self.memory_out is None:
            raise click.UsageError("--decrypt goes with --memory-out")
        for path in (self.report_out, self.memory_out):
            if path is not None:
                check_target(path, force=self.force)


_OPTIONS: Final = (
    click.option("--report-out", type=path_type, help="File for an attestation report,"),
    nonce_option("--mnonce", help="with this nonce (default: a random one)."),
    click.option(
        "--memory-out", type=path_type, help="File for the guest's memory, as it lies there,"
    ),
    click.option("--decrypt", is_flag=True, help="or as the guest has it, by DBG_DECRYPT."),
    click.option(
        "--send-to",
        metavar="WHERE",
        help="Send the guest to a file, or to unix:SOCKET, where hcalld sev vm receive waits.",
    ),
    click.option(
        "--target-chain",
        type=path_type,
        help="The platform that may receive it: a file of hcalld sev export, with its --full if "
        "the policy has sev.",
    ),
    click.option(
        "--packet-size",
        type=click.Choice(("4096", "16384", "65536")),
        default="65536",
        show_default=True,
        callback=lambda _ctx, _param, value: int(value),
        help="Bytes of memory in a packet; real platforms take 4096.",
    ),
    click.option(
        "--hold", is_flag=True, help="Keep the guest until the standard input ends, or Ctrl-C."
    ),
    force_option,
)


wishes_options = bundle("wishes", Wishes, _OPTIONS)
"""What is done with the guest; the command gets ``wishes``."""


def print_status(machine: Machine) -> None:
    """Say which guest it is."""
    from hcalld.guestowner.policies import describe

    status = machine.status()
    click.echo(f"guest {status.handle}: {status.state.name}, policy {describe(status.policy)}")


def carry_out(machine: Machine, wishes: Wishes, vcpus: int) -> None:
    """Do with a guest that runs what is wanted; in this order."""
    if wishes.report_out is not None:
        from hcallproto.payloads.sev.blobs import NONCE_SIZE

        mnonce = os.urandom(NONCE_SIZE) if wishes.mnonce is None else wishes.mnonce
        write_file(wishes.report_out, machine.report(mnonce), force=wishes.force)
        click.echo(f"{wishes.report_out}: a report with the nonce {mnonce.hex()}")
    if wishes.memory_out is not None:
        if wishes.decrypt:
            memory = machine.read_decrypted(0, machine.size)
        else:
            memory = machine.read(0, machine.size)
        write_file(wishes.memory_out, memory, force=wishes.force)
        click.echo(f"{wishes.memory_out}: {machine.size} bytes")
    if wishes.send_to is not None:
        _send(machine, wishes, vcpus)
    if wishes.hold:
        click.echo("held until the standard input ends")
        with contextlib.suppress(KeyboardInterrupt):
            while sys.stdin.buffer.read(1):
                pass


def _send(machine: Machine, wishes: Wishes, vcpus: int) -> None:
    from hcalld.cli.sev.chains import read_platform
    from hcalld.sevvm.moving import send, target_of
    from hcalld.sevvm.streams import outgoing

    assert wishes.send_to is not None
    assert wishes.target_chain is not None
    target = target_of(read_platform(wishes.target_chain))
    with outgoing(wishes.send_to) as writer:
        count = send(machine, writer, target, packet_size=wishes.packet_size, vcpus=vcpus)
    click.echo(f"sent to {wishes.send_to}: {count} packets")
    print_status(machine)
