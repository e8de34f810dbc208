# SPDX-License-Identifier: Apache-2.0
"""Commands and responses over a file descriptor: a socket, a pty or a TPM device.

A command is written once, from where a partial write stopped; a response is read into
what is left of 4096 bytes, and is whole when it has the size that its head claims. What
came beyond that, or came without being asked for, makes the channel useless: nobody could
tell any more which response belongs to which command.
"""

from __future__ import annotations

import os
import select
from typing import Final

import trio

from hcalld.core.errors import BackendUnavailable
from hcallproto.payloads import tpm_contexts as tpm

_FD_SETSIZE: Final = 1024
"""select(2) takes descriptors below it, and is the one with a timeout in microseconds."""

MAX_EMPTY_READS: Final = 100
"""So often in a row may a device say that it is readable and have nothing."""


class Channel:
    """One open way to a TPM.

    Args:
        fd: non-blocking; the channel closes it.
        name: of the TPM, for messages.
        timeout_s: within which a response must have come whole.
        is_device: reading nothing means that there is no response yet, as from a TPM device
            of Linux, and not that the other end is gone.
    """

    def __init__(self, fd: int, name: str, timeout_s: float, *, is_device: bool = False) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._name = name
        self._timeout_s = timeout_s
        self._is_device = is_device
        self._empty_reads = 0
        self._is_waiting = False
        self._unsent = b""
        self._received = bytearray()
        self.owes = False
        """A command was sent, wholly or in part, and its response has not come."""
        self.is_broken = False
        """Nothing that comes can be trusted any more."""

    @property
    def is_usable(self) -> bool:
        """A command may be sent."""
        return self._fd >= 0 and not self.owes and not self.is_broken

    def close(self) -> None:
        """Close it; may be called twice."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            trio.lowlevel.notify_closing(fd)
            os.close(fd)

    async def transmit(self, command: bytes) -> bytes:
        """Send a command, wait for its response.

        Raises:
            BackendUnavailable: no whole response came.
        """
        self._begin(command)
        return await self.finish()

    def transmit_now(self, command: bytes, wait_us: int) -> bytes | None:
        """Send a command and wait for its response for so long, without the event loop.

        All guests wait meanwhile: only for times below what the loop's own turn costs.

        Returns:
            The response, or None: ``finish`` waits for it.

        Raises:
            BackendUnavailable: the channel is of no use.
        """
        self._begin(command)
        if not self._write() or not wait_us or self._fd >= _FD_SETSIZE:
            return None
        # To write may have been to let the TPM run, on this very CPU, and to be woken by it.
        response = self._read()
        if response is not None:
            return response
        # Sleeping, not spinning: swtpm may want this very CPU.
        if not select.select((self._fd,), (), (), wait_us / 1e6)[0]:
            return None
        return self._read()

    async def finish(self) -> bytes:
        """Wait for the response that is owed.

        Raises:
            BackendUnavailable: it did not come, in time or at all.
        """
        self._is_waiting = True
        self._empty_reads = 0
        try:
            with trio.fail_after(self._timeout_s):
                while not self._write():
                    await trio.lowlevel.wait_writable(self._fd)
                while (response := self._read()) is None:
                    await trio.lowlevel.wait_readable(self._fd)
                return response
        except trio.TooSlowError:
            raise BackendUnavailable(
                f"{self._name}: no whole response within {self._timeout_s:g} s, "
                f"{len(self._received)} bytes of one"
            ) from None
        except trio.ClosedResourceError:
            raise self._break("closed meanwhile") from None
        except OSError as error:
            # A descriptor that cannot be waited for (epoll says EPERM).
            raise self._break(f"cannot be waited for: {error.strerror}") from None
        finally:
            self._is_waiting = False

    async def settle(self) -> None:
        """Wait for the response that is owed, and drop it.

        Raises:
            BackendUnavailable: it did not come; the channel still owes it.
        """
        if self.owes:
            await self.finish()

    # -- bytes ----------------------------------------------------------------------------

    def _begin(self, command: bytes) -> None:
        assert self.is_usable
        if self._fill():
            raise self._break(f"sent {len(self._received)} bytes that nobody asked for")
        self._unsent = command
        self.owes = True

    def _write(self) -> bool:
        """Write what can be written. True if nothing is left."""
        while self._unsent:
            try:
                count = os.write(self._fd, self._unsent)
            except BlockingIOError:
                return False
            except OSError as error:
                raise self._break(f"cannot be written to: {error.strerror}") from None
            self._unsent = self._unsent[count:]
        return True

    def _fill(self) -> bool:
        """Read what is there. True if something was."""
        room = tpm.MAX_SIZE + 1 - len(self._received)
        try:
            data = os.read(self._fd, room)
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._break(f"cannot be read: {error.strerror}") from None
        if data:
            self._empty_reads = 0
            self._received += data
            return True
        self._empty_reads += 1
        if not self._is_device:
            raise self._break("has closed the connection")
        if self._is_waiting and self._empty_reads > MAX_EMPTY_READS:
            raise self._break("is readable and has nothing")
        return False

    def _read(self) -> bytes | None:
        """The response, if it has come whole."""
        if not self._fill():
            return None
        received = self._received
        if len(received) < tpm.HEADER_SIZE:
            return None
        try:
            size = tpm.response_size(bytes(received[: tpm.HEADER_SIZE]))
        except ValueError as error:
            raise self._break(str(error)) from None
        if len(received) < size:
            return None
        if len(received) > size:
            raise self._break(f"sent more than the {size} bytes that its response claims")
        response = bytes(received)
        received.clear()
        self.owes = False
        return response

    def _break(self, why: str) -> BackendUnavailable:
        self.is_broken = True
        return BackendUnavailable(f"{self._name}: {why}")


async def flush_contexts(channel: Channel, keep: frozenset[int] = frozenset()) -> None:
    """Free all sessions and transient objects but those to ``keep``.

    Raises:
        BackendUnavailable: the TPM does not answer, or with nonsense.
    """
    for handle in sorted(await list_contexts(channel) - keep):
        # A code is no error: it may be gone already.
        await channel.transmit(tpm.flush_context(handle))


async def list_contexts(channel: Channel) -> frozenset[int]:
    """The handles of all sessions and transient objects.

    Raises:
        BackendUnavailable: the TPM does not answer, or with nonsense.
    """
    handles: set[int] = set()
    for kind in tpm.HandleType:
        response = await channel.transmit(tpm.get_handles(kind))
        try:
            handles.update(tpm.parse_handles(response))
        except ValueError as error:
            raise BackendUnavailable(str(error)) from None
    return frozenset(handles)
