# SPDX-License-Identifier: Apache-2.0
"""How fast a capture is replayed in process, against the same calls in the same session alone."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from tests.bench.results import Results
from tests.unit.hcalld.runtime.shim import RAM, hello

from hcalld.captures.events import Event, Events
from hcalld.captures.sealing import CaptureKey
from hcalld.cli.capturefiles import CHUNK_SIZE
from hcalld.config import Profiles
from hcalld.core.log import LOGGER
from hcalld.core.tap import Taps
from hcalld.crypto.locks import Identity, Recipient
from hcalld.observe.capture import Capture, CaptureOptions
from hcalld.replay.differences import Comparer
from hcalld.replay.incode import Replay
from hcalld.replay.score import Score
from hcalld.runtime.server import Server
from hcalld.stores.memory import MemoryDirectory
from hcallproto.abi.families import pks
from hcallproto.capture.reading import Plain
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.encode import encode

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]

CALLS: Final = 30_000
ROUNDS: Final = 3
AT_ONCE: Final = 64
GOAL_US: Final = 1e6 / 30_000
_PRIVATE: Final = X25519PrivateKey.generate()


class _Guest:
    """A transport whose guest has written all its calls before."""

    peer = "the bench"
    passes_descriptors = False

    def __init__(self) -> None:
        self._chunks = self._calls()

    def _calls(self) -> Iterator[bytes]:
        yield encode(hello())
        yield encode(f.Accept((), is_active=True, request=0, reset=0)) + encode(RAM)
        values = {3: pks.GET_CONFIG.number, 4: 0x1000, 5: 64}
        gpr = tuple(values.get(number, 0) for number in s.REGISTERS)
        frames = (
            encode(f.Call(0, 0, seq, False, 1, gpr, 0, 0, 0, 0)) for seq in range(1, CALLS + 1)
        )
        while chunk := b"".join(itertools.islice(frames, AT_ONCE)):
            yield chunk

    def try_receive(self, room: memoryview | None = None) -> memoryview | bytes | None:
        """See Transport."""
        return None

    async def receive(self, room: memoryview | None = None) -> memoryview | bytes:
        """See Transport."""
        await trio.lowlevel.checkpoint()
        return next(self._chunks, b"")

    def try_send(self, data: bytes | memoryview) -> int:
        """See Transport."""
        return len(data)

    async def send(self, data: bytes | memoryview) -> None:
        """See Transport."""

    def take_descriptors(self, count: int) -> list[int]:
        """See Transport."""
        return []

    async def aclose(self) -> None:
        """See Transport."""


async def _serve(taps: Taps | None = None) -> None:
    directory = MemoryDirectory()
    server = Server(Profiles(None), lambda profile: directory.open(profile.partition))
    server.taps = taps
    await server.serve_transport(_Guest())


async def _capture(path: Path) -> None:
    capture = Capture(
        CaptureOptions(path=path, key=CaptureKey(Recipient(_PRIVATE.public_key()))), "hcalld bench"
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(capture.run)
        await _serve(capture)
        capture.close()
    await capture.aclose()
    assert not capture.dropped


def _events(data: bytes) -> Iterator[Event | Plain]:
    chunks = (data[at : at + CHUNK_SIZE] for at in range(0, len(data), CHUNK_SIZE))
    return Events(chunks, Identity(_PRIVATE)).undecoded()


def _best_us(function: Callable[[], object]) -> float:
    """Processor time of the quickest of some rounds, in microseconds for each call."""
    took = []
    for _ in range(ROUNDS):
        start = time.process_time()
        function()
        took.append(time.process_time() - start)
    return min(took) * 1e6 / CALLS


def test_captures_are_replayed(results: Results, tmp_path: Path) -> None:
    LOGGER.setLevel(logging.CRITICAL)
    path = tmp_path / "calls.pcapng"
    trio.run(_capture, path)
    data = path.read_bytes()

    def replay() -> None:
        score = Score(lambda where, difference: pytest.fail(f"{where} {difference}"))
        Replay(_events(data), score, Comparer()).run()
        assert score.equal == CALLS

    alone = _best_us(lambda: trio.run(_serve))
    read = _best_us(lambda: sum(1 for _ in _events(data)))
    took = _best_us(replay)
    print(
        f"\nGET_CONFIG: session alone {alone:.1f} us, reading {read:.1f} us, replay {took:.1f} us"
    )
    print(f"replay: {1e6 / took:.0f} calls/s")
    results.value("GET_CONFIG replayed in process", took, GOAL_US, "us")
    results.ratio("GET_CONFIG replayed in process / session alone", took, alone, 2)
