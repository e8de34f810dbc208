# SPDX-License-Identifier: Apache-2.0
"""What is common to all of SEV's commands.

The order in which a command is judged (docs/sev.md): is the VM initialized (``admit``)? Can its
pointers be read, and what else does the kernel look at (``checks.py``)? Then the firmware: handle,
the platform's state, the guest's, its policy, lengths, alignment, contents. A command that is
refused has changed nothing and written nothing.

Sources: Linux 7.2 ``arch/x86/kvm/svm/sev.c`` and ``drivers/crypto/ccp/sev-dev.c``; AMD publication
55766.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final

from hcalld.core.call import Call
from hcalld.core.effects import ChangePlatform, Flush, GuestMemoryError, ReadPlatform
from hcalld.core.errors import HcallError, StoreError
from hcalld.core.handlers import Handler, HandlerSet
from hcalld.core.outcome import Outcome
from hcalld.domain.sev.changes import KEPT, Change, pack_change
from hcalld.domain.sev.view import PlatformView, unpack_view
from hcalld.domain.sev.vm import SevVm
from hcalld.families.sev.checks import kernel_checks
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.abi.spec import Hcall

_READ_PLATFORM: Final = ReadPlatform()
_FLUSH: Final = Flush()
DONE: Final = Outcome(SevCode.SUCCESS)

OF_VM: Final = frozenset(
    hcall.name
    for hcall in sev.FAMILY.calls
    if hcall.number >> sev.COMMAND_SHIFT != sev.Ioctl.SEV_ISSUE_CMD
)
"""Commands that the kernel takes for a VM; all others are the platform's."""


def admit(hcall: Hcall, msr: int, vm: SevVm) -> None:
    """What comes before the arguments."""
    if hcall.name in OF_VM:
        vm.check_kind(hcall)


HANDLERS: HandlerSet[SevVm] = HandlerSet(sev.FAMILY, admission=admit)


def handles(hcall: Hcall) -> Callable[[Handler[SevVm]], Handler[SevVm]]:
    """Decorator: bind a coroutine function to a command, behind the kernel's checks."""

    def bind(handler: Handler[SevVm]) -> Handler[SevVm]:
        check_kernel = kernel_checks(hcall)

        @functools.wraps(handler)
        async def guarded(call: Call, vm: SevVm) -> Outcome:
            vm.enter()
            try:
                check_kernel(call, vm)
                return await handler(call, vm)
            except GuestMemoryError as error:
                raise HcallError(SevCode.EFAULT, str(error)) from None
            except StoreError as error:
                raise HcallError(SevCode.HWERROR_PLATFORM, str(error)) from error
            finally:
                vm.is_busy = False

        return HANDLERS.handles(hcall)(guarded)

    return bind


async def read_platform() -> PlatformView:
    """The platform as it is; what is worked out from it holds until the next effect."""
    return unpack_view(await _READ_PLATFORM)


async def change_platform(change: Change) -> None:
    """Change the platform; nothing may refuse the command any more.

    Keys and owners are on stable storage afterwards, as in a processor's own: no command asks for
    that later, and a reset that a power cut undoes would bring the last owner back.
    """
    is_kept = isinstance(change, KEPT)
    await ChangePlatform(pack_change(change), is_kept)
    if is_kept:
        await _FLUSH


_REGISTERS: Final = {
    hcall.name: {output.name: output.register for output in hcall.outputs}
    for hcall in sev.FAMILY.calls
}


def fields(hcall: Hcall, **values: int) -> tuple[tuple[int, int], ...]:
    """Registers that stand for fields of the command's structure, to be written back."""
    registers = _REGISTERS[hcall.name]
    return tuple(sorted([(registers[name], value) for name, value in values.items()]))
