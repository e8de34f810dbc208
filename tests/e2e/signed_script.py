# SPDX-License-Identifier: Apache-2.0
"""A script of signed updates for the guest stub, and what each must come to.

The format is described in guest_stub/README.md, "Signed updates from a host". What a message must
come to is kept here as plain bytes, step by step, and not computed by the code under test.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import Final

from tests.e2e.soaklog import fnv1a

from hcallproto.abi.returns import H
from hcallproto.payloads.pks import Policy

MAGIC: Final = b"STUBUPD1"
_STEP: Final = struct.Struct(">IIQIiIII")
_NO_OBJECT: Final = 0xFFFF_FFFF
_PUBLIC: Final = ("db", "dbx", "grubdb", "grubdbx", "sbat")
SIGNATURE_SIZE: Final = 256


def policy_of(name: str) -> int:
    """What Linux gives with an update of a variable."""
    public = Policy.WORLDREADABLE if name in _PUBLIC else Policy(0)
    return int(Policy.SIGNEDUPDATE | public)


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One call of the guest's, and what is there after it; without a message, just the latter."""

    name: str
    policy: int
    is_append: bool
    message: bytes
    code: H
    content: bytes | None
    altered: int

    def build(self) -> bytes:
        """The step's bytes."""
        name = self.name.encode("utf-16-le")
        content = self.content or b""
        size = _NO_OBJECT if self.content is None else len(content)
        head = _STEP.pack(
            len(name),
            self.policy,
            int(self.is_append),
            len(self.message),
            self.code,
            size,
            self.altered,
            policy_of(self.name),
        )
        return head + name + self.message + content


class Script:
    """Steps, and what the variables hold after them.

    Args:
        objects: What they hold before, by name.
    """

    def __init__(self, objects: dict[str, bytes] | None = None) -> None:
        self.objects = dict(objects or {})
        self._steps: list[Step] = []

    def accept(
        self,
        name: str,
        message: bytes,
        content: bytes | None,
        *,
        is_append: bool = False,
        is_altered: bool = False,
    ) -> None:
        """An update that is taken; the variable's object is ``content`` then.

        ``is_altered``: before that, each byte of the message's head, signature and data is
        altered, and nobody takes that.
        """
        if content is None:
            self.objects.pop(name, None)
        else:
            self.objects[name] = content
        data_size = len(message) - 40 - _pkcs7_size(message)
        altered = SIGNATURE_SIZE + data_size if is_altered else 0
        self._add(name, message, H.SUCCESS, is_append=is_append, altered=altered)

    def refuse(
        self,
        name: str,
        message: bytes,
        code: H,
        *,
        is_append: bool = False,
        policy: int | None = None,
    ) -> None:
        """An update that is refused; the variable stays as it is."""
        self._add(name, message, code, is_append=is_append, policy=policy)

    def look(self, name: str) -> None:
        """A variable must be as it should be."""
        self._add(name, b"", H.SUCCESS)

    def _add(
        self,
        name: str,
        message: bytes,
        code: H,
        *,
        is_append: bool = False,
        policy: int | None = None,
        altered: int = 0,
    ) -> None:
        policy = policy_of(name) if policy is None else policy
        content = self.objects.get(name)
        self._steps.append(Step(name, policy, is_append, message, code, content, altered))

    def build(self) -> bytes:
        """The initrd."""
        rest = struct.pack(">I", len(self._steps)) + b"".join(s.build() for s in self._steps)
        return MAGIC + struct.pack(">Q", fnv1a(rest)) + rest


def _pkcs7_size(message: bytes) -> int:
    size: int = struct.unpack_from("<I", message, 16)[0]
    return size - 24
