# SPDX-License-Identifier: Apache-2.0
"""LAUNCH_START and RECEIVE_START: a guest comes to be.

What they share: the handle of a guest whose key is shared, the session that brings the transport
keys, and the room that the platform must have. KVM binds the guest to an ASID in the same command.
"""

from __future__ import annotations

from typing import Final

from hcalld.core.call import Call
from hcalld.core.effects import Entropy
from hcalld.core.outcome import Outcome
from hcalld.core.secret import Secret
from hcalld.crypto.sev.certificates import parse_owner_dh, public_point
from hcalld.crypto.sev.kdf import TransportKeys
from hcalld.crypto.sev.memory import VEK_SIZE, MemoryCipher
from hcalld.crypto.sev.session import unwrap_session
from hcalld.domain.sev.changes import GuestOpened
from hcalld.domain.sev.policy import check_api, check_sharing
from hcalld.domain.sev.refusals import check_size, refusing
from hcalld.domain.sev.states import guest_after, platform_after
from hcalld.domain.sev.view import PlatformView
from hcalld.domain.sev.vm import Guest, SevVm
from hcalld.families.sev.handlerset import change_platform, fields, read_platform
from hcallproto.abi.returns import SevCode
from hcallproto.payloads.sev import CERTIFICATE_SIZE, SESSION_SIZE, Session

_ENTROPY: Final = Entropy(VEK_SIZE + TransportKeys.SIZE)


async def start(call: Call, vm: SevVm, certificate: bytes, session: bytes) -> Outcome:
    """Begin a guest.

    Args:
        call: the command.
        vm: the VM that gets the guest.
        certificate: of whom the session is from; empty: nobody, and the guest's transport keys
            are known to nobody.
        session: made for this platform and policy.

    Raises:
        HcallError: it is refused.
    """
    entropy = await _ENTROPY
    view = await read_platform()
    shared, policy = call["handle"], call["policy"]
    vek = entropy[:VEK_SIZE]
    other = view.guest(shared) if shared else None
    platform_after(call.hcall, view.state)
    state = guest_after(call.hcall, vm.state)
    if other is not None:
        check_sharing(policy, other.policy, shared)
        vek = other.vek
    check_api(policy, view.version.api, "the platform")
    keys = _keys(view, policy, certificate, session) if certificate else None
    keys = keys or TransportKeys.parse(entropy[VEK_SIZE:])
    change = GuestOpened(view.next_handle, policy, view.free_asid(), vek)
    await change_platform(change)
    vm.open(
        Guest(
            handle=change.handle,
            policy=policy,
            state=state,
            version=view.version,
            memory=MemoryCipher(Secret(vek)) if view.encrypted else None,
            keys=keys,
        )
    )
    return Outcome(SevCode.SUCCESS, fields(call.hcall, handle=change.handle))


def _keys(view: PlatformView, policy: int, certificate: bytes, session: bytes) -> TransportKeys:
    """The transport keys of a session, once it is proven to be for this platform and policy."""
    certificate = check_size("certificate", certificate, CERTIFICATE_SIZE)
    session = check_size("session", session, SESSION_SIZE)
    with refusing():
        sender = public_point(parse_owner_dh(certificate))
        return unwrap_session(view.identity.pdh_key, sender, Session.parse(session), policy)
