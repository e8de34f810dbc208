# SPDX-License-Identifier: Apache-2.0
"""Sessions: transport keys, wrapped for the platform that has a certain PDH.

Source: 55766 section 2.2 and commands LAUNCH_START, SEND_START, RECEIVE_START.
"""

from __future__ import annotations

from hcalld.core.secret import Secret
from hcalld.crypto.sev.errors import MacError
from hcalld.crypto.sev.kdf import TransportKeys, WrappingKeys, aes_ctr, mac, master_secret, same
from hcalld.crypto.sev.keys import EcPrivateKey
from hcallproto.payloads.sev import EcPublicKey, Session


def wrap_session(
    private: EcPrivateKey,
    peer: EcPublicKey,
    keys: TransportKeys,
    policy: int,
    *,
    nonce: bytes,
    iv: bytes,
) -> Session:
    """Wrap transport keys.

    Args:
        private: the sender's: the guest owner's, or the source's PDH.
        peer: the receiver's PDH.
        keys: what is wrapped.
        policy: the guest's.
        nonce: 16 random bytes.
        iv: 16 more.

    Raises:
        CertificateError: the peer's key is not a point on P-384.
    """
    return wrap_with(_agreed(private, peer, nonce), keys, policy, nonce=nonce, iv=iv)


def wrap_with(
    wrapping: WrappingKeys, keys: TransportKeys, policy: int, *, nonce: bytes, iv: bytes
) -> Session:
    """Wrap transport keys with keys that were agreed on."""
    wrapped = aes_ctr(wrapping.kek, iv, keys.build())
    return Session(
        nonce=nonce,
        wrap_tk=wrapped,
        wrap_iv=iv,
        wrap_mac=mac(wrapping.kik, wrapped),
        policy_mac=policy_mac(keys.tik, policy),
    )


def unwrap_session(
    private: EcPrivateKey, peer: EcPublicKey, session: Session, policy: int
) -> TransportKeys:
    """Unwrap transport keys, once both MACs fit.

    Args:
        private: the receiver's PDH.
        peer: the sender's key.
        session: what the sender made.
        policy: the one that the command names, not one that the sender sent.

    Raises:
        MacError: altered, or for another platform, PDH or policy.
        CertificateError: the peer's key is not a point on P-384.
    """
    wrapping = _agreed(private, peer, session.nonce)
    if not same(mac(wrapping.kik, session.wrap_tk), session.wrap_mac):
        raise MacError(
            "wrap_mac does not fit: the session was altered, or made for another PDH or with "
            "another key than the certificate's"
        )
    keys = TransportKeys.parse(aes_ctr(wrapping.kek, session.wrap_iv, session.wrap_tk))
    if not same(policy_mac(keys.tik, policy), session.policy_mac):
        raise MacError(
            f"policy_mac does not fit: the session was not made for policy {policy:#x}, or was "
            "altered"
        )
    return keys


def policy_mac(tik: Secret, policy: int) -> bytes:
    """What ties transport keys to a policy."""
    return mac(tik, policy.to_bytes(4, "little"))


def _agreed(private: EcPrivateKey, peer: EcPublicKey, nonce: bytes) -> WrappingKeys:
    return WrappingKeys.of(master_secret(private.exchange(peer), nonce))
