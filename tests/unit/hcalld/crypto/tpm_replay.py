# SPDX-License-Identifier: Apache-2.0
"""A TPM that says again what a swtpm once said, or something else instead."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.vectors.record_esm import counter

from hcalld.core.secret import Secret
from hcalld.crypto.wrapping_key import WrappingKey
from hcallproto.payloads.tpm import Cc

_RECORDED: Final = json.loads(
    (Path(__file__).parents[3] / "vectors" / "esm" / "tpm.json").read_text()
)
KNOWN: Final[dict[str, bytes]] = {
    name: bytes.fromhex(value) for name, value in _RECORDED["known"].items()
}
KEY: Final = WrappingKey(Secret(KNOWN["password"]), KNOWN["name"])

Alter = Callable[[bytes], bytes]


class Replay:
    """The TPM of one scenario; each command must be the recorded one."""

    def __init__(self, scenario: str) -> None:
        self.scenario = scenario
        self.exchanges: list[tuple[bytes, bytes]] = [
            (bytes.fromhex(command), bytes.fromhex(response))
            for command, response in _RECORDED["scenarios"][scenario]
        ]
        self.sent: list[Cc] = []
        self.flushed: list[bytes] = []
        self.entropy = counter(scenario)
        self._altered: dict[int, bytes | Exception] = {}

    def alter(self, index: int, response: bytes | Exception) -> None:
        """Answer this, or raise it, instead of a recorded response."""
        self._altered[index] = response

    def index_of(self, code: Cc) -> int:
        """Where a command is in the conversation."""
        for index, (command, _) in enumerate(self.exchanges):
            if command[6:10] == code.to_bytes(4, "big"):
                return index
        raise LookupError(code)

    async def transmit(self, command: bytes) -> bytes:
        code = Cc(int.from_bytes(command[6:10], "big"))
        index = len(self.sent)
        self.sent.append(code)
        if code is Cc.FLUSH_CONTEXT:
            self.flushed.append(command[10:])
            if index >= len(self.exchanges) or self.exchanges[index][0] != command:
                # What came before was altered, and the steps end early.
                return bytes.fromhex("80010000000a00000000")
        altered = self._altered.get(index)
        if altered is None:
            assert command == self.exchanges[index][0], f"{self.scenario}: {code.name}"
            return self.exchanges[index][1]
        if isinstance(altered, Exception):
            raise altered
        return altered
