# SPDX-License-Identifier: Apache-2.0
"""The TPMs that ``hcalld esm`` talks to: a partition's own, or one that is named.

A partition's is the swtpm that the daemon starts for it, so its guest must be off. Others
are reached by blocking I/O: a socket, a device, or a swtpm that is started on a directory
for as long as the command takes.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import select
import socket
import subprocess
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from typing import IO, TYPE_CHECKING, Any, Final, Protocol, TypeVar

if TYPE_CHECKING:
    from hcalld.backends.swtpm import Swtpm
    from hcalld.crypto.tpm_session import Transmit
    from hcalld.stores.directory import StateDirectory

T = TypeVar("T")

Steps = Callable[["Transmit"], Coroutine[Any, Any, T]]
"""Something to do with a TPM."""

TIMEOUT_S: Final = 90
"""For one command: making a key takes a real TPM long."""
STOP_S: Final = 5
_MAX_ERROR: Final = 200

WHERE: Final = "swtpm:DIRECTORY (started on it), unix:PATH, tcp:HOST:PORT or device:PATH"


class TpmSource(Protocol):
    """Somewhere a TPM is."""

    @property
    def description(self) -> str:
        """What it is, for messages."""

    def carry_out(self, steps: Steps[T]) -> T:
        """Reach the TPM, do something with it, let go of it.

        Raises:
            BackendUnavailable: it cannot be reached, or does not answer.
        """


def tpm_at(where: str) -> TpmSource:
    """The TPM that an option names.

    Raises:
        ConfigError: it cannot be understood.
    """
    from hcalld.core.errors import ConfigError

    kind, _, rest = where.partition(":")
    if rest:
        if kind == "swtpm":
            return SwtpmFolder(pathlib.Path(rest))
        if kind == "unix":
            return TpmSocket(where, socket.AF_UNIX, rest)
        if kind == "device":
            return TpmDevice(pathlib.Path(rest))
        found = re.fullmatch(r"\[?([^\[\]]+)\]?:(\d{1,5})", rest) if kind == "tcp" else None
        if found and int(found[2]) < 65536:
            family = socket.AF_INET6 if ":" in found[1] else socket.AF_INET
            return TpmSocket(where, family, (found[1], int(found[2])))
    raise ConfigError(f"TPM {where!r}: expected {WHERE}")


# -- blocking -------------------------------------------------------------------------------


class TpmSocket:
    """A swtpm's data socket, such as ``swtpm socket --server`` listens on."""

    def __init__(self, description: str, family: int, address: str | tuple[str, int]) -> None:
        self.description = f"TPM {description}"
        self._family = family
        self._address = address

    def carry_out(self, steps: Steps[T]) -> T:
        """See TpmSource."""
        from hcalld.core.errors import BackendUnavailable

        with socket.socket(self._family, socket.SOCK_STREAM) as connection:
            connection.settimeout(STOP_S)
            try:
                connection.connect(self._address)
            except OSError as error:
                raise BackendUnavailable(
                    f"{self.description}: cannot be reached ({error.strerror or error})"
                ) from None
            connection.setblocking(False)
            return _blocking(self.description, connection.fileno(), steps)


class TpmDevice:
    """A TPM's character device, such as /dev/tpmrm0."""

    def __init__(self, path: pathlib.Path) -> None:
        self.description = f"TPM {path}"
        self._path = path

    def carry_out(self, steps: Steps[T]) -> T:
        """See TpmSource."""
        from hcalld.core.errors import BackendUnavailable

        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError as error:
            raise BackendUnavailable(
                f"{self.description}: cannot be opened ({error.strerror})"
            ) from None
        try:
            return _blocking(self.description, fd, steps)
        finally:
            os.close(fd)


class SwtpmFolder:
    """A swtpm's state in a directory, not encrypted, that no swtpm uses at the moment."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.description = f"swtpm of {folder}"
        self._folder = folder

    def carry_out(self, steps: Steps[T]) -> T:
        """See TpmSource."""
        from hcalld.core.errors import BackendUnavailable

        with tempfile.TemporaryFile() as errors, contextlib.ExitStack() as stack:
            ours, theirs = socket.socketpair()
            stack.enter_context(ours)
            with theirs:
                stack.enter_context(self._running(theirs.fileno(), errors))
            ours.setblocking(False)
            try:
                return _blocking(self.description, ours.fileno(), steps)
            except BackendUnavailable as error:
                errors.seek(0)
                said = errors.read(_MAX_ERROR).decode("utf-8", "replace")
                said = "".join(filter(str.isprintable, said))
                raise BackendUnavailable(f"{error}{said and ': '}{said}") from None

    @contextlib.contextmanager
    def _running(self, fd: int, errors: IO[bytes]) -> Iterator[None]:
        from hcalld.core.errors import BackendUnavailable

        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            process = subprocess.Popen(
                [
                    *("swtpm", "socket", "--tpm2", "--terminate", "--fd", str(fd)),
                    *("--flags", "not-need-init,startup-clear"),
                    *("--tpmstate", "dir=.,mode=0600"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=(fd,),
                cwd=self._folder,
            )
        except OSError as error:
            raise BackendUnavailable(
                f"{self.description}: cannot be started ({error.strerror}: {error.filename}); "
                "expected swtpm to be installed, and a directory"
            ) from None
        try:
            yield
        finally:
            # It ends when its connection does, which is not closed yet.
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _blocking(description: str, fd: int, steps: Steps[T]) -> T:
    from hcalld.crypto.tpm_session import run

    async def transmit(command: bytes) -> bytes:
        return exchange(description, fd, command)

    return run(steps(transmit))


def exchange(description: str, fd: int, command: bytes) -> bytes:
    """Send a command and give the response, as long as its head says.

    Raises:
        BackendUnavailable: none comes, not in time, or not a whole one.
    """
    from hcalld.core.errors import BackendUnavailable
    from hcallproto.payloads.tpm import HEAD_SIZE, MAX_SIZE

    response = b""
    size = HEAD_SIZE
    try:
        # A whole command fits into any socket's buffer, and a device takes it at once.
        if os.write(fd, command) != len(command):
            raise BackendUnavailable(f"{description}: took only part of a command")
        while len(response) < size:
            if not select.select([fd], [], [], TIMEOUT_S)[0]:
                raise BackendUnavailable(f"{description}: no response within {TIMEOUT_S} s")
            part = os.read(fd, MAX_SIZE + 1)
            if not part:
                raise BackendUnavailable(f"{description}: ended without a response")
            response += part
            if len(response) >= HEAD_SIZE:
                size = int.from_bytes(response[2:6], "big")
            if len(response) > MAX_SIZE or size > MAX_SIZE:
                raise BackendUnavailable(f"{description}: response longer than {MAX_SIZE} bytes")
    except OSError as error:
        raise BackendUnavailable(f"{description}: {error.strerror}") from None
    return response


# -- a partition's --------------------------------------------------------------------------


class PartitionTpm:
    """The swtpm that the daemon starts for a partition, while its guest is off."""

    def __init__(self, directory: StateDirectory, partition: str) -> None:
        self.description = f"swtpm of {partition}"
        self._directory = directory
        self._partition = partition

    def carry_out(self, steps: Steps[T]) -> T:
        """See TpmSource."""
        import trio

        async def main() -> T:
            tpm = self._swtpm()
            try:
                await tpm.open()
                return await steps(tpm.transmit)
            finally:
                with trio.CancelScope(shield=True):
                    await tpm.aclose()

        with _only_warnings():
            return trio.run(main)

    def _swtpm(self) -> Swtpm:
        from hcalld.backends.swtpm import Swtpm
        from hcalld.backends.tpms import FOLDER_NAME, PROGRAM, swtpm_key
        from hcalld.core.records import Run

        tpm = Swtpm(
            PROGRAM,
            self._directory.folder(self._partition) / FOLDER_NAME,
            swtpm_key(self._directory, self._partition),
            timeout_s=TIMEOUT_S,
        )
        # A machine of its own, so that it is powered on: nothing is resumed.
        tpm.begin_run(Run(os.urandom(16), 0))
        return tpm


@contextlib.contextmanager
def _only_warnings() -> Iterator[None]:
    """What the daemon's parts log goes to stderr, if it matters."""
    from hcalld.observe import log

    with log.restored():
        log.configure("text", "warning")
        yield
