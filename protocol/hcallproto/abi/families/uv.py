# SPDX-License-Identifier: Apache-2.0
"""UV_*: the ultracalls, made by ``sc 2``.

Sources: the firmware's ``include/uapi_uvcall.h`` and ``svm_host.h``
(https://github.com/open-power/ultravisor) for numbers and what the code does; Linux 7.2
``Documentation/arch/powerpc/ultravisor.rst`` for what is promised. They disagree often:
``docs/hcalls/uv.rst`` says where and what we take.

A call in the wrong state of the machine gets U_PERMISSION before any argument is
looked at.
"""

from __future__ import annotations

import dataclasses
import enum

from hcallproto.abi.registers import U32_MAX
from hcallproto.abi.returns import U
from hcallproto.abi.spec import (
    Arg,
    ArgKind,
    Buffer,
    BufferShape,
    Caller,
    CodeWhen,
    Direction,
    Family,
    Hcall,
    Level,
    Output,
    address,
    opaque,
    size,
    value,
)
from hcallproto.payloads import fdt

_RST = "Linux 7.2 ultravisor.rst"
_FIRMWARE = "open-power/ultravisor"

MAX_SLOTS = 512
"""Memory slots of a VM (``core/pagein_track.c``)."""
PAGE_ORDER = 16
"""The firmware's page: 64 KiB."""
FILE_NAME_REGISTERS = 8
FILE_CHUNK_REGISTERS = 8
MAX_FILE_SIZE = 65535


class Spr(enum.IntEnum):
    """Registers that only the ultravisor may write."""

    DAWR = 0xB4
    CIABR = 0xBB
    DAWRX = 0xBC
    IMC = 0x31F
    LDBAR = 0x352


class SbeCommand(enum.IntEnum):
    """UV_SEND_SBE_COMMAND operations."""

    TIMER = 0
    HANDLE_INTERRUPT = 1
    START_MPIPL = 2


_SUCCESS = CodeWhen(U.SUCCESS, "done")
_WRONG_STATE = CodeWhen(U.PERMISSION, "the caller is not what the call demands")
_BAD_MODE = CodeWhen(U.BAD_MODE, "the hypervisor is in a transaction (MSR[TS] not 0)")
_LATE = CodeWhen(U.RETRY, "the deadline passed or the daemon is gone")
_BAD_LPID = CodeWhen(U.PARAMETER, "no secure VM has this LPID")
_ABORTED = CodeWhen(U.STATE, "the VM was aborted")
_SCOM_CODES = (
    CodeWhen(U.PARAMETER, "unknown chip or part"),
    CodeWhen(U.FUNCTION, "busy (the firmware's U_XSCOM_BUSY has the same number)"),
    CodeWhen(U.UNSUPPORTED, "not supported"),
    CodeWhen(U.XSCOM_CHIPLET_OFF, "chiplet is off"),
    CodeWhen(U.XSCOM_PARTIAL_GOOD, "chiplet is partly good"),
    CodeWhen(U.XSCOM_ADDR_ERROR, "address error"),
    CodeWhen(U.XSCOM_CLOCK_ERROR, "clock error"),
    CodeWhen(U.XSCOM_PARITY_ERROR, "parity error"),
    CodeWhen(U.XSCOM_TIMEOUT, "the SCOM did not answer"),
)

_LPID = opaque("lpid", 4, "logical partition id of the VM")


def _from_hypervisor(
    name: str,
    number: int,
    doc: str,
    source: str,
    *codes: CodeWhen,
    args: tuple[Arg, ...] = (),
    buffers: tuple[Buffer, ...] = (),
    outputs: tuple[Output, ...] = (),
    effect_may_remain: bool = True,
) -> Hcall:
    """A call that the hypervisor or its firmware makes."""
    listed = [entry.code for entry in codes]
    common = (_WRONG_STATE, _BAD_MODE, _LATE)
    return Hcall(
        name=name,
        number=number,
        level=Level.SC2,
        doc=doc,
        source=source,
        caller=Caller.HYPERVISOR,
        args=args,
        buffers=buffers,
        outputs=outputs,
        codes=(_SUCCESS, *codes, *(entry for entry in common if entry.code not in listed)),
        timeout_code=U.RETRY,
        lost_code=U.RETRY,
        effect_may_remain=effect_may_remain,
    )


def _page_order(register: int, code: U) -> Arg:
    return Arg(
        name="order",
        register=register,
        kind=ArgKind.VALUE,
        doc="log2 of the page size",
        minimum=PAGE_ORDER,
        maximum=PAGE_ORDER,
        code=code,
    )


WRITE_PATE = _from_hypervisor(
    "UV_WRITE_PATE",
    0xF104,
    "Set a partition table entry; of a secure VM's only the second doubleword.",
    f"{_RST} UV_WRITE_PATE",
    args=(
        _LPID,
        opaque("dw0", 5, "first doubleword of the entry"),
        opaque("dw1", 6, "second doubleword of the entry"),
    ),
)

RESTRICTED_SPR_WRITE = _from_hypervisor(
    "UV_RESTRICTED_SPR_WRITE",
    0xF108,
    "Write a register that is the ultravisor's.",
    f"{_FIRMWARE} core/uvcall.c",
    CodeWhen(U.PARAMETER, "not one of the registers named"),
    args=(value("spr", 4, "register", names=Spr), opaque("value", 5, "new value")),
)

RESTRICTED_SPR_READ = _from_hypervisor(
    "UV_RESTRICTED_SPR_READ",
    0xF10C,
    "Read a register that is the ultravisor's; only DAWR, DAWRX and CIABR.",
    f"{_FIRMWARE} core/uvcall.c",
    CodeWhen(U.PARAMETER, "not one of the registers named"),
    args=(value("spr", 4, "register", names=Spr),),
    outputs=(Output(name="value", register=5, kind=ArgKind.OPAQUE, doc="value (r5, not r4)"),),
    effect_may_remain=False,
)

ESM = Hcall(
    name="UV_ESM",
    number=0xF110,
    level=Level.SC2,
    doc=(
        "Enter secure mode: check the kernel against its blob, and start it anew at its first "
        "byte as a secure VM, as after kexec."
    ),
    source=f"{_FIRMWARE} svm/svm-esm.c; {_RST} UV_ESM",
    args=(
        dataclasses.replace(
            opaque("kernel", 4, "real address of the kernel's first byte"),
            minimum=1,
            code=U.P2,
        ),
        # Only 0 is U_P3 (svm-esm.c sys_esm()), which the handler says.
        dataclasses.replace(address("fdt", 5, "flattened device tree"), code=U.PARAMETER),
    ),
    buffers=(
        Buffer(
            address="fdt",
            direction=Direction.IN,
            shape=BufferShape.FIXED,
            max_size=fdt.HEADER_SIZE,
        ),
    ),
    outputs=(
        Output(name="kernel", register=4, kind=ArgKind.OPAQUE, doc="the kernel's address"),
        Output(name="zero", register=5, kind=ArgKind.OPAQUE, doc="0, as at a kexec entry"),
    ),
    codes=(
        CodeWhen(U.PARAMETER, "the VM could not be made secure; it goes on as it was"),
        CodeWhen(U.P2, "kernel address 0"),
        CodeWhen(U.P3, "device tree address 0"),
        _WRONG_STATE,
        CodeWhen(U.RETRY, "no memory, or the VM is secure already"),
    ),
    # Hashing kernel and initrd, a TPM round trip and paging 1 GiB, at TCG's pace.
    deadline_ms=120_000,
    timeout_code=U.RETRY,
    lost_code=U.RETRY,
    effect_may_remain=True,
    sets_context=True,
    result="device tree address",
)

READ_SCOM = _from_hypervisor(
    "UV_READ_SCOM",
    0xF114,
    "Read a SCOM register.",
    f"{_FIRMWARE} doc/ultravisor.rst",
    *_SCOM_CODES,
    args=(opaque("id", 4, "chip or part id"), opaque("scom", 5, "SCOM address")),
    outputs=(Output(name="value", register=4, kind=ArgKind.OPAQUE, doc="value"),),
    effect_may_remain=False,
)

WRITE_SCOM = _from_hypervisor(
    "UV_WRITE_SCOM",
    0xF118,
    "Write a SCOM register.",
    f"{_FIRMWARE} doc/ultravisor.rst",
    *_SCOM_CODES,
    args=(
        opaque("id", 4, "chip or part id"),
        opaque("scom", 5, "SCOM address"),
        opaque("value", 6, "new value"),
    ),
)

RETURN = Hcall(
    name="UV_RETURN",
    number=0xF11C,
    level=Level.SC2,
    doc="Resume a secure VM after an interrupt or hypercall that was reflected; no return.",
    source=f"{_FIRMWARE} core/exceptions.c; {_RST} UV_RETURN",
    caller=Caller.HYPERVISOR,
    args=(
        *(opaque(f"r{n}", n, f"the VM's r{n}") for n in range(4, 13)),
        opaque("result", 0, "the VM's r3: the status of its hypercall"),
        opaque("srr1", 2, "SRR1 image for an interrupt that the hypervisor makes up"),
        opaque("cookie", 31, "what the ultravisor put there when it reflected"),
    ),
    codes=(
        _WRONG_STATE,
        CodeWhen(
            U.RETRY, "the deadline passed or the daemon is gone; else the call does not return"
        ),
    ),
    timeout_code=U.RETRY,
    lost_code=U.RETRY,
    effect_may_remain=True,
    sets_context=True,
)

REGISTER_MEM_SLOT = _from_hypervisor(
    "UV_REGISTER_MEM_SLOT",
    0xF120,
    "Tell of a range of a VM's memory, and reserve secure memory for it.",
    f"{_RST} UV_REGISTER_MEM_SLOT",
    CodeWhen(U.PARAMETER, "no secure VM has this LPID, or secure memory is exhausted"),
    CodeWhen(U.P2, "start not a multiple of 64 KiB"),
    CodeWhen(U.P3, "the range wraps or overlaps another slot"),
    CodeWhen(U.P5, f"slot id not below {MAX_SLOTS}"),
    args=(
        _LPID,
        opaque("start", 5, "guest real address of the first byte"),
        opaque("bytes", 6, "bytes, rounded up to 64 KiB"),
        opaque("flags", 7, "0; not looked at"),
        value("slot", 8, "slot id; an id in use is replaced", maximum=MAX_SLOTS - 1),
    ),
)

UNREGISTER_MEM_SLOT = _from_hypervisor(
    "UV_UNREGISTER_MEM_SLOT",
    0xF124,
    "Give up a range of a VM's memory.",
    f"{_RST} UV_UNREGISTER_MEM_SLOT",
    _BAD_LPID,
    CodeWhen(U.P2, "no such slot"),
    args=(_LPID, value("slot", 5, "slot id", maximum=MAX_SLOTS - 1)),
)

PAGE_IN = _from_hypervisor(
    "UV_PAGE_IN",
    0xF128,
    "Take a page of a VM into secure memory, or map it shared.",
    f"{_RST} UV_PAGE_IN",
    _BAD_LPID,
    CodeWhen(U.P2, "source 0 or in secure memory, or the page is resident"),
    CodeWhen(U.P3, "no slot holds the page, or its content does not match its tag"),
    CodeWhen(U.P5, "page size not 64 KiB"),
    _ABORTED,
    args=(
        _LPID,
        opaque("source", 5, "real address of the page's content"),
        opaque("gpa", 6, "the VM's address of the page"),
        opaque("flags", 7, "0; not looked at"),
        _page_order(8, U.P5),
    ),
)

PAGE_OUT = _from_hypervisor(
    "UV_PAGE_OUT",
    0xF12C,
    "Give a page of a VM back to the hypervisor, encrypted.",
    f"{_RST} UV_PAGE_OUT",
    CodeWhen(U.PARAMETER, "no secure VM has this LPID, or the page is shared or out already"),
    CodeWhen(U.P2, "destination 0 or in secure memory"),
    CodeWhen(U.P3, "no slot holds the page"),
    CodeWhen(U.P5, "page size not 64 KiB"),
    CodeWhen(U.RETRY, "no memory, or the page is being unshared"),
    args=(
        _LPID,
        opaque("destination", 5, "real address for the encrypted content"),
        opaque("gpa", 6, "the VM's address of the page"),
        opaque("flags", 7, "0; UV_SNAPSHOT has no published value"),
        _page_order(8, U.P5),
    ),
)


def _range_call(name: str, number: int, doc: str, refused: str) -> Hcall:
    return Hcall(
        name=name,
        number=number,
        level=Level.SC2,
        doc=doc,
        source=f"{_RST} {name}; {_FIRMWARE} core/uvcall.c",
        caller=Caller.SECURE_KERNEL,
        args=(
            opaque("gfn", 4, "first page, in pages of the guest kernel's size"),
            dataclasses.replace(
                value("count", 5, "pages; 0 is success"), maximum=U32_MAX, code=U.P2
            ),
        ),
        codes=(
            _SUCCESS,
            CodeWhen(U.P2, f"not all in the VM's memory, or {refused}; nothing was changed"),
            _WRONG_STATE,
            CodeWhen(U.RETRY, "the deadline passed or the daemon is gone; may be called again"),
        ),
        timeout_code=U.RETRY,
        lost_code=U.RETRY,
        effect_may_remain=True,
    )


SHARE_PAGE = _range_call(
    "UV_SHARE_PAGE",
    0xF130,
    "Share pages with the hypervisor; they read as zeros afterwards.",
    "a page in transition",
)
UNSHARE_PAGE = _range_call(
    "UV_UNSHARE_PAGE",
    0xF134,
    "Take shared pages back; they read as zeros afterwards.",
    "a page that the ultravisor itself shares",
)

PAGE_INVAL = _from_hypervisor(
    "UV_PAGE_INVAL",
    0xF138,
    "The hypervisor moves a shared page: unmap it until the next UV_PAGE_IN.",
    f"{_RST} UV_PAGE_INVAL",
    _BAD_LPID,
    CodeWhen(U.P2, "the page is not shared"),
    CodeWhen(U.P3, "no slot holds the page, or page size not 64 KiB"),
    _ABORTED,
    args=(_LPID, opaque("gpa", 5, "the VM's address of the page"), _page_order(6, U.P3)),
)

SVM_TERMINATE = _from_hypervisor(
    "UV_SVM_TERMINATE",
    0xF13C,
    "Forget a secure VM and all its memory.",
    f"{_RST} UV_SVM_TERMINATE",
    args=(_LPID,),
)

UNSHARE_ALL_PAGES = Hcall(
    name="UV_UNSHARE_ALL_PAGES",
    number=0xF140,
    level=Level.SC2,
    doc="Take all shared pages back, as before a kexec.",
    source=f"{_RST} UV_UNSHARE_ALL_PAGES",
    caller=Caller.SECURE_KERNEL,
    codes=(
        _SUCCESS,
        CodeWhen(U.P2, "a page is gone, or is not given back, and then the VM is taken down"),
        _WRONG_STATE,
        CodeWhen(U.RETRY, "the deadline passed or the daemon is gone; may be called again"),
    ),
    timeout_code=U.RETRY,
    lost_code=U.RETRY,
    effect_may_remain=True,
)


def _memory_call(name: str, number: int, doc: str, direction: Direction) -> Hcall:
    return _from_hypervisor(
        name,
        number,
        doc,
        f"{_FIRMWARE} doc/ultravisor.rst",
        CodeWhen(U.PARAMETER, "buffer or size 0"),
        CodeWhen(U.P4, "size above 2^32 - 1"),
        CodeWhen(U.PERMISSION, f"the range may not be accessed, or {_WRONG_STATE.when}"),
        args=(
            address("buffer", 4, "buffer"),
            opaque("handle", 5, "what is meant: an id and a type"),
            opaque("offset", 6, "first byte"),
            # 0 is U_PARAMETER, as of the buffer, which the handler says.
            size("size", 7, "bytes"),
        ),
        buffers=(
            Buffer(
                address="buffer",
                direction=direction,
                shape=BufferShape.SIZED,
                max_size=U32_MAX,
                size="size",
                secret=True,
                # It is refused before anybody would look at what is in it.
                prefetch=False,
            ),
        ),
        effect_may_remain=direction is Direction.IN,
    )


READ_MEM = _memory_call(
    "UV_READ_MEM", 0xF144, "Read memory that firmware keeps secure.", Direction.OUT
)
WRITE_MEM = _memory_call(
    "UV_WRITE_MEM", 0xF148, "Write memory that firmware keeps secure.", Direction.IN
)

ESMB_GET_FILE = Hcall(
    name="UV_ESMB_GET_FILE",
    number=0xF14C,
    level=Level.SC2,
    doc="Read the next piece of a file that the VM's blob carries; once, by one process.",
    source=f"{_FIRMWARE} svm/svm-esmb.c; svm-tools docs",
    caller=Caller.ANY,
    args=(
        Arg(
            name="offset",
            register=4,
            kind=ArgKind.VALUE,
            doc="first byte; not before the end of the piece read last",
            maximum=MAX_FILE_SIZE,
        ),
        *(
            Arg(
                name=f"name{n}",
                register=5 + n,
                kind=ArgKind.TEXT,
                doc=f"bytes {8 * n} to {8 * n + 7} of the file's name, NUL padded",
                code=U.PARAMETER,
            )
            for n in range(FILE_NAME_REGISTERS)
        ),
    ),
    outputs=tuple(
        Output(
            name=f"data{n}",
            register=4 + n,
            kind=ArgKind.TEXT,
            doc=f"bytes {8 * n} to {8 * n + 7} of the piece; 0 beyond its end",
            secret=True,
        )
        for n in range(FILE_CHUNK_REGISTERS)
    ),
    codes=(
        CodeWhen(U.SUCCESS, "end of the file"),
        CodeWhen(
            U.PARAMETER,
            "the VM is not secure, no such file, offset read already or out of range, or another "
            "process has read from it",
        ),
        CodeWhen(U.RETRY, "the deadline passed or the daemon is gone"),
    ),
    timeout_code=U.RETRY,
    lost_code=U.RETRY,
    effect_may_remain=True,
    result="bytes",
)

SEND_SBE_COMMAND = _from_hypervisor(
    "UV_SEND_SBE_COMMAND",
    0xF150,
    "Have a self-boot engine do something.",
    f"{_FIRMWARE} doc/ultravisor.rst",
    CodeWhen(U.PARAMETER, "unknown command, or input that it does not take"),
    args=(
        opaque("chip", 4, "chip id"),
        dataclasses.replace(value("command", 5, "what to do", names=SbeCommand), code=U.PARAMETER),
        opaque("input", 6, "input; 0 but for TIMER"),
    ),
    outputs=(Output(name="output", register=4, kind=ArgKind.OPAQUE, doc="output"),),
)

FAMILY = Family(
    name="uv",
    title="Ultracalls",
    source=f"{_RST}; {_FIRMWARE}",
    calls=(
        WRITE_PATE,
        RESTRICTED_SPR_WRITE,
        RESTRICTED_SPR_READ,
        ESM,
        READ_SCOM,
        WRITE_SCOM,
        RETURN,
        REGISTER_MEM_SLOT,
        UNREGISTER_MEM_SLOT,
        PAGE_IN,
        PAGE_OUT,
        SHARE_PAGE,
        UNSHARE_PAGE,
        PAGE_INVAL,
        SVM_TERMINATE,
        UNSHARE_ALL_PAGES,
        READ_MEM,
        WRITE_MEM,
        ESMB_GET_FILE,
        SEND_SBE_COMMAND,
    ),
    constants=tuple((f"UV_SPR_{spr.name}", spr) for spr in Spr),
)
