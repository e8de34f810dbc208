# SPDX-License-Identifier: Apache-2.0
"""SEV's commands against what they cannot do without: a hash, a cipher, an agreement, a MAC."""

from __future__ import annotations

import functools
import hashlib
import hmac
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR, XTS
from tests.bench.floors import daemon
from tests.bench.inprocess import InProcess, NoWire, median_us
from tests.bench.results import Results
from tests.sev_platform import VECTORS, key

from hcalld.config import Profile
from hcalld.core.call import Call
from hcalld.core.outcome import Outcome
from hcalld.core.records import Run
from hcalld.crypto.sev.certificates import make_owner_dh, public_point
from hcalld.crypto.sev.kdf import TransportKeys
from hcalld.crypto.sev.session import wrap_session
from hcalld.domain.sev.identity import unpack_identity
from hcalld.domain.sev.settings import Memory, SevSettings
from hcalld.domain.sev.view import unpack_view
from hcalld.domain.sev.vm import SevVm
from hcalld.families.sev.memory import pieces
from hcalld.guestowner.client import SevClient
from hcalld.runtime.driver import Execution
from hcalld.runtime.flushing import FlushRounds
from hcalld.runtime.guestram import SharedRam
from hcalld.runtime.partition import entry_key
from hcalld.runtime.sev import PlatformHost
from hcalld.runtime.world import RealWorld
from hcalld.stores.memory import MemoryStore
from hcallproto.abi.families import pks, sev
from hcallproto.abi.returns import H, SevCode
from hcallproto.abi.spec import Hcall, Level
from hcallproto.payloads.sev import GuestState, SevCertificate
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

ROUNDS = 7
COUNT = 300
LARGE = 64 << 20
PACKET = 64 << 10
DATA, HEADER, OUT = 1 << 20, 0x1000, 0x4000
_MODES = (Memory.PLAIN, Memory.ENCRYPTED)


class _Ram(NoWire):
    """Guest memory whose pieces are there already, and that takes what is written."""

    def __init__(self) -> None:
        self.pieces: dict[tuple[int, int], bytes] = {}

    async def read(self, call: f.Call, segments: tuple[tuple[int, int], ...]) -> list[bytes]:
        """See GuestAccess."""
        return [self.pieces[segment] for segment in segments]

    async def write(self, call: f.Call, segments: tuple[f.WriteSegment, ...]) -> None:
        """See GuestAccess."""


class Vm:
    """A VM without a socket: what a daemon does between a CALL frame and its REPLY frame."""

    def __init__(self, memory: Memory = Memory.PLAIN) -> None:
        settings = SevSettings(memory=memory, root=str(VECTORS / "root-2048.pem"))
        profile = Profile(partition="sev", source="benchmark", sev=settings, is_platform=True)
        self.partition = PlatformHost(profile, MemoryStore, FlushRounds()).join()
        trio.run(self.partition.prepare)
        self.partition.begin(Run(bytes(16), 0))
        self._entries = self.partition.entries(shared_ram=False, levels=frozenset({Level.COMMAND}))
        self._ram = SharedRam([f.RamRegion(0, 1 << 47)])
        self.wire = _Ram()
        self._world = RealWorld(self.partition)

    @property
    def vm(self) -> SevVm:
        model = self.partition.model(sev.FAMILY.name)
        assert isinstance(model, SevVm)
        return model

    def frame(self, hcall: Hcall, *arguments: int, **blobs: bytes) -> f.Call:
        entry = self._entries[entry_key(hcall.number, hcall.level)]
        registers = {3: hcall.number}
        registers |= {arg.register: v for arg, v in zip(hcall.args, arguments, strict=True)}
        segments = tuple(
            f.Segment(entry.inline[name], 0, s.SegmentStatus.OK, data)
            for name, data in blobs.items()
        )
        gpr = tuple(registers.get(n, 0) for n in s.REGISTERS)
        return f.Call(0, 0, 1, False, int(hcall.level), gpr, 0, 0, 0, 0, segments)

    def begin(self, frame: f.Call) -> tuple[Execution, Outcome | None]:
        entry = self._entries[entry_key(frame.number, frame.level)]
        model = self.partition.model(entry.family)
        assert entry.admission is not None
        entry.admission(entry.hcall, frame.msr, model)
        ram = self._ram
        call = Call(entry.hcall, entry.plan.arguments(frame.by_number(), ram.map), 0, ram.map)
        execution = Execution(frame, entry, call, model, ram, self.wire, self._world)
        return execution, execution.start()

    def call(self, frame: f.Call) -> Outcome:
        """A command that does not have to wait."""
        _, outcome = self.begin(frame)
        assert outcome is not None
        return outcome

    def must(self, frame: f.Call) -> Outcome:
        outcome = self.call(frame)
        assert outcome.code == SevCode.SUCCESS, outcome
        return outcome

    async def finish(self, frame: f.Call) -> None:
        """One that has to."""
        execution, outcome = self.begin(frame)
        if outcome is None:
            outcome = await execution.finish()
        assert outcome.code == SevCode.SUCCESS, outcome

    def start(self) -> None:
        """A guest in LUPDATE."""
        self.must(self.frame(sev.INIT))
        self.must(self.frame(sev.LAUNCH_START, 0, 0, 0, 0, 0, 0))


def _best(functions: Sequence[Callable[[], object]], count: int) -> list[float]:
    """The least median of each, in turn, in microseconds."""
    rounds = [[median_us(function, count) for function in functions] for _ in range(ROUNDS)]
    return [min(times) for times in zip(*rounds, strict=True)]


def _xts(data: bytes) -> None:
    """Encrypt in units of a MiB: OpenSSL takes no more than 16."""
    view, aes = memoryview(data), AES(bytes(range(32)))
    for start in range(0, len(data), 1 << 20):
        Cipher(aes, XTS(bytes(16))).encryptor().update(view[start : start + (1 << 20)])


@pytest.mark.parametrize("memory", _MODES)
def test_launch_update_data(memory: Memory, results: Results) -> None:
    vm = Vm(memory)
    vm.start()
    content = os.urandom(LARGE)
    for at, size in pieces(DATA, LARGE):
        vm.wire.pieces[at, size] = content[at - DATA : at - DATA + size]
    frame = vm.frame(sev.LAUNCH_UPDATE_DATA, DATA, LARGE)
    floors: dict[str, Callable[[], object]] = {
        "SHA-256": lambda: hashlib.sha256(content).digest(),
        "AES-128-XTS": lambda: _xts(content),
    }
    if memory is Memory.PLAIN:
        del floors["AES-128-XTS"]
    ours, *floor = _best([lambda: trio.run(vm.finish, frame), *floors.values()], 1)
    what = " + ".join(floors)
    print(f"\n64 MiB, {memory}: {ours / 1000:.1f} ms, {what} {sum(floor) / 1000:.1f} ms")
    results.ratio(
        f"LAUNCH_UPDATE_DATA of 64 MiB in process, memory {memory} / {what}", ours, sum(floor), 2
    )


def test_launch_measure(results: Results) -> None:
    vm = Vm()
    vm.start()
    frame = vm.frame(sev.LAUNCH_MEASURE, OUT, 48)
    keystore = InProcess()
    config = keystore.frame(pks.GET_CONFIG, (HEADER, 512), {})
    assert keystore.must(config, H.SUCCESS)
    vm.must(frame)
    guest = vm.vm.guest
    assert guest is not None

    def measure() -> None:
        guest.state = GuestState.LUPDATE
        vm.call(frame)

    ours, floor = _best([measure, functools.partial(keystore.call, config)], COUNT)
    print(f"\nLAUNCH_MEASURE {ours:.1f} us, GET_CONFIG {floor:.1f} us in process")
    results.ratio("LAUNCH_MEASURE / GET_CONFIG, in process", ours, floor, 2)


def _session(vm: Vm) -> tuple[bytes, bytes]:
    owner = key("owner")
    pdh = SevCertificate.parse(unpack_view(vm.partition.read_platform()).identity.pdh)
    keys = TransportKeys.parse(bytes(range(32)))
    made = wrap_session(owner, public_point(pdh), keys, 0, nonce=bytes(16), iv=bytes(16))
    return make_owner_dh(owner).build(), made.build()


def test_launch_start(results: Results) -> None:
    vm = Vm()
    certificate, session = _session(vm)
    vm.must(vm.frame(sev.INIT))
    frame = vm.frame(
        sev.LAUNCH_START, 0, 0, 1, 2084, 1, 128, dh_uaddr=certificate, session_uaddr=session
    )
    public = public_point(SevCertificate.parse(certificate))
    private = unpack_identity(unpack_view(vm.partition.read_platform()).packed_identity).pdh_key

    def launch() -> None:
        vm.vm.guest = None
        vm.partition.platform.release(vm.partition)
        vm.must(frame)

    ours, floor = _best([launch, lambda: private.exchange(public)], 40)
    print(f"\nLAUNCH_START {ours:.1f} us, ECDH on P-384 {floor:.1f} us")
    results.ratio("LAUNCH_START with a session in process / ECDH on P-384", ours, floor, 2)


@pytest.mark.parametrize("memory", _MODES)
def test_send_update_data(memory: Memory, results: Results) -> None:
    vm = Vm(memory)
    vm.start()
    guest = vm.vm.guest
    assert guest is not None
    guest.state = GuestState.SUPDATE
    data = os.urandom(PACKET)
    frame = vm.frame(sev.SEND_UPDATE_DATA, HEADER, 52, DATA, PACKET, OUT, PACKET, guest_uaddr=data)
    tek, tik = bytes(16), bytes(16)

    def seal() -> None:
        payload = Cipher(AES(tek), CTR(bytes(16))).encryptor().update(data)
        hmac.digest(tik, payload, "sha256")

    ours, floor = _best([lambda: vm.must(frame), seal], COUNT)
    print(f"\nSEND_UPDATE_DATA of 64 KiB, {memory}: {ours:.1f} us, CTR + HMAC {floor:.1f} us")
    results.ratio(
        f"SEND_UPDATE_DATA of 64 KiB in process, memory {memory} / AES-128-CTR + HMAC-SHA256",
        ours,
        floor,
        2,
    )


# -- over the socket --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], SevClient]]:
    """Connections to platforms of a daemon."""
    folder = tmp_path_factory.mktemp("sev")
    profiles = folder / "profiles"
    profiles.mkdir()
    for memory in _MODES:
        text = f'[sev]\nroot = "{VECTORS / "root-2048.pem"}"\nmemory = "{memory}"\n'
        (profiles / f"{memory}.toml").write_text(text)
    with daemon(folder, "--profile-dir", str(profiles)) as (_, path):
        yield functools.partial(SevClient, Path(path))


@pytest.mark.parametrize("memory", _MODES)
def test_launch_update_data_over_the_socket(
    memory: Memory, clients: Callable[[str], SevClient], results: Results
) -> None:
    """The client is Python too, and takes its part of the time."""
    content = os.urandom(LARGE)
    with clients(memory) as client:
        address = client.memory.place(content)
        client.command(sev.INIT)
        client.command(sev.LAUNCH_START)
        ours, sha, xts = _best(
            [
                lambda: client.command(sev.LAUNCH_UPDATE_DATA, uaddr=address, len=LARGE),
                lambda: hashlib.sha256(content).digest(),
                lambda: _xts(content),
            ],
            1,
        )
    floor = sha if memory is Memory.PLAIN else sha + xts
    results.ratio(
        f"LAUNCH_UPDATE_DATA of 64 MiB over the socket, memory {memory} / what it computes",
        ours,
        floor,
        4,
    )


def test_others_while_a_guest_is_launched(
    clients: Callable[[str], SevClient], results: Results
) -> None:
    """The longest that one client waits while another has 64 MiB encrypted."""
    longest = 0.0
    with clients(Memory.ENCRYPTED) as client, clients(Memory.ENCRYPTED) as other:
        address = client.memory.place(bytes(LARGE))
        client.command(sev.INIT)
        client.command(sev.LAUNCH_START)
        thread = threading.Thread(
            target=client.command,
            args=(sev.LAUNCH_UPDATE_DATA,),
            kwargs={"uaddr": address, "len": LARGE},
        )
        thread.start()
        while thread.is_alive():
            begun = time.perf_counter()
            other.command(sev.PLATFORM_STATUS)
            longest = max(longest, time.perf_counter() - begun)
        thread.join()
    results.value(
        "PLATFORM_STATUS while 64 MiB are encrypted, the longest", longest * 1000, 50, "ms"
    )
