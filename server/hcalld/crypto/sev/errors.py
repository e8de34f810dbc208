# SPDX-License-Identifier: Apache-2.0
"""What a check of SEV's cryptography finds; no text holds a secret, a nonce or a MAC."""

from __future__ import annotations

from hcallproto.payloads.sev import CertificateError


class SignatureError(CertificateError):
    """A certificate is well-formed, but the signature that it needs is missing or wrong.

    Firmware status BAD_SIGNATURE.
    """


class MacError(ValueError):
    """A MAC does not fit: something was altered, or is for others. The text says which MAC.

    Firmware status BAD_MEASUREMENT.
    """


class KeyFormatError(ValueError):
    """Not a private key, or not a root."""
