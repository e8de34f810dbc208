# SPDX-License-Identifier: Apache-2.0
"""Clients of a daemon in the test's own event loop: VMs with SEV, and who looks at its platform."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from typing import Final, NamedTuple, TypeVar

import trio
from tests.sev_platform import VECTORS
from tests.unit.hcalld.runtime.daemon import Daemon

from hcalld.guestowner.client import CommandRefused, SevClient
from hcalld.guestowner.platform import Platform
from hcalld.guestowner.secret_packets import pack
from hcalld.guestowner.sessions import make_session
from hcalld.sevvm.machine import MIB, Machine
from hcallproto.abi.families import sev
from hcallproto.payloads.sev import MeasurementBlob, Policy, SecretEntry, SevCertificate
from hcallproto.payloads.sev.tables import LUKS_KEY_GUID

ROOT: Final = VECTORS / "root-2048.pem"
FIRMWARE: Final = b"firmware, plain." * 4096
VMSAS: Final = (b"save area, plain" * 256,) * 2
SECRET: Final = b"the secret of the guest's owner."
DEBUG: Final = b"what a debugger writes"
SECRET_AT: Final = 0x4_0000
CALLS_BEFORE_BEGUN: Final = 7
"""That ``launch`` makes before ``begun``,"""
CALLS_AFTER_BEGUN: Final = 10
"""and after it."""
LAUNCH_CALLS: Final = CALLS_BEFORE_BEGUN + CALLS_AFTER_BEGUN

T = TypeVar("T")


class Launched(NamedTuple):
    """What was in a launch."""

    guests: tuple[bytes, ...]
    """Bytes of the guest's memory."""
    keys: tuple[bytes, ...]
    """Of the session with its owner."""
    public: tuple[bytes, ...]
    """What everybody may see."""


@contextlib.asynccontextmanager
async def listening(daemon: Daemon) -> AsyncIterator[pathlib.Path]:
    """A socket that takes clients to the daemon."""
    with tempfile.TemporaryDirectory(prefix="hcalld-", dir="/tmp") as folder:
        path = pathlib.Path(folder) / "sock"
        with trio.socket.socket(socket.AF_UNIX) as listener:
            await listener.bind(os.fspath(path))
            listener.listen()

            async def accept() -> None:
                while True:
                    taken, _ = await listener.accept()
                    daemon.nursery.start_soon(
                        daemon.server.serve_socket, socket.socket(fileno=taken.detach())
                    )

            async with trio.open_nursery() as nursery:
                nursery.start_soon(accept)
                yield path
                nursery.cancel_scope.cancel()


async def clients(daemon: Daemon, story: Callable[[pathlib.Path], T]) -> T:
    """Have blocking clients do something; they have gone afterwards."""
    async with listening(daemon) as path:
        result = await trio.to_thread.run_sync(story, path)
        with trio.fail_after(20):
            await daemon.gone()
    return result


def launch(path: pathlib.Path, *, begun: Callable[[], object] = lambda: None) -> Launched:
    """Launch a guest of SEV-ES with an owner, and look at it.

    Args:
        path: of the daemon's socket.
        begun: done in the midst of it.
    """
    policy = int(Policy.ES)
    with SevClient(path) as client:
        machine = Machine(client, MIB)
        platform = Platform(client)
        version, chain = platform.status().version, platform.export()
        owner = make_session(SevCertificate.parse(chain.pdh), policy, os.urandom)
        machine.init(sev.ES_INIT)
        machine.launch_start(policy, owner.certificate.build(), owner.session.build())
        machine.launch_update_data(0, FIRMWARE)
        begun()
        machine.launch_update_vmsas(VMSAS)
        measured = MeasurementBlob.parse(machine.launch_measure())
        packet = pack(
            [SecretEntry(LUKS_KEY_GUID, SECRET)],
            owner.keys,
            measurement=measured.measurement,
            version=version,
            entropy=os.urandom,
        )
        machine.launch_secret(SECRET_AT, packet.header.build(), packet.payload)
        machine.launch_finish()
        assert machine.status().policy == policy
        machine.report(bytes(range(16)))
        assert SECRET in machine.read_decrypted(SECRET_AT, 128)
        machine.write_encrypted(0x8003, DEBUG)
        with contextlib.suppress(CommandRefused):
            client.command(sev.LAUNCH_FINISH)
    return Launched(
        guests=(FIRMWARE[:64], VMSAS[0][:64], SECRET, DEBUG),
        keys=(owner.keys.tek.reveal(), owner.keys.tik.reveal()),
        public=(chain.pdh, owner.session.build(), packet.payload, measured.build()),
    )
