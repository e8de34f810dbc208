# SPDX-License-Identifier: Apache-2.0
"""UV_*: the ultracalls over ``hcalld.domain.pef``.

Sources: open-power/ultravisor and Linux 7.2 ``ultravisor.rst``; where they disagree,
docs/pef.md. Who calls is looked at before the arguments (``check_caller``). A pseries
guest reaches the calls of a VM only: those of a hypervisor are made by our half, within
other calls, and by whoever plays a host.
"""

from __future__ import annotations

from hcalld.core.call import Call
from hcalld.core.errors import HcallError
from hcalld.core.handlers import HandlerSet
from hcalld.core.outcome import Outcome
from hcalld.domain.pef.entry import enter
from hcalld.domain.pef.machine import PefMachine
from hcalld.domain.pef.shared import share, unshare, unshare_all
from hcalld.domain.ultravisor.caller import check_caller, check_entry
from hcallproto.abi.families import uv
from hcallproto.abi.registers import MSR_S
from hcallproto.abi.returns import U
from hcallproto.abi.spec import Hcall


def admit(hcall: Hcall, msr: int, machine: PefMachine) -> None:
    """Who may make the call."""
    check_caller(hcall, msr)


HANDLERS: HandlerSet[PefMachine] = HandlerSet(uv.FAMILY, admission=admit)


# -- calls of a VM ----------------------------------------------------------------------------


@HANDLERS.handles(uv.ESM)
async def uv_esm(call: Call, machine: PefMachine) -> Outcome:
    """Enter secure mode (svm-esm.c ``sys_esm()``).

    Only with all other vCPUs stopped: what is measured must be all that runs, and QEMU
    takes the guest down if it is not (docs/wire.rst).
    """
    check_entry(call.msr)
    if not call.is_alone:
        raise HcallError(U.RETRY, "other vCPUs run")
    ram = call.ram
    return await enter(
        machine,
        call["kernel"],
        call["fdt"],
        ram.regions,
        machine.verify,
        machine.key,
        ram.generations,
    )


@HANDLERS.handles(uv.SHARE_PAGE)
async def uv_share_page(call: Call, machine: PefMachine) -> Outcome:
    """Share pages (uvcall.c ``sys_share_page()``)."""
    return await share(machine, call["gfn"], call["count"])


@HANDLERS.handles(uv.UNSHARE_PAGE)
async def uv_unshare_page(call: Call, machine: PefMachine) -> Outcome:
    """Take shared pages back (uvcall.c ``sys_unshare_page()``)."""
    return await unshare(machine, call["gfn"], call["count"])


@HANDLERS.handles(uv.UNSHARE_ALL_PAGES)
async def uv_unshare_all_pages(call: Call, machine: PefMachine) -> Outcome:
    """Take all shared pages back (uvcall.c ``sys_unshare_all_pages()``)."""
    return await unshare_all(machine)


@HANDLERS.handles(uv.ESMB_GET_FILE)
async def uv_esmb_get_file(call: Call, machine: PefMachine) -> Outcome:
    """Read on in a file of the blob (svm-esmb.c ``sys_esmb_get_file()``).

    A secure VM that calls without MSR[S] is ended before (runtime/calls.py); that its files
    stay secret does not hang on that alone.
    """
    if not call.msr & MSR_S:
        raise HcallError(U.PARAMETER, "MSR[S] is 0: the VM is not secure")
    names = [call[f"name{index}"] for index in range(uv.FILE_NAME_REGISTERS)]
    return machine.read_file(call["offset"], names, call.pidr)


# -- calls of a hypervisor --------------------------------------------------------------------


@HANDLERS.handles(
    uv.WRITE_PATE,  # nobody walks the partition table, for QEMU is the hypervisor
    uv.RESTRICTED_SPR_WRITE,
    uv.RESTRICTED_SPR_READ,
    uv.READ_SCOM,  # refused: no chips
    uv.WRITE_SCOM,
    uv.RETURN,  # refused: nothing is reflected to a hypervisor that is QEMU
    uv.REGISTER_MEM_SLOT,  # svm_host.c svm_register_mem_slot()
    uv.UNREGISTER_MEM_SLOT,  # svm_host.c svm_unregister_mem_slot()
    uv.PAGE_IN,  # page_encrypt.c svm_page_in()
    uv.PAGE_OUT,  # page_encrypt.c svm_page_out()
    uv.PAGE_INVAL,  # svm_host.c svm_page_inval()
    uv.SVM_TERMINATE,  # svm_host.c svm_terminate()
    uv.READ_MEM,  # refused: there is no such memory
    uv.WRITE_MEM,
    uv.SEND_SBE_COMMAND,  # refused: no chips
)
async def by_hypervisor(call: Call, machine: PefMachine) -> Outcome:
    """Have the ultravisor carry the call out, as its hypervisor's."""
    return await machine.by_hypervisor(call.hcall.number, list(call.args.values()))
