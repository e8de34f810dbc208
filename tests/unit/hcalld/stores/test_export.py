# SPDX-License-Identifier: Apache-2.0
"""The container of exports: locked two ways, whole, unaltered, of this version."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hcalld.core.errors import StoreError
from hcalld.core.secret import Secret
from hcalld.crypto import passphrase as passphrases
from hcalld.crypto.locks import ByPassphrase, Identity, Lock, Passphrase, Recipient, Unlock
from hcalld.crypto.passphrase import key_check
from hcalld.stores import export as module
from hcalld.stores.export import (
    MAGIC,
    MAX_HEADER_SIZE,
    Export,
    ExportedRecord,
    pack,
    unpack,
)

SECRET = b"the object's data"
EXPORT = Export(
    partition="lpar7",
    generation=41,
    records=[
        ExportedRecord(namespace="pks", key=b"o\x03\x00\xff", value=SECRET),
        ExportedRecord(namespace="partition", key=b"attributes", value=b""),
    ],
)
PRIVATE = X25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture(autouse=True)
def _cheap_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passphrases, "LOG_N", 10)


def passphrase(text: bytes = b"correct horse") -> Passphrase:
    return Passphrase(Secret(text))


WAYS: list[tuple[Lock, Unlock]] = [
    (passphrase(), passphrase()),
    (Recipient(PRIVATE.public_key()), Identity(PRIVATE)),
]
ways = pytest.mark.parametrize(("lock", "unlock"), WAYS, ids=["passphrase", "recipient"])


@ways
def test_what_goes_in_comes_out(lock: Lock, unlock: Unlock):
    data = pack(EXPORT, lock)

    assert unpack(data, unlock) == EXPORT
    assert pack(EXPORT, lock) != data
    for clear in (SECRET, b"lpar7", SECRET.hex().encode(), b"dGhlIG9iamVjdCdzIGRhdG"):
        assert clear not in data


@ways
def test_every_cut_is_told_from_a_wrong_key(lock: Lock, unlock: Unlock):
    data = pack(EXPORT, lock)
    for size in range(len(data)):
        with pytest.raises(StoreError, match=r"is damaged|no export of hcalld") as raised:
            unpack(data[:size], unlock)
        assert "passphrase" not in str(raised.value)
    with pytest.raises(StoreError, match=f"has {len(data) + 1} bytes, expected {len(data)}"):
        unpack(data + b"\n", unlock)


@ways
def test_every_changed_byte_is_found(lock: Lock, unlock: Unlock):
    data = pack(EXPORT, lock)
    for offset in range(len(data)):
        changed = data[:offset] + bytes((data[offset] ^ 1,)) + data[offset + 1 :]
        with pytest.raises(StoreError) as raised:
            unpack(changed, unlock)
        assert "wrong passphrase" not in str(raised.value), offset


def test_the_wrong_key_is_told_from_damage():
    with pytest.raises(StoreError, match="wrong passphrase"):
        unpack(pack(EXPORT, passphrase()), passphrase(b"incorrect horse"))
    other = X25519PrivateKey.generate()
    with pytest.raises(StoreError, match="for another recipient"):
        unpack(pack(EXPORT, WAYS[1][0]), Identity(other))


def test_the_wrong_way_is_told():
    with pytest.raises(StoreError, match="open it with identity:FILE"):
        unpack(pack(EXPORT, WAYS[1][0]), passphrase())
    with pytest.raises(StoreError, match="open it with passphrase-file:PATH"):
        unpack(pack(EXPORT, passphrase()), Identity(PRIVATE))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not whole"),
        (b"hcalld-exp", "not whole"),
        (b"SQLite format 3\0" + bytes(100), "no export of hcalld"),
        (b"hcalld-export-v2\n" + bytes(100), "newer hcalld"),
        (b"hcalld-export-v10\n" + bytes(100), "newer hcalld"),
        (b"hcalld-export-vX\n" + bytes(100), "no export of hcalld"),
        (MAGIC + struct.pack(">I", MAX_HEADER_SIZE + 1) + bytes(9999), "a header of 4097 bytes"),
    ],
)
def test_other_files_are_refused(data: bytes, message: str):
    with pytest.raises(StoreError, match=message):
        unpack(data, passphrase())


def test_more_than_any_export_is_refused(monkeypatch: pytest.MonkeyPatch):
    data = pack(EXPORT, passphrase())
    monkeypatch.setattr(module, "MAX_SIZE", len(data) - 1)
    with pytest.raises(StoreError, match="as no export has"):
        unpack(data, passphrase())
    with pytest.raises(StoreError, match="MiB of records"):
        pack(EXPORT, passphrase())


# -- somebody else's hand, with the description alone ---------------------------------------------


def build(header: object, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    head = MAGIC + struct.pack(">I", len(text)) + text
    return head + hashlib.sha256(head).digest() + body


def head_of(data: bytes) -> tuple[dict[str, object], bytes, bytes]:
    """The header, all that is authenticated, and the body."""
    (size,) = struct.unpack_from(">I", data, 17)
    end = 21 + size + 32
    return json.loads(data[21 : 21 + size]), data[:end], data[end:]


def hkdf(key: bytes, salt: bytes, info: bytes) -> bytes:
    """RFC 5869 with SHA-256, for one block."""
    extracted = hmac.digest(salt, key, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def test_the_description_is_enough_to_open_one_with_a_passphrase():
    header, head, body = head_of(pack(EXPORT, passphrase()))
    key_info = header["key"]
    assert isinstance(key_info, dict)
    assert key_info.pop("type") == "scrypt"
    salt = base64.b64decode(key_info["salt"])
    key = hashlib.scrypt(b"correct horse", salt=salt, n=1 << key_info["log_n"], r=8, p=1, dklen=32)
    plain = json.loads(AESGCM(key).decrypt(bytes(12), body, head))
    assert plain["partition"] == "lpar7"
    assert base64.b64decode(plain["records"][0]["value"]) == SECRET


def test_the_description_is_enough_to_open_one_for_a_recipient():
    header, head, body = head_of(pack(EXPORT, WAYS[1][0]))
    key_info = header["key"]
    assert isinstance(key_info, dict)
    ephemeral = base64.b64decode(key_info["ephemeral"])
    recipient = base64.b64decode(key_info["recipient"])
    shared = PRIVATE.exchange(X25519PublicKey.from_public_bytes(ephemeral))
    key = hkdf(shared, ephemeral + recipient, b"hcalld:export x25519")
    assert json.loads(AESGCM(key).decrypt(bytes(12), body, head))["generation"] == 41


@pytest.mark.parametrize(
    "changed",
    [
        {"more": 1},
        {"check": "AAAA"},
        {"body_size": 0},
        {"body_size": 1 << 40},
        {"key": {"type": "rot13"}},
        {"key": {"type": "scrypt", "salt": "AAAAAAAAAAAAAAAAAAAAAA==", "log_n": 30}},
        {"key": {"type": "scrypt", "salt": "AAAAAAAAAAAAAAAAAAAAAA==", "log_n": 20, "r": 32}},
        {"key": {"type": "x25519", "recipient": "AAAA", "ephemeral": "AAAA"}},
    ],
    ids=str,
)
def test_a_header_of_a_hostile_hand_is_held_to_its_bounds(changed: dict[str, object]):
    header, _, body = head_of(pack(EXPORT, passphrase()))

    with pytest.raises(StoreError, match="none that this version knows"):
        unpack(build({**header, **changed}, body), passphrase())


def test_a_recipients_zero_key_is_damage():
    """X25519 with the point 0 agrees on 0 with everybody (RFC 7748, 6.1)."""
    header, _, body = head_of(pack(EXPORT, WAYS[1][0]))
    key_info = header["key"]
    assert isinstance(key_info, dict)
    key_info["ephemeral"] = "A" * 43 + "="

    with pytest.raises(StoreError, match="bad ephemeral key"):
        unpack(build(header, body), WAYS[1][1])


def test_a_body_that_is_no_export_is_refused():
    lock = passphrase()
    info, key = lock.lock()
    assert isinstance(info, ByPassphrase)
    for plain in (b"", b"{}", b"[]", b'{"partition": 1, "generation": 0, "records": []}'):
        header = {
            "key": {
                "type": "scrypt",
                "log_n": 10,
                "salt": base64.b64encode(info.salt).decode(),
            },
            "check": base64.b64encode(key_check(key)).decode(),
            "body_size": len(plain) + 16,
        }
        head = build(header, b"")
        data = head + AESGCM(key.reveal()).encrypt(bytes(12), plain, head)
        with pytest.raises(StoreError, match="no export that this version knows"):
            unpack(data, lock)


def test_a_record_shows_no_value():
    assert "data" not in repr(EXPORT)
