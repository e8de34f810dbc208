# SPDX-License-Identifier: Apache-2.0
"""Entries of sealed records: there and back, and what is no batch."""

import msgspec
import pytest

from hcallproto.capture import entries as e
from hcallproto.errors import CaptureError

SECRET = b"hunter2-hunter2"

ALL = (
    e.State(
        at=1,
        partition="p",
        profile=b"{}",
        records=(e.StoredRecord("pks", b"key", SECRET, 1),),
        replies=(e.StoredReply(3, 9, SECRET),),
        instance=bytes(16),
        reset=2,
        generation=5,
        is_dirty=True,
        page_shift=16,
        has_tpm=True,
        is_begin=False,
        waiting=((0, 4),),
        problem="a call waits",
    ),
    e.Full(at=2, data=SECRET),
    e.Answer(at=3, vcpu=0, seq=7, effect=e.EffectKind.ENTROPY, value=SECRET, asked=15),
    e.Answer(at=3, vcpu=0, seq=7, effect=e.EffectKind.READ_RAM, asked=(0x1000, 15)),
    e.Answer(at=3, vcpu=0, seq=7, effect=e.EffectKind.TPM_TRANSMIT, value=SECRET, asked=SECRET),
    e.Answer(at=3, vcpu=0, seq=7, effect=e.EffectKind.NOW, value=1 << 62),
    e.Answer(
        at=4,
        vcpu=0,
        seq=0,
        effect=e.EffectKind.LOAD,
        raised=e.Raised(e.Failure.STORE, "disk"),
    ),
    e.Turn(at=4, vcpu=0, seq=7),
    e.Fault(at=6, vcpu=0, number=1, count=2, rule='{"return":"H_BUSY"}'),
    e.PageOut(at=6, gpas=(0, 65536)),
    e.Withdraw(at=7, gpas=(65536,)),
    e.Attend(at=7),
    e.Rest(at=7),
    e.Stop(at=8, why="the daemon is stopping"),
    e.Lost(at=9, frames=1, entries=3),
    e.End(at=9, why="closed by the peer"),
)


def test_a_batch_is_what_it_was():
    batch = e.Batch(first=0, end=10, known=4, context=2, entries=ALL)
    assert list(e.decode(e.encode(batch)).entries) == list(ALL)


def test_each_kind_is_in_the_test():
    kinds = set(e.AnyEntry.__args__)
    assert {type(entry) for entry in ALL} == kinds


@pytest.mark.parametrize("entry", ALL, ids=lambda entry: type(entry).__name__)
def test_nothing_secret_is_printed(entry: e.Entry):
    assert "hunter2" not in repr(entry)


@pytest.mark.parametrize("entry", ALL, ids=lambda entry: type(entry).__name__)
def test_a_size_is_about_what_is_encoded(entry: e.Entry):
    size = len(msgspec.msgpack.encode(entry))
    assert size <= e.size_of(entry) <= size + 512


def test_a_new_field_at_the_end_is_passed_over():
    newer = msgspec.msgpack.encode([0, 1, 0, 0, [[7, 0, "new"]], "new"])
    assert list(e.decode(newer).entries) == [e.Attend(at=0)]


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x90", b"\x95\x00\x00\x00\x00\x91\x92\x63\x00", b"\x91" * 5000]
)
def test_what_is_no_batch_is_refused(data: bytes):
    with pytest.raises(CaptureError, match="sealed record holds what no hcalld wrote"):
        e.decode(data)
