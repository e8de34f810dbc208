# SPDX-License-Identifier: Apache-2.0
"""Captures with secrets that are made for tests."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

import trio
from tests.unit.hcalld.observe import writing
from tests.unit.hcallproto.capture.sample import call

from hcalld.captures.events import Event, Events
from hcalld.captures.sealing import CaptureKey
from hcalld.core.secret import Secret
from hcalld.core.tap import NOW, Tap
from hcalld.crypto.locks import Passphrase, Unlock
from hcalld.observe.capture import Capture
from hcallproto.abi.families import pks
from hcallproto.capture import entries as e
from hcallproto.capture.reading import Plain
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.encode import encode

SECRET = b"a secret of the guest's, and long enough"
RIGHT = Passphrase(Secret(b"correct horse"))
WRONG = Passphrase(Secret(b"incorrect horse"))

CALL = call(pks.READ_OBJECT, 1, out=0x3000, out_size=64)
REPLY = f.Reply(3, 0, 1, 0, (), (f.WriteSegment(0x3000, len(SECRET), SECRET),))
STATE = e.State(
    NOW, "lpar7", b"{}", (e.StoredRecord("pks", b"k", SECRET, 0),), (), b"i", 0, 1, False, 16, False
)
ENTROPY = e.Answer(NOW, 3, 1, e.EffectKind.ENTROPY, SECRET[::-1], None, len(SECRET))
HELLO = f.Hello(
    s.VERSION,
    s.VERSION,
    s.DEFAULT_MAX_FRAME,
    s.Feature(0),
    bytes(16),
    bytes(16),
    1,
    1,
    1,
    0,
    16,
    "lpar7",
    "qemu",
    0,
)


def capturing(
    path: Path, *, has_secrets: bool = True, **options: int
) -> AbstractAsyncContextManager[Capture]:
    """A capture that is being written, with secrets; all of it is in the file after it."""
    return writing.capturing(path, key=CaptureKey(RIGHT) if has_secrets else None, **options)


async def settle(capture: Capture) -> None:
    """Until what was told so far is in a piece: what comes then is in another one."""
    while True:
        if not capture._pending and not capture._pieces._touched:
            return
        await trio.sleep(0.001)


def begin(tap: Tap) -> None:
    """What a connection tells first."""
    tap.received(HELLO, encode(HELLO))
    if tap.keeps_secrets:
        tap.happened(STATE)


def talk(tap: Tap, count: int = 1) -> None:
    """Calls that are answered with a secret."""
    for _ in range(count):
        tap.received(CALL, encode(CALL))
        if tap.keeps_secrets:
            tap.happened(ENTROPY)
        tap.sent(REPLY, encode(REPLY), "")


def read(data: bytes, unlock: Unlock | None = RIGHT) -> list[Event]:
    """The events of a file that is whole."""
    events = Events([data], unlock)
    found = list(events)
    assert events.problems == events.remarks == []
    again = Events([data], unlock)
    assert [whole(one) for one in again.undecoded()] == found
    assert again.inexact == events.inexact
    return found


def whole(one: Event | Plain) -> Event:
    """An event whose frame is taken apart."""
    if not isinstance(one, Plain):
        return one
    entry = one.decoded()
    return Event(*entry[:6], False, *entry[6:])


def files(folder: Path) -> list[bytes]:
    """The content of each."""
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def whats(events: list[Event]) -> list[object]:
    """What happened; of entries without the frames' numbers."""
    return [one.what for one in events]
