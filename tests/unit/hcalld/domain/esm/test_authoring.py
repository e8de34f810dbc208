# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import pytest
from tests.esm import private_key, private_pem, public_pem
from tests.unit.hcalld.domain.esm.guest import (
    MACHINE,
    OTHER,
    OWNER,
    STRANGER,
    blob,
    digests,
    random,
)

from hcalld.domain.esm.authoring import Attachment, Recipient, authorize, make
from hcalld.domain.esm.blob import MAX_LOCKBOXES, Blob
from hcalld.domain.esm.errors import EsmError
from hcalld.domain.esm.unlock import unlock_with_key

OWNED = Recipient(public_pem(OWNER))


def test_blob_when_made_then_each_thing_has_an_iv_of_its_own():
    ivs = [blob().digests, *blob().files.values()]
    assert len({sealed.iv for sealed in ivs if sealed is not None}) == 3


def test_authorize_when_another_machine_is_added_then_it_opens_and_the_rest_is_as_it_was():
    key = unlock_with_key(blob(), private_key(OWNER)).key
    made = authorize(blob(), Recipient(public_pem(STRANGER), "new"), key)
    assert made.lockboxes[:3] == blob().lockboxes
    assert made.lockboxes[3].name == "lockbox-3"
    assert unlock_with_key(made, private_key(STRANGER)).key == key
    assert dataclasses.replace(made, lockboxes=()) == dataclasses.replace(blob(), lockboxes=())


def test_authorize_when_the_key_has_a_lockbox_then_refused():
    key = unlock_with_key(blob(), private_key(OWNER)).key
    with pytest.raises(EsmError, match="has a lockbox: lockbox-2"):
        authorize(blob(), Recipient(public_pem(OTHER)), key)
    with pytest.raises(EsmError, match="has a lockbox: origin-lockbox"):
        make(digests(), OWNED, [OWNED], {}, random())


def test_authorize_when_there_are_too_many_then_refused():
    key = unlock_with_key(blob(), private_key(OWNER)).key
    box = blob().lockboxes[1]
    boxes = tuple(
        dataclasses.replace(box, name=f"lockbox-{i + 1}", fingerprint=bytes([i]) * 32)
        for i in range(MAX_LOCKBOXES)
    )
    with pytest.raises(EsmError, match="more than 64 lockboxes"):
        authorize(Blob(boxes, None), Recipient(public_pem(STRANGER)), key)
    made = authorize(Blob(boxes[1:], None), Recipient(public_pem(STRANGER)), key)
    assert made.lockboxes[-1].name == "lockbox-65"


@pytest.mark.parametrize(
    ("recipient", "files", "comment", "why"),
    [
        (Recipient(private_pem(MACHINE)), {}, "", "a private key"),
        (Recipient(public_pem(MACHINE), "a\nb"), {}, "", "a comment is one line"),
        (Recipient(public_pem(MACHINE)), {}, "a\0", "a comment is one line"),
        (Recipient(public_pem(MACHINE)), {}, "a" * 4097, "a comment is one line"),
        (Recipient(public_pem(MACHINE)), {"1": Attachment(b"")}, "", "'1' is no file's name"),
        (Recipient(public_pem(MACHINE)), {"a" * 32: Attachment(b"")}, "", "no file's name"),
        (Recipient(public_pem(MACHINE)), {"a/b": Attachment(b"")}, "", "no file's name"),
        (Recipient(public_pem(MACHINE)), {"a\n": Attachment(b"")}, "", "no file's name"),
        (Recipient(public_pem(MACHINE)), {"a": Attachment(bytes(65536))}, "", "65536 bytes"),
        (
            Recipient(public_pem(MACHINE)),
            {f"a{i}": Attachment(b"") for i in range(65)},
            "",
            "65 files, at most 64",
        ),
        (
            Recipient(public_pem(MACHINE)),
            {f"a{i}": Attachment(bytes(65535)) for i in range(16)},
            "",
            "the blob would have",
        ),
    ],
)
def test_make_when_something_cannot_be_taken_then_refused(
    recipient: Recipient, files: dict[str, Attachment], comment: str, why: str
):
    with pytest.raises(EsmError, match=why):
        make(digests(), OWNED, [recipient], files, random(), comment)
