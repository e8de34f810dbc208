# SPDX-License-Identifier: Apache-2.0
"""Why a guest does not become secure, or a blob cannot be made or read.

Tree::

    EsmError                     the text says what is wrong, and where
     ├─ BlobError                the blob is malformed
     ├─ NoBlobError              the guest has none
     ├─ KeyUnavailableError      nothing opens the blob
     └─ MismatchError            the guest is not what the blob says it must be
"""

from __future__ import annotations


class EsmError(Exception):
    """Base; the text holds no secret."""


class BlobError(EsmError):
    """The blob is malformed, or lacks something."""


class NoBlobError(EsmError):
    """There is no blob where the guest should have one."""


class KeyUnavailableError(EsmError):
    """No lockbox of the blob opens."""


class MismatchError(EsmError):
    """What was measured is not what the blob says.

    ``failed`` has what, in the order in which it is measured, and why.
    """

    def __init__(self, failed: dict[str, str]) -> None:
        super().__init__("; ".join(f"{what}: {why}" for what, why in failed.items()))
        self.failed = failed
