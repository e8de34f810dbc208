# SPDX-License-Identifier: Apache-2.0
"""The guest stub as a normal and as a secure VM: every call, from every context.

The stub says what came of each call (``guest_stub/tests/secure_calls.c``); what must come of
it is said here, by hand. Sources, in this order where they disagree (docs/pef.md):

- firmware: https://github.com/open-power/ultravisor, ``core/uvcall.c`` and ``svm/*.c``. The
  context is tested before the arguments; an unknown number is U_FUNCTION.
- KVM: Linux 7.2 ``book3s_hv.c`` (kvmppc_pseries_do_hcall) and ``book3s_hv_uvmem.c``.
- QEMU 10.0: ``spapr_hcall.c`` (H_PRIVILEGE to problem state, H_FUNCTION to what nobody
  serves), ``ppc-spapr-uv-hcalls.rst``, and its ``sc 2``, which is ``sc`` with LEV masked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

import pytest
from tests.e2e.lab import Lab
from tests.e2e.machine import ByteOrder, Machine
from tests.e2e.patience import wait_until
from tests.e2e.secure import SecureLab

from hcallproto.abi.registry import find

pytestmark = pytest.mark.qemu

BYTE_ORDERS: Final = ("le", "be")

# Codes, as numbers: what the project calls them is not to be believed here.
SUCCESS: Final = 0
FUNCTION: Final = -2
PRIVILEGE: Final = -3
PARAMETER: Final = -4
PERMISSION: Final = -11
P2: Final = -55
P3: Final = -56
UNSUPPORTED: Final = -67
STATE: Final = -75
SYSTEM_CALL: Final = "v0xc00"

Result = int | str
Codes = tuple[Result, Result]
"""With arguments of zeros, and with such as no call can take."""


def always(code: Result) -> Codes:
    return code, code


Vm = Literal["normal", "secure"]
Privilege = Literal["k", "u"]

HYPERVISORS: Final = (
    "UV_WRITE_PATE",
    "UV_RESTRICTED_SPR_WRITE",
    "UV_RESTRICTED_SPR_READ",
    "UV_READ_SCOM",
    "UV_WRITE_SCOM",
    "UV_RETURN",
    "UV_REGISTER_MEM_SLOT",
    "UV_UNREGISTER_MEM_SLOT",
    "UV_PAGE_IN",
    "UV_PAGE_OUT",
    "UV_PAGE_INVAL",
    "UV_SVM_TERMINATE",
    "UV_READ_MEM",
    "UV_WRITE_MEM",
    "UV_SEND_SBE_COMMAND",
)
"""Calls that need HV = 1, PR = 0 (firmware ``include/uapi_uvcall.h``): no guest has HV."""

SECURE_KERNELS: Final = ("UV_SHARE_PAGE", "UV_UNSHARE_PAGE", "UV_UNSHARE_ALL_PAGES")
"""Calls that need S = 1, HV = 0, PR = 0."""

_REFUSED: Final = MappingProxyType(dict.fromkeys(HYPERVISORS, always(PERMISSION)))

ULTRACALLS: Final[Mapping[tuple[Vm, Privilege], Mapping[str, Codes]]] = MappingProxyType(
    {
        ("normal", "k"): {
            **_REFUSED,
            **dict.fromkeys(SECURE_KERNELS, always(PERMISSION)),
            # svm-esm.c sys_esm(): kernel 0, then tree 0, at once; a tree that is no memory
            # is found out later, and the VM goes on with H_PARAMETER.
            "UV_ESM": (P2, PARAMETER),
            # svm-esmb.c sys_esmb_get_file(): no SVM record.
            "UV_ESMB_GET_FILE": always(PARAMETER),
        },
        ("normal", "u"): {
            **_REFUSED,
            **dict.fromkeys(SECURE_KERNELS, always(PERMISSION)),
            "UV_ESM": always(PERMISSION),
            "UV_ESMB_GET_FILE": always(PARAMETER),
        },
        ("secure", "k"): {
            **_REFUSED,
            # No frames, and frames that wrap (core/uvcall.c).
            "UV_SHARE_PAGE": (SUCCESS, P2),
            "UV_UNSHARE_PAGE": (SUCCESS, P2),
            "UV_UNSHARE_ALL_PAGES": always(SUCCESS),
            # There is an SVM record: U_RETRY, but addresses are looked at before, here those
            # that are no memory too (secure_memory asks with good ones).
            "UV_ESM": (P2, PARAMETER),
            # No name, and one that goes on after a NUL.
            "UV_ESMB_GET_FILE": always(PARAMETER),
        },
        ("secure", "u"): {
            **_REFUSED,
            **dict.fromkeys(SECURE_KERNELS, always(PERMISSION)),
            "UV_ESM": always(PERMISSION),
            "UV_ESMB_GET_FILE": always(PARAMETER),
        },
    }
)

H_SVM: Final = ("H_SVM_PAGE_IN", "H_SVM_PAGE_OUT", "H_SVM_INIT_START", "H_SVM_INIT_DONE")
"""KVM takes these with S = 1 in SRR1 only."""

HYPERCALLS: Final[Mapping[Vm, Mapping[str, Codes]]] = MappingProxyType(
    {
        "normal": {
            **dict.fromkeys(H_SVM, always(UNSUPPORTED)),
            # S is not tested, but that INIT_START was.
            "H_SVM_INIT_ABORT": always(UNSUPPORTED),
            # QEMU without spapr-rng.
            "H_RANDOM": always(FUNCTION),
            # Neither EXECUTE nor CLOSE_SESSION.
            "H_TPM_COMM": always(PARAMETER),
        },
        "secure": {
            # order 0; flags that are none (docs/pef.md: told before the order).
            "H_SVM_PAGE_IN": (P3, P2),
            "H_SVM_PAGE_OUT": (P3, P2),
            # KVM's table of states calls them errors; done already.
            "H_SVM_INIT_START": always(STATE),
            "H_SVM_INIT_DONE": always(STATE),
            "H_SVM_INIT_ABORT": always(STATE),
            # The ultravisor's to answer (Linux ultravisor.rst).
            "H_RANDOM": always(SUCCESS),
            "H_TPM_COMM": always(PARAMETER),
        },
    }
)
"""From a kernel."""

OUTPUTS: Final = {("secure", "k", "H_RANDOM"): 1 << 4}
"""Registers that a call sets, as a mask; all others stay as they were (Linux ``ucall.S``)."""

CALLS: Final = {*ULTRACALLS["normal", "k"], *HYPERCALLS["normal"]}


class Told(NamedTuple):
    """One line of the stub's."""

    cpu: int
    privilege: str
    level: int
    number: int
    arguments: str
    result: Result
    changed: int


_LINE: Final = re.compile(
    r"# call (\d) ([ku]) ([12]) (0x[0-9a-f]+) ([zx]) (-?\d+|v0x[0-9a-f]+) (0x[0-9a-f]+)"
)


def told_by(machine: Machine) -> list[Told]:
    """What the stub says came of its calls."""
    found = []
    for cpu, privilege, level, number, kind, result, changed in _LINE.findall(machine.console.text):
        value: Result = result if result.startswith("v") else int(result)
        found.append(
            Told(int(cpu), privilege, int(level), int(number, 16), kind, value, int(changed, 16))
        )
    return found


def name_of(told: Told) -> str:
    """A call's name, if it is made by the ``sc`` that it is for; else ""."""
    hcall = find(told.number, told.level)
    return "" if hcall is None else hcall.name


def judge(machine: Machine, expected: Mapping[tuple[str, int, str], Codes], vm: str) -> None:
    """Compares all that the stub told with a table of (privilege, level, name)."""
    lines = told_by(machine)
    wrong = []
    for told in lines:
        name = name_of(told)
        codes = expected[told.privilege, told.level, name]
        wanted = codes["zx".index(told.arguments)]
        changed = OUTPUTS.get((vm, told.privilege, name), 0)
        if (told.result, told.changed) != (wanted, changed):
            wrong.append(f"{told}, {name or 'no call'}: expected {wanted}, 0x{changed:x}")
    assert not wrong, "\n".join(wrong)
    # Each of them: on both CPUs, from both states, by both levels, with both arguments.
    numbers = {told.number for told in lines}
    assert len(lines) == len(set(lines)) == 16 * len(numbers)
    assert {name_of(told) for told in lines} == CALLS | {""}


def table(
    vm: Vm, ultracalls: Mapping[Privilege, Codes | None], hypercalls: Mapping[str, Codes] | None
) -> dict[tuple[str, int, str], Codes]:
    """The expectation of a whole boot; None: as a served VM's."""
    rows: dict[tuple[str, int, str], Codes] = {}
    for privilege, codes in ultracalls.items():
        unknown = codes or always(FUNCTION)
        rows[privilege, 2, ""] = unknown
        for name in ULTRACALLS[vm, privilege]:
            rows[privilege, 2, name] = codes or ULTRACALLS[vm, privilege][name]
    for name in ("", *HYPERCALLS[vm]):
        rows["u", 1, name] = always(PRIVILEGE)
    rows["k", 1, ""] = always(FUNCTION)
    for name, served in HYPERCALLS[vm].items():
        rows["k", 1, name] = (
            served if hypercalls is None else hypercalls.get(name, always(FUNCTION))
        )
    return rows


SERVED: Final[dict[Privilege, Codes | None]] = {"k": None, "u": None}


# -- every call ---------------------------------------------------------------------------------


def test_the_stub_makes_all_calls_of_the_table() -> None:
    """The stub's numbers are generated; the expectation's names are not."""
    header = Path(__file__).parents[2] / "guest_stub" / "include" / "hcall_numbers.h"
    names = re.findall(r"X\(((?:UV|H_SVM|H_TPM|H_RANDOM)\w*), 0x", header.read_text("utf-8"))
    assert set(names) == CALLS


@pytest.mark.parametrize("byte_order", BYTE_ORDERS)
def test_without_a_device(byte_order: ByteOrder, lab: Lab) -> None:
    """There sc 2 is a system call, from either state; H_TPM_COMM needs spapr-tpm-proxy."""
    machine = lab.stub("secure_calls require=1", byte_order=byte_order, smp=2)
    machine.report().must_pass("secure_calls")
    vector = always(SYSTEM_CALL)
    judge(machine, table("normal", {"k": vector, "u": vector}, {}), "normal")


@pytest.mark.parametrize("byte_order", BYTE_ORDERS)
def test_without_secure_vms(byte_order: ByteOrder, lab: Lab) -> None:
    """The device takes sc 2, and nobody answers; there is no TPM either."""
    machine = lab.stub("secure_calls require=1", lab.daemon(), byte_order=byte_order, smp=2)
    machine.report().must_pass("secure_calls")
    unknown = always(FUNCTION)
    judge(machine, table("normal", {"k": unknown, "u": unknown}, {}), "normal")


@pytest.mark.parametrize("byte_order", BYTE_ORDERS)
def test_a_normal_vm(byte_order: ByteOrder, lab: Lab) -> None:
    """All that UV_ESM refuses leaves it as it was; what else there is is not for it."""
    secure = SecureLab(lab)
    machine = secure.stub("secure_refused secure_calls require=1", byte_order=byte_order)
    machine.report().must_pass("secure_refused", "secure_calls")
    judge(machine, table("normal", SERVED, None), "normal")
    assert "guest enters secure mode" not in secure.daemon.log_text()


FILE: Final = bytes((7 * n + 3) & 0xFF for n in range(150))
"""What ``guest_stub/tests/secure_files.c`` expects."""


@pytest.mark.parametrize("byte_order", BYTE_ORDERS)
def test_a_secure_vm(byte_order: ByteOrder, lab: Lab) -> None:
    secure = SecureLab(lab)
    machine = secure.stub(
        "secure_memory secure_calls secure_files esm=1 require=1",
        byte_order=byte_order,
        attached={"rootd": FILE},
    )
    machine.report().must_pass("secure_memory", "secure_calls", "secure_files")
    judge(machine, table("secure", SERVED, None), "secure")
    assert secure.daemon.log_text().count("guest enters secure mode") == 1


# -- pages --------------------------------------------------------------------------------------

PAGE_TESTS: Final = ("secure_ranges", "secure_sharing", "secure_cpus")


def mark(frame: int) -> bytes:
    """What the stub fills a frame with."""
    return f"<stub frame {frame:02}>".encode().ljust(16, b"\0")


@pytest.mark.parametrize(
    ("shift", "limit", "byte_order", "seed"),
    [(12, None, "le", 1), (16, None, "be", 2), (12, 2, "le", 3)],
)
def test_cpus_share_the_same_frames(
    shift: int, limit: int | None, byte_order: ByteOrder, seed: int, lab: Lab
) -> None:
    """Four CPUs, and what QEMU's monitor sees of what they share.

    With ``limit`` MiB of secure memory, pages go out by themselves all the time.
    """
    profile = f"page_shift = {shift}\n" + (f"secure_memory_mib = {limit}\n" if limit else "")
    secure = SecureLab(lab, profile)
    machine = secure.stub(
        f"secure_pages esm=1 shift={shift} seed={seed} rounds=40 nmi=1 require=1",
        byte_order=byte_order,
        smp=4,
    )
    ready = r"# pages ready base=(0x[0-9a-f]+) shift=\d+ frames=(\d+)\n"
    found = machine.console.expect(ready, 120)
    base, frames = (int(text, 0) for text in found.groups())
    content = b""

    def is_marked() -> bool:
        nonlocal content
        seen = lab.artifacts / "seen"
        machine.qmp.execute("pmemsave", val=base, size=frames << shift, filename=str(seen))
        content = seen.read_bytes()
        seen.unlink()
        return content.endswith(mark(frames - 1))

    wait_until(is_marked, "the last frame's mark, which is shared")
    for frame in range(frames):
        part = content[frame << shift : (frame + 1) << shift]
        # Every other one is shared; of what is not, and of what is out, a host sees zeros.
        whole = mark(frame) * (len(part) // 16)
        assert part == (whole if frame % 2 else bytes(len(part))), frame
    machine.qmp.execute("inject-nmi")
    machine.report().must_pass(*PAGE_TESTS)
    if limit:
        assert any(" PAGE_IN(" in line for line in secure.daemon.trace_lines())


def test_the_tpm_of_a_secure_vm(lab: Lab) -> None:
    """H_TPM_COMM with buffers that are not shared: the firmware's own has them shared."""
    secure = SecureLab(lab)
    machine = secure.stub("tpm esm=1 require=1 n=5")
    machine.report().must_pass("tpm_random", "tpm_bad", "tpm_edges", "tpm_cpus", "tpm_user")
