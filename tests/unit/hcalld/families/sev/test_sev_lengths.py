# SPDX-License-Identifier: Apache-2.0
"""What the kernel looks at first, questions for lengths, lengths that are wrong, bad pointers."""

from __future__ import annotations

import pytest
from tests.unit.hcalld.families.sev.stages import (
    CALLS,
    GOOD,
    IN_STATE,
    OK,
    give,
    host,
    launched,
    measured,
    receiving,
    refused,
    running,
    sending,
    succeed,
)

from hcalld.core.effects import ReadBuffer
from hcalld.domain.sev.settings import MAX_REGIONS, MAX_VCPUS, SevSettings
from hcalld.domain.sev.states import GUEST_TABLE
from hcalld.families.sev.checks import FIELD_ENDS, KERNEL_CHECKS, QUERIES
from hcalld.testing.sev import MEMORY, MEMORY_SIZE, SevClient
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.payloads.sev import GuestState

EINVAL = SevCode.EINVAL
MISSING = MEMORY + MEMORY_SIZE
"""Beyond all that is mapped."""
OPEN = ("KVM_SEV_CERT_EXPORT", *(name for name in CALLS if name.startswith("SEV_")))


def ready(name: str, settings: SevSettings | None = None) -> SevClient:
    """A client in a state in which a command succeeds."""
    client = host(settings).connect()
    if name.startswith("SEV_") or name in ("KVM_SEV_INIT", "KVM_SEV_ES_INIT", "KVM_SEV_INIT2"):
        return client
    for state in GuestState:
        if not isinstance(GUEST_TABLE.get((name, state), state), SevCode):
            return IN_STATE[state](client)
    raise AssertionError(name)


# -- the kernel's checks ----------------------------------------------------------------

BAD: list[tuple[str, dict[str, int]]] = [
    ("KVM_SEV_LAUNCH_START", {"dh_len": 0}),
    ("KVM_SEV_LAUNCH_START", {"dh_len": 16385}),
    ("KVM_SEV_LAUNCH_START", {"session_len": 0}),
    ("KVM_SEV_LAUNCH_START", {"session_len": 16385}),
    ("KVM_SEV_LAUNCH_UPDATE_DATA", {"len": 0}),
    ("KVM_SEV_LAUNCH_MEASURE", {"len": 16385}),
    ("KVM_SEV_GET_ATTESTATION_REPORT", {"len": 16385}),
    *(
        ("KVM_SEV_LAUNCH_SECRET", {field: value})
        for field, value in (
            ("guest_len", 0),
            ("hdr_uaddr", 0),
            ("hdr_len", 0),
            ("hdr_len", 16385),
            ("trans_uaddr", 0),
            ("trans_len", 0),
            ("trans_len", 16385),
        )
    ),
    *(
        ("KVM_SEV_SEND_START", {field: value})
        for field, value in (
            ("pdh_cert_uaddr", 0),
            ("pdh_cert_len", 0),
            ("pdh_cert_len", 16385),
            ("session_uaddr", 0),
            ("session_len", 16385),
            ("plat_certs_uaddr", 0),
            ("plat_certs_len", 0),
            ("plat_certs_len", 16385),
            ("amd_certs_uaddr", 0),
            ("amd_certs_len", 0),
            ("amd_certs_len", 16385),
        )
    ),
    *(
        ("KVM_SEV_SEND_UPDATE_DATA", {field: 0})
        for field in ("hdr_uaddr", "trans_uaddr", "guest_uaddr", "guest_len")
    ),
    ("KVM_SEV_SEND_UPDATE_DATA", {"guest_len": sev.PACKET_MAX_SIZE + 16}),
    ("KVM_SEV_SEND_UPDATE_VMSA", {"hdr_uaddr": 0}),
    ("KVM_SEV_SEND_UPDATE_VMSA", {"trans_uaddr": 0}),
    *(
        ("KVM_SEV_RECEIVE_START", {field: value})
        for field, value in (
            ("pdh_uaddr", 0),
            ("pdh_len", 0),
            ("pdh_len", 16385),
            ("session_uaddr", 0),
            ("session_len", 0),
            ("session_len", 16385),
        )
    ),
    *(
        ("KVM_SEV_RECEIVE_UPDATE_DATA", {field: 0})
        for field in (
            *("hdr_uaddr", "hdr_len", "guest_uaddr"),
            *("guest_len", "trans_uaddr", "trans_len"),
        )
    ),
    ("KVM_SEV_RECEIVE_UPDATE_DATA", {"guest_len": sev.PACKET_MAX_SIZE + 16}),
    ("KVM_SEV_RECEIVE_UPDATE_DATA", {"trans_len": sev.PACKET_MAX_SIZE + 16}),
    *(
        ("KVM_SEV_RECEIVE_UPDATE_VMSA", {field: 0})
        for field in ("hdr_uaddr", "hdr_len", "trans_uaddr", "trans_len")
    ),
    *(("KVM_SEV_DBG_DECRYPT", {field: 0}) for field in ("len", "src_uaddr", "dst_uaddr")),
    *(("KVM_SEV_DBG_ENCRYPT", {field: 0}) for field in ("len", "src_uaddr", "dst_uaddr")),
    ("KVM_SEV_DBG_DECRYPT", {"len": (16 << 20) + 1}),
    ("KVM_SEV_INIT2", {"flags": 1}),
    ("KVM_SEV_INIT2", {"vmsa_features": 1}),
    ("KVM_SEV_INIT2", {"ghcb_version": 3}),
    *(
        ("SEV_PEK_CERT_IMPORT", {field: value})
        for field, value in (
            ("pek_cert_address", 0),
            ("pek_cert_len", 0),
            ("pek_cert_len", 16385),
            ("oca_cert_address", 0),
            ("oca_cert_len", 0),
            ("oca_cert_len", 16385),
        )
    ),
]


def good(client: SevClient, name: str) -> dict[str, int]:
    if name == sev.PEK_CERT_IMPORT.name:
        room = client.room(2084)
        return {
            "pek_cert_address": room,
            "pek_cert_len": 2084,
            "oca_cert_address": room,
            "oca_cert_len": 2084,
        }
    return GOOD[name](client)


@pytest.mark.parametrize(("name", "changed"), BAD, ids=str)
def test_the_kernel_refuses_an_argument(name: str, changed: dict[str, int]):
    client = ready(name)
    fields = good(client, name) | changed
    before = client.snapshot()
    answer = client.command(CALLS[name], **fields)
    assert (answer.code, answer.fields) == (EINVAL, {})
    assert next(iter(changed)) in answer.why or "bytes at once" in answer.why
    assert client.snapshot() == before


def test_every_check_of_the_kernel_is_tested():
    strict = {"KVM_SEV_CERT_EXPORT"}
    assert KERNEL_CHECKS.keys() == {name for name, _ in BAD} | strict


@pytest.mark.parametrize(
    ("name", "field", "end"),
    [(name, field, end) for name, ends in FIELD_ENDS.items() for field, end in ends],
)
def test_a_register_holds_no_more_than_its_field(name: str, field: str, end: int):
    client = ready(name)
    fields = good(client, name) | {field: end}
    before = client.snapshot()
    assert client.command(CALLS[name], **fields).code is EINVAL
    assert client.snapshot() == before


def test_fields_and_their_ends():
    assert dict(FIELD_ENDS["KVM_SEV_INIT2"]) == {"flags": 1 << 32, "ghcb_version": 1 << 16}
    assert "policy" in dict(FIELD_ENDS["KVM_SEV_LAUNCH_START"])
    assert FIELD_ENDS["KVM_SEV_GUEST_STATUS"] == ()


@pytest.mark.parametrize("offset", [4096 - 16, 1, 4095])
def test_a_page_at_most_where_mainline_is_followed(offset: int):
    strict = SevSettings(strict_mainline=True)
    client = sending(host(strict).connect())
    size = 4096 - offset
    refused(client, sev.SEND_UPDATE_DATA, EINVAL, guest_uaddr=MEMORY + offset, guest_len=size + 16)
    other = receiving(host(strict).connect())
    refused(
        other, sev.RECEIVE_UPDATE_DATA, EINVAL, guest_uaddr=MEMORY + offset, guest_len=size + 16
    )
    assert give(client, sev.SEND_UPDATE_DATA)[0] is OK
    assert give(other, sev.RECEIVE_UPDATE_DATA)[0] is OK


def test_a_payload_is_a_blob_where_mainline_is_followed():
    client = receiving(host(SevSettings(strict_mainline=True)).connect())
    refused(client, sev.RECEIVE_UPDATE_DATA, EINVAL, trans_len=16400)


@pytest.mark.parametrize(
    "name", ["KVM_SEV_SEND_UPDATE_VMSA", "KVM_SEV_RECEIVE_UPDATE_VMSA", "KVM_SEV_CERT_EXPORT"]
)
def test_commands_that_mainline_never_had(name: str):
    client = ready(name, SevSettings(strict_mainline=True)) if name not in OPEN else None
    if client is None:
        client = running(host(SevSettings(strict_mainline=True)).connect())
    refused(client, CALLS[name], EINVAL)
    if name in QUERIES:
        refused(client, CALLS[name], EINVAL, **dict.fromkeys(QUERIES[name].asks, 0))


# -- questions for lengths --------------------------------------------------------------

NEEDED = {
    "KVM_SEV_LAUNCH_MEASURE": {"len": 48},
    "KVM_SEV_GET_ATTESTATION_REPORT": {"len": 208},
    "KVM_SEV_SEND_START": {"session_len": 128},
    "KVM_SEV_SEND_UPDATE_DATA": {"hdr_len": 52, "trans_len": 4096},
    "KVM_SEV_SEND_UPDATE_VMSA": {"hdr_len": 52, "trans_len": 4096},
    "KVM_SEV_CERT_EXPORT": {"pdh_len": 2084, "chain_len": 6252},
    "SEV_PDH_CERT_EXPORT": {"pdh_cert_len": 2084, "cert_chain_len": 6252},
    "SEV_PEK_CSR": {"length": 2084},
    "SEV_GET_ID2": {"length": 64},
}


def able(name: str) -> SevClient:
    """``ready``; CERT_EXPORT needs a VM and nothing else."""
    if name == sev.CERT_EXPORT.name:
        return IN_STATE[GuestState.UNINIT](host().connect())
    return ready(name)


@pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name, query in QUERIES.items() for field in query.asks]
)
def test_a_question_for_lengths(name: str, field: str):
    client = able(name)
    assert refused(client, CALLS[name], SevCode.INVALID_LEN, **{field: 0}) == NEEDED[name]
    # All else is ignored.
    before = client.snapshot()
    answer = client.command(CALLS[name])
    assert (answer.code, answer.fields) == (SevCode.INVALID_LEN, NEEDED[name])
    assert client.snapshot() == before
    assert give(client, CALLS[name])[0] is OK


TOLD = {
    "KVM_SEV_SEND_START",
    "KVM_SEV_CERT_EXPORT",
    "SEV_PDH_CERT_EXPORT",
    "SEV_PEK_CSR",
    "SEV_GET_ID2",
}
"""Commands that write the length back that was too short."""


@pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name, needed in NEEDED.items() for field in needed]
)
@pytest.mark.parametrize("less", [0, 1])
def test_room_that_is_too_small(name: str, field: str, less: int):
    client = able(name)
    short = 1 if less else NEEDED[name][field] - 1
    back = refused(client, CALLS[name], SevCode.INVALID_LEN, **{field: short})
    assert back == (NEEDED[name] if name in TOLD else {})


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("SEV_PEK_CSR", "length"),
        ("SEV_PDH_CERT_EXPORT", "pdh_cert_len"),
        ("SEV_PDH_CERT_EXPORT", "cert_chain_len"),
    ],
)
def test_room_that_the_kernel_does_not_make(name: str, field: str):
    client = able(name)
    refused(client, CALLS[name], SevCode.EFAULT, **{field: 16385})
    assert give(client, CALLS[name])[0] is OK


@pytest.mark.parametrize("name", NEEDED)
def test_a_question_in_a_state_where_the_command_is_refused(name: str):
    if name in OPEN:
        return
    client = IN_STATE[GuestState.UNINIT](host().connect())
    before = client.snapshot()
    answer = client.command(CALLS[name])
    assert (answer.code, answer.fields) == (SevCode.INVALID_GUEST, {})
    assert client.snapshot() == before


@pytest.mark.parametrize("size", [48, 49, 256, 16384])
def test_a_measurement_is_filled_up_with_zeros(size: int):
    client = launched(host().connect())
    address = client.put(b"\xff" * (size + 1))
    assert succeed(client, sev.LAUNCH_MEASURE, uaddr=address, len=size) == {"len": 48}
    written = client.memory.read(address, size + 1)
    assert any(written[:48])
    assert written[48:] == bytes(size - 48) + b"\xff"


def test_a_measurement_without_room():
    refused(launched(host().connect()), sev.LAUNCH_MEASURE, SevCode.INVALID_LEN, uaddr=0)
    refused(running(host().connect()), sev.GET_ATTESTATION_REPORT, SevCode.INVALID_LEN, uaddr=0)


# -- lengths and alignment --------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 8, 15, 17, 31, 4095, 4097])
def test_guest_memory_is_of_whole_blocks(size: int):
    for prepared, hcall, changed in (
        (launched, sev.LAUNCH_UPDATE_DATA, {"len": size}),
        (sending, sev.SEND_UPDATE_DATA, {"guest_len": size, "trans_len": 8192}),
        (receiving, sev.RECEIVE_UPDATE_DATA, {"guest_len": size, "trans_len": size}),
        (measured, sev.LAUNCH_SECRET, {"guest_len": size, "trans_len": size}),
    ):
        refused(prepared(host().connect()), hcall, SevCode.INVALID_LEN, **changed)


@pytest.mark.parametrize("offset", [1, 8, 15])
def test_guest_memory_is_at_whole_blocks(offset: int):
    for prepared, hcall, field in (
        (launched, sev.LAUNCH_UPDATE_DATA, "uaddr"),
        (sending, sev.SEND_UPDATE_DATA, "guest_uaddr"),
        (receiving, sev.RECEIVE_UPDATE_DATA, "guest_uaddr"),
        (measured, sev.LAUNCH_SECRET, "guest_uaddr"),
    ):
        client = prepared(host().connect())
        refused(client, hcall, SevCode.INVALID_ADDRESS, **{field: MEMORY + offset})


@pytest.mark.parametrize("size", [16, 32, 4080, 4096, 4112, 8192])
def test_whole_blocks_are_taken(size: int):
    client = launched(host().connect())
    succeed(client, sev.LAUNCH_UPDATE_DATA, uaddr=MEMORY + 16, len=size)


@pytest.mark.parametrize("count", [0, 1, 4095, 4097, 8191])
def test_save_areas_are_of_whole_pages(count: int):
    client = launched(host().connect())
    refused(client, sev.LAUNCH_UPDATE_VMSA, SevCode.INVALID_LEN, len=count)


def test_no_more_save_areas_than_vcpus():
    client = launched(host().connect())
    refused(client, sev.LAUNCH_UPDATE_VMSA, SevCode.INVALID_LEN, len=MAX_VCPUS * 4096)
    refused(client, sev.LAUNCH_UPDATE_VMSA, SevCode.EFAULT, len=(MAX_VCPUS - 1) * 4096)


def test_a_save_area_of_no_vcpu():
    client = sending(host().connect())
    refused(client, sev.SEND_UPDATE_VMSA, SevCode.INVALID_PARAM, vcpu_id=1)
    other = receiving(host().connect())
    refused(other, sev.RECEIVE_UPDATE_VMSA, SevCode.INVALID_PARAM, vcpu_id=MAX_VCPUS)
    refused(other, sev.RECEIVE_UPDATE_VMSA, SevCode.INVALID_LEN, trans_len=4095)


@pytest.mark.parametrize("size", [1, 51])
def test_a_header_that_is_cut(size: int):
    for prepared, hcall in (
        (measured, sev.LAUNCH_SECRET),
        (receiving, sev.RECEIVE_UPDATE_DATA),
        (receiving, sev.RECEIVE_UPDATE_VMSA),
    ):
        refused(prepared(host().connect()), hcall, SevCode.INVALID_LEN, hdr_len=size)


def test_a_secret_has_the_size_of_its_payload():
    client = measured(host().connect())
    refused(client, sev.LAUNCH_SECRET, SevCode.INVALID_LEN, guest_len=32)
    refused(client, sev.LAUNCH_SECRET, SevCode.INVALID_LEN, guest_len=16400)


@pytest.mark.parametrize(("field", "size"), [("dh_len", 2083), ("session_len", 127)])
def test_a_session_that_is_cut(field: str, size: int):
    client = IN_STATE[GuestState.UNINIT](host().connect())
    refused(client, sev.LAUNCH_START, SevCode.INVALID_LEN, **{field: size})
    field = field.replace("dh_", "pdh_")
    refused(client, sev.RECEIVE_START, SevCode.INVALID_LEN, **{field: size})


def test_what_follows_a_session_is_not_looked_at():
    client = IN_STATE[GuestState.UNINIT](host().connect())
    assert give(client, sev.LAUNCH_START, dh_len=2085, session_len=129)[0] is OK


@pytest.mark.parametrize(("field", "size"), [("pdh_cert_len", 2083), ("plat_certs_len", 6251)])
def test_certificates_that_are_cut(field: str, size: int):
    client = running(host().connect())
    refused(client, sev.SEND_START, SevCode.INVALID_LEN, **{field: size})


# -- pointers ---------------------------------------------------------------------------

POINTERS = [
    (name, buffer.address)
    for name, hcall in CALLS.items()
    for buffer in hcall.buffers
    if name != sev.PEK_CERT_IMPORT.name
]


@pytest.mark.parametrize(("name", "field"), POINTERS)
@pytest.mark.parametrize("address", [1 << 47, (1 << 60) - 4096])
def test_a_pointer_beyond_all_memory(name: str, field: str, address: int):
    client = able(name)
    refused(client, CALLS[name], SevCode.EFAULT, **{field: address})


READ = [
    (name, buffer.address)
    for name, hcall in CALLS.items()
    for buffer in hcall.buffers
    if name not in OPEN and (buffer.direction.value == "in" or "DBG" in name)
]


@pytest.mark.parametrize(("name", "field"), READ)
def test_a_pointer_to_nothing(name: str, field: str):
    client = able(name)
    refused(client, CALLS[name], SevCode.EFAULT, **{field: MISSING})
    # An end that is not there; guest memory is at whole blocks, and here more than one.
    at = MISSING - (16 if GOOD[name](client).get(field) == MEMORY else 8)
    refused(client, CALLS[name], SevCode.EFAULT, **{field: at})


def test_pointers_are_read_before_states_are_looked_at():
    """The kernel copies what it passes on before it asks the firmware."""
    client = running(host().connect())
    refused(client, sev.LAUNCH_SECRET, SevCode.EFAULT, hdr_uaddr=MISSING)


def test_each_buffer_is_read_once():
    client = measured(host().connect())
    give(client, sev.LAUNCH_SECRET)
    read = [effect.name for effect in client.trail if isinstance(effect, ReadBuffer)]
    assert read == ["hdr_uaddr", "trans_uaddr"]


def test_get_id_without_a_pointer():
    refused(host().connect(), sev.GET_ID, SevCode.EFAULT, data=0)


# -- regions ----------------------------------------------------------------------------


def test_regions_are_given_back_as_they_were():
    client = IN_STATE[GuestState.UNINIT](host().connect())
    succeed(client, sev.REG_REGION, addr=MEMORY, size=4096)
    succeed(client, sev.REG_REGION, addr=MEMORY, size=4096)
    for _ in range(2):
        refused(client, sev.UNREG_REGION, EINVAL, size=8192)
        refused(client, sev.UNREG_REGION, EINVAL, addr=MEMORY + 4096)
        succeed(client, sev.UNREG_REGION, addr=MEMORY, size=4096)
    refused(client, sev.UNREG_REGION, EINVAL)


@pytest.mark.parametrize("size", [0, (1 << 64) - MEMORY, (1 << 64) - 1])
def test_a_region_is_in_memory(size: int):
    client = IN_STATE[GuestState.UNINIT](host().connect())
    refused(client, sev.REG_REGION, EINVAL, addr=MEMORY, size=size)
    assert not client.vm.regions


def test_no_more_regions_than_there_may_be():
    client = IN_STATE[GuestState.UNINIT](host().connect())
    client.vm.regions[0, 1] = MAX_REGIONS - 1
    succeed(client, sev.REG_REGION, addr=MEMORY, size=4096)
    refused(client, sev.REG_REGION, EINVAL, size=8192)
