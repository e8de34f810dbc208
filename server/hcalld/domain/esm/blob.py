# SPDX-License-Identifier: Apache-2.0
"""The format of an ESM blob: lockboxes, encrypted digests, encrypted files.

Source: open-power/svm-tools, ``svm_tool/esm/esm.py``, whose README describes an older form.
Read strictly: an unknown node or property is refused, as by that tool; so is a lockbox with
another number than its name can have. Comments are not protected by anything.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Final

from hcalld.crypto.lockbox import FINGERPRINT_SIZE, IV_SIZE, MAC_SIZE, MAX_RSA_BITS
from hcalld.domain.esm.errors import BlobError
from hcallproto.abi.families import uv
from hcallproto.payloads import fdt
from hcallproto.payloads.fdt import Fdt, FdtError, Node

MAX_SIZE: Final = fdt.MAX_SIZE
"""Greatest blob."""
MAX_LOCKBOXES: Final = 64
"""Each may cost a try with a TPM."""
MAX_FILES: Final = 64
MAX_FILE_SIZE: Final = uv.MAX_FILE_SIZE
"""The firmware has 16 bits for it (``svm/svm-esmb.c``)."""
MAX_COMMENT: Final = 4096

ORIGIN: Final = "origin-lockbox"
"""The owner's, who may authorize others; no machine tries it in the firmware."""

_LOCKBOX_NAME: Final = re.compile(r"lockbox-([1-9][0-9]{0,8})")
FILE_NAME: Final = re.compile(r"[A-Za-z][0-9A-Za-z,._+-]{0,30}")
"""What a file may be called, for the tool and for whom it asks for it."""

ALGORITHM: Final = "AES256-GCM"
FINGERPRINT_ALGORITHM: Final = "SHA256"
COMPATIBLE: Final = "ibm,esm"
FILES_COMPATIBLE: Final = "ibm,esm-file"


@dataclasses.dataclass(frozen=True, slots=True)
class Sealed:
    """Something encrypted under the blob's key."""

    iv: bytes
    mac: bytes
    ciphertext: bytes = dataclasses.field(repr=False)
    comment: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Lockbox:
    """The blob's key, encrypted for one recipient."""

    name: str
    fingerprint: bytes
    """SHA-256 of the PEM file that the recipient's public key was in."""
    sealed_key: bytes = dataclasses.field(repr=False)
    comment: str = ""

    @property
    def number(self) -> int:
        """0 for the owner's."""
        found = _LOCKBOX_NAME.fullmatch(self.name)
        return int(found[1]) if found else 0


@dataclasses.dataclass(frozen=True, slots=True)
class Blob:
    """A whole blob."""

    lockboxes: tuple[Lockbox, ...]
    """Sorted, the owner's first."""
    digests: Sealed | None
    """Absent from a blob that is not finished."""
    files: dict[str, Sealed] = dataclasses.field(default_factory=dict)

    def build(self) -> bytes:
        """The blob as bytes."""
        tree = Fdt()
        tree.root.properties["compatible"] = fdt.string(COMPATIBLE)
        lockboxes = tree.root.add("lockboxes")
        for box in self.lockboxes:
            node = lockboxes.add(
                box.name,
                {
                    "untrusted-comment": fdt.string(box.comment),
                    "encrypted-symkey": box.sealed_key,
                },
            )
            node.add(
                "pubkey-fingerprint",
                {"algorithm": fdt.string(FINGERPRINT_ALGORITHM), "hash": box.fingerprint},
            )
        digest = tree.root.add("digest")
        if self.digests is not None:
            digest.add("digests-fdt", _sealed_properties(self.digests))
        file = tree.root.add("file")
        if self.files:
            nested = Fdt()
            nested.root.properties["compatible"] = fdt.string(FILES_COMPATIBLE)
            files = nested.root.add("files")
            for name, sealed in self.files.items():
                files.add(name, _sealed_properties(sealed))
            file.properties["files-fdt"] = nested.build()
        return tree.build()


def _sealed_properties(sealed: Sealed) -> dict[str, bytes]:
    return {
        "algorithm": fdt.string(ALGORITHM),
        "untrusted-comment": fdt.string(sealed.comment),
        "ciphertext": sealed.ciphertext,
        "iv": sealed.iv,
        "mac": sealed.mac,
    }


# -- reading --------------------------------------------------------------------------------


def parse(data: bytes) -> Blob:
    """Read a blob; what comes behind its end is not looked at.

    Raises:
        BlobError: it is malformed.
    """
    try:
        return _blob(fdt.parse(data, MAX_SIZE).root)
    except FdtError as error:
        raise BlobError(f"ESM blob: {error}") from None


def _blob(root: Node) -> Blob:
    _only(root, {"compatible"}, {"lockboxes", "digest", "file"})
    _expect(root, "compatible", COMPATIBLE)
    boxes = _child(root, "lockboxes")
    _only(boxes, set(), None)
    if len(boxes.children) > MAX_LOCKBOXES:
        raise BlobError(f"ESM blob: {len(boxes.children)} lockboxes, at most {MAX_LOCKBOXES}")
    if not boxes.children:
        raise BlobError("ESM blob: it has no lockbox")
    lockboxes = tuple(sorted(map(_lockbox, boxes.children), key=lambda box: box.number))
    digest = _child(root, "digest")
    _only(digest, set(), {"digests-fdt"})
    digests = digest.child("digests-fdt")
    file = _child(root, "file")
    _only(file, {"files-fdt"}, set())
    nested = file.properties.get("files-fdt")
    return Blob(
        lockboxes,
        None if digests is None else _sealed(digests, MAX_SIZE),
        {} if nested is None else parse_files(nested),
    )


def parse_files(data: bytes) -> dict[str, Sealed]:
    """Read the tree of files that is inside a blob.

    Raises:
        BlobError: it is malformed.
    """
    try:
        root = fdt.parse(data, MAX_SIZE).root
        _only(root, {"compatible"}, {"files"})
        _expect(root, "compatible", FILES_COMPATIBLE)
        files = _child(root, "files")
        _only(files, set(), None)
        if len(files.children) > MAX_FILES:
            raise BlobError(f"ESM blob: {len(files.children)} files, at most {MAX_FILES}")
        return {node.name: _sealed(node, MAX_FILE_SIZE) for node in files.children}
    except FdtError as error:
        raise BlobError(f"files in the ESM blob: {error}") from None


def _lockbox(node: Node) -> Lockbox:
    if node.name != ORIGIN and not _LOCKBOX_NAME.fullmatch(node.name):
        raise BlobError(f"ESM blob: {node.name!r} is no lockbox's name")
    _only(node, {"untrusted-comment", "encrypted-symkey"}, {"pubkey-fingerprint"})
    mark = _child(node, "pubkey-fingerprint")
    _only(mark, {"algorithm", "hash"}, set())
    _expect(mark, "algorithm", FINGERPRINT_ALGORITHM)
    sealed_key = node.raw("encrypted-symkey")
    if not 0 < len(sealed_key) <= MAX_RSA_BITS // 8:
        raise BlobError(
            f"ESM blob: {node.name} has {len(sealed_key)} bytes, at most {MAX_RSA_BITS // 8}"
        )
    return Lockbox(node.name, mark.sized("hash", FINGERPRINT_SIZE), sealed_key, _comment(node))


def _sealed(node: Node, limit: int) -> Sealed:
    names = {"algorithm", "untrusted-comment", "ciphertext", "iv", "mac"}
    _only(node, names, set())
    _expect(node, "algorithm", ALGORITHM)
    ciphertext = node.raw("ciphertext")
    if len(ciphertext) > limit:
        raise BlobError(f"ESM blob: {node.name} has {len(ciphertext)} bytes, at most {limit}")
    return Sealed(
        node.sized("iv", IV_SIZE), node.sized("mac", MAC_SIZE), ciphertext, _comment(node)
    )


def _comment(node: Node) -> str:
    comment = node.text("untrusted-comment")
    if len(comment) > MAX_COMMENT or "\n" in comment:
        raise BlobError(
            f"ESM blob: the comment of {node.name} is not one line of at most {MAX_COMMENT}"
        )
    return comment


def _child(node: Node, name: str) -> Node:
    found = node.child(name)
    if found is None:
        raise BlobError(f"ESM blob: {node.name or '/'} has no node {name}")
    return found


def _expect(node: Node, name: str, value: str) -> None:
    found = node.text(name)
    if found != value:
        raise BlobError(f"ESM blob: {name} of {node.name or '/'} is {found!r}, expected {value!r}")


def _only(node: Node, properties: set[str], children: set[str] | None) -> None:
    """Refuse what is not known; children are any if None."""
    unknown = sorted(node.properties.keys() - properties)
    if children is not None:
        unknown += sorted({child.name for child in node.children} - children)
    if unknown:
        raise BlobError(f"ESM blob: {node.name or '/'} has unknown {unknown[0]!r}")
