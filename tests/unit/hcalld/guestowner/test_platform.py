# SPDX-License-Identifier: Apache-2.0
"""A guest's owner and an operator, with a daemon: launches measured, secrets injected, owners."""

from __future__ import annotations

import base64
import os
import pathlib
import tempfile
from collections.abc import Iterator

import pytest
from tests.conftest import Require
from tests.e2e.daemon import Daemon
from tests.sev_platform import key, root, verify_chain
from tests.unit.hcalld.guestowner.images import firmware
from tests.unit.hcalld.guestowner.oracles import LOOKS_GOOD, MISMATCH, snp_measure, validate

from hcalld.crypto.sev.certificates import make_oca
from hcalld.crypto.sev.reports import verify_report
from hcalld.guestowner import chain_files
from hcalld.guestowner.client import CommandRefused, SevClient, field_names
from hcalld.guestowner.cputypes import named
from hcalld.guestowner.errors import GuestOwnerError
from hcalld.guestowner.launch import Kernel, Launch, ResetProcessors, footer_of
from hcalld.guestowner.memory import AddressSpace
from hcalld.guestowner.owning import sign_csr
from hcalld.guestowner.platform import Platform
from hcalld.guestowner.secret_packets import pack
from hcalld.guestowner.sessions import NewSession, make_session
from hcalld.guestowner.validation import Claim, diagnose
from hcalld.guestowner.vmsa import InitStyle
from hcalld.testing.sev import made_up
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.abi.spec import Hcall
from hcallproto.payloads.sev.blobs import (
    ATTESTATION_REPORT_SIZE,
    MEASUREMENT_BLOB_SIZE,
    AttestationReport,
    MeasurementBlob,
)
from hcallproto.payloads.sev.certificates import SevCertificate
from hcallproto.payloads.sev.constants import (
    GuestState,
    PlatformFlag,
    PlatformState,
    Policy,
)
from hcallproto.payloads.sev.tables import LUKS_KEY_GUID, SecretEntry, parse_secrets

FIRMWARE = firmware()
KERNEL = Kernel(kernel=made_up("kernel digest", 32), cmdline=b"console=ttyS0")
PROCESSORS = ResetProcessors(
    count=2,
    signature=named("EPYC").signature,
    style=InitStyle.ES_INIT,
    reset_address=footer_of(FIRMWARE).reset_address,
)

PLATFORMS = 20
"""More than there are tests: each has a platform of its own."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("daemon")
    (folder / "root.pem").write_bytes(root().to_pem().reveal())
    profiles = folder / "profiles"
    profiles.mkdir()
    for number in range(PLATFORMS):
        (profiles / f"p{number}.toml").write_text(f'[sev]\nroot = "{folder / "root.pem"}"\n')
    options = ("--memory", "--profile-dir", str(profiles))
    with (
        tempfile.TemporaryDirectory(prefix="hcalld-", dir="/tmp") as run_dir,
        Daemon(folder, pathlib.Path(run_dir), options) as started,
    ):
        yield started


@pytest.fixture(scope="module")
def names() -> Iterator[str]:
    """Platforms that nobody has used."""
    return (f"p{number}" for number in range(PLATFORMS))


@pytest.fixture
def name(names: Iterator[str]) -> str:
    return next(names)


@pytest.fixture
def client(daemon: Daemon, name: str) -> Iterator[SevClient]:
    with SevClient(daemon.socket, name) as connected:
        yield connected


@pytest.fixture
def platform(client: SevClient) -> Platform:
    return Platform(client)


class Vm:
    """A launch, as QEMU makes it, of a guest whose owner has made a session."""

    def __init__(self, client: SevClient, policy: int) -> None:
        self.client = client
        self.memory = client.memory
        self.policy = policy
        pdh = SevCertificate.parse(Platform(client).export().pdh)
        self.session: NewSession = make_session(pdh, policy, os.urandom)
        client.command(sev.ES_INIT if policy & Policy.ES else sev.INIT)
        certificate, session = self.session.certificate.build(), self.session.session.build()
        client.command(
            sev.LAUNCH_START,
            policy=policy,
            dh_uaddr=self.memory.place(certificate),
            dh_len=len(certificate),
            session_uaddr=self.memory.place(session),
            session_len=len(session),
        )

    def update(self, data: bytes) -> int:
        address = self.memory.place(data)
        self.client.command(sev.LAUNCH_UPDATE_DATA, uaddr=address, len=len(data))
        return address

    def update_vmsas(self, *pages: bytes) -> None:
        data = b"".join(pages)
        self.client.command(sev.LAUNCH_UPDATE_VMSA, uaddr=self.memory.place(data), len=len(data))

    def measure(self) -> MeasurementBlob:
        address = self.memory.place(bytes(MEASUREMENT_BLOB_SIZE))
        self.client.command(sev.LAUNCH_MEASURE, uaddr=address, len=MEASUREMENT_BLOB_SIZE)
        return MeasurementBlob.parse(self.memory.read(address, MEASUREMENT_BLOB_SIZE))

    @property
    def state(self) -> int:
        return self.client.command(sev.GUEST_STATUS)["state"]

    def claim(self, launch: Launch) -> Claim:
        version = Platform(self.client).status().version
        return Claim(version=version, policy=self.policy, digest=launch.digest)


# -- launches -----------------------------------------------------------------------------------


def test_launch_when_it_is_what_was_wanted_then_everybody_says_so(
    require: Require, client: SevClient, tmp_path: pathlib.Path
):
    vm = Vm(client, Policy.NODBG)
    vm.update(FIRMWARE)
    blob = vm.measure()
    launch = Launch(FIRMWARE)
    claim = vm.claim(launch)
    assert claim.fits(vm.session.keys.tik, blob)
    (tmp_path / "fw").write_bytes(FIRMWARE)
    (tmp_path / "tk").write_bytes(vm.session.keys.build())
    assert snp_measure(tmp_path, "--mode", "sev", "--ovmf", "fw") == launch.digest.hex()
    words = (
        f"--measurement={base64.b64encode(blob.build()).decode()}",
        f"--api-major={claim.version.api_major}",
        f"--api-minor={claim.version.api_minor}",
        f"--build-id={claim.version.build}",
        *("--firmware=fw", "--tk=tk"),
    )
    assert validate(require, tmp_path, *words, "--policy=1").stdout == LOOKS_GOOD
    assert validate(require, tmp_path, *words, "--policy=3").returncode == MISMATCH


def test_launch_when_kernel_and_processors_are_measured_then_it_fits(client: SevClient):
    vm = Vm(client, Policy.NODBG | Policy.ES)
    vm.update(FIRMWARE[:16384])
    vm.update(FIRMWARE[16384:])
    vm.update(KERNEL.table)
    vm.update_vmsas(*PROCESSORS.pages)
    launch = Launch(FIRMWARE, KERNEL, PROCESSORS)
    assert vm.claim(launch).fits(vm.session.keys.tik, vm.measure())


def test_launch_when_it_is_another_then_the_mistake_is_found(client: SevClient):
    vm = Vm(client, Policy.NODBG | Policy.ES)
    vm.update(FIRMWARE)
    vm.update_vmsas(*PROCESSORS.pages)
    blob = vm.measure()
    wanted = Launch(FIRMWARE, KERNEL, PROCESSORS)
    claim = vm.claim(wanted)
    tik = vm.session.keys.tik
    assert not claim.fits(tik, blob)
    said = diagnose(claim, blob, tik=tik, tek=None, launch=wanted)
    assert said is not None
    assert said.startswith("the kernel was not measured")


def test_secret_when_it_is_of_this_launch_then_the_guest_has_it(client: SevClient):
    vm = Vm(client, Policy.NODBG)
    vm.update(FIRMWARE)
    blob = vm.measure()
    version = Platform(client).status().version
    packet = pack(
        [SecretEntry(LUKS_KEY_GUID, b"a passphrase")],
        vm.session.keys,
        measurement=blob.measurement,
        version=version,
        entropy=os.urandom,
    )
    size = len(packet.payload)
    target = vm.memory.place(bytes(size))
    header = packet.header.build()

    def inject(head: bytes) -> None:
        client.command(
            sev.LAUNCH_SECRET,
            hdr_uaddr=vm.memory.place(head),
            hdr_len=len(head),
            guest_uaddr=target,
            guest_len=size,
            trans_uaddr=vm.memory.place(packet.payload),
            trans_len=size,
        )

    with pytest.raises(CommandRefused) as raised:
        inject(header[:-1] + bytes([header[-1] ^ 1]))
    assert raised.value.status == SevCode.BAD_MEASUREMENT
    assert vm.memory.read(target, size) == bytes(size)
    inject(header)
    (entry,) = parse_secrets(vm.memory.read(target, size))
    assert entry == SecretEntry(LUKS_KEY_GUID, b"a passphrase")
    client.command(sev.LAUNCH_FINISH)
    assert vm.state == GuestState.RUNNING


def test_report_when_the_guest_runs_then_its_platform_signs_it(client: SevClient):
    vm = Vm(client, 0)
    vm.update(FIRMWARE)
    vm.measure()
    client.command(sev.LAUNCH_FINISH)
    address = vm.memory.place(bytes(ATTESTATION_REPORT_SIZE))
    mnonce = bytes(range(16))
    client.command(
        sev.GET_ATTESTATION_REPORT,
        mnonce_low=int.from_bytes(mnonce[:8], "little"),
        mnonce_high=int.from_bytes(mnonce[8:], "little"),
        uaddr=address,
        len=ATTESTATION_REPORT_SIZE,
    )
    report = AttestationReport.parse(vm.memory.read(address, ATTESTATION_REPORT_SIZE))
    assert (report.mnonce, report.policy) == (mnonce, 0)
    assert report.launch_digest == Launch(FIRMWARE).digest
    verify_report(report, chain_files.parse_platform(Platform(client).export().whole).pek)


# -- the platform -------------------------------------------------------------------------------


def test_export_when_the_root_is_known_then_the_platform_is_verified(platform: Platform):
    found = chain_files.parse_platform(platform.export().whole)
    verdict = chain_files.verify(found, (root().ask, root().ark))
    assert verdict.is_good, verdict.problem
    verify_chain(verdict.chain)


def test_status_when_a_vm_is_launched_then_it_is_counted(
    daemon: Daemon, name: str, platform: Platform
):
    before = platform.status()
    assert (before.state, before.guest_count) == (PlatformState.INIT, 0)
    assert before.flags == PlatformFlag.CONFIG_ES
    with SevClient(daemon.socket, name) as other:
        Vm(other, 0)
        during = platform.status()
        assert (during.state, during.guest_count) == (PlatformState.WORKING, 1)
        with pytest.raises(CommandRefused) as raised:
            platform.factory_reset()
        assert raised.value.status == SevCode.EBUSY
    for _ in range(20):
        with SevClient(daemon.socket, name) as other:
            Vm(other, 0)
        platform.factory_reset()


def test_ids_when_they_are_asked_twice_then_they_are_the_chips(platform: Platform):
    ids = platform.ids()
    assert [len(one) for one in ids] == [sev.CHIP_ID_SIZE]
    assert any(ids[0])
    platform.factory_reset()
    assert platform.ids() == ids


def test_ownership_when_an_owner_signs_then_the_platform_is_his_until_a_reset(platform: Platform):
    before = platform.export()
    owner = key("owner")
    oca = make_oca(owner)
    csr = SevCertificate.parse(platform.csr())
    pek = sign_csr(csr, oca, owner)
    platform.take_owner(pek.build(), oca.build())
    assert platform.status().flags & PlatformFlag.OWNER
    owned = chain_files.parse_platform(platform.export().whole)
    assert owned.oca == oca
    assert owned.pek.key == csr.key
    assert platform.export().pdh != before.pdh
    assert chain_files.verify(owned, (root().ask, root().ark)).is_good
    with pytest.raises(CommandRefused, match="the platform has an owner"):
        platform.take_owner(pek.build(), oca.build())
    platform.factory_reset()
    assert not platform.status().flags & PlatformFlag.OWNER


def test_generation_when_keys_are_made_anew_then_what_they_sign_is_too(platform: Platform):
    first = platform.export()
    platform.make_pdh()
    second = platform.export()
    platform.make_pek()
    third = platform.export()
    assert first.chain == second.chain != third.chain
    assert len({first.pdh, second.pdh, third.pdh}) == 3
    found = chain_files.parse_platform(third.whole)
    assert chain_files.verify(found, (root().ask, root().ark)).is_good


def test_platform_when_its_name_is_another_then_its_keys_are_too(
    daemon: Daemon, platform: Platform
):
    with SevClient(daemon.socket) as other:
        assert Platform(other).ids() != platform.ids()


# -- a daemon that is not what it seems -----------------------------------------------------------


class Answering(SevClient):
    """A client of a daemon that answers each command with this."""

    def __init__(self, status: int, **fields: int) -> None:
        self.memory = AddressSpace()
        self._answer = status, fields

    def command(self, hcall: Hcall, **fields: int) -> dict[str, int]:
        status, written = self._answer
        answer = dict.fromkeys(field_names(hcall), 0) | fields | written
        if status:
            raise CommandRefused(hcall, status, answer)
        return answer


@pytest.mark.parametrize("status", [SevCode.INVALID_LEN, SevCode.SUCCESS])
@pytest.mark.parametrize("size", [0, sev.BLOB_MAX_SIZE + 1, 0xFFFF_FFFF])
def test_csr_when_the_length_is_impossible_then_no_room_is_made(status: int, size: int):
    with pytest.raises(GuestOwnerError, match=f"asks for room of {size} bytes for length"):
        Platform(Answering(status, length=size)).csr()


def test_csr_when_the_query_is_refused_then_that_is_told():
    with pytest.raises(CommandRefused) as raised:
        Platform(Answering(SevCode.INVALID_PLATFORM_STATE)).csr()
    assert raised.value.status == SevCode.INVALID_PLATFORM_STATE


def test_ids_when_more_is_told_of_than_there_is_room_then_it_is_cut():
    class Growing(Answering):
        def command(self, hcall: Hcall, **fields: int) -> dict[str, int]:
            return super().command(hcall) | {"length": 4096 if fields else sev.CHIP_ID_SIZE}

    assert Platform(Growing(0)).ids() == (bytes(sev.CHIP_ID_SIZE),)


def test_ownership_when_it_is_refused_too_then_no_buffer_is_left_behind():
    seen: list[int] = []

    class Keeping(Answering):
        def command(self, hcall: Hcall, **fields: int) -> dict[str, int]:
            seen.extend(value for name, value in fields.items() if name.endswith("address"))
            assert all(self.memory.contains(address, 1) for address in seen)
            return super().command(hcall, **fields)

    client = Keeping(SevCode.ALREADY_OWNED)
    with pytest.raises(CommandRefused):
        Platform(client).take_owner(b"pek", b"oca")
    assert len(seen) == 2
    assert not any(client.memory.contains(address, 1) for address in seen)
