# SPDX-License-Identifier: Apache-2.0
"""H_SVM_* and a secure VM's H_RANDOM, over ``hcalld.domain.pef``.

Our ultravisor asks our hypervisor without a call of the guest. What arrives here was
issued by a guest: in a normal VM it is refused, and from a secure VM it looks to KVM as
if the ultravisor had made it, for a secure VM's hypercalls come with MSR[S] set.

Source: Linux 7.2 ``arch/powerpc/kvm/book3s_hv.c`` (kvmppc_pseries_do_hcall),
``book3s_hv_uvmem.c``.
"""

from __future__ import annotations

from hcalld.core.call import Call
from hcalld.core.effects import Entropy
from hcalld.core.errors import HcallError
from hcalld.core.handlers import HandlerSet
from hcalld.core.outcome import Outcome
from hcalld.domain.hypervisor.states import VmPhase
from hcalld.domain.pef.machine import PefMachine
from hcallproto.abi.families import svm
from hcallproto.abi.registers import MSR_S
from hcallproto.abi.returns import H
from hcallproto.abi.spec import Hcall

_NEEDS_SECURE = (svm.PAGE_IN, svm.PAGE_OUT, svm.INIT_START, svm.INIT_DONE)
_NEEDS_START = (svm.PAGE_IN, svm.PAGE_OUT, svm.INIT_DONE, svm.INIT_ABORT)

RANDOM_SIZE = 8


def admit(hcall: Hcall, msr: int, machine: PefMachine) -> None:
    """KVM's tests before the arguments: MSR[S], and that INIT_START was."""
    if hcall in _NEEDS_SECURE and not msr & MSR_S:
        raise HcallError(H.UNSUPPORTED, "MSR[S] is 0: this is the ultravisor's call")
    if hcall in _NEEDS_START and machine.hypervisor.phase is VmPhase.NORMAL:
        raise HcallError(H.UNSUPPORTED, "there was no H_SVM_INIT_START")


HANDLERS: HandlerSet[PefMachine] = HandlerSet(svm.FAMILY, admission=admit)


@HANDLERS.handles(
    svm.PAGE_IN,  # kvmppc_h_svm_page_in()
    svm.PAGE_OUT,  # kvmppc_h_svm_page_out()
    svm.INIT_START,  # kvmppc_h_svm_init_start()
    svm.INIT_DONE,  # kvmppc_h_svm_init_done()
    svm.INIT_ABORT,  # kvmppc_h_svm_init_abort()
)
async def by_guest(call: Call, machine: PefMachine) -> Outcome:
    """Have the hypervisor's half carry the call out."""
    return await machine.by_guest(call.hcall.number, list(call.args.values()))


@HANDLERS.handles(svm.RANDOM)
async def h_random(call: Call, machine: PefMachine) -> Outcome:
    """A random number, which a secure VM's hypervisor must not choose."""
    if not machine.is_secure or not call.msr & MSR_S:
        raise HcallError(H.FUNCTION, "the VM is not secure, and has no random number device")
    random = await Entropy(RANDOM_SIZE)
    return Outcome(H.SUCCESS, ((4, int.from_bytes(random, "big")),))
