# SPDX-License-Identifier: Apache-2.0
"""Private keys: PKCS#7 signatures as signed updates need them, and certificates for tests.

The firmware's side of this is ``cms.py`` and ``certificates.py``. All here is for those
who author updates, on the host: no private key is ever on the way of a guest's call.
"""

from __future__ import annotations

import dataclasses
import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import NameOID

from hcalld.crypto.certificates import KEY_SIZES

_OPTIONS = [
    pkcs7.PKCS7Options.Binary,
    pkcs7.PKCS7Options.DetachedSignature,
    pkcs7.PKCS7Options.NoAttributes,
]

_PUBLIC_EXPONENT = 65537


class PrivateKeyError(ValueError):
    """Not a private key that can sign updates; the text says why."""


class PassphraseNeededError(PrivateKeyError):
    """The private key is encrypted."""


def sign_detached(data: bytes, certificate: x509.Certificate, key: RSAPrivateKey) -> bytes:
    """A PKCS#7 over ``data``, as ``openssl cms -sign -binary -noattr`` makes it.

    Args:
        data: what is signed; not contained.
        certificate: the signer's, which is contained, for tools that want to show it.
        key: its private key.

    Raises:
        PrivateKeyError: key and certificate do not belong together.
    """
    if certificate.public_key() != key.public_key():
        raise PrivateKeyError("the private key is not the one of the certificate")
    builder = pkcs7.PKCS7SignatureBuilder().set_data(data)
    builder = builder.add_signer(certificate, key, hashes.SHA256())
    return builder.sign(serialization.Encoding.DER, _OPTIONS)


def load_private_key(data: bytes, passphrase: bytes | None = None) -> RSAPrivateKey:
    """Load a private key in PEM.

    Raises:
        PassphraseNeededError: it is encrypted, and no passphrase was given.
        PrivateKeyError: no such key, a wrong passphrase, or not RSA.
    """
    try:
        key = serialization.load_pem_private_key(data, passphrase)
    except TypeError as error:
        if passphrase is None:
            raise PassphraseNeededError("the private key is encrypted") from None
        raise PrivateKeyError(f"the private key: {error}") from None
    except (ValueError, UnsupportedAlgorithm):
        why = "no private key in PEM" + ", or a wrong passphrase" * (passphrase is not None)
        raise PrivateKeyError(why) from None
    if not isinstance(key, RSAPrivateKey):
        raise PrivateKeyError("the private key is not an RSA key")
    if key.key_size not in KEY_SIZES:
        raise PrivateKeyError(
            f"the private key has {key.key_size} bits, expected 2048, 3072 or 4096"
        )
    return key


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Identity:
    """A private key and its certificate."""

    key: RSAPrivateKey
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        """The certificate in DER."""
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def certificate_pem(self) -> bytes:
        """The certificate in PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The private key in PEM, not encrypted."""
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


def make_identity(
    name: str,
    bits: int,
    *,
    is_ca: bool,
    not_before: datetime.datetime,
    not_after: datetime.datetime,
    issuer: Identity | None = None,
) -> Identity:
    """Make a key, and a certificate by ``issuer`` or signed with the key itself.

    Extensions are those that Linux looks at: it takes CAs into .machine, and module
    signers only if vouched for by the issuer's key identifier.
    """
    key = rsa.generate_private_key(_PUBLIC_EXPONENT, bits)
    public = key.public_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer_key = key if issuer is None else issuer.key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(_key_usage(is_ca=is_ca), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    return Identity(key, builder.sign(issuer_key, hashes.SHA256()))


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )
