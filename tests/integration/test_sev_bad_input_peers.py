# SPDX-License-Identifier: Apache-2.0
"""Clients of a SEV platform that do harm: with frames, with memory, with time, with numbers."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
from tests.e2e.daemon import Daemon, DaemonError
from tests.e2e.fakeshim import FakeShim, connect, hello
from tests.e2e.patience import patience, wait_until
from tests.e2e.sevhosts import ROOT, Host, Hosts, start
from tests.e2e.wire import PeerClosed

from hcalld.crypto.sev.certificates import make_owner_dh, public_point
from hcalld.crypto.sev.kdf import TransportKeys
from hcalld.crypto.sev.keys import KEY_ENTROPY_SIZE, EcPrivateKey
from hcalld.crypto.sev.measurement import measure
from hcalld.crypto.sev.session import wrap_session
from hcalld.guestowner.client import ConnectionFailed, SevClient
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.abi.spec import Hcall
from hcallproto.errors import RemoteProtocolError
from hcallproto.payloads.sev import SevCertificate, Version
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.encode import encode

MIB = 1 << 20
PIECE = 512 << 10
DATA, OUT = 0x100000, 0x1000
KEYS = TransportKeys.parse(bytes(range(32)))
OWNER = EcPrivateKey.from_entropy(bytes(range(KEY_ENTROPY_SIZE)))

_SETTINGS = f'[sev]\nroot = "{ROOT}"\nasids = 40\n'


@pytest.fixture
def daemon(hosts: Hosts) -> Daemon:
    return hosts.daemon(
        "own",
        "--allow-core-dumps",
        mine=_SETTINGS + 'memory = "encrypted"\n',
        open=_SETTINGS,
    )


class Peer(FakeShim):
    """A client that has its memory from 0 on, and answers requests for it as a test wants."""

    def __init__(self, daemon: Daemon, platform: str = "mine", *, size: int = 4 * MIB) -> None:
        super().__init__(connect(daemon.socket), size)
        self.answers: list[f.Frame] = []
        """What the daemon asked for and was told."""
        self.on_read: Callable[[f.Read], f.Frame | None] = self.good_read
        self.on_write: Callable[[f.Write], f.Frame | None] = self.good_write
        self.negotiate(
            hello(platform, features=s.Feature.COMMANDS, instance=os.urandom(16), vcpus=2)
        )

    def command(self, hcall: Hcall, *arguments: int, vcpu: int = 0) -> f.Call:
        """The frame of a command."""
        frame = self.frame(hcall.number, *arguments, vcpu=vcpu)
        return frame._replace(level=s.LEVEL_COMMAND)

    def give(self, hcall: Hcall, *arguments: int) -> SevCode:
        """Give a command, and carry out what it writes."""
        self.send(self.command(hcall, *arguments))
        return self.status()

    def status(self) -> SevCode:
        """Serve the daemon until the reply is there."""
        while True:
            frame = self.receive(60)
            answer: f.Frame | None = None
            match frame:
                case f.Reply():
                    self._apply(frame.writes)
                    return SevCode(frame.status)
                case f.Read():
                    answer = self.on_read(frame)
                case f.Write():
                    answer = self.on_write(frame)
                case _:
                    raise AssertionError(f"received {frame!r}")
            if answer is not None:
                self.answers.append(frame)
                self.send(answer)

    def good_read(self, read: f.Read) -> f.Frame:
        data = tuple(
            (s.AccessStatus.OK, bytes(self.ram[gpa : gpa + size])) for gpa, size in read.segments
        )
        return f.ReadReply(read.vcpu, read.reset, read.seq, read.request, data)

    def good_write(self, write: f.Write) -> f.Frame:
        self._apply(write.segments)
        return f.WriteReply(write.vcpu, write.reset, write.seq, write.request, s.AccessStatus.OK, 0)

    def no_ram(self, read: f.Read) -> f.Frame:
        data = tuple((s.AccessStatus.NOT_RAM, b"") for _ in read.segments)
        return f.ReadReply(read.vcpu, read.reset, read.seq, read.request, data)

    # -- a launch -------------------------------------------------------------------------------

    def launch(self, host: Host) -> None:
        """LAUNCH_START of an owner with KEYS."""
        assert self.give(sev.INIT) is SevCode.SUCCESS
        certificate, session = owner_blobs(host)
        self.ram[0x4000 : 0x4000 + len(certificate)] = certificate
        self.ram[0x8000 : 0x8000 + len(session)] = session
        found = self.give(sev.LAUNCH_START, 0, 0, 0x4000, len(certificate), 0x8000, len(session))
        assert found is SevCode.SUCCESS

    def must_measure(self, data: bytes) -> None:
        """The guest's digest is of ``data`` and of nothing else."""
        assert self.give(sev.LAUNCH_MEASURE, OUT, 48) is SevCode.SUCCESS
        blob = bytes(self.ram[OUT : OUT + 48])
        digest = hashlib.sha256(data).digest()
        assert blob[:32] == measure(KEYS.tik, Version(1, 55, 21), 0, digest, blob[32:])


def owner_blobs(host: Host) -> tuple[bytes, bytes]:
    """A certificate and a session for policy 0."""
    with host.platform() as platform:
        pdh = SevCertificate.parse(platform.export().pdh)
    session = wrap_session(OWNER, public_point(pdh), KEYS, 0, nonce=bytes(16), iv=bytes(16))
    return make_owner_dh(OWNER).build(), session.build()


@pytest.fixture
def host(daemon: Daemon) -> Host:
    return Host(daemon, "mine")


@pytest.fixture
def peer(daemon: Daemon, host: Host) -> Iterator[Peer]:
    with Peer(daemon) as peer:
        yield peer


def must_serve(host: Host) -> None:
    """Another client is served as ever."""
    with host.machine() as machine:
        start(machine, 0, bytes(4096))
        assert machine.read_decrypted(0, 4096) == bytes(4096)


def resident_kib(daemon: Daemon, field: str = "VmRSS") -> int:
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status").read_text("ascii")
    return int(status.split(f"{field}:")[1].split()[0])


# -- what comes with a command --------------------------------------------------------------


def test_blobs_that_are_not_what_their_lengths_say(host: Host, peer: Peer) -> None:
    assert peer.give(sev.INIT) is SevCode.SUCCESS
    certificate, session = owner_blobs(host)
    peer.ram[0x4000 : 0x4000 + 2084], peer.ram[0x8000 : 0x8000 + 128] = certificate, session
    good = peer.command(sev.LAUNCH_START, 0, 0, 0x4000, 2084, 0x8000, 128)
    first, second = good.segments
    efault = SevCode.EFAULT
    for segments, code in (
        ((first._replace(data=certificate[:-1]), second), efault),
        ((first._replace(data=certificate + b"\0"), second), efault),
        ((first._replace(data=b""), second), efault),
        ((first, second._replace(data=session * 100)), efault),
        ((first._replace(status=s.SegmentStatus.NOT_RAM, data=b""), second), efault),
        ((first, second._replace(status=s.SegmentStatus.TOO_LARGE, data=b"")), efault),
        # In each other's place: well-formed, of a wrong size.
        (
            (
                first._replace(data=session),
                second._replace(data=certificate),
            ),
            efault,
        ),
    ):
        frame = peer.command(sev.LAUNCH_START, 0, 0, 0x4000, 2084, 0x8000, 128)
        peer.send(frame._replace(segments=segments))
        assert peer.status() is code
        assert peer.give(sev.GUEST_STATUS) is SevCode.INVALID_GUEST
    assert host.status().guest_count == 0
    # What did not come is asked for.
    frame = peer.command(sev.LAUNCH_START, 0, 0, 0x4000, 2084, 0x8000, 128)
    peer.send(frame._replace(segments=()))
    assert peer.status() is SevCode.SUCCESS
    assert len(peer.answers) == 2


def test_commands_that_do_not_exist(host: Host, peer: Peer) -> None:
    """SNP's, and numbers that nobody has: -EINVAL, as the kernel says, and no field comes back."""
    for number in (0xAEBA0000 + 23, 0xAEBA0064, 0x53000009, 0xAEBD0000, 0xFFFFFFFF, 0, 1 << 40):
        frame = peer.command(sev.INIT)
        gpr = list(frame.gpr)
        gpr[s.REGISTERS.index(3)] = number
        peer.send(frame._replace(gpr=tuple(gpr)))
        reply = peer.expect(f.Reply)
        assert (reply.status, dict(reply.registers)) == (SevCode.EINVAL, {})
    must_serve(host)


def test_every_register_of_every_command_is_anything(daemon: Daemon, host: Host) -> None:
    """What is not declared would be a bug in the log; the daemon's log is searched at the end."""
    source = random.Random(7)
    values = [0, 1, 15, 16, 48, 52, 4096, 4097, 16384, 16385, 65536, DATA, DATA + 8]
    values += [0xFFFFFFFF, 1 << 32, (1 << 47) - 16, 1 << 47, 1 << 63, (1 << 64) - 16, (1 << 64) - 1]
    with Peer(daemon) as peer:
        for _ in range(600):
            hcall = source.choice(sev.FAMILY.calls)
            arguments = [source.choice(values) for _ in range(9)]
            if sum(len(one.data) for one in peer.command(hcall, *arguments).segments) > 1 << 19:
                continue
            assert peer.give(hcall, *arguments) in {code.code for code in hcall.codes}
    must_serve(host)


def test_any_bytes_after_the_greeting(daemon: Daemon, host: Host) -> None:
    source = random.Random(11)
    for number in range(30):
        with Peer(daemon) as peer:
            good = peer.connection.send(peer.command(sev.LAUNCH_START, 0, 0, 0x4000, 100, 0, 0))
            data = bytearray(good)
            for _ in range(number):
                data[source.randrange(len(data))] = source.randrange(256)
            with contextlib.suppress(PeerClosed):
                peer.send_bytes(bytes(data) if number else source.randbytes(300))
                peer.send_bytes(source.randbytes(number))
                # An answer to another number than was meant is none that the peer's own end knows.
                with contextlib.suppress(TimeoutError, RemoteProtocolError):
                    peer.receive(0.02)
    must_serve(host)


# -- memory that is not what it was ---------------------------------------------------------


def test_memory_that_goes_while_it_is_read(host: Host, peer: Peer) -> None:
    peer.launch(host)
    content = os.urandom(3 * PIECE)
    peer.ram[DATA : DATA + len(content)] = content
    for last in (1, 2, 3):
        count = 0

        def read(frame: f.Read, last: int = last) -> f.Frame:
            nonlocal count
            count += 1
            return peer.no_ram(frame) if count == last else peer.good_read(frame)

        peer.on_read = read
        found = peer.give(sev.LAUNCH_UPDATE_DATA, DATA, len(content))
        assert found is SevCode.EFAULT
        assert peer.ram[DATA : DATA + len(content)] == content
        assert count == last
    peer.on_read = peer.good_read
    assert peer.give(sev.LAUNCH_UPDATE_DATA, DATA, len(content)) is SevCode.SUCCESS
    assert peer.ram[DATA : DATA + len(content)] != content
    peer.must_measure(content)


def test_memory_that_goes_while_it_is_written(host: Host, peer: Peer) -> None:
    """What was encrypted before is put back."""
    peer.launch(host)
    content = os.urandom(3 * PIECE)
    peer.ram[DATA : DATA + len(content)] = content
    count = 0

    def write(frame: f.Write) -> f.Frame:
        nonlocal count
        count += 1
        if count != 3:
            return peer.good_write(frame)
        return f.WriteReply(
            frame.vcpu, frame.reset, frame.seq, frame.request, s.AccessStatus.NOT_RAM, 0
        )

    peer.on_write = write
    assert peer.give(sev.LAUNCH_UPDATE_DATA, DATA, len(content)) is SevCode.EFAULT
    assert peer.ram[DATA : DATA + len(content)] == content
    assert count >= 4
    peer.must_measure(b"")


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE + 1])
def test_memory_of_another_size_than_was_asked_for(
    daemon: Daemon, host: Host, peer: Peer, size: int
) -> None:
    """Either a breach or -EFAULT: nothing is measured of it."""
    peer.launch(host)

    def read(frame: f.Read) -> f.Frame:
        data = ((s.AccessStatus.OK, bytes(size)),)
        return f.ReadReply(frame.vcpu, frame.reset, frame.seq, frame.request, data)

    peer.on_read = read
    peer.send(peer.command(sev.LAUNCH_UPDATE_DATA, DATA, PIECE))
    peer.send_bytes(encode(read(peer.expect(f.Read))))
    peer.wait_closed()
    assert "protocol breach" in daemon.log_text()
    wait_until(lambda: host.status().guest_count == 0, "the end of the guest")


def test_an_answer_that_does_not_come(host: Host, peer: Peer) -> None:
    """The command waits, and holds up nobody; given up, it has changed nothing."""
    peer.launch(host)
    call = peer.command(sev.LAUNCH_UPDATE_DATA, DATA, 2 * PIECE)
    peer.send(call)
    read = peer.expect(f.Read)
    must_serve(host)
    # A second command meanwhile, of the same VM, is not let in.
    peer.send(peer.command(sev.LAUNCH_MEASURE, OUT, 48, vcpu=1))
    assert peer.expect(f.Reply).status == SevCode.EINVAL
    peer.send(f.Cancel(call.vcpu, call.reset, call.seq, s.CancelReason.DEADLINE))
    # What was asked for is answered before the call ends.
    peer.send(peer.good_read(read))
    assert peer.expect(f.Cancelled).effect is s.Effect.NONE
    peer.must_measure(b"")


def test_an_end_in_the_middle(daemon: Daemon, host: Host) -> None:
    for way in range(4):
        with Peer(daemon) as peer:
            peer.launch(host)
            assert host.status().guest_count == 1
            peer.send(peer.command(sev.LAUNCH_UPDATE_DATA, DATA, 3 * PIECE))
            for _ in range(way):
                peer.send(peer.good_read(peer.expect(f.Read)))
        wait_until(lambda: host.status().guest_count == 0, "the end of the guest")
    must_serve(host)


# -- time and room --------------------------------------------------------------------------


class Bystander:
    """Another client, which asks for the platform's status all the time."""

    def __init__(self, host: Host) -> None:
        self._client = host.client()
        self._is_over = threading.Event()
        self.times: list[float] = []
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._is_over.is_set():
            begun = time.perf_counter()
            self._client.command(sev.PLATFORM_STATUS)
            self.times.append(time.perf_counter() - begun)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join(patience(20))
        self._client.close()


@pytest.mark.parametrize(
    ("platform", "size", "room"), [("open", 1 << 28, 24 * 1024), ("mine", 1 << 27, 300 * 1024)]
)
def test_large_memory_takes_bounded_room_and_others_are_served(
    daemon: Daemon, platform: str, size: int, room: int
) -> None:
    """Read piece by piece; what is encrypted is held until it is known that all of it is there."""
    host = Host(daemon, platform)
    with Peer(daemon, platform, size=DATA + size) as peer:
        peer.launch(host)
        must_serve(host)
        before = resident_kib(daemon)
        with Bystander(host) as bystander:
            assert peer.give(sev.LAUNCH_UPDATE_DATA, DATA, size) is SevCode.SUCCESS
        assert resident_kib(daemon, "VmHWM") < before + room
        assert len(bystander.times) > 20
    must_serve(host)


def test_sizes_that_no_client_has(host: Host, peer: Peer, daemon: Daemon) -> None:
    """4 GiB less a block: the first piece that is not there ends it."""
    peer.launch(host)
    before = resident_kib(daemon)
    huge = 0xFFFFFFF0
    for hcall, arguments, code in (
        (sev.LAUNCH_UPDATE_DATA, (DATA, huge), SevCode.EFAULT),
        (sev.LAUNCH_UPDATE_VMSA, (DATA, huge & ~4095), SevCode.ENOTTY),
        (sev.LAUNCH_MEASURE, (DATA, huge), SevCode.EINVAL),
        (sev.LAUNCH_UPDATE_DATA, (DATA, 1 << 27), SevCode.EFAULT),
    ):
        assert peer.give(hcall, *arguments) is code, hcall.name
        assert resident_kib(daemon) < before + 16 * 1024
    must_serve(host)


def test_as_many_guests_as_there_may_be_and_more(daemon: Daemon, host: Host) -> None:
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(daemon, size=0x10000)) for _ in range(60)]
        for peer in peers:
            assert peer.give(sev.INIT) is SevCode.SUCCESS
        found = [peer.give(sev.LAUNCH_START, 0, 0, 0, 0, 0, 0) for peer in peers]
        assert found == [SevCode.SUCCESS] * 40 + [SevCode.RESOURCE_LIMIT] * 20
        # One goes, one of those that were refused comes.
        peers[3].close()
        wait_until(lambda: host.status().guest_count == 39, "the end of a guest")
        assert peers[-1].give(sev.LAUNCH_START, 0, 0, 0, 0, 0, 0) is SevCode.SUCCESS
    wait_until(lambda: host.status().guest_count == 0, "the end of all guests")
    must_serve(host)


def test_clients_that_come_and_go(daemon: Daemon, host: Host) -> None:
    with host.client():
        before = resident_kib(daemon)
        for _ in range(300):
            with host.client() as client:
                client.command(sev.INIT)
                client.command(sev.LAUNCH_START)
        wait_until(lambda: host.status().guest_count == 0, "the end of all guests")
        assert resident_kib(daemon) < before + 16 * 1024
        # A handle is not given again, so that nobody shares a key by mistake.
        with host.machine() as machine:
            machine.init(sev.INIT)
            assert machine.launch_start(0) == 301


# -- what is on disk, and in files ----------------------------------------------------------


def test_a_platform_on_a_damaged_disk_says_so(hosts: Hosts) -> None:
    """Bytes of its store's file, one after the other: refused in words, or as it was."""
    daemon = hosts.daemon("own", mine=_SETTINGS)
    host = Host(daemon, "mine")
    with host.client():
        good = host.chain()
    daemon.close()
    path = daemon.state_dir / "partitions" / "mine" / "keystore.db"
    content = path.read_bytes()
    source = random.Random(5)
    at_record = content.index(b"sev") if b"sev" in content else len(content) // 2
    offsets = [0, 18, 100, len(content) - 1, at_record]
    offsets += [source.randrange(len(content)) for _ in range(4)]
    daemon.start()
    for offset in offsets:
        path.write_bytes(
            content[:offset] + bytes((content[offset] ^ 0xFF,)) + content[offset + 1 :]
        )
        for extra in ("-wal", "-shm"):
            path.with_name(path.name + extra).unlink(missing_ok=True)
        said, pdh = "", b""
        try:
            with host.platform() as platform:
                pdh = platform.export().pdh
        except ConnectionFailed as error:
            said = str(error)
        assert "restore" in said or "damaged" in said or pdh == good[:2084], said
        assert Host(daemon, "another").status().state == 1
    path.write_bytes(content)
    with host.client():
        assert host.chain() == good


@pytest.mark.parametrize(
    ("text", "why"),
    [("asids = 0", "asids"), ('memory = "open"', "memory"), ("rot = 1\nbuild = -1", "rot")],
)
def test_a_profile_that_is_wrong_ends_the_start(hosts: Hosts, text: str, why: str) -> None:
    with pytest.raises(DaemonError, match=why) as raised:
        hosts.daemon("own", mine=f"[sev]\n{text}\n")
    assert "Traceback" not in str(raised.value)


def test_root_files_that_are_none(hosts: Hosts, tmp_path: Path) -> None:
    good = ROOT.read_text()
    other = (ROOT.parent / "root-4096.pem").read_text()
    parts = good.split("-----BEGIN ")
    body = parts[1].splitlines()[5]
    files = {
        "large": good + "\n" * 10 * MIB,
        "empty": "",
        "keyless": "-----BEGIN ".join(part for part in parts if not part.startswith("PRIVATE")),
        "mixed": "-----BEGIN ".join(part for part in parts if not part.startswith("PRIVATE"))
        + other[other.index("-----BEGIN PRIVATE") :],
        "twice": good + good,
        "altered": good.replace(body[:8], body[:8].swapcase()),
    }
    profiles = {}
    for name, text in files.items():
        (tmp_path / f"{name}.pem").write_text(text)
        profiles[name] = f'[sev]\nroot = "{tmp_path / name}.pem"\n'
    os.mkfifo(tmp_path / "fifo")
    profiles |= {
        name: f'[sev]\nroot = "{path}"\n'
        for name, path in (("device", "/dev/zero"), ("folder", "/"), ("nothing", "/nowhere"))
    }
    profiles["fifo"] = f'[sev]\nroot = "{tmp_path / "fifo"}"\n'
    daemon = hosts.daemon("own", **profiles)
    for name in profiles:
        with pytest.raises(ConnectionFailed, match="root"):
            SevClient(daemon.socket, name)
        assert Host(daemon, "plain").status().state == 1
