# SPDX-License-Identifier: Apache-2.0
"""What a platform outlives and what it does not: guests and their ASIDs, keys, owners, kills."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.daemon import COMMAND, Daemon
from tests.e2e.leaks import Secrets
from tests.e2e.patience import patience, wait_until
from tests.e2e.sevhosts import Host, Hosts, Pair, refused, start
from tests.sev_platform import key
from tests.unit.hcalld.guestowner.images import firmware

from hcalld.crypto.sev.certificates import make_oca
from hcalld.guestowner.client import ConnectionFailed
from hcalld.guestowner.owning import sign_csr
from hcalld.guestowner.platform import Export, Platform
from hcalld.guestowner.sessions import NewSession, make_session
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.payloads.sev import (
    Api,
    GuestState,
    PlatformFlag,
    PlatformState,
    SevCertificate,
)

ROOM = 8192
LAUNCHED = "held until the standard input ends"


@pytest.fixture
def daemon(hosts: Hosts) -> Daemon:
    return hosts.daemon("daemon")


def exported(host: Host) -> Export:
    with host.platform() as platform:
        return platform.export()


def session_for(host: Host, policy: int = 0) -> NewSession:
    return make_session(SevCertificate.parse(exported(host).pdh, "PDH"), policy, os.urandom)


def wait_for_guests(host: Host, count: int) -> None:
    wait_until(lambda: host.status().guest_count == count, f"{count} guests")


@contextlib.contextmanager
def client_process(host: Host, image: Path) -> Iterator[subprocess.Popen[str]]:
    """A VM of another process, once its guest runs."""
    words = ("--socket", str(host.daemon.socket), "--platform", host.name, "--memory", "1")
    process = subprocess.Popen(
        [*COMMAND, "sev", "vm", "launch", *words, "--firmware", str(image), "--hold"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert any(LAUNCHED in line for line in process.stdout)
        yield process
    finally:
        process.kill()
        process.communicate(timeout=patience(10))


# -- guests -------------------------------------------------------------------------------------


def test_asids_run_out_and_come_back(pair: Pair, tmp_path: Path) -> None:
    """One a guest, whoever has it; a VM without a guest needs none."""
    few = pair.source("few")
    image = tmp_path / "fw"
    image.write_bytes(firmware())
    with few.machine() as first, few.machine() as late, pair.target().machine() as mover:
        start(mover, 0)
        pdh = Platform(mover.client).export().pdh
        policy, session = mover.send_start(few.target())
        start(first, 0)
        with client_process(few, image) as process, few.machine() as third:
            start(third, 0)
            wait_for_guests(few, 3)
            late.init(sev.INIT)
            with refused(SevCode.RESOURCE_LIMIT):
                late.launch_start(0)
            with refused(SevCode.RESOURCE_LIMIT):
                late.receive_start(policy, pdh, session)
            with refused(SevCode.RESOURCE_LIMIT):
                # A shared key is another guest all the same.
                late.launch_start(0, handle=first.status().handle)
            with refused(SevCode.INVALID_GUEST):
                late.status()
            assert few.status().guest_count == 3
            process.send_signal(signal.SIGKILL)
            wait_for_guests(few, 2)
            late.receive_start(policy, pdh, session)
            assert few.status().guest_count == 3
        wait_for_guests(few, 2)
        assert first.status().handle != late.status().handle
        assert few.status().state == PlatformState.WORKING
    wait_for_guests(few, 0)
    assert few.status().state == PlatformState.INIT


def test_states_of_a_platform_without_probing(pair: Pair) -> None:
    """UNINIT until the first VM; WORKING with the first guest; INIT, not UNINIT, without any."""
    host = pair.source("young")
    with host.platform() as operator:
        _see_states(host, operator)


def _see_states(host: Host, operator: Platform) -> None:
    def seen() -> tuple[int, int]:
        status = operator.status()
        return status.state, status.guest_count

    assert seen() == (PlatformState.UNINIT, 0)
    with host.machine() as one, host.machine() as other:
        assert seen() == (PlatformState.UNINIT, 0)
        one.init(sev.INIT)
        assert seen() == (PlatformState.INIT, 0)
        one.launch_start(0)
        assert seen() == (PlatformState.WORKING, 1)
        start(other, 0)
        assert seen() == (PlatformState.WORKING, 2)
        handles = {one.status().handle, other.status().handle}
        assert len(handles) == 2
        assert 0 not in handles
    wait_for_guests(host, 0)
    assert seen() == (PlatformState.INIT, 0)


def test_keys_are_not_changed_under_a_guest(pair: Pair) -> None:
    host = pair.hosts.fresh(pair.left)
    with host.machine() as machine, host.platform() as platform:
        before = platform.export()
        start(machine, 0)
        with refused(SevCode.EBUSY):
            platform.factory_reset()
        with refused(SevCode.INVALID_PLATFORM_STATE):
            platform.make_pek()
        with refused(SevCode.INVALID_PLATFORM_STATE):
            platform.take_owner(before.chain[:2084], before.chain[2084:4168])
        assert platform.export() == before
        platform.make_pdh()
        assert platform.export().chain == before.chain
        assert platform.export().pdh != before.pdh
        assert machine.status().state is GuestState.RUNNING


# -- keys ---------------------------------------------------------------------------------------


def test_factory_reset_makes_a_new_platform_of_the_same_chip(pair: Pair) -> None:
    host = pair.hosts.fresh(pair.left)
    made = session_for(host)
    old = exported(host)
    oca = key("owner")
    certificate = make_oca(oca, Api(1, 55))
    with host.platform() as platform:
        ids = platform.ids()
        csr = SevCertificate.parse(platform.csr(), "request")
        platform.take_owner(sign_csr(csr, certificate, oca).build(), certificate.build())
        assert platform.status().flags & PlatformFlag.OWNER
        owned = platform.export()
        assert owned.chain[2084:4168] == certificate.build()
        platform.factory_reset()
        assert not platform.status().flags & PlatformFlag.OWNER
        new = platform.export()
        assert platform.ids() == ids
    assert new.chain[4168:] == old.chain[4168:], "the CEK is the chip's"
    parts = [export.whole[at : at + 2084] for export in (old, owned, new) for at in (0, 2084, 4168)]
    # Ownership changes PDH, OCA and the PEK's signatures; a reset all three again.
    assert len(set(parts)) == len(parts)
    with host.machine() as machine:
        machine.init(sev.INIT)
        with refused(SevCode.BAD_MEASUREMENT):
            machine.launch_start(0, made.certificate.build(), made.session.build())
        again = session_for(host)
        machine.launch_start(0, again.certificate.build(), again.session.build())


def test_a_reset_shuts_the_platform_down(pair: Pair) -> None:
    """A VM that was initialised before it has no platform any more; a new one initialises it."""
    host = pair.hosts.fresh(pair.left)
    with host.machine() as before, host.platform() as platform, host.machine() as after:
        before.init(sev.INIT)
        platform.factory_reset()
        assert platform.status().state == PlatformState.UNINIT
        with refused(SevCode.INVALID_PLATFORM_STATE):
            before.launch_start(0)
        after.init(sev.INIT)
        assert platform.status().state == PlatformState.INIT
        before.launch_start(0)


def test_keys_outlive_the_daemon_and_guests_do_not(daemon: Daemon) -> None:
    host = Host(daemon, "plain")
    made = session_for(host)
    before = exported(host)
    for end in (daemon.terminate, daemon.kill, daemon.kill):
        with host.machine() as machine:
            start(machine, 0)
            assert host.status().guest_count == 1
            end()
            with pytest.raises(ConnectionFailed):
                machine.status()
        daemon.start()
        status = host.status()
        assert (status.state, status.guest_count) == (PlatformState.INIT, 0)
        assert exported(host) == before
    with host.machine() as machine:
        machine.init(sev.INIT)
        machine.launch_start(0, made.certificate.build(), made.session.build())


def test_what_was_told_of_keys_outlives_a_kill(daemon: Daemon) -> None:
    """Each change is told once it is on disk: the next daemon has what the last one showed."""
    host = Host(daemon, "plain")
    oca = key("owner")
    certificate = make_oca(oca, Api(1, 55))

    def take_owner(platform: Platform) -> None:
        csr = SevCertificate.parse(platform.csr(), "request")
        platform.take_owner(sign_csr(csr, certificate, oca).build(), certificate.build())

    seen = {exported(host).whole}
    for change in (Platform.make_pdh, Platform.make_pek, take_owner, Platform.factory_reset):
        with host.platform() as platform:
            change(platform)
            daemon.kill()
        daemon.start()
        now = exported(host).whole
        assert now not in seen, change
        seen.add(now)
    assert len(seen) == 5


def test_no_private_key_is_readable_on_disk(daemon: Daemon) -> None:
    """Nor in log or trace; the store's key opens them, which is how this test knows them."""
    host = Host(daemon, "plain")
    secrets = Secrets()
    for number in range(3):
        made = session_for(host)
        with host.machine() as machine, host.platform() as platform:
            machine.init(sev.INIT)
            machine.launch_start(0, made.certificate.build(), made.session.build())
            secrets.add(f"TEK {number}", made.keys.tek.reveal())
            secrets.add(f"TIK {number}", made.keys.tik.reveal())
            machine.client.close()
            wait_for_guests(host, 0)
            identity = host.identity()
            for name in ("cek", "oca", "pek", "pdh"):
                scalar = getattr(identity, f"{name}_scalar")
                assert len(scalar) == 48
                secrets.add(f"{name} {number}", scalar)
                secrets.add(f"{name} {number}, turned around", scalar[::-1])
            platform.make_pek()
    daemon.kill()
    assert len(secrets.names) >= 3 * 2 + 2 * (1 + 3 * 3)
    assert secrets.find_in(daemon.state_dir) == []
    for path in (daemon.log, daemon.trace):
        assert path.stat().st_size
        assert secrets.find(path.read_bytes(), path.name) == []
    found = secrets.find(b"x" + identity.pek_scalar, "the proof that they would be found")
    assert "pek 2" in {leak.secret for leak in found}


@contextlib.contextmanager
def full_disk(daemon: Daemon) -> Iterator[None]:
    """No file of the daemon's has more than some bytes: enough for a log, too few for a commit."""
    assert daemon.process is not None
    old = resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (ROOM, old[1]))
    try:
        yield
    finally:
        resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, old)


def test_keys_that_cannot_be_kept_are_not_made(daemon: Daemon) -> None:
    """The disk is full: each command that changes keys says so, and all is as it was."""
    host = Host(daemon, "plain")
    made = session_for(host)
    with host.platform() as platform:
        before = platform.export()
        with full_disk(daemon):
            for change in (platform.make_pek, platform.make_pdh, platform.factory_reset):
                with refused(SevCode.HWERROR_PLATFORM):
                    change()
                assert platform.export() == before
            status = platform.status()
            assert status.state == PlatformState.INIT
            with host.machine() as machine:
                # A guest is nothing that is kept.
                machine.init(sev.INIT)
                machine.launch_start(0, made.certificate.build(), made.session.build())
        wait_for_guests(host, 0)
        platform.make_pdh()
        after = platform.export()
        assert after.chain == before.chain
        assert after.pdh != before.pdh
    daemon.kill()
    daemon.start()
    assert exported(host) == after


def test_a_platform_that_cannot_be_made_is_refused_at_the_door(daemon: Daemon) -> None:
    """And made when there is room again."""
    host = Host(daemon, "plain")
    with full_disk(daemon), pytest.raises(ConnectionFailed):
        exported(host)
    assert len(exported(host).whole) == 4 * 2084
