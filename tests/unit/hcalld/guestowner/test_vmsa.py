# SPDX-License-Identifier: Apache-2.0
"""Save areas after a reset, against those of sev-snp-measure."""

from __future__ import annotations

import pathlib

import pytest
from tests.unit.hcalld.guestowner.images import RESET_ADDRESS, firmware
from tests.unit.hcalld.guestowner.oracles import snp_measure

from hcalld.guestowner import vmsa
from hcalld.guestowner.cputypes import MODELS, CpuModel, named
from hcalld.guestowner.errors import GuestOwnerError
from hcalld.guestowner.vmsa import RESET_VECTOR, InitStyle
from hcallproto.payloads.sev.constants import PAGE_SIZE

SIGNATURE = named("EPYC-Milan").signature
FPU_BYTES = {0x408: 0x80, 0x409: 0x1F, 0x410: 0x7F, 0x411: 0x03}
"""MXCSR 0x1f80 and FCW 0x037f."""


@pytest.mark.parametrize(
    "name", [*MODELS, "EPYC-v1", "EPYC-IBPB", "EPYC-Rome-v3", "EPYC-Milan-v2", "EPYC-Genoa-v1"]
)
def test_pages_when_sev_snp_measure_makes_them_then_the_same(name: str, tmp_path: pathlib.Path):
    (tmp_path / "fw").write_bytes(firmware())
    words = ("--mode", "seves", "--vcpus", "3", "--vcpu-type", name, "--ovmf", "fw")
    snp_measure(tmp_path, *words, "--dump-vmsa")
    pages = vmsa.pages(3, RESET_ADDRESS, named(name).signature, InitStyle.INIT2)
    theirs = tuple((tmp_path / f"vmsa{number}.bin").read_bytes() for number in range(3))
    assert pages == theirs
    assert pages[0] != pages[1]


def test_pages_when_es_init_makes_the_vm_then_the_four_bytes_of_the_fpu_are_zero():
    old = vmsa.page(RESET_VECTOR, SIGNATURE, InitStyle.ES_INIT)
    new = vmsa.page(RESET_VECTOR, SIGNATURE, InitStyle.INIT2)
    differing = {at: new[at] for at in range(PAGE_SIZE) if old[at] != new[at]}
    assert differing == FPU_BYTES
    assert not any(old[at] for at in FPU_BYTES)


def test_pages_when_there_is_one_processor_then_the_firmware_need_not_say_where_others_begin():
    assert len(vmsa.pages(1, None, SIGNATURE, InitStyle.ES_INIT)) == 1
    with pytest.raises(GuestOwnerError, match="no SEV-ES reset block"):
        vmsa.pages(2, None, SIGNATURE, InitStyle.ES_INIT)


def test_from_files_when_there_are_several_processors_then_the_others_share_a_page():
    first, others = bytes(PAGE_SIZE), bytes([1]) * PAGE_SIZE
    assert vmsa.from_files(3, first, others) == (first, others, others)
    assert vmsa.from_files(1, first, None) == (first,)


@pytest.mark.parametrize(
    ("first", "others", "why"),
    [
        (bytes(PAGE_SIZE), None, "2 processors and a VMSA of the first alone"),
        (bytes(PAGE_SIZE - 1), bytes(PAGE_SIZE), "has 4095 bytes, expected 4096"),
        (bytes(PAGE_SIZE), bytes(PAGE_SIZE + 1), "has 4097 bytes, expected 4096"),
        (b"", bytes(PAGE_SIZE), "has 0 bytes, expected 4096"),
        (bytes(PAGE_SIZE), b"", "has 0 bytes, expected 4096"),
    ],
)
def test_from_files_when_a_dump_is_wrong_then_it_says_how(
    first: bytes, others: bytes | None, why: str
):
    with pytest.raises(GuestOwnerError, match=why):
        vmsa.from_files(2, first, others)


# -- processors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "signature"),
    [
        (CpuModel(23, 1, 2), 0x800F12),
        (CpuModel(25, 1, 1), 0xA00F11),
        (CpuModel(26, 0, 0), 0xB00F00),
        (CpuModel(6, 15, 11), 0x6FB),
        (CpuModel(15, 0, 0), 0xF00),
        (CpuModel(0x10E, 0xFF, 0xF), 0xFFF0FFF),
    ],
)
def test_signature_when_numbers_go_on_in_the_extended_fields_then_they_are_there(
    model: CpuModel, signature: int
):
    assert model.signature == signature


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (CpuModel(0x10F, 0, 0), "family 271: expected 0 to 270"),
        (CpuModel(0, 0x100, 0), "model 256: expected 0 to 255"),
        (CpuModel(0, 0, 16), "stepping 16: expected 0 to 15"),
        (CpuModel(-1, 0, 0), "family -1"),
    ],
)
def test_signature_when_a_number_does_not_fit_then_it_says_so(model: CpuModel, what: str):
    with pytest.raises(GuestOwnerError, match=what):
        _ = model.signature


def test_named_when_a_type_is_not_known_then_those_that_are_are_named():
    with pytest.raises(GuestOwnerError, match=r"Opteron_G5 is not known; expected EPYC, EPYC-Rome"):
        named("Opteron_G5")
