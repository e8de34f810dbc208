# SPDX-License-Identifier: Apache-2.0
"""What a platform sends, opened by code that shares nothing with it.

Written from AMD publication 55766 with the standard library and the program ``openssl``: nothing of
``hcalld`` or ``hcallproto`` is used, so an error that both sides of the project make alike is seen
here.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

_SEC1 = bytes.fromhex("303e0201010430"), bytes.fromhex("a00706052b81040022")
"""A P-384 private key in DER (RFC 5915) before and behind its 48 bytes."""
_SPKI = bytes.fromhex("3076301006072a8648ce3d020106052b8104002203620004")
"""A P-384 public key in DER (RFC 5480) before its coordinates."""


class Keys(NamedTuple):
    """Of a session."""

    tek: bytes
    tik: bytes


def openssl(openssl_path: Path, *words: str, data: bytes = b"") -> bytes:
    return subprocess.run(
        [openssl_path, *words], input=data, capture_output=True, check=True
    ).stdout


def point(certificate: bytes) -> bytes:
    """X and Y of a SEV certificate's key, big-endian."""
    return certificate[0x14 : 0x14 + 48][::-1] + certificate[0x5C : 0x5C + 48][::-1]


def public_der(certificate: bytes) -> bytes:
    """A SEV certificate's key for openssl."""
    return _SPKI + point(certificate)


def agree(program: Path, scalar: bytes, peer: bytes) -> bytes:
    """ECDH with a private number and a peer's certificate."""
    with tempfile.TemporaryDirectory() as folder:
        private, public = Path(folder) / "private.der", Path(folder) / "public.der"
        private.write_bytes(scalar.join(_SEC1))
        public.write_bytes(public_der(peer))
        words = ("-inkey", str(private), "-keyform", "DER", "-peerkey", str(public))
        return openssl(program, "pkeyutl", "-derive", *words, "-peerform", "DER")


def kdf(key: bytes, label: str, context: bytes = b"", size: int = 16) -> bytes:
    """SP 800-108 with little-endian numbers; no more than one block is needed."""
    message = struct.pack("<I", 1) + label.encode() + b"\0" + context + struct.pack("<I", 8 * size)
    return hmac.new(key, message, hashlib.sha256).digest()[:size]


def ctr(program: Path, key: bytes, iv: bytes, data: bytes) -> bytes:
    """AES-128-CTR."""
    words = ("-aes-128-ctr", "-d", "-K", key.hex(), "-iv", iv.hex())
    return openssl(program, "enc", *words, data=data)


def open_session(program: Path, scalar: bytes, peer: bytes, session: bytes, policy: int) -> Keys:
    """Transport keys of a session, as its target unwraps them."""
    fields = struct.unpack("<16s32s16s32s32s", session)
    nonce, wrap_tk, wrap_iv, wrap_mac, policy_mac = fields
    master = kdf(agree(program, scalar, peer), "sev-master-secret", nonce)
    assert hmac.digest(kdf(master, "sev-kik"), wrap_tk, "sha256") == wrap_mac
    plain = ctr(program, kdf(master, "sev-kek"), wrap_iv, wrap_tk)
    keys = Keys(plain[:16], plain[16:])
    assert hmac.digest(keys.tik, struct.pack("<I", policy), "sha256") == policy_mac
    return keys


def open_packet(program: Path, keys: Keys, header: bytes, payload: bytes, context: int) -> bytes:
    """What is in a packet: 2 for memory, 3 for a save area."""
    flags, iv, mac = struct.unpack("<I16s32s", header)
    assert flags == 0
    message = struct.pack("<BI16sII", context, flags, iv, len(payload), len(payload)) + payload
    assert hmac.digest(keys.tik, message, "sha256") == mac
    return ctr(program, keys.tek, iv, payload)


class Stream(NamedTuple):
    """A file with a guest on its way."""

    policy: int
    pdh: bytes
    session: bytes
    packets: list[tuple[bytes, bytes]]


def parse_stream(data: bytes) -> Stream:
    """The parts of a file."""
    at = 0

    def take(size: int) -> bytes:
        nonlocal at
        part = data[at : at + size]
        assert len(part) == size
        at += size
        return part

    def blob() -> bytes:
        return take(struct.unpack(">I", take(4))[0])

    policy = struct.unpack(">I", take(4))[0]
    pdh, session = blob(), blob()
    packets = []
    while at < len(data):
        packets.append((blob(), blob()))
    return Stream(policy, pdh, session, packets)
