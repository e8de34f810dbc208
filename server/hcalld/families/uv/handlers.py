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


async def _by_hypervisor(call: Call, machine: PefMachine) -> Outcome:
    return await machine.by_hypervisor(call.hcall.number, list(call.args.values()))


# -- calls of a VM ----------------------------------------------------------------------------


@HANDLERS.handles(uv.ESM)
async def uv_esm(call: Call, machine: PefMachine) -> Outcome:
    """Enter secure mode (svm-esm.c ``sys_esm()``)."""
    check_entry(call.msr)
    memory = call.ram.regions
    return await enter(machine, call["kernel"], call["fdt"], memory, machine.verify, machine.key)


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

    QEMU may have refused to set MSR[S] after UV_ESM (docs/wire.rst): only a caller that has
    it is the VM that was checked.
    """
    if not call.msr & MSR_S:
        raise HcallError(U.PARAMETER, "MSR[S] is 0: the VM is not secure")
    names = [call[f"name{index}"] for index in range(uv.FILE_NAME_REGISTERS)]
    return machine.read_file(call["offset"], names, call.pidr)


# -- calls of a hypervisor --------------------------------------------------------------------


@HANDLERS.handles(uv.WRITE_PATE)
async def uv_write_pate(call: Call, machine: PefMachine) -> Outcome:
    """Set a partition table entry; nobody walks the table, for QEMU is the hypervisor."""
    return await _by_hypervisor(call, machine)


@HANDLERS.handles(uv.RESTRICTED_SPR_WRITE)
async def uv_restricted_spr_write(call: Call, machine: PefMachine) -> Outcome:
    """Keep a register's value."""
    return await _by_hypervisor(call, machine)


@HANDLERS.handles(uv.RESTRICTED_SPR_READ)
async def uv_restricted_spr_read(call: Call, machine: PefMachine) -> Outcome:
    """Tell a register's value."""
    return await _by_hypervisor(call, machine)


@HANDLERS.handles(uv.READ_SCOM)
async def uv_read_scom(call: Call, machine: PefMachine) -> Outcome:
    """Refuse: no chips."""
    return await _by_hypervisor(call, machine)


@HANDLERS.handles(uv.WRITE_SCOM)
async def uv_write_scom(call: Call, machine: PefMachine) -> Outcome:
    """Refuse: no chips."""
    return await _by_hypervisor(call, machine)


@HANDLERS.handles(uv.RETURN)
async def uv_return(call: Call, machine: PefMachine) -> Outcome:
    """Refuse: nothing is reflected to a hypervisor that is QEMU."""
    return await _by_hypervisor(call, machine)


@HANDLERS.handles(uv.REGISTER_MEM_SLOT)
async def uv_register_mem_slot(call: Call, machine: PefMachine) -> Outcome:
    """Register memory (svm_host.c ``svm_register_mem_slot()``)."""
    return await _by_hypervisor(call, machine)


@HANDLERS.handles(uv.UNREGISTER_MEM_SLOT)
async def uv_unregister_mem_slot(call: Call, machine: PefMachine) -> Outcome:
    """Give memory up (svm_host.c ``svm_unregister_mem_slot()``)."""
    return await _by_hypervisor(call, machine)


@HANDLERS.handles(uv.PAGE_IN)
async def uv_page_in(call: Call, machine: PefMachine) -> Outcome:
    """Take a page (page_encrypt.c ``svm_page_in()``)."""
    return await _by_hypervisor(call, machine)


@HANDLERS.handles(uv.PAGE_OUT)
async def uv_page_out(call: Call, machine: PefMachine) -> Outcome:
    """Give a page, encrypted (page_encrypt.c ``svm_page_out()``)."""
    return await _by_hypervisor(call, machine)


@HANDLERS.handles(uv.PAGE_INVAL)
async def uv_page_inval(call: Call, machine: PefMachine) -> Outcome:
    """Unmap a shared page (svm_host.c ``svm_page_inval()``)."""
    return await _by_hypervisor(call, machine)


@HANDLERS.handles(uv.SVM_TERMINATE)
async def uv_svm_terminate(call: Call, machine: PefMachine) -> Outcome:
    """Forget a VM (svm_host.c ``svm_terminate()``)."""
    return await _by_hypervisor(call, machine)


@HANDLERS.handles(uv.READ_MEM)
async def uv_read_mem(call: Call, machine: PefMachine) -> Outcome:
    """Refuse: there is no such memory."""
    return await _by_hypervisor(call, machine)


@HANDLERS.handles(uv.WRITE_MEM)
async def uv_write_mem(call: Call, machine: PefMachine) -> Outcome:
    """Refuse: there is no such memory."""
    return await _by_hypervisor(call, machine)


@HANDLERS.handles(uv.SEND_SBE_COMMAND)
async def uv_send_sbe_command(call: Call, machine: PefMachine) -> Outcome:
    """Refuse: no chips."""
    return await _by_hypervisor(call, machine)
