# SPDX-License-Identifier: Apache-2.0
"""What a QEMU on this host is told for a guest with SEV.

QEMU compares ``cbitpos`` with the host's CPUID (target/i386/sev.c, sev_kvm_init), whether or not
the host has SEV: leaf 0x8000001F, EBX bits 5 to 0, is what any processor returns there. So this
asks the processor, as QEMU does. ``hcalld sev qemu-args`` prints the result.

libvirt makes QEMU's command line itself, by what it has asked a QEMU that it starts for that
purpose alone. ``hcalld sev emulator`` writes what it starts instead.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hcalld.guest.machine import escape

SEV_LEAF: Final = 0x8000001F
"""CPUID Fn8000_001F, Encrypted Memory Capabilities (AMD publication 24594)."""

REDUCED_PHYS_BITS: Final = 1
"""QEMU wants 1 to 63; what it means to the guest is nothing where memory is plain."""

HIDDEN_LEAF: Final = ("-global", f"x86_64-cpu.xlevel={SEV_LEAF - 1:#x}")
"""What keeps the guest from seeing the leaf, in which QEMU sets the bits of SEV.

Firmware and kernels that see them read the MSR SEV_STATUS (0xC0010131), which a KVM without SEV
does not have: OVMF and Linux would end by that in a triple fault. And they would look for their
C-bit, of which such a KVM knows nothing either. What is measured has nothing to do with it.
"""

OBJECT_ID: Final = "sev0"

SOCKET_VARIABLE: Final = "HCALLD_SEV_SOCKET"
PLATFORM_VARIABLE: Final = "HCALLD_SEV_PLATFORM"

_CPUID_EBX: Final = bytes.fromhex(
    "53"  # push %rbx
    "89f8"  # mov %edi,%eax
    "31c9"  # xor %ecx,%ecx
    "0fa2"  # cpuid
    "89d8"  # mov %ebx,%eax
    "5b"  # pop %rbx
    "c3"  # ret
)
"""``uint32_t f(uint32_t leaf)`` by the System V calling convention of x86-64."""


class SevHostError(Exception):
    """This machine cannot be asked."""


def cpuid_ebx(leaf: int) -> int:
    """EBX of a CPUID leaf, subleaf 0, on whichever processor this runs.

    Raises:
        SevHostError: This is no x86-64, or the system refuses memory that can be run.
    """
    if platform.machine() != "x86_64":
        raise SevHostError(
            f"this machine is {platform.machine()}; a guest with SEV needs KVM on x86_64"
        )
    try:
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError as error:
        raise SevHostError(
            f"no memory to run CPUID in ({error.strerror}); give cbitpos by hand: EBX bits 5 to 0 "
            f"of CPUID leaf {SEV_LEAF:#x}"
        ) from error
    with code:
        code.write(_CPUID_EBX)
        first = ctypes.c_char.from_buffer(code)
        function = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_uint32)(ctypes.addressof(first))
        value: int = function(leaf)
        # Else the map could not be closed.
        del first
    return value


def cbitpos() -> int:
    """The position of the C-bit that QEMU expects to be told.

    Raises:
        SevHostError: This machine cannot be asked.
    """
    return cpuid_ebx(SEV_LEAF) & 0x3F


def sev_arguments(
    *,
    policy: int = 1,
    dh_cert: Path | None = None,
    session: Path | None = None,
    kernel_hashes: bool = False,
    c_bit: int | None = None,
) -> list[str]:
    """The options that launch a guest with SEV.

    Args:
        policy: The guest's policy, as its owner has said.
        dh_cert: The owner's certificate, in base64; with it goes a session.
        session: The owner's session, in base64.
        kernel_hashes: Measure ``-kernel``, ``-initrd`` and ``-append`` too.
        c_bit: What to tell for ``cbitpos``; None asks this machine.
    """
    position = cbitpos() if c_bit is None else c_bit
    option = f"sev-guest,id={OBJECT_ID},cbitpos={position},reduced-phys-bits={REDUCED_PHYS_BITS}"
    option += f",policy={policy:#x}"
    if dh_cert is not None:
        option += f",dh-cert-file={escape(str(dh_cert))}"
    if session is not None:
        option += f",session-file={escape(str(session))}"
    if kernel_hashes:
        option += ",kernel-hashes=on"
    machine = f"confidential-guest-support={OBJECT_ID}"
    return ["-object", option, "-machine", machine, *HIDDEN_LEAF]


def sev_environment(
    library: Path, socket_path: Path, *, platform_name: str | None = None
) -> dict[str, str]:
    """The variables with which QEMU's SEV commands go to the daemon."""
    variables = {"LD_PRELOAD": str(library), SOCKET_VARIABLE: str(socket_path)}
    if platform_name is not None:
        variables[PLATFORM_VARIABLE] = platform_name
    return variables


EMULATOR_HEAD: Final = "#!/bin/sh\n# QEMU with SEV by hcalld; written by hcalld sev emulator\n"
"""How such a program begins, and is known by."""


def emulator_script(qemu: Path, variables: Mapping[str, str]) -> str:
    """A program for libvirt's ``<emulator>``.

    Args:
        qemu: What it starts.
        variables: Of :func:`sev_environment`.

    libvirt asks a QEMU with ``-machine none`` (src/qemu/qemu_process.c, qemuProcessQMPLaunch) and
    keeps the answers until the emulator's file or libvirt changes (qemu_capabilities.c,
    virQEMUCapsIsValid). Where none starts it asks again: better than an answer without SEV.
    """
    assignments = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    return (
        f"{EMULATOR_HEAD}"
        f"export {assignments}\n"
        'case "$*" in\n'
        '*"-machine none"*)\n'
        f'    if [ ! -S "${SOCKET_VARIABLE}" ]; then\n'
        f'        echo "hcalld: no socket ${SOCKET_VARIABLE}; start hcalld serve" >&2\n'
        "        exit 1\n"
        "    fi\n"
        "    ;;\n"
        f'*sev-guest*) set -- "$@" {shlex.join(HIDDEN_LEAF)} ;;\n'
        "esac\n"
        f'exec {shlex.quote(str(qemu))} "$@"\n'
    )
