# SPDX-License-Identifier: Apache-2.0
"""H_SVM_*: what an ultravisor asks of a hypervisor about a secure VM.

The ultravisor issues them in the VM's name; a guest that issues one itself has
MSR[S] = 0 and gets H_UNSUPPORTED. H_RANDOM is here for its one special rule: the
ultravisor does not reflect a secure VM's H_RANDOM to the hypervisor, it answers it.

Source: Linux 7.2 ``Documentation/arch/powerpc/ultravisor.rst`` for the interface,
``arch/powerpc/kvm/book3s_hv_uvmem.c`` for the codes (KVM is the only published
hypervisor half).
"""

from __future__ import annotations

import enum

from hcallproto.abi.returns import H
from hcallproto.abi.spec import (
    Arg,
    ArgKind,
    Caller,
    CodeWhen,
    Family,
    Hcall,
    Level,
    Output,
    flags,
    opaque,
)

_KVM = "Linux 7.2 book3s_hv_uvmem.c"


class PageInFlag(enum.IntFlag):
    """H_SVM_PAGE_IN flags."""

    SHARED = 1


_SUCCESS = CodeWhen(H.SUCCESS, "done")
_NOT_SECURE = CodeWhen(H.UNSUPPORTED, "MSR[S] is 0, or no H_SVM_INIT_START before")
_NOT_STARTED = CodeWhen(H.UNSUPPORTED, "no H_SVM_INIT_START before")
_LATE = CodeWhen(
    H.STATE, "the deadline passed or the daemon is gone; the page is as it was or as asked"
)

_GPA = opaque("gpa", 4, "guest real address of the page")


def _order(register: int) -> Arg:
    return Arg(
        name="order",
        register=register,
        kind=ArgKind.VALUE,
        doc="log2 of the page size; must be the hypervisor's",
        minimum=12,
        maximum=16,
    )


PAGE_IN = Hcall(
    name="H_SVM_PAGE_IN",
    number=0xEF00,
    level=Level.SC1,
    doc="Hand a page to the ultravisor, by UV_PAGE_IN, or share it.",
    source=f"{_KVM} kvmppc_h_svm_page_in()",
    caller=Caller.ULTRAVISOR,
    args=(_GPA, flags("flags", 5, "0, or share it", bits=1, names=PageInFlag), _order(6)),
    codes=(
        _SUCCESS,
        _NOT_SECURE,
        CodeWhen(H.PARAMETER, "no such page, already secure, or UV_PAGE_IN failed"),
        CodeWhen(H.P2, "undefined flag"),
        CodeWhen(H.P3, "not the hypervisor's page size"),
        _LATE,
    ),
    timeout_code=H.STATE,
    lost_code=H.STATE,
    effect_may_remain=True,
)

PAGE_OUT = Hcall(
    name="H_SVM_PAGE_OUT",
    number=0xEF04,
    level=Level.SC1,
    doc="Take a page from the ultravisor, encrypted, by UV_PAGE_OUT.",
    source=f"{_KVM} kvmppc_h_svm_page_out()",
    caller=Caller.ULTRAVISOR,
    args=(_GPA, Arg(name="flags", register=5, kind=ArgKind.ZERO, doc="0"), _order(6)),
    codes=(
        CodeWhen(H.SUCCESS, "done, or the page is out already"),
        _NOT_SECURE,
        CodeWhen(H.PARAMETER, "no such page, or UV_PAGE_OUT failed"),
        CodeWhen(H.P2, "flags not 0"),
        CodeWhen(H.P3, "not the hypervisor's page size"),
        _LATE,
    ),
    timeout_code=H.STATE,
    lost_code=H.STATE,
    effect_may_remain=True,
)

INIT_START = Hcall(
    name="H_SVM_INIT_START",
    number=0xEF08,
    level=Level.SC1,
    doc="Begin to make the VM secure: register its memory with the ultravisor.",
    source=f"{_KVM} kvmppc_h_svm_init_start()",
    caller=Caller.ULTRAVISOR,
    codes=(
        _SUCCESS,
        CodeWhen(H.UNSUPPORTED, "no secure memory, or the VM's MMU mode has no secure VMs"),
        CodeWhen(H.AUTHORITY, "the VM is not allowed to become secure"),
        CodeWhen(H.PARAMETER, "a memory slot could not be registered"),
        CodeWhen(H.STATE, "started or secure already"),
    ),
    timeout_code=H.STATE,
    lost_code=H.STATE,
    effect_may_remain=True,
)

INIT_DONE = Hcall(
    name="H_SVM_INIT_DONE",
    number=0xEF0C,
    level=Level.SC1,
    doc="The VM is secure: all its memory that is not shared belongs to the ultravisor.",
    source=f"{_KVM} kvmppc_h_svm_init_done()",
    caller=Caller.ULTRAVISOR,
    codes=(
        _SUCCESS,
        _NOT_STARTED,
        CodeWhen(H.STATE, "secure already, or a page could not be moved"),
    ),
    timeout_code=H.STATE,
    lost_code=H.STATE,
    effect_may_remain=True,
)

INIT_ABORT = Hcall(
    name="H_SVM_INIT_ABORT",
    number=0xEF14,
    level=Level.SC1,
    doc="Give up making the VM secure: it goes on as it was, after its UV_ESM.",
    source=f"{_KVM} kvmppc_h_svm_init_abort()",
    caller=Caller.ULTRAVISOR,
    codes=(
        CodeWhen(H.PARAMETER, "done; the code is the one that the VM's UV_ESM returns"),
        _NOT_STARTED,
        CodeWhen(H.STATE, "the VM is secure already"),
    ),
    timeout_code=H.STATE,
    lost_code=H.STATE,
    effect_may_remain=True,
)

RANDOM = Hcall(
    name="H_RANDOM",
    number=0x300,
    level=Level.SC1,
    doc="A random number; the ultravisor answers it for a secure VM, QEMU for others.",
    source="Linux 7.2 ultravisor.rst, pseries-rng.c; QEMU 10.0 hw/ppc/spapr_rng.c",
    outputs=(
        Output(
            name="random",
            register=4,
            kind=ArgKind.OPAQUE,
            doc="64 random bits",
            secret=True,
            fresh=True,
        ),
    ),
    codes=(
        _SUCCESS,
        CodeWhen(H.FUNCTION, "the VM is not secure and has no random number device"),
        CodeWhen(H.HARDWARE, "no entropy"),
    ),
    timeout_code=H.HARDWARE,
    lost_code=H.HARDWARE,
    of_secure_vm=True,
)

FAMILY = Family(
    name="svm",
    title="Secure VM support",
    source=_KVM,
    calls=(RANDOM, PAGE_IN, PAGE_OUT, INIT_START, INIT_DONE, INIT_ABORT),
    constants=tuple((f"SVM_PAGE_IN_{flag.name}", flag) for flag in PageInFlag),
)
