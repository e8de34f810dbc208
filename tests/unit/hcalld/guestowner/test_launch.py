# SPDX-License-Identifier: Apache-2.0
"""Launch digests, against sev-snp-measure's."""

from __future__ import annotations

import base64
import hashlib
import pathlib

import pytest
from tests.unit.hcalld.guestowner.images import HASHES, RESET, firmware, table
from tests.unit.hcalld.guestowner.oracles import snp_measure

from hcalld.guestowner.cputypes import named
from hcalld.guestowner.errors import GuestOwnerError
from hcalld.guestowner.launch import (
    DumpedProcessors,
    Kernel,
    Launch,
    ResetProcessors,
    footer_of,
)
from hcalld.guestowner.vmsa import InitStyle
from hcallproto.payloads.sev.constants import PAGE_SIZE

FIRMWARE = firmware()
KERNEL, INITRD, CMDLINE = b"a kernel", b"an initrd", "console=ttyS0 quiet"


def kernel(initrd: bytes = INITRD, cmdline: str = CMDLINE) -> Kernel:
    return Kernel(
        kernel=hashlib.sha256(KERNEL).digest(),
        initrd=hashlib.sha256(initrd).digest(),
        cmdline=cmdline.encode(),
    )


def processors(count: int = 2, style: InitStyle = InitStyle.INIT2) -> ResetProcessors:
    return ResetProcessors(
        count=count,
        signature=named("EPYC-Rome").signature,
        style=style,
        reset_address=footer_of(FIRMWARE).reset_address,
    )


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    for name, data in (("fw", FIRMWARE), ("kernel", KERNEL), ("initrd", INITRD)):
        (tmp_path / name).write_bytes(data)
    return tmp_path


BOOT = ("--kernel", "kernel", "--initrd", "initrd", "--append", CMDLINE)


@pytest.mark.parametrize(
    ("words", "launch"),
    [
        ((), Launch(FIRMWARE)),
        (BOOT, Launch(FIRMWARE, kernel())),
        (BOOT[:2], Launch(FIRMWARE, kernel(b"", ""))),
        (BOOT[:4], Launch(FIRMWARE, kernel(INITRD, ""))),
    ],
)
def test_digest_when_sev_snp_measure_computes_it_then_the_same(
    folder: pathlib.Path, words: tuple[str, ...], launch: Launch
):
    assert snp_measure(folder, "--mode", "sev", "--ovmf", "fw", *words) == launch.digest.hex()


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("words", [(), BOOT])
def test_digest_when_the_guest_is_of_sev_es_then_the_same(
    folder: pathlib.Path, words: tuple[str, ...], count: int
):
    launch = Launch(FIRMWARE, kernel() if words else None, processors(count))
    more = ("--vcpus", str(count), "--vcpu-type", "EPYC-Rome", "--output-format", "base64")
    theirs = snp_measure(folder, "--mode", "seves", "--ovmf", "fw", *words, *more)
    assert base64.b64decode(theirs) == launch.digest


def test_digest_when_save_areas_were_dumped_then_they_are_measured_in_order():
    first, others = bytes(PAGE_SIZE), bytes([1]) * PAGE_SIZE
    launch = Launch(FIRMWARE, None, DumpedProcessors(count=3, first=first, others=others))
    assert launch.digest == hashlib.sha256(FIRMWARE + first + others + others).digest()


# -- what may have been wrong -----------------------------------------------------------------


def test_suspects_when_a_launch_has_all_then_each_is_another_digest():
    launch = Launch(FIRMWARE, kernel(cmdline=f"{CMDLINE} "), processors())
    found = [*launch.suspects(), *launch.double_suspects()]
    digests = {digest for _, digest in found}
    assert len(digests) == len(found)
    assert launch.digest not in digests
    for what in (
        "the kernel was not measured",
        "there was no initrd",
        "the command line was empty",
        "the VM was made by KVM_SEV_ES_INIT, not KVM_SEV_INIT2",
        "the processors are EPYC-Milan",
        "there are 16 processors",
        "no processor's state was measured",
    ):
        assert any(said.startswith(what) for said, _ in found), what


def test_suspects_when_one_is_named_then_it_is_what_it_says():
    launch = Launch(FIRMWARE, kernel(), processors())
    found = {said.partition(" (")[0]: digest for said, digest in launch.suspects()}
    assert found["the kernel was not measured"] == Launch(FIRMWARE, None, processors()).digest
    empty = Launch(FIRMWARE, kernel(cmdline=""), processors())
    assert found["the command line was empty"] == empty.digest
    assert found["there are 5 processors"] == Launch(FIRMWARE, kernel(), processors(5)).digest
    other = Launch(FIRMWARE, kernel(), processors(style=InitStyle.ES_INIT))
    assert found["the VM was made by KVM_SEV_ES_INIT, not KVM_SEV_INIT2"] == other.digest


def test_suspects_when_there_is_firmware_alone_then_nothing_else_is_suspected():
    assert not list(Launch(FIRMWARE).suspects())
    assert not list(Launch(FIRMWARE).double_suspects())


def test_suspects_when_the_firmware_has_no_reset_block_then_other_counts_are_left_out():
    image = firmware(HASHES)
    only = ResetProcessors(count=1, signature=1, style=InitStyle.INIT2, reset_address=None)
    assert not [said for said, _ in Launch(image, None, only).suspects() if "there are" in said]


# -- footers ----------------------------------------------------------------------------------


def test_footer_of_when_there_is_none_then_it_has_nothing():
    found = footer_of(firmware(footer=b""))
    assert (found.hashes_area, found.secret_area, found.reset_address) == (None, None, None)


def test_footer_of_when_the_table_is_cut_then_it_says_so():
    cut = table(HASHES, RESET)[-40:]
    with pytest.raises(GuestOwnerError, match="cut or damaged"):
        footer_of(firmware(footer=cut))
