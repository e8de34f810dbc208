# SPDX-License-Identifier: Apache-2.0
"""The structures, numbers and states as the kernel's headers on this machine have them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from construct import Struct
from tests.conftest import ROOT, Require
from tests.e2e import sevprogram
from tests.e2e.sevprogram import field_places

from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.payloads import sev_abi

HEADERS = "#include <linux/kvm.h>\n#include <linux/psp-sev.h>\n"

STRUCTURES = {
    "kvm_sev_cmd": sev_abi.KVM_SEV_CMD,
    "kvm_sev_launch_start": sev_abi.LAUNCH_START,
    "kvm_sev_launch_update_data": sev_abi.LAUNCH_UPDATE_DATA,
    "kvm_sev_launch_secret": sev_abi.LAUNCH_SECRET,
    "kvm_sev_launch_measure": sev_abi.LAUNCH_MEASURE,
    "kvm_sev_guest_status": sev_abi.GUEST_STATUS,
    "kvm_sev_dbg": sev_abi.DBG,
    "kvm_sev_send_start": sev_abi.SEND_START,
    "kvm_sev_send_update_data": sev_abi.LAUNCH_SECRET,
    "kvm_sev_receive_start": sev_abi.RECEIVE_START,
    "kvm_sev_receive_update_data": sev_abi.LAUNCH_SECRET,
    "kvm_enc_region": sev_abi.ENC_REGION,
    "sev_issue_cmd": sev_abi.SEV_ISSUE_CMD,
    "sev_user_data_status": sev_abi.PLATFORM_STATUS,
    "sev_user_data_pek_csr": sev_abi.PEK_CSR,
    "sev_user_data_pek_cert_import": sev_abi.PEK_CERT_IMPORT,
    "sev_user_data_pdh_cert_export": sev_abi.PDH_CERT_EXPORT,
    "sev_user_data_get_id2": sev_abi.GET_ID2,
}

NEWER = {"kvm_sev_init": sev_abi.INIT2}
"""Of kernels since 6.10; Debian 12's headers have it not."""

MISSPELLED = {
    SevCode.INVALID_CONFIG: "SEV_RET_INAVLID_CONFIG",
    SevCode.HWERROR_PLATFORM: "SEV_RET_HWSEV_RET_PLATFORM",
    SevCode.HWERROR_UNSAFE: "SEV_RET_HWSEV_RET_UNSAFE",
}
"""As the kernel's header has them."""

REQUESTS = (
    "KVM_CREATE_VM",
    "KVM_CREATE_VCPU",
    "KVM_CHECK_EXTENSION",
    "KVM_GET_DEVICE_ATTR",
    "KVM_HAS_DEVICE_ATTR",
    "KVM_MEMORY_ENCRYPT_OP",
    "KVM_MEMORY_ENCRYPT_REG_REGION",
    "KVM_MEMORY_ENCRYPT_UNREG_REGION",
    "SEV_ISSUE_CMD",
)


def evaluate(folder: Path, *expressions: str) -> tuple[int, ...]:
    """What C expressions are, by the headers of this machine."""
    lines = "".join(f'    printf("%lld\\n", (long long)({text}));\n' for text in expressions)
    source = folder / "abi.c"
    source.write_text(
        f"#include <stddef.h>\n#include <stdio.h>\n{HEADERS}"
        f"int main(void)\n{{\n{lines}    return 0;\n}}\n"
    )
    program = folder / "abi"
    subprocess.run(["gcc", "-Wall", "-o", program, source], check=True)
    run = subprocess.run([program], check=True, capture_output=True, text=True)
    return tuple(int(word) for word in run.stdout.split())


@pytest.fixture
def headers(require: Require) -> str:
    """The headers after the preprocessor."""
    require("gcc")
    run = subprocess.run(
        ["gcc", "-E", "-P", "-"], input=HEADERS, check=True, capture_output=True, text=True
    )
    return run.stdout


def assert_layout(folder: Path, name: str, structure: Struct) -> None:
    places = field_places(structure)
    expressions = [f"sizeof(struct {name})"]
    for field in places:
        expressions += [
            f"offsetof(struct {name}, {field})",
            f"sizeof(((struct {name} *)0)->{field})",
        ]
    size, *rest = evaluate(folder, *expressions)
    assert size == structure.sizeof()
    assert list(zip(rest[::2], rest[1::2], strict=True)) == list(places.values())


@pytest.mark.parametrize("name", STRUCTURES)
def test_structure_when_compiled_then_it_is_laid_out_as_declared(
    headers: str, tmp_path: Path, name: str
):
    assert_layout(tmp_path, name, STRUCTURES[name])


def test_structure_when_the_headers_are_new_enough_then_it_is_laid_out_as_declared(
    headers: str, tmp_path: Path
):
    known = set(re.findall(r"\bstruct (\w+) \{", headers))
    assert known >= STRUCTURES.keys()
    for name in NEWER.keys() & known:
        assert_layout(tmp_path, name, NEWER[name])


def test_report_when_compiled_then_its_nonce_is_two_registers(headers: str, tmp_path: Path):
    name = "kvm_sev_attestation_report"
    places = field_places(sev_abi.ATTESTATION_REPORT)
    found = evaluate(
        tmp_path,
        f"sizeof(struct {name})",
        f"offsetof(struct {name}, mnonce)",
        f"sizeof(((struct {name} *)0)->mnonce)",
        f"offsetof(struct {name}, uaddr)",
        f"offsetof(struct {name}, len)",
    )
    assert found == (sev_abi.ATTESTATION_REPORT.sizeof(), 0, 16, 16, 24)
    assert [place for place, _ in places.values()] == [0, 8, 16, 24]


def test_ids_when_compiled_then_they_are_as_declared(headers: str, tmp_path: Path):
    enums = re.findall(r"\b(?:KVM_SEV_\w+|SEV_[A-Z0-9_]+)(?=\s*[,=}])", headers)
    ours = {call.name: call.number & 0xFFFF for call in sev.FAMILY.calls}
    common = sorted(ours.keys() & set(enums))
    assert len(common) >= 22 + 9
    assert dict(zip(common, evaluate(tmp_path, *common), strict=True)) == {
        name: ours[name] for name in common
    }


def test_numbers_of_ioctls_when_compiled_then_they_are_as_declared(headers: str, tmp_path: Path):
    found = evaluate(tmp_path, *REQUESTS)
    assert found == tuple(getattr(sevprogram, name) for name in REQUESTS)
    halves = {sev.Ioctl[name].value for name in REQUESTS if name in sev.Ioctl.__members__}
    assert halves == {number & 0xFFFF for number in found[-4:]} == set(sev.Ioctl)


def test_codes_when_compiled_then_they_are_as_declared(headers: str, tmp_path: Path):
    spelled = {code: f"SEV_RET_{code.name}" for code in SevCode if code >= 0}
    spelled |= MISSPELLED
    names = [name for name in spelled.values() if re.search(rf"\b{name}\b", headers)]
    assert len(names) == len(spelled)
    assert [int(code) for code, name in spelled.items() if name in names] == list(
        evaluate(tmp_path, *names)
    )
    errnos = [code for code in SevCode if code < 0]
    source = tmp_path / "errno.c"
    source.write_text(
        "#include <errno.h>\n"
        + "".join(f'_Static_assert(-{code.name} == {code:d}, "");\n' for code in errnos)
    )
    subprocess.run(["gcc", "-fsyntax-only", source], check=True)


def test_client_when_told_to_use_kernel_names_then_none_of_its_own_differ():
    """The library must take numbers from headers or from the table, and have none of its own."""
    for path in sorted((ROOT / "ioctl_shim" / "src").glob("*.[ch]")):
        assert not re.search(r"0x(?i:aeb[abc]|5300|c008|c010)", path.read_text()), path.name
