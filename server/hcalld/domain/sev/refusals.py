# SPDX-License-Identifier: Apache-2.0
"""Which status of the firmware says what is wrong with a certificate, a session or a packet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from hcalld.core.errors import HcallError
from hcalld.crypto.sev.errors import MacError, SignatureError
from hcallproto.abi.returns import SevCode
from hcallproto.payloads.sev import CertificateError


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Make the firmware's refusals of what ``hcalld.crypto.sev`` finds.

    Raises:
        HcallError: BAD_SIGNATURE, INVALID_CERTIFICATE, BAD_MEASUREMENT.
    """
    try:
        yield
    except SignatureError as error:
        raise HcallError(SevCode.BAD_SIGNATURE, str(error)) from None
    except CertificateError as error:
        raise HcallError(SevCode.INVALID_CERTIFICATE, str(error)) from None
    except MacError as error:
        raise HcallError(SevCode.BAD_MEASUREMENT, str(error)) from None


def check_size(name: str, data: bytes, least: int) -> bytes:
    """A structure of ``least`` bytes; more may follow, and is not looked at.

    Raises:
        HcallError: INVALID_LEN.
    """
    if len(data) < least:
        raise HcallError(
            SevCode.INVALID_LEN, f"{name} has {len(data)} bytes, expected at least {least}"
        )
    return data[:least]
