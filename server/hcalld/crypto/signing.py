# SPDX-License-Identifier: Apache-2.0
"""PKCS#7 signatures as signed updates need them: detached, SHA-256, without attributes.

The firmware's side of this is ``cms.py``. Signing is for those who author updates, on
the host: no private key is ever on the way of a guest's call.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import pkcs7

_OPTIONS = [
    pkcs7.PKCS7Options.Binary,
    pkcs7.PKCS7Options.DetachedSignature,
    pkcs7.PKCS7Options.NoAttributes,
]


def sign_detached(data: bytes, certificate: x509.Certificate, key: RSAPrivateKey) -> bytes:
    """A PKCS#7 over ``data``, as ``openssl cms -sign -binary -noattr`` makes it.

    Args:
        data: what is signed; not contained.
        certificate: the signer's, which is contained, for tools that want to show it.
        key: its private key.

    Raises:
        ValueError: key and certificate do not belong together.
    """
    public = key.public_key()
    if certificate.public_key() != public:
        raise ValueError("the private key is not the one of the certificate")
    builder = pkcs7.PKCS7SignatureBuilder().set_data(data)
    builder = builder.add_signer(certificate, key, hashes.SHA256())
    return builder.sign(serialization.Encoding.DER, _OPTIONS)
