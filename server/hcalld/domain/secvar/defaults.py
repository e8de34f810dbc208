# SPDX-License-Identifier: Apache-2.0
"""A set of keys, lists and signed updates for tests: who signs what, and in which order.

The keys are made anew each time, by the caller; nothing here is anybody's known key.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Final

from hcalld.crypto.signing import Identity
from hcalld.domain.secvar.authoring import (
    Draft,
    certificates_lists,
    digests_list,
    sbat_list,
    wipe,
)
from hcallproto.payloads.efi import CERT_SHA256, EfiTime

REVOKED: Final = b"hcalld: a file that is revoked\n"
"""What the default dbx and grubdbx revoke by its hash, so that they can be seen to work."""
SBAT_LEVELS: Final = b"sbat,1\ngrub,1\n"


@dataclasses.dataclass(frozen=True, slots=True)
class Identities:
    """Whose keys a set has."""

    pk: Identity
    kek: Identity
    ca: Identity
    db: Identity
    """By ``ca``: what it signs is trusted where db, grubdb or moduledb are asked."""


def default_lists(identities: Identities) -> dict[str, bytes]:
    """What each variable holds in the set, in the order in which they are to be updated."""
    db = certificates_lists([identities.db.der])
    revoked = digests_list(CERT_SHA256, [hashlib.sha256(REVOKED).digest()])
    return {
        "PK": certificates_lists([identities.pk.der]),
        "KEK": certificates_lists([identities.kek.der]),
        "db": db,
        "dbx": revoked,
        "grubdb": db,
        "grubdbx": revoked,
        "sbat": sbat_list(SBAT_LEVELS),
        "trustedcadb": certificates_lists([identities.ca.der]),
        "moduledb": db,
    }


def default_updates(identities: Identities, time: EfiTime, later: EfiTime) -> dict[str, bytes]:
    """The files of signed updates: each variable's, its reset, and the wipe.

    Args:
        identities: the signers.
        time: of the updates.
        later: of the resets; updates made later than this are taken after them.
    """
    files: dict[str, bytes] = {}
    for name, data in default_lists(identities).items():
        signer = identities.pk if name in ("PK", "KEK") else identities.kek
        update = Draft(name, data, time).sign(signer.certificate, signer.key)
        files[f"{name}.update"] = update.build()
        if name != "PK":
            # By PK, so that the variable is gone and the first update can be used again.
            reset = Draft(name, b"", later).sign(identities.pk.certificate, identities.pk.key)
            files[f"{name}.reset"] = reset.build()
    everything = wipe(later).sign(identities.pk.certificate, identities.pk.key)
    files["PK.wipe"] = everything.build()
    return files
