# SPDX-License-Identifier: Apache-2.0
"""What a capture holds beside frames: JSON objects on interfaces of their own.

Their version counts on its own. A reader turns records of an older version into those of
today step by step, by a pure function for each step, and refuses a newer one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from hcallproto.errors import CaptureError, CaptureVersion

VERSION: Final = 2
"""Of the records; counts up when one changes its meaning or gets a field that must be there."""


class Record(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", omit_defaults=True):
    """Base of all records. Fields that a reader does not know are passed over."""


class Start(Record, frozen=True, kw_only=True, tag="start", omit_defaults=False):
    """The first record of a guest's connection, and of each file that goes on with it.

    All of it is written: a version that is not there is 1.
    """

    version: int = VERSION
    program: str
    """Who wrote the capture."""
    partition: str
    profile: Mapping[str, str]
    """The partition's attributes, as text; none of them is secret."""
    has_secrets: bool = False
    """Sealed records follow, which hold what frames have blanked."""
    says_asked: bool = True
    """Their answers say what was asked. Since version 2; of version 1 a reader puts false."""
    is_continued: bool = False
    """The connection was there before the capture, or goes on from an earlier file."""


class Stop(Record, frozen=True, kw_only=True, tag="stop"):
    """The last record of a guest's connection."""

    why: str
    """The connection's end, or the capture's."""


class Dropped(Record, frozen=True, kw_only=True, tag="dropped"):
    """Frames are missing here: the disk was too slow."""

    frames: int
    entries: int = 0
    """Of what sealed records would have held."""


class Key(Record, frozen=True, kw_only=True, tag="key"):
    """How to come by the key of the sealed records of this file; after each Start."""

    lock: Mapping[str, Any]
    """By a passphrase or a private key: see ``hcalld.crypto.locks``."""
    check: bytes
    """Tells a wrong passphrase."""
    salt: bytes
    """The file's: none of another file opens in it."""


class Sealed(Record, frozen=True, kw_only=True, tag="sealed"):
    """What is secret, encrypted: an ``entries.Batch`` or a part of one, before its frames."""

    number: int
    """Counts a connection's sealed records in a file from 0."""
    data: bytes


RECORDS: Final[tuple[type[Record], ...]] = (Start, Stop, Dropped, Key, Sealed)

REPEATED: Final = "from an earlier file"
"""Comment of frames that a file begins with because others are not understood without them."""

Converter = Callable[[dict[str, Any]], dict[str, Any]]
"""Turns a record of one version into one of the next."""


def _to_2(fields: dict[str, Any]) -> dict[str, Any]:
    """Version 2 says with each answer what was asked. What is sealed opens as it is."""
    if fields.get("kind") != "start":
        return fields
    return {**fields, "version": 2, "says_asked": False}


CONVERTERS: Final[Sequence[Converter]] = (_to_2,)
"""The first turns version 1 into version 2."""

_ENCODER: Final = msgspec.json.Encoder()
_HEAD: Final = msgspec.json.Decoder(dict[str, Any])
_DECODERS: Final = {kind.__struct_config__.tag: msgspec.json.Decoder(kind) for kind in RECORDS}


def encode(record: Record) -> bytes:
    """A record as the bytes of its packet."""
    return _ENCODER.encode(record)


class Records:
    """Reads the records of one file, whose version its first Start says."""

    def __init__(self, converters: Sequence[Converter] = CONVERTERS) -> None:
        self._converters = converters
        self._version: int | None = None

    def decode(self, data: bytes) -> Record | None:
        """One packet's record; None: a kind that we do not know.

        Raises:
            CaptureError: it is malformed, or of a newer version.
        """
        try:
            fields = _HEAD.decode(data)
            if fields.get("kind") == "start":
                self._version = self._checked(fields.get("version", 1))
            if self._version is None:
                raise CaptureError("a record before the first 'start'")
            for convert in self._converters[self._version - 1 :]:
                fields = convert(fields)
            decoder = _DECODERS.get(fields.get("kind"))
            return None if decoder is None else decoder.decode(_ENCODER.encode(fields))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise CaptureError(f"a malformed record: {error}") from None
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            # Of a converter, which takes an older record for what it must be, or of the kind.
            raise CaptureError(f"a malformed record: {error!r}") from None

    def _checked(self, version: Any) -> int:
        newest = len(self._converters) + 1
        if type(version) is not int or version < 1:
            raise CaptureError(f"a record of version {version!r}, expected 1 to {newest}")
        if version > newest:
            raise CaptureVersion(
                f"the capture is of version {version}, this hcalld reads up to {newest}; "
                "use a newer hcalld"
            )
        return version
