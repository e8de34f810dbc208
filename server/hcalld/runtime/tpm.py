# SPDX-License-Identifier: Apache-2.0
"""A partition's session with its TPM: one command at a time, in the order they came.

``hcalld.domain.tpm`` has the table of its states. A command that waits for its turn, or
for a slow TPM, holds up its own caller only.
"""

from __future__ import annotations

import trio

from hcalld.backends.base import TpmBackend
from hcalld.core.errors import BackendUnavailable
from hcalld.core.log import Log
from hcalld.core.records import Run
from hcalld.domain.tpm import TRANSITIONS, SessionEvent, SessionState
from hcallproto.payloads import tpm_contexts as tpm


class TpmSession:
    """One partition's.

    Args:
        backend: the TPM.
    """

    def __init__(self, backend: TpmBackend) -> None:
        self.state = SessionState.CLOSED
        self._backend = backend
        self._turn = trio.Semaphore(1, max_value=1)
        self._run: Run | None = None
        self._log = Log(tpm=backend.description)

    def begin_run(self, run: Run) -> None:
        """The machine is connected, or has been reset: a session of the run before is over."""
        if self._run is not None and run != self._run:
            self._move(SessionEvent.RESET)
        self._run = run
        self._backend.begin_run(run)

    def exchange(self, command: bytes) -> TpmExchange:
        """A command that is to be sent."""
        return TpmExchange(self, command)

    async def close(self) -> None:
        """CLOSE_SESSION, after the commands that came before it.

        Raises:
            BackendUnavailable: what it left in the TPM is not freed; the next call tries again.
        """
        async with self._turn:
            self._move(SessionEvent.CLOSE)
            await self._free()

    async def settle(self) -> None:
        """Free what a session of the run before left; a task of its own. Never raises."""
        async with self._turn:
            try:
                await self._free()
            except BackendUnavailable as error:
                self._log.warning("TPM session not freed", reason=str(error))

    async def aclose(self) -> None:
        """The connection has ended, and so have all its calls."""
        await self._backend.aclose()

    def _move(self, event: SessionEvent) -> None:
        self.state = TRANSITIONS[self.state, event]

    async def _free(self) -> None:
        if self.state is SessionState.STALE:
            await self._backend.close_session()
            self._move(SessionEvent.FREED)

    async def _open(self) -> None:
        await self._free()
        if self.state is SessionState.CLOSED:
            await self._backend.open()
            self._move(SessionEvent.OPENED)

    def _failed(self, reason: str) -> None:
        self._log.warning("TPM session lost", reason=reason)
        self._move(SessionEvent.FAILED)


class TpmExchange:
    """One command, from its turn to its response.

    ``start`` goes as far as it goes without waiting; then ``finish``, or ``abandon``.
    """

    __slots__ = ("_command", "_has_turn", "_is_sent", "_session")

    def __init__(self, session: TpmSession, command: bytes) -> None:
        self._session = session
        self._command = command
        self._has_turn = False
        self._is_sent = False

    def start(self) -> bytes | None:
        """Send it, if it is its turn in an open session, and look for the response.

        Returns:
            The response, or None: ``finish`` must go on.

        Raises:
            BackendUnavailable: none will come.
        """
        session = self._session
        try:
            session._turn.acquire_nowait()
        except trio.WouldBlock:
            return None
        self._has_turn = True
        if session.state is not SessionState.OPEN:
            return None
        self._is_sent = True
        try:
            response = session._backend.transmit_now(self._command)
            if response is not None:
                check_response(response)
        except BackendUnavailable as error:
            self._end(str(error))
            raise
        if response is not None:
            self._end()
        return response

    async def finish(self) -> bytes:
        """Wait for what ``start`` did not wait for.

        Raises:
            BackendUnavailable: no whole response came.
        """
        session = self._session
        why = "given up"
        try:
            if not self._has_turn:
                await session._turn.acquire()
                self._has_turn = True
            if self._is_sent:
                response = await session._backend.finish()
            else:
                await session._open()
                self._is_sent = True
                response = await session._backend.transmit(self._command)
            check_response(response)
            why = ""
            return response
        except BackendUnavailable as error:
            why = str(error)
            raise
        finally:
            self._end(why)

    def abandon(self) -> None:
        """Nobody waits for the response any more."""
        self._end("given up")

    def _end(self, why: str = "") -> None:
        """Its turn is over; ``why`` it has no response, if so."""
        if not self._has_turn:
            return
        self._has_turn = False
        if why and self._is_sent:
            self._session._failed(why)
        self._session._turn.release()


def check_response(response: bytes) -> None:
    """Refuse what is no whole response, whichever TPM it is from.

    Raises:
        BackendUnavailable: it is none.
    """
    if len(response) < tpm.HEADER_SIZE:
        raise BackendUnavailable(f"the TPM's response has {len(response)} bytes, no whole head")
    try:
        claimed = tpm.response_size(response)
    except ValueError as error:
        raise BackendUnavailable(str(error)) from None
    if claimed != len(response):
        raise BackendUnavailable(
            f"the TPM's response has {len(response)} bytes and claims {claimed}"
        )
