# SPDX-License-Identifier: Apache-2.0
"""Keys, certificates and signed updates for tests of secure variables."""

from __future__ import annotations

import datetime
import functools

from hcalld.crypto import signing
from hcalld.domain.secvar.authoring import Draft, certificates_lists, stored_object
from hcalld.domain.secvar.variables import encode_name
from hcallproto.payloads.efi import EfiTime

TIME = EfiTime(2026, 1, 2, 3, 4, 5)
"""When ``Identity.stored`` is from."""
LATER = EfiTime(2026, 1, 2, 3, 4, 6)

_NOT_BEFORE = datetime.datetime(2023, 4, 7)
_NOT_AFTER = datetime.datetime(2023, 5, 7)
"""Over, as the published certificates are: nobody looks."""


class Identity(signing.Identity):
    """A private key and its certificate, and what tests make with them."""

    __slots__ = ()

    @property
    def lists(self) -> bytes:
        """The certificate as a signature list."""
        return certificates_lists([self.der])

    @property
    def stored(self) -> bytes:
        """An object that holds the certificate since ``TIME``."""
        return stored_object(self.lists, TIME)

    def update(
        self, name: str, data: bytes, time: EfiTime = LATER, *, is_append: bool = False
    ) -> bytes:
        """The message (what r9 points at) of an update signed by this identity."""
        return Draft(name, data, time, is_append).sign(self.certificate, self.key).message


@functools.lru_cache(maxsize=32)
def identity(name: str, bits: int = 2048, *, is_ca: bool = True) -> Identity:
    """An identity by name: always the same one within a process.

    Args:
        name: the certificate's common name.
        bits: of the RSA key; making one of 2048 takes a tenth of a second.
        is_ca: whether the certificate says that it is a CA's.
    """
    made = signing.make_identity(
        name, bits, is_ca=is_ca, not_before=_NOT_BEFORE, not_after=_NOT_AFTER
    )
    return Identity(made.key, made.certificate)


class Variables(dict[bytes, bytes]):
    """Stored objects by label name; ``variables.get`` is what ``evaluate`` looks up with."""

    def put(self, name: str, stored: bytes) -> None:
        """Store an object under a variable's name."""
        self[encode_name(name)] = stored
