# SPDX-License-Identifier: Apache-2.0
"""What a rule of faults does to a call that has met it.

``Calls`` asks once for each call whether it meets a rule, and this is carried out where it
would happen by itself: a code instead of the handler, an effect that fails, a commit that is
refused, bits that turn in the reply.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Mapping
from typing import Final

from hcalld.core.effects import ChangePlatform, Effect, Flush, TpmClose, TpmTransmit
from hcalld.core.errors import BackendUnavailable, HcallError, StoreError
from hcalld.core.outcome import Outcome, refusal
from hcalld.faults.engine import Met
from hcalld.faults.rules import Corrupt, Gone, status_of
from hcalld.runtime.partition import Partition
from hcallproto.abi.spec import ArgKind, Hcall
from hcallproto.wire import frames as f


class ConnectionCut(Exception):
    """A rule ends the connection, without a farewell."""


@dataclasses.dataclass(slots=True)
class Mishap:
    """A rule that one call has met, until the call is over."""

    met: Met
    is_felt: bool = True
    """Something went wrong; False: the call has not needed, yet, what is gone."""

    def __post_init__(self) -> None:
        """A rule that takes something away is felt by those who want it."""
        rule = self.met.rule
        self.is_felt = rule.gone is None and rule.corrupt is None

    @property
    def note(self) -> str:
        """What is told of the call."""
        return self.met.note() + ("" if self.is_felt else ", without effect")

    @property
    def seconds(self) -> float:
        """How long the call is not looked at."""
        return (self.met.rule.delay_ms or 0) / 1000

    def perform(self, effect: Effect[object]) -> None:
        """Fail, if what an effect needs is gone.

        Raises:
            BackendUnavailable, StoreError: it is.
        """
        gone = self.met.rule.gone
        if gone is Gone.TPM and isinstance(effect, TpmTransmit | TpmClose):
            self.is_felt = True
            raise BackendUnavailable(f"{self.met.note()}: the TPM does not answer")
        if gone is Gone.DISK and isinstance(effect, Flush):
            self.is_felt = True
            raise StoreError(f"{self.met.note()}: cannot flush: {os.strerror(errno.EIO)}")
        if gone is Gone.SPACE and isinstance(effect, ChangePlatform) and effect.is_kept:
            # The platform's store is not the partition's, which ``commit`` is about.
            self.is_felt = True
            raise StoreError(f"{self.met.note()}: cannot commit: {os.strerror(errno.ENOSPC)}")

    def commit(self, partition: Partition) -> None:
        """Fail, if the partition's store is to be full.

        Raises:
            StoreError: it is; as after any other failure, the models will be loaded again.
        """
        if self.met.rule.gone is Gone.SPACE:
            self.is_felt = True
            partition.discard()
            raise StoreError(f"{self.met.note()}: cannot commit: {os.strerror(errno.ENOSPC)}")

    def spoil(self, hcall: Hcall, arguments: Mapping[str, int], outcome: Outcome) -> Outcome:
        """The outcome with the bits turned that the rule names, if it has them."""
        corrupt = self.met.rule.corrupt
        if corrupt is None:
            return outcome
        spoiled = _turned(corrupt, hcall, arguments, outcome)
        self.is_felt = spoiled is not outcome
        return spoiled


_BYTE: Final = 0xFF


def answered(hcall: Hcall, frame: f.Call, met: Met) -> Outcome:
    """What a call gives instead of being carried out.

    A continue token that is an output with the code is the one that the call brought: what
    was in progress still is.
    """
    assert met.rule.returns is not None
    status = status_of(met.rule.returns, hcall)
    codes = hcall.return_codes
    is_code = status in codes.__members__.values()
    code = codes(status) if is_code else hcall.timeout_code
    registers = {}
    for output in hcall.outputs:
        brought = [arg for arg in hcall.args if arg.kind is output.kind is ArgKind.TOKEN]
        if brought and code in output.also_with:
            registers[output.register] = frame.by_number()[brought[0].register]
    outcome = refusal(hcall, HcallError(code, met.note(), tuple(registers.items())))
    if not is_code:
        outcome.result = status
    return outcome


def _turned(
    corrupt: Corrupt, hcall: Hcall, arguments: Mapping[str, int], outcome: Outcome
) -> Outcome:
    for output in hcall.outputs:
        registers = dict(outcome.registers)
        if output.name == corrupt.name and output.register in registers:
            registers[output.register] ^= corrupt.bits
            return dataclasses.replace(outcome, registers=tuple(sorted(registers.items())))
    if corrupt.name not in arguments:
        return outcome
    at = arguments[corrupt.name] + corrupt.offset
    for place, (gpa, data) in enumerate(outcome.writes):
        if gpa <= at < gpa + len(data):
            turned = bytearray(data)
            turned[at - gpa] ^= corrupt.bits & _BYTE
            writes = list(outcome.writes)
            writes[place] = gpa, bytes(turned)
            return dataclasses.replace(outcome, writes=tuple(writes))
    return outcome
