# SPDX-License-Identifier: Apache-2.0
"""Whether a guest's policy lets it go to a platform (SEND_START).

Source: AMD publication 55766 chapter 3 and command SEND_START. What the policy does not ask for is
not looked at, though the kernel demands that it is there.
"""

from __future__ import annotations

from hcalld.core.errors import HcallError
from hcalld.crypto.sev.certificates import check_role
from hcalld.crypto.sev.chains import Chain, links, verify
from hcalld.crypto.sev.errors import SignatureError
from hcalld.domain.sev.identity import Identity
from hcalld.domain.sev.policy import check_api
from hcallproto.abi.returns import SevCode
from hcallproto.payloads.sev import (
    ANY_API,
    Policy,
    SevCertificate,
    Usage,
    parse_amd_pair,
    parse_chain,
)


def check_target(
    policy: int, identity: Identity, pdh_data: bytes, chain: bytes, roots: bytes
) -> SevCertificate:
    """See that a guest may be sent to a platform.

    Args:
        policy: the guest's.
        identity: the platform that it is on.
        pdh_data: the target's PDH certificate.
        chain: its PEK, OCA and CEK.
        roots: ASK and ARK.

    Returns:
        The target's PDH.

    Raises:
        HcallError: POLICY_FAILURE.
        SignatureError: a link that the policy demands does not hold.
        CertificateError: a certificate is none, or not one for its place.
    """
    flags = Policy(policy)
    pdh = SevCertificate.parse(pdh_data, "PDH certificate")
    check_role(pdh, Usage.PDH)
    is_bound = bool(flags & (Policy.DOMAIN | Policy.SEV))
    if not is_bound and flags.api == ANY_API:
        return pdh
    pek, oca, cek = parse_chain(chain)
    check_role(pek, Usage.PEK)
    check_api(policy, pek.api, "the target")
    if flags & Policy.DOMAIN:
        _check_owner(pek, identity)
    if flags & Policy.SEV:
        _check_root(Chain(pdh, pek, oca, cek, *parse_amd_pair(roots)), identity)
    elif is_bound:
        verify(pdh, pek)
    return pdh


def _check_owner(pek: SevCertificate, identity: Identity) -> None:
    """DOMAIN: both platforms have the same owner."""
    try:
        verify(pek, identity.oca_certificate)
    except SignatureError as error:
        raise HcallError(
            SevCode.POLICY_FAILURE,
            f"the policy has DOMAIN, and the target is not of this platform's owner: {error}",
        ) from None


def _check_root(chain: Chain, identity: Identity) -> None:
    """SEV: the target is a genuine platform. Who owns it does not matter."""
    if chain.ark.build() != identity.ark:
        raise HcallError(
            SevCode.POLICY_FAILURE,
            f"the policy has SEV, and the target's ARK {chain.ark.key_id.hex()} is not the one "
            f"that this platform trusts, {identity.ark_certificate.key_id.hex()}",
        )
    for link in links(chain):
        if link.error is not None and Usage.OCA not in (link.child, link.parent):
            raise link.error
