# SPDX-License-Identifier: Apache-2.0
"""The other end of the control socket, for commands: blocking, one request after the other."""

from __future__ import annotations

import contextlib
import pathlib
from types import TracebackType
from typing import Final, Self

import msgspec

from hcalld.control.endpoint import connect
from hcalld.control.messages import (
    MAX_REPLY_SIZE,
    PROTOCOL,
    Failure,
    Greeting,
    Kind,
    Reply,
    ReplyT,
    Request,
    encode,
    name_of,
    reply_of,
)
from hcalld.core.errors import ConfigError, HcalldError

ANSWER_SECONDS: Final = 30
"""A daemon that has not answered by then hangs; commands that take long say so."""


class ControlFailure(HcalldError):
    """The daemon refuses."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class ControlClient:
    """A connection to a daemon.

    Args:
        path: its control socket.

    Raises:
        HcalldError: there is none, it lets us not in, or it is of another version.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._data = bytearray()
        self._sock = connect(path, ANSWER_SECONDS)
        try:
            self.greeting = self._receive(Greeting)
        except BaseException:
            self.close()
            raise
        if self.greeting.protocol != PROTOCOL:
            self.close()
            raise ConfigError(
                f"{path}: the daemon (hcalld {self.greeting.version}) speaks version "
                f"{self.greeting.protocol} of the control protocol, this command {PROTOCOL}; use "
                "the hcalld that the daemon is of"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._sock.close()

    def ask(self, request: Request[ReplyT], *, seconds: float | None = ANSWER_SECONDS) -> ReplyT:
        """Make a request.

        Args:
            request: what.
            seconds: how long its reply may take; None: as long as it takes.

        Raises:
            ControlFailure: the daemon refuses, and says why.
            HcalldError: it does not answer.
        """
        command: type[Request[ReplyT]] = type(request)
        if name_of(command) not in self.greeting.commands:
            known = ", ".join(self.greeting.commands)
            raise ConfigError(
                f"{self._path}: the daemon (hcalld {self.greeting.version}) has no command "
                f"{name_of(command)!r}; it has: {known}"
            )
        self._sock.settimeout(seconds)
        with contextlib.suppress(BrokenPipeError):  # why it has gone may be there to be read
            self._sock.sendall(encode(request))
        return self._receive(reply_of(command))

    def _receive(self, expected: type[ReplyT]) -> ReplyT:
        line = self._line()
        try:
            reply: Reply = msgspec.json.decode(line, type=expected | Failure)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{self._path}: what answers is no control socket of hcalld: {error}"
            ) from None
        if isinstance(reply, Failure):
            raise ControlFailure(reply.kind, reply.message)
        assert isinstance(reply, expected)
        return reply

    def _line(self) -> bytes:
        data = self._data
        start = 0
        while (end := data.find(b"\n", start)) < 0:
            start = len(data)
            if start > MAX_REPLY_SIZE:
                raise ConfigError(f"{self._path}: a reply of more than {MAX_REPLY_SIZE} bytes")
            try:
                chunk = self._sock.recv(1 << 16)
            except TimeoutError:
                raise ConfigError(
                    f"{self._path}: the daemon does not answer; see its log"
                ) from None
            except ConnectionResetError:
                chunk = b""
            if not chunk:
                raise ConfigError(f"{self._path}: the daemon has ended the connection; see its log")
            data += chunk
        line = bytes(data[:end])
        del data[: end + 1]
        return line


def ask(
    path: pathlib.Path, request: Request[ReplyT], *, seconds: float | None = ANSWER_SECONDS
) -> ReplyT:
    """Make one request on a connection of its own; see ``ControlClient``."""
    with ControlClient(path) as client:
        return client.ask(request, seconds=seconds)


__all__ = ["ANSWER_SECONDS", "ControlClient", "ControlFailure", "ask"]
