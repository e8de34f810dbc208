# SPDX-License-Identifier: Apache-2.0
"""Stands between a program of tpm2-tools and a TPM: ``-T "cmd:python -m tests.e2e.tpm_relay ..."``.

Commands come on standard input, responses go to standard output.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path

from tests.e2e.fakeshim import FakeShim, connect, hello

from hcallproto.abi.families import tpm
from hcallproto.abi.returns import H

_REQUEST, _RESPONSE = 0x1000, 0x3000


def _commands() -> bytes:
    """The next command, or nothing at the end."""
    command = b""
    while len(command) < 10 or len(command) < struct.unpack_from(">I", command, 2)[0]:
        data = os.read(0, 4096)
        if not data:
            break
        command += data
    return command


def _pass_on(transmit: Callable[[bytes], bytes]) -> None:
    while command := _commands():
        os.write(1, transmit(command))


def _by_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(path)

        def transmit(command: bytes) -> bytes:
            sock.sendall(command)
            return sock.recv(4096)

        _pass_on(transmit)


def _by_hypercall(path: str, name: str) -> None:
    shim = FakeShim(connect(Path(path)))
    shim.negotiate(hello(name))

    def transmit(command: bytes) -> bytes:
        shim.ram[_REQUEST : _REQUEST + len(command)] = command
        reply = shim.call(
            tpm.TPM_COMM.number, tpm.Operation.EXECUTE, _REQUEST, len(command), _RESPONSE, 4096
        )
        assert reply.status == H.SUCCESS, reply
        ((register, size),) = reply.registers
        assert register == 4
        return bytes(shim.ram[_RESPONSE : _RESPONSE + size])

    _pass_on(transmit)
    closed = shim.call(tpm.TPM_COMM.number, tpm.Operation.CLOSE_SESSION)
    assert closed.status == H.SUCCESS, closed
    shim.close()


if __name__ == "__main__":
    if sys.argv[1] == "socket":
        _by_socket(sys.argv[2])
    else:
        _by_hypercall(sys.argv[2], sys.argv[3])
