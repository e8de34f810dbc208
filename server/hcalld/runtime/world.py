# SPDX-License-Identifier: Apache-2.0
"""The one place where a connection meets what its frames do not determine.

Entropy and time, guest RAM that is shared, the disk, the TPM, the SEV platform that VMs share,
faults on purpose, and what
operators order: with the same frames and the same answers from here, a partition gives the
same replies, to the byte. ``RealWorld`` is the daemon's. What records a connection wraps it
and writes down what comes through (``Session.enter``); what replays one answers from there.

Frames are told to ``core.tap``. Together they are all that a connection does: what is
between them is a function of both.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import trio

from hcalld.core.effects import (
    ChangePlatform,
    Effect,
    Entropy,
    Flush,
    Now,
    ReadPlatform,
    TpmClose,
    TpmTransmit,
)
from hcalld.core.handlers import Model
from hcalld.core.records import Change, RecordedReply, Run
from hcalld.faults.engine import Meets
from hcalld.runtime.guestram import SharedRam
from hcalld.runtime.orders import Order
from hcalld.runtime.partition import Partition
from hcalld.runtime.tpm import TpmExchange
from hcallproto.wire import frames as f


class MustWait(Exception):
    """An effect cannot be performed without waiting."""


@dataclasses.dataclass(frozen=True, slots=True)
class ReadShared(Effect[bytes | None]):
    """``size`` bytes of RAM that the shim shares; None: it must be asked for them.

    The driver's own: handlers say what they want, and not how it is read.
    """

    gpa: int
    size: int
    ram: SharedRam = dataclasses.field(repr=False, compare=False)


Asked = Entropy | Now | ReadShared | Flush | TpmTransmit | TpmClose | ReadPlatform | ChangePlatform
"""The effects whose answers come from here; all others the frames determine."""


class World(Protocol):
    """What one connection's calls ask."""

    @property
    def faults(self) -> Meets | None:
        """Asked once for each call; None: there are no rules."""

    @property
    def model(self) -> Callable[[str], Model]:
        """``Partition.model``: may load the store anew. Raises StoreError."""

    @property
    def begin(self) -> Callable[[Run], None]:
        """``Partition.begin``: at HELLO, and at each reset. Raises StoreError, ConfigError."""

    def answer(self, frame: f.Call, effect: Effect[Any]) -> Any:
        """Answer one of ``Asked`` at once.

        Args:
            frame: the call that asks.
            effect: what it asks.

        Raises:
            MustWait: ``wait_for`` must go on.
            BackendUnavailable, StoreError: as the effect says.
        """

    async def wait_for(self, frame: f.Call, effect: Effect[Any]) -> Any:
        """Answer what ``answer`` could not, or what may not be asked at once.

        Raises:
            BackendUnavailable, StoreError: as the effect says.
        """

    def give_up(self, frame: f.Call) -> None:
        """A call that waited is over; what it asked may still be under way."""

    async def turn(self, frame: f.Call) -> None:
        """A call that waited may go on; several may, in an order that nothing determines."""

    async def sleep(self, seconds: float) -> None:
        """Let time pass: a rule of faults says so."""

    def commit(self, changes: Sequence[Change], reply: RecordedReply) -> None:
        """``Partition.commit``. Raises StoreError."""

    def ordered(self, order: Order) -> None:
        """An order from outside is about to be carried out."""


class RealWorld:
    """The daemon's own; see ``World``.

    Args:
        partition: whose store and TPM are used.
        faults: the rules in force, if there may be any.
    """

    def __init__(self, partition: Partition, faults: Meets | None = None) -> None:
        self.faults = faults
        self.model: Callable[[str], Model] = partition.model
        self.begin: Callable[[Run], None] = partition.begin
        self.commit = partition.commit
        self._partition = partition
        self._exchanges: dict[tuple[int, int], TpmExchange] = {}
        """By call: commands that were begun and have no response yet."""

    def answer(self, frame: f.Call, effect: Effect[Any]) -> Any:
        """See World."""
        return _AT_ONCE[type(effect)](self, frame, effect)

    async def wait_for(self, frame: f.Call, effect: Effect[Any]) -> Any:
        """See World."""
        match effect:
            case Flush():
                return await self._partition.flush()
            case TpmTransmit():
                exchange = self._exchanges.get((frame.vcpu, frame.seq))
                assert exchange is not None
                try:
                    return await exchange.finish()
                finally:
                    del self._exchanges[frame.vcpu, frame.seq]
            case TpmClose():
                assert self._partition.tpm is not None
                return await self._partition.tpm.close()
            case _:
                return self.answer(frame, effect)

    def give_up(self, frame: f.Call) -> None:
        """See World."""
        if self._exchanges:
            exchange = self._exchanges.pop((frame.vcpu, frame.seq), None)
            if exchange is not None:
                exchange.abandon()

    async def turn(self, frame: f.Call) -> None:
        """See World: any order will do."""

    async def sleep(self, seconds: float) -> None:
        """See World."""
        await trio.sleep(seconds)

    def ordered(self, order: Order) -> None:
        """See World."""

    def _entropy(self, frame: f.Call, effect: Entropy) -> bytes:
        return os.urandom(effect.size)

    def _now(self, frame: f.Call, effect: Now) -> int:
        return time.time_ns()

    def _read_shared(self, frame: f.Call, effect: ReadShared) -> bytes | None:
        return effect.ram.read(effect.gpa, effect.size)

    def _flush(self, frame: f.Call, effect: Flush) -> None:
        if self._partition.is_dirty:
            raise MustWait

    def _tpm_transmit(self, frame: f.Call, effect: TpmTransmit) -> bytes:
        assert self._partition.tpm is not None
        exchange = self._partition.tpm.exchange(effect.command)
        response = exchange.start()
        if response is None:
            self._exchanges[frame.vcpu, frame.seq] = exchange
            raise MustWait
        return response

    def _tpm_close(self, frame: f.Call, effect: TpmClose) -> None:
        raise MustWait

    def _read_platform(self, frame: f.Call, effect: ReadPlatform) -> bytes:
        return self._partition.read_platform()

    def _change_platform(self, frame: f.Call, effect: ChangePlatform) -> None:
        self._partition.change_platform(effect.change)


_AT_ONCE: Final[Mapping[type[Effect[Any]], Callable[[RealWorld, f.Call, Any], Any]]] = {
    Entropy: RealWorld._entropy,
    Now: RealWorld._now,
    ReadShared: RealWorld._read_shared,
    Flush: RealWorld._flush,
    TpmTransmit: RealWorld._tpm_transmit,
    TpmClose: RealWorld._tpm_close,
    ReadPlatform: RealWorld._read_platform,
    ChangePlatform: RealWorld._change_platform,
}
