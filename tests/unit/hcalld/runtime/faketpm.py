# SPDX-License-Identifier: Apache-2.0
"""A TPM in the test's own event loop that is as slow, dead or dishonest as it is told."""

from __future__ import annotations

import dataclasses

import trio

from hcalld.core.errors import BackendUnavailable
from hcalld.core.records import Run


def response(body: bytes = b"", *, size: int | None = None, code: int = 0) -> bytes:
    """A response; ``size`` is what it claims."""
    claimed = 10 + len(body) if size is None else size
    return b"\x80\x01" + claimed.to_bytes(4, "big") + code.to_bytes(4, "big") + body


@dataclasses.dataclass
class FakeTpm:
    """See TpmBackend. It answers each command with ``answer``."""

    answer: bytes = response(b"answer")
    is_quick: bool = False
    """It answers at once."""
    failure: str = ""
    """Why no response comes."""
    cannot_open: str = ""
    cannot_close: str = ""
    is_open: bool = False
    commands: list[bytes] = dataclasses.field(default_factory=list)
    trail: list[str] = dataclasses.field(default_factory=list)
    runs: list[Run] = dataclasses.field(default_factory=list)
    may_answer: trio.Event = dataclasses.field(default_factory=trio.Event)
    """Commands wait for it."""
    at_work: int = 0
    at_work_most: int = 0

    description = "fake TPM"

    def __post_init__(self) -> None:
        self.may_answer.set()

    def begin_run(self, run: Run) -> None:
        """See TpmBackend."""
        self.runs.append(run)

    async def open(self) -> None:
        """See TpmBackend."""
        await trio.lowlevel.checkpoint()
        if self.cannot_open:
            raise BackendUnavailable(self.cannot_open)
        self.trail.append("open")
        self.is_open = True

    async def transmit(self, command: bytes) -> bytes:
        """See TpmBackend."""
        self.commands.append(command)
        return await self.finish()

    def transmit_now(self, command: bytes) -> bytes | None:
        """See TpmBackend."""
        self.commands.append(command)
        if not self.is_quick:
            return None
        if self.failure:
            raise BackendUnavailable(self.failure)
        return self.answer

    async def finish(self) -> bytes:
        """See TpmBackend."""
        self.at_work += 1
        self.at_work_most = max(self.at_work, self.at_work_most)
        try:
            await self.may_answer.wait()
            if self.failure:
                raise BackendUnavailable(self.failure)
            return self.answer
        finally:
            self.at_work -= 1

    async def close_session(self) -> None:
        """See TpmBackend."""
        await trio.lowlevel.checkpoint()
        if self.cannot_close:
            raise BackendUnavailable(self.cannot_close)
        self.trail.append("close")
        self.is_open = False

    async def aclose(self) -> None:
        """See TpmBackend."""
        self.trail.append("end")
        self.is_open = False
