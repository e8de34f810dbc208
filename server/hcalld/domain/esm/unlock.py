# SPDX-License-Identifier: Apache-2.0
"""Open a blob: find the lockbox that the TPM's key, or a private key, opens.

The firmware tries ``lockbox-1`` and looks at no fingerprint (``svm/svm-esmb.c``), so there a
blob for two machines works on the first. Here those lockboxes are tried first whose
fingerprint is the key's, then all others that could be its: a fingerprint depends on how
the PEM file was written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Final

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

from hcalld.core.secret import Secret
from hcalld.crypto import wrapping_key
from hcalld.crypto.lockbox import LockboxError, check_key, fingerprints, open_key
from hcalld.crypto.tpm_session import Entropy, Transmit
from hcalld.crypto.wrapping_key import WrappingKey
from hcalld.domain.esm.blob import Blob, Lockbox
from hcalld.domain.esm.errors import KeyUnavailableError
from hcallproto.payloads.tpm import TpmError, TpmRefusedError

MAX_REASONS: Final = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Unlocked:
    """The key of a blob."""

    key: Secret
    lockbox: Lockbox
    """The one that opened."""


def candidates(blob: Blob, public: RSAPublicKey) -> list[Lockbox]:
    """The lockboxes that a key may open, in the order in which to try them."""
    size = (public.key_size + 7) // 8
    names = fingerprints(public)
    possible = [box for box in blob.lockboxes if len(box.sealed_key) == size]
    # Stable, so numbers decide among equals; the owner's comes last.
    return sorted(possible, key=lambda box: (box.fingerprint not in names, box.number == 0))


async def unlock_with_tpm(
    blob: Blob, transmit: Transmit, key: WrappingKey, entropy: Entropy
) -> Unlocked:
    """Open a blob with a TPM's wrapping key.

    Raises:
        KeyUnavailableError: the TPM is another, refuses, or opens no lockbox.
    """

    async def attempt(sealed: bytes) -> Secret:
        return check_key(await wrapping_key.decrypt(transmit, key, sealed, entropy))

    try:
        public = await wrapping_key.read_public(transmit, key)
        return await _try_all(blob, public, attempt)
    except TpmError as error:
        raise KeyUnavailableError(f"key unavailable: {error}") from None


def unlock_with_key(blob: Blob, private: RSAPrivateKey) -> Unlocked:
    """Open a blob with a private key in software, such as its owner's.

    Raises:
        KeyUnavailableError: it opens no lockbox.
    """
    from hcalld.crypto.tpm_session import run

    async def attempt(sealed: bytes) -> Secret:
        return open_key(private, sealed)

    return run(_try_all(blob, private.public_key(), attempt))


async def _try_all(
    blob: Blob, public: RSAPublicKey, attempt: Callable[[bytes], Awaitable[Secret]]
) -> Unlocked:
    boxes = candidates(blob, public)
    reasons: list[str] = []
    for box in boxes:
        try:
            return Unlocked(await attempt(box.sealed_key), box)
        except LockboxError as error:
            reasons.append(f"{box.name}: {error}")
        except TpmRefusedError as error:
            # The password is the same for all lockboxes.
            if error.is_about_session:
                raise
            reasons.append(f"{box.name}: {error}")
    shown = "; ".join(reasons[:MAX_REASONS]) + "; ..." * (len(reasons) > MAX_REASONS)
    raise KeyUnavailableError(
        f"key unavailable: none of {len(blob.lockboxes)} lockboxes is for this key"
        + (f" ({shown})" if shown else "")
    )
