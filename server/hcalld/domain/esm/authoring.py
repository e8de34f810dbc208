# SPDX-License-Identifier: Apache-2.0
"""Make blobs, and let more machines open them; on the host, never on a guest's call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from hcalld.core.secret import Secret
from hcalld.crypto.lockbox import (
    IV_SIZE,
    KEY_SIZE,
    LockboxError,
    encrypt,
    fingerprint,
    load_public_key,
    seal_key,
)
from hcalld.domain.esm.blob import (
    FILE_NAME,
    MAX_COMMENT,
    MAX_FILE_SIZE,
    MAX_FILES,
    MAX_LOCKBOXES,
    MAX_SIZE,
    ORIGIN,
    Blob,
    Lockbox,
    Sealed,
)
from hcalld.domain.esm.digests import Digests
from hcalld.domain.esm.errors import EsmError
from hcallproto.payloads import cpio

ARCHIVE_PATH: Final = "opt/ibm/pef/esm_blob"

Random = Callable[[int], bytes]


@dataclasses.dataclass(frozen=True, slots=True)
class Recipient:
    """Who may open a blob."""

    pem: bytes
    """The PEM file of a public key, to the letter: its digest is the recipient's name."""
    comment: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Attachment:
    """A file for the guest, encrypted."""

    data: bytes = dataclasses.field(repr=False)
    comment: str = ""


def make(
    digests: Digests,
    owner: Recipient,
    recipients: Sequence[Recipient],
    files: Mapping[str, Attachment],
    random: Random,
    comment: str = "",
) -> Blob:
    """A new blob with a new key.

    Args:
        digests: what the guest must be.
        owner: who may authorize others later.
        recipients: the machines that may run it.
        files: what the guest may read once it is secure.
        random: gives random bytes.
        comment: for people; not protected.

    Raises:
        EsmError: a key, a name, a comment or a file cannot be taken.
    """
    key = Secret(random(KEY_SIZE))
    boxes = [_lockbox(ORIGIN, owner, key)]
    for recipient in recipients:
        boxes.append(_lockbox(_next_name(boxes, recipient), recipient, key))
    if len(files) > MAX_FILES:
        raise EsmError(f"{len(files)} files, at most {MAX_FILES}")
    blob = Blob(
        tuple(boxes),
        _seal(key, random, digests.build(), comment),
        {name: _attached(key, random, name, file) for name, file in files.items()},
    )
    return _checked(blob)


def authorize(blob: Blob, recipient: Recipient, key: Secret) -> Blob:
    """The blob, with one more recipient.

    Raises:
        EsmError: the recipient's key cannot be taken, or has a lockbox already.
    """
    name = _next_name(blob.lockboxes, recipient)
    boxes = (*blob.lockboxes, _lockbox(name, recipient, key))
    return _checked(dataclasses.replace(blob, lockboxes=boxes))


def archive(blob: bytes) -> bytes:
    """What is put before an initrd so that the blob is found."""
    return cpio.build([(ARCHIVE_PATH, blob)])


def _checked(blob: Blob) -> Blob:
    if (size := len(blob.build())) > MAX_SIZE:
        raise EsmError(f"the blob would have {size} bytes, at most {MAX_SIZE}")
    return blob


def _next_name(boxes: Sequence[Lockbox], recipient: Recipient) -> str:
    mark = fingerprint(recipient.pem)
    for box in boxes:
        if box.fingerprint == mark:
            raise EsmError(f"the key with fingerprint {mark.hex()} has a lockbox: {box.name}")
    if len(boxes) >= MAX_LOCKBOXES:
        raise EsmError(f"more than {MAX_LOCKBOXES} lockboxes")
    return f"lockbox-{1 + max(box.number for box in boxes)}"


def _lockbox(name: str, recipient: Recipient, key: Secret) -> Lockbox:
    try:
        public = load_public_key(recipient.pem)
    except LockboxError as error:
        raise EsmError(str(error)) from None
    comment = _comment(recipient.comment)
    return Lockbox(name, fingerprint(recipient.pem), seal_key(public, key), comment)


def _attached(key: Secret, random: Random, name: str, file: Attachment) -> Sealed:
    if not FILE_NAME.fullmatch(name):
        raise EsmError(
            f"{name!r} is no file's name: expected a letter and up to 30 of letters, digits and "
            ",._+-"
        )
    if len(file.data) > MAX_FILE_SIZE:
        raise EsmError(f"file {name} has {len(file.data)} bytes, at most {MAX_FILE_SIZE}")
    return _seal(key, random, file.data, file.comment)


def _seal(key: Secret, random: Random, plaintext: bytes, comment: str) -> Sealed:
    iv = random(IV_SIZE)
    ciphertext, mac = encrypt(key, iv, plaintext)
    return Sealed(iv, mac, ciphertext, _comment(comment))


def _comment(comment: str) -> str:
    if len(comment) > MAX_COMMENT or "\n" in comment or "\0" in comment:
        raise EsmError(f"a comment is one line of at most {MAX_COMMENT} characters")
    return comment
