# SPDX-License-Identifier: Apache-2.0
"""The key of a guest's blob, from the partition's TPM, by effects."""

from __future__ import annotations

from collections.abc import Iterable

from hcalld.core.effects import Entropy, TpmClose, TpmTransmit
from hcalld.core.errors import BackendUnavailable
from hcalld.core.records import Record
from hcalld.core.secret import Secret
from hcalld.crypto.wrapping_key import WrappingKey
from hcalld.domain.esm import key_record
from hcalld.domain.esm.blob import Blob
from hcalld.domain.esm.errors import KeyUnavailableError
from hcalld.domain.esm.unlock import unlock_with_tpm
from hcalld.domain.pef.verify import Key


def key_of(records: Iterable[Record]) -> Key:
    """What gives the key of a partition's blobs.

    Raises:
        StoreError: the record of its TPM's wrapping key is malformed.
    """
    wrapping = key_record.from_records(records)
    if wrapping is None:
        return _no_key

    async def key(blob: Blob) -> Secret:
        return await _from_tpm(blob, wrapping)

    return key


async def _no_key(blob: Blob) -> Secret:
    raise KeyUnavailableError("key unavailable: the partition's TPM has no wrapping key")


async def _from_tpm(blob: Blob, wrapping: WrappingKey) -> Secret:
    """The firmware's exchange, and then CLOSE, whatever came of it (``uv/tssuv.c``)."""
    try:
        unlocked = await unlock_with_tpm(blob, _transmit, wrapping, _entropy)
    except BackendUnavailable as error:
        raise KeyUnavailableError(f"key unavailable: {error}") from None
    except KeyUnavailableError:
        await _close()
        raise
    await _close()
    return unlocked.key


async def _close() -> None:
    try:
        await TpmClose()
    except BackendUnavailable:
        # The next command begins a new session; what is known is known.
        return


async def _transmit(command: bytes) -> bytes:
    return await TpmTransmit(command)


async def _entropy(size: int) -> bytes:
    return await Entropy(size)
