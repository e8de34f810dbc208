# SPDX-License-Identifier: Apache-2.0
"""What is said of bytes that are not what they should be."""

from __future__ import annotations


class SevFormatError(ValueError):
    """A structure is malformed; the text names the field, its value and what was expected.

    Values are those of public fields only: lengths, versions, numbers of algorithms.
    """

    def __init__(self, what: str, field: str, value: object, expected: str) -> None:
        super().__init__(f"{what}: {field} is {value}, expected {expected}")
        self.what = what
        self.field = field
        self.value = value
        self.expected = expected


class CertificateError(SevFormatError):
    """A certificate is malformed, or is not the one that is needed there.

    Firmware status INVALID_CERTIFICATE.
    """
