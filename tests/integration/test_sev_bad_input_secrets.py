# SPDX-License-Identifier: Apache-2.0
"""No key and no secret of SEV is in anything that hcalld writes.

A daemon with a trace, a capture and a debug log launches, debugs, sends and receives guests whose
keys and content are known, takes an owner, and refuses altered input; then it is killed. Every byte
that it wrote, and that the commands make of it, is searched. Only a client's own memory may differ.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from tests.e2e.daemon import copy_state, run_hcalld
from tests.e2e.leaks import Secrets
from tests.e2e.sevhosts import ROOT, Host, Hosts
from tests.sev_platform import flipped, root

from hcalld.crypto.sev.certificates import make_oca, make_owner_dh, public_point, sign
from hcalld.crypto.sev.kdf import TransportKeys, WrappingKeys, master_secret
from hcalld.crypto.sev.keys import KEY_ENTROPY_SIZE, EcPrivateKey
from hcalld.crypto.sev.packets import seal_secret
from hcalld.crypto.sev.session import wrap_session
from hcalld.domain.sev.identity import Identity
from hcalld.guestowner.client import CommandRefused
from hcalld.sevvm.machine import Machine
from hcallproto.abi.families import sev
from hcallproto.payloads.sev import Api, MeasurementBlob, SevCertificate, Usage

ES = 4


def plant_keys(secrets: Secrets, identity: Identity, when: str) -> None:
    """A platform's private keys, in both orders of bytes."""
    for name in ("cek", "oca", "pek", "pdh"):
        scalar = getattr(identity, f"{name}_scalar")
        if scalar:
            secrets.add(f"private key of the {name.upper()} {when}", scalar)
            secrets.add(f"private key of the {name.upper()} {when}, reversed", scalar[::-1])


def launch(host: Host, machine: Machine, secrets: Secrets, policy: int) -> None:
    """A guest with a known owner, up to RUNNING, with mistakes on the way."""
    owner = EcPrivateKey.from_entropy(os.urandom(KEY_ENTROPY_SIZE))
    data, nonce = os.urandom(32), os.urandom(16)
    keys = TransportKeys.parse(data)
    pdh = SevCertificate.parse(host.chain()[:2084])
    shared = owner.exchange(public_point(pdh))
    wrapping = WrappingKeys.of(master_secret(shared, nonce))
    for name, secret in (
        ("TEK", data[:16]),
        ("TIK", data[16:]),
        ("agreed secret", shared.reveal()),
        ("master secret", master_secret(shared, nonce).reveal()),
        ("KEK", wrapping.kek.reveal()),
        ("KIK", wrapping.kik.reveal()),
    ):
        secrets.add(name, secret)
    session = wrap_session(
        owner, public_point(pdh), keys, policy, nonce=nonce, iv=os.urandom(16)
    ).build()
    certificate = make_owner_dh(owner).build()
    machine.init(sev.ES_INIT)
    for altered in (20, 70, 100):
        with contextlib.suppress(CommandRefused):
            machine.launch_start(policy, certificate, flipped(session, altered))
    machine.launch_start(policy, certificate, session)
    machine.launch_update_data(0, secrets.add("page of the guest", os.urandom(4096)))
    machine.launch_update_vmsas((secrets.add("save area", os.urandom(4096)),))
    measured = MeasurementBlob.parse(machine.launch_measure())
    text = secrets.add("secret of the owner", os.urandom(256))
    header, payload = seal_secret(
        keys, text, iv=os.urandom(16), measurement=measured.measurement, api=Api(1, 55)
    )
    with contextlib.suppress(CommandRefused):
        machine.launch_secret(0x2000, flipped(header.build(), 25), payload)
    machine.launch_secret(0x2000, header.build(), payload)
    machine.launch_finish()
    assert machine.read_decrypted(0x2000, 256) == text
    machine.write_encrypted(0x3000, secrets.add("what a debugger wrote", os.urandom(300)))


def test_what_a_daemon_writes_has_no_secret(hosts: Hosts, artifacts: Path) -> None:
    secrets = Secrets()
    for name, key in (("ARK", root().ark_key), ("ASK", root().ask_key)):
        der = key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        secrets.add(f"private exponent of the {name}", der[300:500])
    out = artifacts / "written"
    out.mkdir()
    settings = f'[sev]\nroot = "{ROOT}"\n'
    daemon = hosts.daemon(
        "own",
        *("--capture", str(out / "all.pcapng"), "--log-level", "debug", "--log-format", "json"),
        plainly=settings,
        encrypted=settings + 'memory = "encrypted"\n',
    )
    for name in ("plainly", "encrypted"):
        host = Host(daemon, name)
        plant_keys(secrets, host.identity(), f"of {name}")
        with host.machine() as machine, host.machine() as there:
            launch(host, machine, secrets, ES)
            policy, session = machine.send_start(host.target())
            packets = [machine.send_update_data(at, 4096) for at in (0, 0x2000)]
            area = machine.send_update_vmsa(0)
            there.init(sev.ES_INIT)
            with host.platform() as platform:
                there.receive_start(policy, platform.export().pdh, session)
            with contextlib.suppress(CommandRefused):
                there.receive_update_data(
                    0, packets[0]._replace(payload=flipped(packets[0].payload, 9))
                )
            for at, packet in zip((0, 0x2000), packets, strict=True):
                there.receive_update_data(at, packet)
            there.receive_update_vmsa(0, area)
            there.receive_finish()
        oca = EcPrivateKey.from_entropy(os.urandom(KEY_ENTROPY_SIZE))
        with host.platform() as platform:
            csr = SevCertificate.parse(platform.csr())
            signed = sign(csr, Usage.OCA, oca).build()
            with contextlib.suppress(CommandRefused):
                platform.take_owner(flipped(signed, 0x420), make_oca(oca).build())
            platform.take_owner(signed, make_oca(oca).build())
            platform.factory_reset()
        plant_keys(secrets, host.identity(), f"of {name} after a reset")
    daemon.kill()
    (out / "log").write_text(daemon.log_text())
    (out / "trace").write_bytes(daemon.trace.read_bytes())
    for form in ("--text", "--json"):
        words = ("decode", *((form,) if form == "--json" else ()), str(out / "all.pcapng"))
        done = run_hcalld(*words)
        assert done.returncode == 0, done.stderr
        assert "LAUNCH_SECRET" in done.stdout
        (out / f"decoded{form}").write_text(done.stdout + done.stderr)
    copy_state(daemon.state_dir, out / "state")
    log = (out / "log").read_text()
    assert "BAD_MEASUREMENT" in (out / "trace").read_text()
    assert "guest connected" in log
    assert secrets.names
    leaks = secrets.find_in(out)
    assert not leaks, "\n".join(map(str, leaks))
    # The search finds what is there.
    planted = secrets.add("planted", os.urandom(32))
    (out / "planted").write_text(planted.hex())
    assert secrets.find_in(out)
