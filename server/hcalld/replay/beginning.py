# SPDX-License-Identifier: Apache-2.0
"""What a connection of a capture begins with, and what of a capture is turned into what it was."""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Any

import msgspec

from hcalld.config import Profile
from hcalld.core.records import Lifetime, Record, RecordedReply, Run
from hcalld.families.registry import Kind
from hcalld.replay.stage import AtOnce, NoTpm
from hcalld.replay.track import Event, Inbound, Outbound, Track, head_of
from hcalld.runtime import orders
from hcalld.runtime.partition import Partition
from hcalld.runtime.tpm import TpmSession
from hcalld.stores.memory import MemoryState, MemoryStore
from hcallproto.capture import entries as e
from hcallproto.errors import CaptureError
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.decode import decode, decode_header
from hcallproto.wire.encode import encode


def partition_of(state: e.State, guest: str) -> Partition:
    """A partition as it was.

    Raises:
        CaptureError: no partition was so.
    """
    try:
        return _partition_of(state, guest)
    except (msgspec.DecodeError, ValueError) as error:
        raise CaptureError(
            f"the state that a connection of guest {guest!r} began with is what no hcalld wrote: "
            f"{error}"
        ) from None


def _partition_of(state: e.State, guest: str) -> Partition:
    store = MemoryState()
    for one in state.records:
        record = Record(one.namespace, one.key, one.value, Lifetime(one.lifetime))
        store.records[one.namespace, one.key] = record
    for reply in state.replies:
        store.replies[reply.vcpu] = RecordedReply(reply.vcpu, reply.seq, reply.frame)
    store.run = Run(state.instance, state.reset)
    store.generation = state.generation
    profile = msgspec.json.decode(state.profile, type=Profile)
    tpm = TpmSession(NoTpm()) if state.has_tpm else None
    kind = Kind.CLIENT if state.is_client else Kind.GUEST
    return Partition(profile, lambda: MemoryStore(store, guest), AtOnce(), tpm, kind)


def welcome_of(track: Track) -> f.Welcome | None:
    """The connection's WELCOME, if it has been read."""
    for event in track.events:
        if isinstance(event, Outbound) and head_of(event.data).type == s.FrameType.WELCOME:
            welcome = frame_of(event.data)
            assert isinstance(welcome, f.Welcome)
            return welcome
    return None


def begin_at(events: MutableSequence[Event], state: e.State) -> None:
    """Have a connection begin in the middle: at its begin the machine had this run already."""
    for place, event in enumerate(events):
        if isinstance(event, e.State):
            break
        if isinstance(event, Inbound | Outbound):
            frame = frame_of(event.data)
            if "reset" in frame._fields:
                data = encode(frame._replace(reset=state.reset))
                events[place] = event._replace(data=data)


def order_of(entry: e.Order) -> orders.Order:
    """The order that a capture tells of."""
    match entry:
        case e.PageOut(gpas=gpas):
            return orders.PageOut(gpas)
        case e.Withdraw(gpas=gpas):
            return orders.Withdraw(gpas)
        case e.Attend():
            return orders.Attend()
        case e.Rest():
            return orders.Rest()
        case e.Stop(why=why):
            return orders.Stop(why)


def frame_of(data: bytes) -> Any:
    """A frame of a capture."""
    return decode(decode_header(data), data)


def with_request(data: bytes, request: int) -> bytes:
    """A frame with another number in the place of its request's."""
    return encode(frame_of(data)._replace(request=request))
