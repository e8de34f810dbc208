# SPDX-License-Identifier: Apache-2.0
"""Captures that a test has written."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import trio
from tests.unit.hcallproto.capture.sample import TIME

from hcalld.captures.sealing import CaptureKey
from hcalld.observe.capture import Capture, CaptureOptions


def clock() -> Callable[[], int]:
    """A clock on which a microsecond passes from look to look."""
    now = TIME

    def look() -> int:
        nonlocal now
        now += 1000
        return now

    return look


@contextlib.asynccontextmanager
async def capturing(
    path: Path, *, key: CaptureKey | None = None, **options: int
) -> AsyncIterator[Capture]:
    """A capture that is being written; all of it is in the file after it."""
    capture = Capture(CaptureOptions(path=path, key=key, **options), "hcalld 0", clock())
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(capture.run)
            yield capture
            capture.close()
    finally:
        await capture.aclose()
