# SPDX-License-Identifier: Apache-2.0
"""What tests of SEV have in common: keys by name, test roots, a platform's certificates."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Final

from hcalld.crypto.sev.certificates import make_oca, make_pdh, make_pek
from hcalld.crypto.sev.chains import Chain, links
from hcalld.crypto.sev.kdf import TransportKeys
from hcalld.crypto.sev.keys import KEY_ENTROPY_SIZE, EcPrivateKey
from hcalld.crypto.sev.roots import Root
from hcalld.testing.sev import made_up
from hcallproto.payloads.sev import Version

VECTORS: Final = Path(__file__).parent / "vectors" / "sev"
VERSION: Final = Version(1, 55, 21)
API: Final = VERSION.api


@functools.cache
def key(name: str) -> EcPrivateKey:
    """The P-384 key of a name."""
    return EcPrivateKey.from_entropy(made_up(name, KEY_ENTROPY_SIZE))


@functools.cache
def root(bits: int = 2048) -> Root:
    """A root in a file, for making one of 4096 bits takes seconds."""
    return Root.from_pem((VECTORS / f"root-{bits}.pem").read_bytes())


@functools.cache
def chain(bits: int = 2048) -> Chain:
    """A platform's certificates, with keys ``pdh``, ``pek``, ``oca``, ``cek``."""
    made = root(bits)
    return Chain(
        pdh=make_pdh(key("pdh"), key("pek"), API),
        pek=make_pek(key("pek"), key("oca"), key("cek"), API),
        oca=make_oca(key("oca"), API),
        cek=made.make_cek(key("cek").public, API),
        ask=made.ask,
        ark=made.ark,
    )


KEYS: Final = TransportKeys.parse(made_up("transport keys", TransportKeys.SIZE))


def flipped(data: bytes, offset: int, mask: int = 1) -> bytes:
    """The same with one byte altered."""
    return data[:offset] + bytes((data[offset] ^ mask,)) + data[offset + 1 :]


def verify_chain(chain: Chain) -> None:
    """See that every link holds. Whether the ARK is to be trusted is for the caller to see.

    Raises:
        SignatureError: the first link, from the root down, whose signature is wrong.
        CertificateError: a certificate that is not what its place says.
    """
    for link in links(chain):
        if link.error:
            raise link.error
