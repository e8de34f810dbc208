# SPDX-License-Identifier: Apache-2.0
"""SEV_*: what is done with ``/dev/sev``, and CERT_EXPORT, which does the same for a VM.

A platform that is UNINIT is initialized by the driver for most commands and shut down again
afterwards; the table of states says so, and there is nothing to do about it here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from hcalld.core.call import Call
from hcalld.core.effects import Entropy, ReadBuffer
from hcalld.core.outcome import Outcome
from hcalld.domain.sev.changes import FactoryReset, IdentityChanged
from hcalld.domain.sev.identity import OWN_ENTROPY, PDH_ENTROPY, Identity, pack_identity
from hcalld.domain.sev.states import platform_after
from hcalld.domain.sev.view import PlatformView
from hcalld.domain.sev.vm import SevVm
from hcalld.families.sev.checks import check_lengths
from hcalld.families.sev.handlerset import DONE, change_platform, fields, handles, read_platform
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.payloads.sev import PlatformFlag, PlatformState

_READ_PEK: Final = ReadBuffer("pek_cert_address")
_READ_OCA: Final = ReadBuffer("oca_cert_address")
_OWN_ENTROPY: Final = Entropy(OWN_ENTROPY)
_PDH_ENTROPY: Final = Entropy(PDH_ENTROPY)


@handles(sev.PLATFORM_STATUS)
async def sev_platform_status(call: Call, vm: SevVm) -> Outcome:
    """Version, state, flags and guests. Before INIT there is no owner; ES is what INIT will ask."""
    view = await read_platform()
    flags = int(PlatformFlag.CONFIG_ES) if view.es else 0
    if view.state is not PlatformState.UNINIT and view.identity.is_owned:
        flags |= int(PlatformFlag.OWNER)
    return Outcome(
        SevCode.SUCCESS,
        fields(
            call.hcall,
            api_major=view.version.api_major,
            api_minor=view.version.api_minor,
            state=view.state,
            flags=flags,
            build=view.version.build,
            guest_count=len(view.guests),
        ),
    )


# -- keys -------------------------------------------------------------------------------


async def _change(call: Call, make: Callable[[PlatformView], Identity]) -> Outcome:
    """Give the platform other keys, if it is in a state for that."""
    view = await read_platform()
    platform_after(call.hcall, view.state)
    await change_platform(IdentityChanged(pack_identity(make(view))))
    return DONE


@handles(sev.FACTORY_RESET)
async def sev_factory_reset(call: Call, vm: SevVm) -> Outcome:
    """New keys, no owner, and UNINIT (``sev_ioctl_do_reset()``); not while there are guests."""
    entropy = await _OWN_ENTROPY
    view = await read_platform()
    platform_after(call.hcall, view.state)
    identity = view.identity.reset(entropy, view.version.api)
    await change_platform(FactoryReset(pack_identity(identity)))
    return DONE


@handles(sev.PEK_GEN)
async def sev_pek_gen(call: Call, vm: SevVm) -> Outcome:
    """A new PEK, and what hangs on it."""
    entropy = await _OWN_ENTROPY
    return await _change(call, lambda view: view.identity.with_new_pek(entropy, view.version.api))


@handles(sev.PDH_GEN)
async def sev_pdh_gen(call: Call, vm: SevVm) -> Outcome:
    """A new PDH: sessions that were made for the old one are worth nothing."""
    entropy = await _PDH_ENTROPY
    return await _change(call, lambda view: view.identity.with_new_pdh(entropy, view.version.api))


@handles(sev.PEK_CERT_IMPORT)
async def sev_pek_cert_import(call: Call, vm: SevVm) -> Outcome:
    """Take an owner: its OCA, and the PEK as it has signed it."""
    pek, oca = await _READ_PEK, await _READ_OCA
    entropy = await _PDH_ENTROPY
    return await _change(
        call, lambda view: view.identity.with_owner(pek, oca, entropy, view.version.api)
    )


# -- what is given out ------------------------------------------------------------------


@handles(sev.PEK_CSR)
async def sev_pek_csr(call: Call, vm: SevVm) -> Outcome:
    """The PEK's certificate, for an owner to sign."""
    view = await read_platform()
    platform_after(call.hcall, view.state)
    check_lengths(call, told_when_short=True)
    csr = view.identity.csr
    return Outcome(SevCode.SUCCESS, fields(call.hcall, length=len(csr)), ((call["address"], csr),))


async def _export(call: Call) -> Outcome:
    """PDH and chain, by the two addresses and lengths that both commands have in this order."""
    view = await read_platform()
    platform_after(call.hcall, view.state)
    check_lengths(call, told_when_short=True)
    pdh, chain = view.identity.pdh, view.identity.chain
    pdh_address, pdh_size, chain_address, chain_size = (arg.name for arg in call.hcall.args)
    return Outcome(
        SevCode.SUCCESS,
        fields(call.hcall, **{pdh_size: len(pdh), chain_size: len(chain)}),
        ((call[pdh_address], pdh), (call[chain_address], chain)),
    )


@handles(sev.PDH_CERT_EXPORT)
async def sev_pdh_cert_export(call: Call, vm: SevVm) -> Outcome:
    """The certificates that a guest's owner needs."""
    return await _export(call)


@handles(sev.CERT_EXPORT)
async def kvm_sev_cert_export(call: Call, vm: SevVm) -> Outcome:
    """The same, for a VM: KVM has the number and never had the command."""
    return await _export(call)


@handles(sev.GET_ID)
async def sev_get_id(call: Call, vm: SevVm) -> Outcome:
    """The ids of two sockets, of which the second is empty."""
    if not call["data"]:
        raise call.refuse("data", "data is 0, expected a pointer")
    view = await read_platform()
    data = view.identity.chip_id.ljust(sev.ID_SIZE, b"\0")
    return Outcome(SevCode.SUCCESS, (), ((call["data"], data),))


@handles(sev.GET_ID2)
async def sev_get_id2(call: Call, vm: SevVm) -> Outcome:
    """The id of the one socket that there is."""
    check_lengths(call, told_when_short=True)
    view = await read_platform()
    return Outcome(
        SevCode.SUCCESS,
        fields(call.hcall, length=sev.CHIP_ID_SIZE),
        ((call["address"], view.identity.chip_id),),
    )
