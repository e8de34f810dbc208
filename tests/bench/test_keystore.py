# SPDX-License-Identifier: Apache-2.0
"""The keystore's calls against what they cannot do without: a cipher, a signature, a copy."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from tests import signing
from tests.bench.floors import Pinger, Times, daemon
from tests.bench.inprocess import InProcess, median_us
from tests.bench.results import Results
from tests.bench.shim import BenchShim

from hcallproto.abi.families import pks
from hcallproto.abi.returns import H
from hcallproto.payloads.pks import WRAP_OVERHEAD, WRAPPING_KEY_SIZE, Policy, WrapFlag
from hcallproto.wire import frames as f

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

SIZE = 60 * 1024
COUNT = 400
ROUNDS = 15
"""Measured in turn, so that a machine that gets slower does not decide; the best counts."""

MANY, FEW = 4_000, 10
OBJECT_SIZE = 16

AUTH, LABEL, KEY, IN, OUT = 0x1000, 0x2000, 0x3000, 0x10000, 0x40000
_PASSWORD = bytes(range(32))
_AUTH_OS = b"\1\3" + bytes(12) + b"\0\x20" + _PASSWORD
_AUTH_FIRMWARE = b"\1\1" + bytes(14)
_KEY_LABEL = b"PLPKSWR\0\0\2\x10\0\0\0\0\0default-wrapping-key"
_LABEL = b"bench\0\0\0\0\2\x10\0\0\0\0\0object"
_FLAGS = int(WrapFlag.PASSWORD | WrapFlag.AES_GCM_256)


def _wrapping(guest: InProcess) -> dict[str, f.Call]:
    """Frames of WRAP and UNWRAP, and a key for them."""
    password = {"password": _PASSWORD}
    guest.must(guest.frame(pks.SET_PASSWORD, (3, 0, IN, len(_PASSWORD)), password))
    named = {"auth": _AUTH_OS, "label": _KEY_LABEL}
    key = (AUTH, KEY, len(_KEY_LABEL))
    policy = int(Policy.WRAPPINGKEY)
    guest.must(guest.frame(pks.GEN_KEY, (*key, policy, 0, WRAPPING_KEY_SIZE), named))
    data = os.urandom(SIZE)
    wrapped = SIZE + WRAP_OVERHEAD
    wrap = guest.frame(
        pks.WRAP_OBJECT, (*key, _FLAGS, IN, SIZE, OUT, wrapped, 0), {**named, "in": data}
    )
    blob = guest.must(wrap).writes[0][1]
    unwrap = guest.frame(
        pks.UNWRAP_OBJECT, (AUTH, 0, IN, wrapped, OUT, SIZE, 0), {"auth": _AUTH_OS, "in": blob}
    )
    assert guest.must(unwrap).writes[0][1] == data
    return {"WRAP": wrap, "UNWRAP": unwrap}


def test_wrapping_in_process(results: Results) -> None:
    guest = InProcess()
    frames = _wrapping(guest)
    cipher, nonce, data = AESGCM(os.urandom(32)), os.urandom(12), os.urandom(SIZE)
    sealed = cipher.encrypt(nonce, data, None)
    raw = {
        "WRAP": functools.partial(cipher.encrypt, nonce, data, None),
        "UNWRAP": functools.partial(cipher.decrypt, nonce, sealed, None),
    }
    print()
    for name, frame in frames.items():
        floors, ours = [], []
        for _ in range(ROUNDS):
            floors.append(median_us(raw[name], COUNT))
            ours.append(median_us(functools.partial(guest.call, frame), COUNT))
        print(f"{name} of 60 KiB in process {min(ours):.1f} us, AESGCM {min(floors):.1f} us")
        results.ratio(f"{name} of 60 KiB in process / raw AESGCM", min(ours), min(floors), 5)


def _socket_frames(shim: BenchShim) -> dict[str, bytes]:
    """Frames of WRAP, UNWRAP and READ of 60 KiB, with sequence number ``shim.seq``."""
    data = os.urandom(SIZE)
    shim.call(pks.SET_PASSWORD.number, (3, 0, IN, len(_PASSWORD)), {IN: _PASSWORD})
    key = (AUTH, KEY, len(_KEY_LABEL))
    named = {AUTH: _AUTH_OS, KEY: _KEY_LABEL, LABEL: _LABEL, IN: data}
    made = shim.call(
        pks.GEN_KEY.number, (*key, int(Policy.WRAPPINGKEY), 0, WRAPPING_KEY_SIZE), named
    )
    assert made.status == H.SUCCESS
    label = (AUTH, LABEL, len(_LABEL))
    written = shim.call(pks.WRITE_OBJECT.number, (*label, 0, IN, SIZE), named)
    assert written.status == H.SUCCESS
    wrapped = SIZE + WRAP_OVERHEAD
    wrap = (*key, _FLAGS, IN, SIZE, OUT, wrapped, 0)
    blob = shim.call(pks.WRAP_OBJECT.number, wrap, {}).writes[0].data
    assert blob is not None
    at = OUT + 0x20000
    unwrap = (AUTH, 0, at, wrapped, OUT, SIZE, 0)
    assert shim.call(pks.UNWRAP_OBJECT.number, unwrap, {at: blob}).writes[0].data == data
    read = (*label, OUT, SIZE)
    assert shim.call(pks.READ_OBJECT.number, read, {}).writes[0].data == data
    return {
        "READ": shim.frame(pks.READ_OBJECT.number, read, {}),
        "WRAP": shim.frame(pks.WRAP_OBJECT.number, wrap, {}),
        "UNWRAP": shim.frame(pks.UNWRAP_OBJECT.number, unwrap, {}),
    }


@pytest.mark.parametrize("shared_ram", [True, False])
def test_wrapping_over_the_socket(
    shared_ram: bool, pinger: Pinger, results: Results, tmp_path: Path
) -> None:
    best: dict[str, Times] = {}
    with daemon(tmp_path) as (_, path):
        shim = BenchShim(path, "bench", shared_ram=shared_ram)
        frames = _socket_frames(shim)
        seq = shim.seq
        for _, (name, frame) in itertools.product(range(ROUNDS), frames.items()):
            # The sequence number is where pinger.c has it.
            frame = frame[:24] + struct.pack(">Q", seq) + frame[32:]
            times = pinger.ping(shim.sock, frame, COUNT)
            seq += COUNT
            if name not in best or times.p50 < best[name].p50:
                best[name] = times
        shim.close()
    how = "shared RAM" if shared_ram else "inline"
    print()
    for name, times in best.items():
        print(f"{name} of 60 KiB over the socket, {how}: {times}")
    for name in ("WRAP", "UNWRAP"):
        results.ratio(
            f"{name} of 60 KiB / READ of 60 KiB over the socket, {how}",
            best[name].p50,
            best["READ"].p50,
            1.5,
        )


def _must_next(guest: InProcess, frames: Iterator[f.Call]) -> None:
    guest.must(next(frames))


def _update_frame(guest: InProcess, name: str, message: bytes) -> f.Call:
    label = bytes(9) + b"\2\x10\0\0\0\0\0" + name.encode("utf-16-le")
    policy = Policy.SIGNEDUPDATE
    if name == "db":
        policy |= Policy.WORLDREADABLE
    return guest.frame(
        pks.SIGNED_UPDATE,
        (AUTH, LABEL, len(label), int(policy), 0, IN, len(message), 0),
        {"auth": b"\1\3" + bytes(14), "label": label, "in": message},
    )


@pytest.mark.parametrize(("owner", "bits"), [("PK", 2048), ("PK4096", 4096)])
def test_signed_update(owner: str, bits: int, results: Results) -> None:
    guest = InProcess({"keystore_signed_updates_without_verification": 1})
    pk = signing.certificates(owner)
    guest.must(_update_frame(guest, "PK", signing.update("PK", pk, owner, signing.moment(0))))
    # Each is later than the one before, as an update must be.
    content = signing.digests(1)
    each = COUNT // 4
    left = iter(
        [
            _update_frame(guest, "db", signing.update("db", content, owner, signing.moment(second)))
            for second in range(ROUNDS * each)
        ]
    )
    one = signing.signer(owner)
    digest = hashlib.sha256(b"what is signed").digest()
    scheme, algorithm = PKCS1v15(), Prehashed(SHA256())
    signature = one.key.sign(digest, scheme, algorithm)
    public = one.key.public_key()
    verify = functools.partial(public.verify, signature, digest, scheme, algorithm)
    floors, ours = [], []
    for _ in range(ROUNDS):
        floors.append(median_us(verify, COUNT))
        ours.append(median_us(functools.partial(_must_next, guest, left), each))
    print(f"\nsigned update {min(ours):.1f} us, RSA-{bits} {min(floors):.1f} us")
    results.ratio(
        f"signed update of db in process / RSA-{bits} verification", min(ours), min(floors), 2
    )


def _filled(count: int) -> tuple[InProcess, Iterator[f.Call]]:
    """A keystore of 128 KiB with so many objects, and READs of some of them, again and again."""
    guest = InProcess({"keystore_kbytes": 128, "pks.object_overhead": 0})
    data = os.urandom(OBJECT_SIZE)
    labels = [b"object%04d" % n for n in range(count)]
    for label in labels:
        named = {"auth": _AUTH_FIRMWARE, "label": label, "data": data}
        arguments = (AUTH, LABEL, len(label), int(Policy.WORLDREADABLE), IN, OBJECT_SIZE)
        guest.must(guest.frame(pks.WRITE_OBJECT, arguments, named))
    some = [labels[n * count // FEW] for n in range(FEW)]
    frames = [
        guest.frame(
            pks.READ_OBJECT,
            (AUTH, LABEL, len(label), OUT, OBJECT_SIZE),
            {"auth": _AUTH_FIRMWARE, "label": label},
        )
        for label in some
    ]
    return guest, itertools.cycle(frames)


def test_read_among_many(results: Results) -> None:
    times: dict[int, list[float]] = {FEW: [], MANY: []}
    filled = {count: _filled(count) for count in times}
    for _, count in itertools.product(range(ROUNDS), filled):
        times[count].append(median_us(functools.partial(_must_next, *filled[count]), COUNT))
    few, many = (min(times[count]) for count in (FEW, MANY))
    print(f"\nREAD with {FEW} objects {few:.1f} us, with {MANY} objects {many:.1f} us")
    results.ratio(f"READ with {MANY} objects in the store / with {FEW}", many, few, 1.2)
