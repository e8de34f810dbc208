# SPDX-License-Identifier: Apache-2.0
"""Records what a swtpm answers to the steps of a wrapping key, for ``esm/tpm.json``.

Run as ``python -m tests.vectors.record_esm > tests/vectors/esm/tpm.json``. Our side takes its
random bytes from a counter, so that it can be replayed to the byte.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import pathlib
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from hcalld.core.secret import Secret
from hcalld.crypto import wrapping_key
from hcalld.crypto.lockbox import seal_key
from hcalld.crypto.tpm_session import Entropy, Transmit, run
from hcalld.crypto.wrapping_key import WrappingKey
from hcallproto.payloads.tpm import TpmError

SYMMETRIC_KEY = bytes(range(32))


def counter(seed: str) -> Entropy:
    """Bytes that are not random: the same for a seed."""
    count = 0

    async def entropy(size: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.shake_128(f"{seed} {count}".encode()).digest(size)

    return entropy


@contextlib.contextmanager
def swtpm(folder: pathlib.Path) -> Iterator[Transmit]:
    """A swtpm from power-on to power-off."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [
                *("swtpm", "socket", "--tpm2", "--terminate", "--fd", str(theirs.fileno())),
                *("--flags", "not-need-init,startup-clear", "--tpmstate", f"dir={folder}"),
            ],
            pass_fds=(theirs.fileno(),),
            stdout=sys.stderr,
        )

        async def transmit(command: bytes) -> bytes:
            ours.sendall(command)
            return ours.recv(4096)

        try:
            yield transmit
        finally:
            process.terminate()
            process.wait()


class Recording:
    """Scenarios, one after the other, with one TPM."""

    def __init__(self, transmit: Transmit) -> None:
        self._transmit = transmit
        self.scenarios: dict[str, list[list[str]]] = {}

    def carry_out(
        self, name: str, steps: Callable[[Transmit, Entropy], Coroutine[Any, Any, Any]]
    ) -> Any:
        exchanges = self.scenarios[name] = []

        async def transmit(command: bytes) -> bytes:
            response = await self._transmit(command)
            exchanges.append([command.hex(), response.hex()])
            return response

        with contextlib.suppress(TpmError):
            return run(steps(transmit, counter(name)))


def main() -> None:
    with tempfile.TemporaryDirectory() as name, swtpm(pathlib.Path(name)) as transmit:
        recording = Recording(transmit)
        nobody = WrappingKey(Secret(bytes(16)), bytes(34))
        recording.carry_out("absent", lambda t, _e: wrapping_key.read_public(t, nobody))
        first = recording.carry_out("provision", wrapping_key.provision)
        box = seal_key(first.public, Secret(SYMMETRIC_KEY))
        recording.carry_out("read_public", lambda t, _e: wrapping_key.read_public(t, first.key))
        recording.carry_out("decrypt", lambda t, e: wrapping_key.decrypt(t, first.key, box, e))
        recording.carry_out(
            "wrong_lockbox",
            lambda t, e: wrapping_key.decrypt(t, first.key, box[:-1] + b"\0", e),
        )
        second = recording.carry_out("provision_again", wrapping_key.provision)
        recording.carry_out(
            "wrong_password", lambda t, e: wrapping_key.decrypt(t, first.key, box, e)
        )
    known = {
        "lockbox": box.hex(),
        "name": first.key.name.hex(),
        "password": first.key.password.reveal().hex(),
        "second_password": second.key.password.reveal().hex(),
        "symmetric_key": SYMMETRIC_KEY.hex(),
    }
    json.dump({"known": known, "scenarios": recording.scenarios}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
