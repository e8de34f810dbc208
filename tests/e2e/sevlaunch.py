# SPDX-License-Identifier: Apache-2.0
"""What programs do with a SEV platform, over a daemon's socket."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable
from typing import Final, NamedTuple

from hcalld.crypto.sev.certificates import make_oca
from hcalld.crypto.sev.keys import KEY_ENTROPY_SIZE, EcPrivateKey
from hcalld.guestowner.client import CommandRefused, SevClient
from hcalld.guestowner.owning import sign_csr
from hcalld.guestowner.platform import Platform
from hcalld.guestowner.secret_packets import pack
from hcalld.guestowner.sessions import make_session
from hcalld.sevvm.machine import MIB, Machine, Target
from hcallproto.abi.families import sev
from hcallproto.payloads.sev import MeasurementBlob, Policy, SecretEntry, SevCertificate
from hcallproto.payloads.sev.tables import LUKS_KEY_GUID

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


class Launched(NamedTuple):
    """What was in a launch."""

    guests: tuple[bytes, ...]
    """Bytes of the guest's memory."""
    keys: tuple[bytes, ...]
    """Of the session with its owner."""
    public: tuple[bytes, ...]
    """What everybody may see."""


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


def migrate(path: pathlib.Path, roots: bytes) -> None:
    """Send a guest from one VM to another of the same platform, after a try that is given up.

    Args:
        path: of the daemon's socket.
        roots: the platform's ASK and ARK.
    """
    with SevClient(path) as left, SevClient(path) as right:
        chain = Platform(left).export()
        target = Target(chain.pdh, chain.chain, roots)
        source, sink = Machine(left, MIB), Machine(right, MIB)
        source.init(sev.INIT2)
        source.launch_start(int(Policy.ES | Policy.SEV))
        source.launch_update_data(0, FIRMWARE[:8192])
        source.launch_update_vmsas(VMSAS[:1])
        source.launch_measure()
        source.launch_finish()
        source.send_start(target)
        source.send_cancel()
        policy, session = source.send_start(target)
        sink.init(sev.ES_INIT)
        sink.receive_start(policy, chain.pdh, session)
        for address in (0, 4096):
            sink.receive_update_data(address, source.send_update_data(address, 4096))
        damaged = source.send_update_data(0, 4096)
        damaged = damaged._replace(payload=damaged.payload[::-1])
        with contextlib.suppress(CommandRefused):
            sink.receive_update_data(0, damaged)
        sink.receive_update_vmsa(0, source.send_update_vmsa(0))
        source.send_finish()
        sink.receive_finish()
        assert sink.read_decrypted(0, 8192) == FIRMWARE[:8192]


def own(path: pathlib.Path) -> None:
    """Give the platform an owner, and make it nobody's again."""
    with SevClient(path) as client:
        platform = Platform(client)
        platform.make_pdh()
        platform.make_pek()
        key = EcPrivateKey.from_entropy(os.urandom(KEY_ENTROPY_SIZE))
        oca = make_oca(key)
        signed = sign_csr(SevCertificate.parse(platform.csr()), oca, key)
        platform.take_owner(signed.build(), oca.build())
        with contextlib.suppress(CommandRefused):
            platform.take_owner(signed.build(), oca.build())
        platform.ids()
        platform.factory_reset()
        platform.status()
