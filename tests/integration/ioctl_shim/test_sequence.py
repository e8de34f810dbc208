# SPDX-License-Identifier: Apache-2.0
"""A VMM's ioctls, in the order in which QEMU makes them, through the library to a daemon."""

from __future__ import annotations

import hashlib
import os

import pytest
from tests.e2e.sevprogram import (
    KVM_CREATE_VCPU,
    KVM_MEMORY_ENCRYPT_OP,
    PAGE,
    VM_SEV,
    VM_SEV_ES,
    SevProgram,
)
from tests.integration.ioctl_shim.conftest import SevShim
from tests.sev_platform import root, verify_chain

from hcalld.crypto.sev.chains import Chain
from hcalld.crypto.sev.measurement import measure
from hcalld.crypto.sev.packets import seal_secret
from hcalld.crypto.sev.reports import verify_report
from hcalld.guestowner.client import CommandRefused
from hcalld.guestowner.sessions import NewSession, make_session
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.abi.spec import Hcall
from hcallproto.payloads.sev.blobs import AttestationReport, MeasurementBlob
from hcallproto.payloads.sev.certificates import SevCertificate, build_amd_pair, parse_chain
from hcallproto.payloads.sev.constants import (
    BLOB_MAX_SIZE,
    Api,
    GuestState,
    PlatformState,
    Version,
)

VERSION = Version(1, 55, 21)
FIRMWARE = b"firmware, " * 1600
ES_POLICY = 5


def launch_start(program: SevProgram, vm: int, device: int, policy: int = 1) -> NewSession:
    """LAUNCH_START with a session of an owner who has asked the platform for its PDH."""
    session = make_session(export_pdh(program, device), policy, os.urandom)
    certificate, blob = session.certificate.build(), session.session.build()
    fields = program.command(
        vm,
        sev.LAUNCH_START,
        sev_fd=device,
        policy=policy,
        dh_uaddr=program.put(certificate),
        dh_len=len(certificate),
        session_uaddr=program.put(blob),
        session_len=len(blob),
    )
    assert fields["handle"] > 0
    return session


def export_pdh(program: SevProgram, device: int) -> SevCertificate:
    pdh, chain = program.map(2084), program.map(6252)
    program.command(
        device,
        sev.PDH_CERT_EXPORT,
        pdh_cert_address=pdh,
        pdh_cert_len=2084,
        cert_chain_address=chain,
        cert_chain_len=6252,
    )
    return SevCertificate.parse(program.get(pdh, 2084))


def query(program: SevProgram, vm: int, hcall: Hcall, **fields: int) -> dict[str, int]:
    """Asks for a length: refused, as real firmware does, with what is needed."""
    result = program.issue(vm, hcall, **fields)
    assert result.status == SevCode.INVALID_LEN
    return dict(result.fields)


def get_measurement(program: SevProgram, vm: int) -> MeasurementBlob:
    """LAUNCH_MEASURE twice, as QEMU makes it."""
    size = query(program, vm, sev.LAUNCH_MEASURE)["len"]
    blob = program.map(size)
    assert program.command(vm, sev.LAUNCH_MEASURE, uaddr=blob, len=size)["len"] == size
    return MeasurementBlob.parse(program.get(blob, size))


def update_data(program: SevProgram, vm: int, data: bytes) -> int:
    where = program.put(data)
    program.command(vm, sev.LAUNCH_UPDATE_DATA, uaddr=where, len=len(data))
    return where


def launched(program: SevProgram, device: int, policy: int = 0, data: bytes = FIRMWARE) -> int:
    """A guest that runs."""
    vm = program.create_vm()
    program.command(vm, sev.INIT)
    program.command(vm, sev.LAUNCH_START, sev_fd=device, policy=policy)
    update_data(program, vm, data)
    get_measurement(program, vm)
    program.command(vm, sev.LAUNCH_FINISH)
    return vm


def state(program: SevProgram, vm: int) -> int:
    return program.command(vm, sev.GUEST_STATUS)["state"]


def platform_state(program: SevProgram, device: int) -> tuple[int, int]:
    status = program.command(device, sev.PLATFORM_STATUS)
    return status["state"], status["guest_count"]


def test_launch_when_made_as_qemu_makes_it_then_its_owner_is_convinced(shim: SevShim):
    program = shim.program(shim.daemon())
    device = program.open("/dev/sev")
    vm = program.create_vm()
    status = program.command(device, sev.PLATFORM_STATUS)
    assert (status["api_major"], status["api_minor"], status["build"]) == VERSION
    program.command(vm, sev.INIT)
    session = launch_start(program, vm, device)
    ram = program.map(16 * PAGE)
    program.command(vm, sev.REG_REGION, addr=ram, size=16 * PAGE)
    where = update_data(program, vm, FIRMWARE)
    blob = get_measurement(program, vm)
    digest = hashlib.sha256(FIRMWARE).digest()
    measurement = measure(session.keys.tik, VERSION, 1, digest, blob.mnonce)
    assert blob.measurement == measurement
    assert state(program, vm) == GuestState.LSECRET

    packet = seal_secret(
        session.keys,
        b"a secret of 32 bytes, or so ...!",
        iv=bytes(16),
        measurement=measurement,
        api=Api(1, 55),
    )
    header = packet.header.build()
    secret = {
        "hdr_uaddr": program.put(header),
        "hdr_len": len(header),
        "guest_uaddr": ram + 64,
        "guest_len": 32,
        "trans_uaddr": program.put(packet.payload),
        "trans_len": 32,
    }
    tampered = {**secret, "trans_uaddr": program.put(bytes(32))}
    with pytest.raises(CommandRefused) as refused:
        program.command(vm, sev.LAUNCH_SECRET, **tampered)
    assert refused.value.status == SevCode.BAD_MEASUREMENT
    assert program.get(ram, PAGE) == bytes(PAGE)
    program.command(vm, sev.LAUNCH_SECRET, **secret)
    assert program.get(ram, 128) == bytes(64) + b"a secret of 32 bytes, or so ...!" + bytes(32)

    program.command(vm, sev.LAUNCH_FINISH)
    assert state(program, vm) == GuestState.RUNNING
    assert program.get(where, len(FIRMWARE)) == FIRMWARE
    assert platform_state(program, device) == (PlatformState.WORKING, 1)
    program.command(vm, sev.UNREG_REGION, addr=ram, size=16 * PAGE)
    assert program.messages() == ""


def test_attestation_report_when_asked_for_then_the_pek_has_signed_it(shim: SevShim):
    program = shim.program(shim.daemon())
    device = program.open("/dev/sev")
    vm = launched(program, device, policy=1)
    nonce = bytes(range(16))
    fields = {
        "mnonce_low": int.from_bytes(nonce[:8], "little"),
        "mnonce_high": int.from_bytes(nonce[8:], "little"),
    }
    size = query(program, vm, sev.GET_ATTESTATION_REPORT, **fields)["len"]
    where = program.map(size)
    program.command(vm, sev.GET_ATTESTATION_REPORT, uaddr=where, len=size, **fields)
    report = AttestationReport.parse(program.get(where, size))
    assert (report.mnonce, report.launch_digest) == (nonce, hashlib.sha256(FIRMWARE).digest())

    needed = query(program, vm, sev.CERT_EXPORT)
    pdh, chain = program.map(needed["pdh_len"]), program.map(needed["chain_len"])
    program.command(
        vm,
        sev.CERT_EXPORT,
        pdh_addr=pdh,
        chain_addr=chain,
        pdh_len=needed["pdh_len"],
        chain_len=needed["chain_len"],
    )
    pek, _, _ = parse_chain(program.get(chain, needed["chain_len"]))
    verify_report(report, pek)


@pytest.mark.parametrize(
    ("init", "vm_type", "features"),
    [(sev.ES_INIT, 0, {}), (sev.INIT2, VM_SEV_ES, {"ghcb_version": 2})],
    ids=["ES_INIT", "INIT2"],
)
def test_launch_when_of_sev_es_then_save_areas_are_measured_after_memory(
    shim: SevShim, init: Hcall, vm_type: int, features: dict[str, int]
):
    program = shim.program(shim.daemon())
    device = program.open("/dev/sev")
    vm = program.create_vm(vm_type)
    program.command(vm, init, **features)
    session = launch_start(program, vm, device, ES_POLICY)
    for vcpu in range(2):
        program.do("ioctl", vm, KVM_CREATE_VCPU, vcpu)
    update_data(program, vm, FIRMWARE)
    areas = b"".join(bytes([number]) * PAGE for number in (1, 2))
    program.command(vm, sev.LAUNCH_UPDATE_VMSA, uaddr=program.put(areas), len=len(areas))
    blob = get_measurement(program, vm)
    digest = hashlib.sha256(FIRMWARE + areas).digest()
    assert blob.measurement == measure(session.keys.tik, VERSION, ES_POLICY, digest, blob.mnonce)


def test_debug_when_unaligned_then_whole_blocks_are_rewritten(shim: SevShim):
    program = shim.program(shim.daemon('memory = "encrypted"'))
    device = program.open("/dev/sev")
    guest = program.map(2 * PAGE)
    plain = bytes(range(256)) * 16
    program.set(guest, plain)
    vm = program.create_vm()
    program.command(vm, sev.INIT)
    program.command(vm, sev.LAUNCH_START, sev_fd=device)
    program.command(vm, sev.LAUNCH_UPDATE_DATA, uaddr=guest, len=PAGE)
    get_measurement(program, vm)
    program.command(vm, sev.LAUNCH_FINISH)
    cipher = program.get(guest, PAGE)
    assert cipher != plain
    out = program.map(PAGE)
    for offset, size in ((0, 16), (1, 1), (7, 8), (15, 2), (17, 33), (0, PAGE), (5, PAGE - 6)):
        # Another alignment than the source's.
        to = out + 3 if offset + size < PAGE else out
        program.set(out, b"\xee" * PAGE)
        program.command(vm, sev.DBG_DECRYPT, src_uaddr=guest + offset, dst_uaddr=to, len=size)
        assert program.get(to, size) == plain[offset : offset + size]
    program.command(
        vm, sev.DBG_ENCRYPT, src_uaddr=program.put(b"poke!"), dst_uaddr=guest + 30, len=5
    )
    changed = program.get(guest, PAGE)
    assert changed[:16] == cipher[:16]
    assert changed[16:48] != cipher[16:48]
    assert changed[48:] == cipher[48:]
    program.command(vm, sev.DBG_DECRYPT, src_uaddr=guest, dst_uaddr=out, len=PAGE)
    assert program.get(out, PAGE) == plain[:30] + b"poke!" + plain[35:]


def export(program: SevProgram, vm: int) -> tuple[bytes, bytes]:
    """PDH and chain, as a target gives them to a source."""
    pdh, chain = program.map(2084), program.map(6252)
    program.command(
        vm, sev.CERT_EXPORT, pdh_addr=pdh, pdh_len=2084, chain_addr=chain, chain_len=6252
    )
    return program.get(pdh, 2084), program.get(chain, 6252)


def test_guest_when_sent_to_another_daemon_then_its_memory_arrives(shim: SevShim):
    encrypted = 'memory = "encrypted"'
    source = shim.program(shim.daemon(encrypted))
    target = shim.program(shim.daemon(encrypted))
    pages = os.urandom(3 * PAGE)
    from_device, to_device = source.open("/dev/sev"), target.open("/dev/sev")
    sent = source.create_vm()
    source.command(sent, sev.INIT)
    source.command(sent, sev.LAUNCH_START, sev_fd=from_device, policy=0)
    where = update_data(source, sent, pages)
    get_measurement(source, sent)
    source.command(sent, sev.LAUNCH_FINISH)

    received = target.create_vm()
    target.command(received, sev.INIT)
    to_pdh, to_chain = export(target, received)
    from_pdh, _ = export(source, sent)
    made = root(2048)
    amd = build_amd_pair(made.ask, made.ark)
    chain = Chain.parse(to_pdh, to_chain, amd)
    verify_chain(chain)
    assert query(source, sent, sev.SEND_START)["session_len"] == 128
    session = source.map(128)
    started = source.command(
        sent,
        sev.SEND_START,
        pdh_cert_uaddr=source.put(to_pdh),
        pdh_cert_len=len(to_pdh),
        plat_certs_uaddr=source.put(to_chain),
        plat_certs_len=len(to_chain),
        amd_certs_uaddr=source.put(amd),
        amd_certs_len=len(amd),
        session_uaddr=session,
        session_len=128,
    )
    target.command(
        received,
        sev.RECEIVE_START,
        sev_fd=to_device,
        policy=started["policy"],
        pdh_uaddr=target.put(from_pdh),
        pdh_len=len(from_pdh),
        session_uaddr=target.put(source.get(session, 128)),
        session_len=128,
    )
    room = target.map(3 * PAGE)
    header, payload = source.map(52), source.map(PAGE)
    assert query(source, sent, sev.SEND_UPDATE_DATA)["hdr_len"] == 52
    for offset in range(0, len(pages), PAGE):
        source.command(
            sent,
            sev.SEND_UPDATE_DATA,
            hdr_uaddr=header,
            hdr_len=52,
            guest_uaddr=where + offset,
            guest_len=PAGE,
            trans_uaddr=payload,
            trans_len=PAGE,
        )
        target.command(
            received,
            sev.RECEIVE_UPDATE_DATA,
            hdr_uaddr=target.put(source.get(header, 52)),
            hdr_len=52,
            guest_uaddr=room + offset,
            guest_len=PAGE,
            trans_uaddr=target.put(source.get(payload, PAGE)),
            trans_len=PAGE,
        )
    source.command(sent, sev.SEND_FINISH)
    target.command(received, sev.RECEIVE_FINISH)
    assert state(source, sent) == GuestState.SENT
    assert state(target, received) == GuestState.RUNNING
    out = target.map(3 * PAGE)
    target.command(received, sev.DBG_DECRYPT, src_uaddr=room, dst_uaddr=out, len=3 * PAGE)
    assert target.get(out, 3 * PAGE) == pages
    assert target.get(room, 3 * PAGE) != pages


def test_send_when_cancelled_then_the_guest_runs_on(shim: SevShim):
    program = shim.program(shim.daemon())
    device = program.open("/dev/sev")
    vm = launched(program, device)
    pdh, chain = export(program, vm)
    made = root(2048)
    amd = build_amd_pair(made.ask, made.ark)
    program.command(
        vm,
        sev.SEND_START,
        pdh_cert_uaddr=program.put(pdh),
        pdh_cert_len=len(pdh),
        plat_certs_uaddr=program.put(chain),
        plat_certs_len=len(chain),
        amd_certs_uaddr=program.put(amd),
        amd_certs_len=len(amd),
        session_uaddr=program.map(128),
        session_len=128,
    )
    assert state(program, vm) == GuestState.SUPDATE
    program.command(vm, sev.SEND_CANCEL)
    assert state(program, vm) == GuestState.RUNNING


def test_platform_when_its_owner_changes_then_everybody_sees_it(shim: SevShim):
    socket = shim.daemon()
    program, other = shim.program(socket), shim.program(socket)
    device = program.open("/dev/sev")
    before = export_pdh(program, device)
    program.command(device, sev.PDH_GEN)
    after = export_pdh(program, device)
    assert after != before
    assert export_pdh(other, other.open("/dev/sev", os.O_RDONLY)) == after
    size = query(program, device, sev.PEK_CSR)["length"]
    csr = program.map(size)
    program.command(device, sev.PEK_CSR, address=csr, length=size)
    SevCertificate.parse(program.get(csr, size))
    ids = program.map(128)
    assert program.issue(device, sev.GET_ID, data=ids).status == 0
    first = program.get(ids, 128)
    assert first != bytes(128)
    size = query(program, device, sev.GET_ID2)["length"]
    one = program.map(size)
    program.command(device, sev.GET_ID2, address=one, length=size)
    assert program.get(one, size) == first[:size]
    program.command(device, sev.PEK_GEN)
    program.command(device, sev.FACTORY_RESET)
    assert export_pdh(program, device) != after


def test_factory_reset_when_a_guest_lives_then_it_is_busy(shim: SevShim):
    program = shim.program(shim.daemon())
    device = program.open("/dev/sev")
    vm = launched(program, device)
    assert program.issue(device, sev.FACTORY_RESET).status == SevCode.EBUSY
    program.do("close", vm)
    assert platform_state(program, device) == (PlatformState.INIT, 0)
    program.command(device, sev.FACTORY_RESET)


@pytest.mark.parametrize("hcall", [sev.FACTORY_RESET, sev.PEK_GEN])
def test_vm_when_closed_then_what_no_guest_may_see_can_be_done_at_once(shim: SevShim, hcall: Hcall):
    program = shim.program(shim.daemon())
    device = program.open("/dev/sev")
    data = b"little" * 8
    for _ in range(50):
        vm = launched(program, device, data=data)
        program.do("close", vm)
        program.command(device, hcall)
    assert program.messages() == ""


def test_commands_when_the_vm_is_not_initialized_then_kvm_knows_no_such_ioctl(shim: SevShim):
    program = shim.program(shim.daemon())
    vm = program.create_vm()
    for hcall in (
        sev.LAUNCH_START,
        sev.LAUNCH_MEASURE,
        sev.LAUNCH_FINISH,
        sev.GUEST_STATUS,
        sev.LAUNCH_UPDATE_VMSA,
        sev.REG_REGION,
    ):
        result = program.issue(vm, hcall, sev_fd=0xFFFF)
        assert result.status == SevCode.ENOTTY, hcall.name


def test_init_when_the_vm_is_of_another_type_or_has_vcpus_then_kvm_refuses(shim: SevShim):
    program = shim.program(shim.daemon())
    for vm_type, init, status in (
        (0, sev.INIT, 0),
        (0, sev.ES_INIT, 0),
        (0, sev.INIT2, SevCode.EINVAL),
        (VM_SEV, sev.INIT, SevCode.EINVAL),
        (VM_SEV, sev.ES_INIT, SevCode.EINVAL),
        (VM_SEV, sev.INIT2, 0),
        (VM_SEV_ES, sev.INIT2, 0),
    ):
        vm = program.create_vm(vm_type)
        assert program.issue(vm, init).status == status, (vm_type, init.name)
    vm = program.create_vm(VM_SEV)
    assert program.issue(vm, sev.INIT2, ghcb_version=1).status == SevCode.EINVAL
    vm = program.create_vm()
    program.do("ioctl", vm, KVM_CREATE_VCPU, 0)
    assert program.issue(vm, sev.INIT).status == SevCode.EINVAL


def test_save_areas_when_the_vm_is_not_of_sev_es_then_there_are_none(shim: SevShim):
    program = shim.program(shim.daemon())
    for vm_type, init in ((0, sev.INIT), (VM_SEV, sev.INIT2)):
        vm = program.create_vm(vm_type)
        program.command(vm, init)
        assert program.issue(vm, sev.LAUNCH_UPDATE_VMSA, data=0).status == SevCode.ENOTTY


def test_start_when_sev_fd_is_not_open_then_it_is_a_bad_descriptor(shim: SevShim):
    program = shim.program(shim.daemon())
    vm = program.create_vm()
    program.command(vm, sev.INIT)
    blob = program.map(PAGE)
    blobs = {"pdh_uaddr": blob, "pdh_len": 16, "session_uaddr": blob, "session_len": 16}
    assert program.issue(vm, sev.LAUNCH_START, sev_fd=4000).status == SevCode.EBADF
    assert program.issue(vm, sev.RECEIVE_START, sev_fd=4000, **blobs).status == SevCode.EBADF
    program.command(vm, sev.LAUNCH_START, sev_fd=program.open("/dev/null"))


@pytest.mark.parametrize("is_open", [True, False])
def test_start_when_its_arguments_are_bad_then_they_are_refused_before_sev_fd(
    shim: SevShim, is_open: bool
):
    program = shim.program(shim.daemon())
    vm, blob = program.create_vm(), program.map(BLOB_MAX_SIZE + PAGE)
    program.command(vm, sev.INIT)
    sev_fd = program.open("/dev/sev") if is_open else 4000

    def status(hcall: Hcall, **fields: int) -> int:
        return program.issue(vm, hcall, sev_fd=sev_fd, **fields).status

    for hcall, name in ((sev.LAUNCH_START, "dh"), (sev.RECEIVE_START, "pdh")):
        address, size = f"{name}_uaddr", f"{name}_len"
        good = {address: blob, size: 16, "session_uaddr": blob, "session_len": 16}
        for some, wanted in (
            ({size: 0}, SevCode.EINVAL),
            ({size: BLOB_MAX_SIZE + 1}, SevCode.EINVAL),
            ({"session_len": 0}, SevCode.EINVAL),
            ({"session_len": BLOB_MAX_SIZE + 1}, SevCode.EINVAL),
            ({address: 1 << 47}, SevCode.EFAULT),
            ({"session_uaddr": 1 << 47}, SevCode.EFAULT),
        ):
            assert status(hcall, **{**good, **some}) == wanted, (hcall.name, some)
        argument = program.argument(hcall, 1 << 47, sev_fd)
        assert program.ioctl(vm, KVM_MEMORY_ENCRYPT_OP, argument).errno == -SevCode.EFAULT
    assert status(sev.RECEIVE_START, pdh_uaddr=0) == SevCode.EINVAL


def test_probe_when_a_daemon_is_there_then_sev_is_on(shim: SevShim):
    program = shim.program(shim.daemon())
    assert program.ask("ioctl", program.create_vm(), KVM_MEMORY_ENCRYPT_OP, 0) == (0, 0)


def test_platform_when_named_then_it_is_another(shim: SevShim):
    daemon = shim.serve()
    folder = shim.lab.artifacts / "daemon.profiles"
    (folder / "second.toml").write_text((folder / "sev.toml").read_text())
    first, second = shim.program(daemon.socket), shim.program(daemon.socket, platform="second")
    assert export_pdh(first, first.open("/dev/sev")) != export_pdh(second, second.open("/dev/sev"))
