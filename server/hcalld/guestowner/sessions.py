# SPDX-License-Identifier: Apache-2.0
"""Sessions: what a guest's owner gives a platform, so that it can prove the launch to him."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from hcalld.core.secret import Secret
from hcalld.crypto.sev.certificates import check_role, make_owner_dh, public_point
from hcalld.crypto.sev.kdf import KEY_SIZE, TransportKeys
from hcalld.crypto.sev.keys import KEY_ENTROPY_SIZE, EcPrivateKey
from hcalld.crypto.sev.session import wrap_session
from hcallproto.payloads.sev.blobs import NONCE_SIZE, Session
from hcallproto.payloads.sev.certificates import SevCertificate
from hcallproto.payloads.sev.constants import Usage


class NewSession(NamedTuple):
    """A session for one platform and one policy."""

    certificate: SevCertificate
    """The owner's Diffie-Hellman certificate: QEMU's dh-cert-file."""
    session: Session
    """QEMU's session-file."""
    keys: TransportKeys
    """Stay with the owner."""


def make_session(pdh: SevCertificate, policy: int, entropy: Callable[[int], bytes]) -> NewSession:
    """Make a session; the owner's key is used once, and not kept.

    Args:
        pdh: of the platform, which has been verified.
        policy: the guest's.
        entropy: where keys come from.

    Raises:
        CertificateError: the PDH cannot be used.
    """
    check_role(pdh, Usage.PDH)
    private = EcPrivateKey.from_entropy(entropy(KEY_ENTROPY_SIZE))
    keys = TransportKeys(Secret(entropy(KEY_SIZE)), Secret(entropy(KEY_SIZE)))
    session = wrap_session(
        private,
        public_point(pdh),
        keys,
        policy,
        nonce=entropy(NONCE_SIZE),
        iv=entropy(NONCE_SIZE),
    )
    return NewSession(make_owner_dh(private), session, keys)
