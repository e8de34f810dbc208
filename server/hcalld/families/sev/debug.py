# SPDX-License-Identifier: Apache-2.0
"""DBG_DECRYPT and DBG_ENCRYPT: guest memory as the guest has it, if its policy allows.

The firmware wants whole blocks at whole addresses; KVM makes any address and length do, and so does
this (``sev_dbg_crypt()``, ``__sev_dbg_encrypt_user()``): of a block that is changed in part the
rest is decrypted, and encrypted again.
"""

from __future__ import annotations

from hcalld.core.call import Call
from hcalld.core.errors import HcallError
from hcalld.core.outcome import Outcome
from hcalld.domain.sev.policy import check_command
from hcalld.domain.sev.settings import MAX_DEBUG
from hcalld.domain.sev.vm import Guest, SevVm
from hcalld.families.sev.handlerset import DONE, handles
from hcalld.families.sev.memory import (
    Piece,
    blocks,
    decrypted,
    encrypted,
    read_all,
    reads,
    write_all,
)
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode


def _begin(call: Call, vm: SevVm) -> Guest:
    guest, _ = vm.begin(call.hcall)
    check_command(call.hcall, guest.policy)
    if call["len"] > MAX_DEBUG:
        raise HcallError(
            SevCode.EINVAL, f"{call['len']} bytes at once, expected at most {MAX_DEBUG}"
        )
    return guest


@handles(sev.DBG_DECRYPT)
async def kvm_sev_dbg_decrypt(call: Call, vm: SevVm) -> Outcome:
    """Copy guest memory to where anyone can read it."""
    guest = _begin(call, vm)
    source, target, size = call["src_uaddr"], call["dst_uaddr"], call["len"]
    start, whole = blocks(source, size)
    content = bytearray()
    for at, read in reads(start, whole):
        # Not all of it at the end: between two pieces others have their turn.
        content += decrypted(guest, at, await read)
    plain = memoryview(content)[source - start :]
    old = await read_all(target, size)
    new = [(at, bytes(plain[at - target : at - target + len(data)])) for at, data in old]
    await write_all(new, lambda number: old[number][1])
    return DONE


@handles(sev.DBG_ENCRYPT)
async def kvm_sev_dbg_encrypt(call: Call, vm: SevVm) -> Outcome:
    """Copy from anywhere into guest memory."""
    guest = _begin(call, vm)
    source, target, size = call["src_uaddr"], call["dst_uaddr"], call["len"]
    plain = b"".join([data for _, data in await read_all(source, size)])
    start, whole = blocks(target, size)
    old: list[Piece] = []
    content = bytearray()
    for at, read in reads(start, whole):
        data = await read
        old.append((at, data))
        content += decrypted(guest, at, data)
    content[target - start : target - start + size] = plain
    view = memoryview(content)
    new = [
        (at, encrypted(guest, at, bytes(view[at - start : at - start + len(data)])))
        for at, data in old
    ]
    await write_all(new, lambda number: old[number][1])
    return DONE
