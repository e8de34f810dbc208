# SPDX-License-Identifier: Apache-2.0
"""The contract of a TPM: one partition's, used by one task at a time."""

from __future__ import annotations

from typing import Protocol

from hcalld.core.records import Run


class TpmBackend(Protocol):
    """A TPM that commands are passed to.

    No two methods run at the same time, ``close_now`` apart. Each has a deadline of its own
    and may be cancelled wherever it waits; what is left of an exchange that did not end is
    dealt with by the next ``open`` or ``close_session``.
    """

    @property
    def description(self) -> str:
        """What it is, for the log."""

    @property
    def is_open(self) -> bool:
        """True if ``transmit`` may be called."""

    def begin_run(self, run: Run) -> None:
        """Told of each run of the machine, the first one before anything else is called."""

    async def open(self) -> None:
        """Reach the TPM; start it if it is ours. Nothing to do if it is open.

        Raises:
            BackendUnavailable: it cannot be reached.
        """

    async def transmit(self, command: bytes) -> bytes:
        """Send one command, once, and give the whole response.

        Raises:
            BackendUnavailable: no whole response came; the TPM may have carried it out.
        """

    def transmit_now(self, command: bytes) -> bytes | None:
        """Send one command and wait for its response for a moment only.

        Returns:
            The response; or None: ``finish`` must be called.

        Raises:
            BackendUnavailable: see ``transmit``.
        """

    async def finish(self) -> bytes:
        """Wait for the response to the command that ``transmit_now`` sent.

        Raises:
            BackendUnavailable: see ``transmit``.
        """

    async def close_session(self) -> None:
        """Free what the guest's session left in the TPM: sessions and transient objects.

        Raises:
            BackendUnavailable: it cannot be reached.
        """

    async def aclose(self) -> None:
        """Let go of it; end it if it is ours. Never raises."""
