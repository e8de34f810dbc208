# SPDX-License-Identifier: Apache-2.0
"""A TPM of the daemon's own: a swtpm process for each partition that uses one.

It is started by the first command and has two sockets, both made here and inherited: the
data channel, and the control channel (swtpm's ``tpm_ioctl.h``, ``ptm_*``; its man page,
swtpm_ioctls(3)). Nothing listens, so nobody else reaches a guest's TPM. It outlives no
daemon, however that ends: with ``--terminate`` it ends when the data channel does, and
where that is not enough (0.7.1 turns in a circle if its response finds nobody) the kernel
kills it (PR_SET_PDEATHSIG, by setpriv of util-linux).

Its state is encrypted under a key that is derived for the partition. What a real TPM
loses with its power (PCRs, loaded objects) is kept as swtpm's *volatile state* when the
daemon lets go in good order, and put back if the same machine comes again: a daemon can
be restarted while its guest runs. It is used once, so that nothing can be rolled back
to it, and thrown away for another machine, which is powered on.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import socket
import struct
import subprocess
from typing import Final

import trio

from hcalld.backends.channel import Channel, flush_contexts
from hcalld.core.errors import BackendUnavailable
from hcalld.core.log import Log
from hcalld.core.records import Run
from hcalld.core.secret import Secret
from hcallproto.payloads import tpm_contexts as tpm

START_SECONDS: Final = 30
"""A new TPM makes its seeds first."""
CONTROL_SECONDS: Final = 5
STOP_SECONDS: Final = 3
"""What an end in good order may take, before it is killed."""

_CMD_INIT: Final = 2
_CMD_SHUTDOWN: Final = 3
_CMD_STORE_VOLATILE: Final = 10
_INIT_DELETE_VOLATILE: Final = 1
"""The file is removed after it has been read."""

VOLATILE_NAME: Final = "tpm2-00.volatilestate"
KEPT_NAME: Final = "kept-for"
"""Whose volatile state that is: instance and reset count."""

_MAX_TAIL: Final = 400


class Swtpm:
    """One partition's swtpm; see TpmBackend.

    Args:
        program: swtpm.
        folder: where its state is; made if it is not there.
        key: encrypts the state, 32 bytes.
        timeout_s: for one command.
        wait_us: how long ``transmit_now`` waits for a response.
    """

    def __init__(
        self,
        program: str,
        folder: pathlib.Path,
        key: Secret,
        *,
        timeout_s: float,
        wait_us: int = 0,
    ) -> None:
        self._program = program
        self._folder = folder
        self._key = key
        self._timeout_s = timeout_s
        self._wait_us = wait_us
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = trio.Event()
        self._is_ending = False
        self._tail = b""
        self._data: Channel | None = None
        self._control: socket.socket | None = None
        self._run = Run(b"", 0)
        self._log = Log(folder=str(folder))

    @property
    def description(self) -> str:
        """See TpmBackend."""
        return f"swtpm of {self._folder}"

    @property
    def process_id(self) -> int | None:
        """The process, while there is one."""
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    @property
    def is_open(self) -> bool:
        """See TpmBackend."""
        return self.process_id is not None and self._data is not None and self._data.is_usable

    def begin_run(self, run: Run) -> None:
        """See TpmBackend."""
        self._run = run

    async def open(self) -> None:
        """See TpmBackend."""
        data = self._data
        if self.process_id is not None and data is not None and data.owes and not data.is_broken:
            # It may still work on what was given up: a TPM is not restarted for being slow.
            try:
                await data.settle()
            except BackendUnavailable as error:
                self._log.error("swtpm does not answer and is restarted", reason=str(error))
        if not self.is_open:
            await self._kill()
            await self._start()

    async def transmit(self, command: bytes) -> bytes:
        """See TpmBackend."""
        return await self._channel().transmit(command)

    def transmit_now(self, command: bytes) -> bytes | None:
        """See TpmBackend."""
        return self._channel().transmit_now(command, self._wait_us)

    async def finish(self) -> bytes:
        """See TpmBackend."""
        assert self._data is not None
        try:
            return await self._data.finish()
        except BackendUnavailable:
            if self._data.is_broken:
                # Most often because the process is gone: say with which status.
                with trio.move_on_after(CONTROL_SECONDS):
                    await self._ended.wait()
                    raise BackendUnavailable(self._how_it_ended()) from None
            raise

    async def close_session(self) -> None:
        """See TpmBackend."""
        if self.process_id is None and self._kept() is None:
            # Without a process there are no sessions and transient objects.
            return
        await self.open()
        await flush_contexts(self._channel())

    async def aclose(self) -> None:
        """See TpmBackend."""
        self._is_ending = True
        if self.process_id is not None:
            with trio.move_on_after(STOP_SECONDS):
                try:
                    await self._stop()
                except (BackendUnavailable, OSError) as error:
                    self._log.warning("swtpm not ended in good order", reason=str(error))
        await self._kill()

    # -- the process ------------------------------------------------------------------------

    def _channel(self) -> Channel:
        if self._data is None or not self.is_open:
            raise BackendUnavailable(self._how_it_ended())
        return self._data

    def _how_it_ended(self) -> str:
        process = self._process
        status = None if process is None else process.poll()
        if status is None:
            return f"{self.description} is not running"
        tail = "".join(filter(str.isprintable, self._tail.decode("utf-8", "replace")))
        return f"{self.description} has ended with status {status}{tail and ': '}{tail}"

    async def _start(self) -> None:
        try:
            with trio.fail_after(START_SECONDS):
                await self._launch()
        except trio.TooSlowError:
            await self._kill()
            raise BackendUnavailable(
                f"{self.description} did not start within {START_SECONDS} s"
            ) from None
        except OSError as error:
            await self._kill()
            raise BackendUnavailable(
                f"{self.description} cannot be started: {error.strerror or error}; expected "
                f"{self._program} to be installed and the folder to be ours"
            ) from None
        except BaseException:
            # Cancelled, or it answered wrongly: a TPM half started is of no use.
            with trio.CancelScope(shield=True):
                await self._kill()
            raise

    async def _launch(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept = self._kept()
        if kept is None:
            (self._folder / VOLATILE_NAME).unlink(missing_ok=True)
        (self._folder / KEPT_NAME).unlink(missing_ok=True)
        self._spawn()
        assert self._data is not None
        await self._command(_CMD_INIT, struct.pack(">I", _INIT_DELETE_VOLATILE))
        code = tpm.response_code(await self._data.transmit(tpm.STARTUP_CLEAR))
        if code not in (tpm.Code.SUCCESS, tpm.Code.INITIALIZE):
            raise BackendUnavailable(f"{self.description}: startup gives code 0x{code:x}")
        self._log.info("swtpm started", process=self.process_id, resumed=kept is not None)
        if kept is not None and kept != self._run.reset:
            await flush_contexts(self._data)

    def _spawn(self) -> None:
        with contextlib.ExitStack() as theirs:
            data, data_theirs = socket.socketpair()
            control, control_theirs = socket.socketpair()
            self._data = Channel(data.detach(), self.description, self._timeout_s)
            self._control = control
            control.setblocking(False)
            theirs.enter_context(data_theirs)
            theirs.enter_context(control_theirs)
            key_read, key_write = os.pipe()
            theirs.callback(os.close, key_read)
            # A pipe takes 32 bytes without a reader.
            os.write(key_write, self._key.reveal())
            os.close(key_write)
            fds = (data_theirs.fileno(), control_theirs.fileno(), key_read)
            self._tail = b""
            self._ended = trio.Event()
            self._is_ending = False
            # Here and not in a thread, whose end would be the parent's death for the kernel.
            self._process = subprocess.Popen(
                [
                    *_until_our_death(),
                    *(self._program, "socket", "--tpm2", "--terminate"),
                    *("--tpmstate", "dir=.,mode=0600"),
                    *("--fd", str(fds[0])),
                    *("--ctrl", f"type=unixio,clientfd={fds[1]}"),
                    *("--key", f"fd={fds[2]},mode=aes-256-cbc,format=binary"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=fds,
                cwd=self._folder,
            )
        trio.lowlevel.spawn_system_task(self._watch, self._process, self._ended)

    async def _watch(self, process: subprocess.Popen[bytes], ended: trio.Event) -> None:
        """Until the process ends: keep the last it says, then say that it has ended."""
        assert process.stderr is not None
        pidfd = os.pidfd_open(process.pid)
        try:
            async with trio.lowlevel.FdStream(os.dup(process.stderr.fileno())) as said:
                process.stderr.close()
                async for data in said:
                    self._tail = (self._tail + data)[-_MAX_TAIL:]
            await trio.lowlevel.wait_readable(pidfd)
            status = process.wait()
            if process is self._process and not self._is_ending:
                self._log.error("swtpm has ended", status=status, reason=self._how_it_ended())
        finally:
            os.close(pidfd)
            ended.set()

    async def _kill(self) -> None:
        """End what is there, in any state; let go of its sockets."""
        self._is_ending = True
        if self._data is not None:
            self._data.close()
            self._data = None
        if self._control is not None:
            trio.lowlevel.notify_closing(self._control)
            self._control.close()
            self._control = None
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()
            with trio.CancelScope(shield=True):
                await self._ended.wait()

    async def _stop(self) -> None:
        """End in good order: a shutdown, the volatile state kept, and whose it is."""
        assert self._data is not None
        await self._data.settle()
        # Without it the next power-on counts as one after a loss of power, and an object
        # that guards against guessing counts a wrong guess.
        await self._data.transmit(tpm.SHUTDOWN_CLEAR)
        await self._command(_CMD_STORE_VOLATILE)
        kept = f"{self._run.instance.hex()} {self._run.reset}\n"
        (self._folder / KEPT_NAME).write_text(kept, "ascii")
        await self._command(_CMD_SHUTDOWN)
        await self._ended.wait()

    def _kept(self) -> int | None:
        """The reset count at which this machine's volatile state was kept, if it was."""
        try:
            instance, _, reset = (self._folder / KEPT_NAME).read_text("ascii").partition(" ")
            return int(reset) if bytes.fromhex(instance) == self._run.instance else None
        except (OSError, ValueError):
            return None

    # -- the control channel ------------------------------------------------------------------

    async def _command(self, number: int, parameters: bytes = b"") -> None:
        """Give a control command; its result must be 0.

        Raises:
            BackendUnavailable: it is not, or none came.
        """
        assert self._control is not None
        control = trio.socket.from_stdlib_socket(self._control)
        answer = b""
        try:
            with trio.fail_after(CONTROL_SECONDS), contextlib.suppress(ConnectionError):
                await control.send(struct.pack(">I", number) + parameters)
                while len(answer) < 4:
                    data = await control.recv(4 - len(answer))
                    if not data:
                        break
                    answer += data
        except trio.TooSlowError:
            raise BackendUnavailable(
                f"{self.description}: control command {number} not answered within "
                f"{CONTROL_SECONDS} s"
            ) from None
        if len(answer) < 4:
            with trio.move_on_after(CONTROL_SECONDS):
                await self._ended.wait()
            raise BackendUnavailable(self._how_it_ended())
        if any(answer):
            raise BackendUnavailable(
                f"{self.description}: control command {number} gives result 0x{answer.hex()}"
            )


def _until_our_death() -> list[str]:
    """Words before a command that is to end with us."""
    setpriv = shutil.which("setpriv")
    return [] if setpriv is None else [setpriv, "--pdeathsig", "KILL", "--"]
