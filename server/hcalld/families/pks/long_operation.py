# SPDX-License-Identifier: Apache-2.0
"""Calls that take several issues, if the profile says so (``pks.busy_answers``).

Linux issues H_PKS_SIGNED_UPDATE again after the time that the busy code hints at, and
H_PKS_WRAP_OBJECT and H_PKS_UNWRAP_OBJECT at once, each with the token of r4 (plpks.c).
"""

from __future__ import annotations

import dataclasses

from hcalld.core.call import Call
from hcalld.core.effects import Entropy
from hcalld.core.outcome import Outcome
from hcalld.domain.continuations import TOKEN_SIZE, digest_of
from hcalld.domain.keystore import Keystore
from hcallproto.abi.returns import H

_BUSY_CODES = {
    0: H.BUSY,
    1: H.LONG_BUSY_ORDER_1_MSEC,
    10: H.LONG_BUSY_ORDER_10_MSEC,
    100: H.LONG_BUSY_ORDER_100_MSEC,
    1000: H.LONG_BUSY_ORDER_1_SEC,
    10_000: H.LONG_BUSY_ORDER_10_SEC,
    100_000: H.LONG_BUSY_ORDER_100_SEC,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Issue:
    """One issue of a long operation."""

    keystore: Keystore
    token: int
    digest: bytes
    left: int
    """Busy answers that are still to come, this one included."""
    fresh: int
    """The next token."""

    def busy(self) -> Outcome | None:
        """The busy answer; None if the operation is to be carried out now.

        Uses up the token that the call came with, so nothing may be refused after a busy
        answer, nor awaited between here and ``begin_issue``.
        """
        continuations = self.keystore.continuations
        if not self.left:
            return None
        continuations.use(self.token)
        continuations.make(self.fresh, self.digest, self.left - 1)
        code = _BUSY_CODES[self.keystore.attributes.pks.busy_hint_ms]
        why = f"busy, as the profile says; {self.left - 1} more to come"
        return Outcome(code, ((4, self.fresh),), why=why)

    def done(self) -> None:
        """The operation has been carried out: its token is used up."""
        self.keystore.continuations.use(self.token)


async def begin_issue(call: Call, keystore: Keystore) -> Issue:
    """Check the call's token; to be awaited last.

    Raises:
        HcallError: the token was never handed out, is used up, or belongs to another call.
    """
    issues = keystore.attributes.pks.busy_answers
    token = call["token"]
    # Also if no operation takes several issues any more: one that was begun may still.
    may_be_busy = bool(issues or token)
    fresh = int.from_bytes(await Entropy(TOKEN_SIZE), "big") or 1 if may_be_busy else 0
    digest = digest_of(call.hcall.number, call.args) if may_be_busy else b""
    left = keystore.continuations.left(token, digest, issues)
    if left is None:
        raise call.refuse(
            "token",
            f"continue token 0x{token:x} was not handed out for this call, or is used up",
        )
    return Issue(keystore, token, digest, left, fresh)
