# SPDX-License-Identifier: Apache-2.0
"""Captures of any size, and what it costs a command to read them."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.unit.hcallproto.capture.sample import Capture, call

from hcallproto.abi.families import pks
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

MAX_RSS_KIB: Final = 64 << 10
"""Of ``hcalld decode``, however large the capture: Python, the tables, and some chunks."""

_CALLS: Final = 200
_DATA: Final = 8192


def large_capture(size: int) -> Iterator[bytes]:
    """At least so many bytes of a capture; every call writes an object."""
    capture = Capture()
    capture.guest("lpar7")
    inline = f.BufferSpec(9, s.BufferKind.SIZED, s.Direction.IN, 10, 65536)
    spec = f.CallSpec(pks.WRITE_OBJECT.number, 1, s.Disposition.FORWARD, 0, 1, -54, -54, (inline,))
    capture.frame(f.Announce(f.Announcement((spec,)), 1, 0))
    yield bytes(capture.data)
    size -= len(capture.data)
    capture.data = b""
    data = f.Segment(0, 0x2000, s.SegmentStatus.OK, bytes(_DATA))
    for seq in range(1, _CALLS + 1):
        capture.frame(call(pks.WRITE_OBJECT, seq, data, data=0x2000, data_size=_DATA))
        capture.frame(f.Reply(3, 0, seq, 0))
    block = bytes(capture.data)
    while size > 0:
        yield block
        size -= len(block)


def decode_of(size: int, *options: str) -> tuple[int, int, int]:
    """Have ``hcalld decode`` read a capture from a pipe.

    Returns:
        Lines that it printed, calls that there were, KiB of memory that it took at most.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "hcalld", "decode", *options, "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout, written, kib = process.stdin, process.stdout, 0, 0

    def write() -> None:
        nonlocal written, kib
        with stdin:
            for piece in large_capture(size):
                written += stdin.write(piece)
            # At its end it would tell of its parent's memory, too, from before execve().
            status = Path(f"/proc/{process.pid}/status").read_text()
            kib = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])

    writer = threading.Thread(target=write)
    writer.start()
    with stdout:
        lines = sum(piece.count(b"\n") for piece in iter(lambda: stdout.read(1 << 16), b""))
    writer.join()
    assert process.wait() == 0
    head, block = (len(piece) for piece, _ in zip(large_capture(1 << 16), range(2), strict=False))
    return lines, _CALLS * ((written - head) // block), kib
