# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import struct

import pytest

from hcallproto.payloads import tpm
from hcallproto.payloads.tpm import (
    HEAD,
    HEAD_SIZE,
    Authorization,
    Cc,
    Reader,
    RsaTemplate,
    SessionFlag,
    Tag,
    TpmFormatError,
    TpmRefusedError,
)


def response(body: bytes = b"", rc: int = 0, tag: int = Tag.NO_SESSIONS, extra: int = 0) -> bytes:
    return struct.pack(">HII", tag, HEAD_SIZE + len(body) + extra, rc) + body


def test_command_when_it_has_no_session_then_head_handles_parameters():
    built = tpm.command(Cc.READ_PUBLIC, tpm.u32(0x81800001))
    shown = HEAD.parse(built)
    assert (shown.tag, shown.size, shown.code) == (Tag.NO_SESSIONS, len(built), Cc.READ_PUBLIC)
    assert built[HEAD_SIZE:].hex() == "81800001"


def test_command_when_it_has_a_session_then_its_area_has_a_size():
    auth = Authorization(0x03000000, b"nn", SessionFlag.ENCRYPT, b"mac")
    built = tpm.command(Cc.RSA_DECRYPT, tpm.u32(1), b"params", auth)
    assert HEAD.parse(built).tag == Tag.SESSIONS
    assert built[HEAD_SIZE:].hex() == (
        "000000010000000e0300000000026e6e4000036d6163" + b"params".hex()
    )
    assert "mac" not in repr(auth)


def test_response_when_it_has_a_session_then_it_is_taken_apart():
    body = tpm.u32(3) + b"abc" + tpm.sized(b"nonce") + b"\x41" + tpm.sized(b"hmac")
    found = tpm.parse_response(response(body, tag=Tag.SESSIONS), Cc.RSA_DECRYPT, has_session=True)
    assert found.session is not None
    assert (found.parameters, found.handle) == (b"abc", 0)
    assert (found.session.nonce, found.session.flags, found.session.hmac) == (
        b"nonce",
        0x41,
        b"hmac",
    )
    for size in range(len(body)):
        with pytest.raises(TpmFormatError):
            tpm.parse_response(
                response(body[:size], tag=Tag.SESSIONS), Cc.RSA_DECRYPT, has_session=True
            )
    with pytest.raises(TpmFormatError, match="1 bytes too many"):
        tpm.parse_response(
            response(body + b"x", tag=Tag.SESSIONS), Cc.RSA_DECRYPT, has_session=True
        )


def test_response_when_it_gives_a_handle_then_it_is_before_the_parameters():
    found = tpm.parse_response(response(tpm.u32(0x03000001) + b"p"), Cc.START_AUTH_SESSION)
    assert (found.handle, found.parameters, found.session) == (0x03000001, b"p", None)
    with pytest.raises(TpmFormatError, match="has 3 bytes where 4 should be"):
        tpm.parse_response(response(b"abc"), Cc.START_AUTH_SESSION)
    assert tpm.parse_response(response(b"abc"), Cc.READ_PUBLIC).parameters == b"abc"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "0 bytes, expected at least 10"),
        (response()[:9], "9 bytes"),
        (response(extra=1), "10 bytes and claims 11"),
        (response(extra=-1), "claims 9"),
        (response(bytes(4096)), "at most 4096"),
        (response(tag=Tag.SESSIONS), "tag 0x8002"),
        (response(tag=0), "tag 0x0000"),
    ],
)
def test_response_when_it_is_none_then_refused(data: bytes, why: str):
    with pytest.raises(TpmFormatError, match=why):
        tpm.parse_response(data, Cc.FLUSH_CONTEXT)


def test_response_when_the_tpm_refuses_then_its_code_is_told():
    with pytest.raises(TpmRefusedError, match=r"RSA_DECRYPT: 0x9a2 \(wrong password\)") as caught:
        tpm.parse_response(response(rc=0x9A2), Cc.RSA_DECRYPT, has_session=True)
    assert caught.value.is_about_session
    error = TpmRefusedError(Cc.RSA_DECRYPT, 0x95)
    assert str(error) == "the TPM refuses RSA_DECRYPT: 0x95"
    assert not error.is_about_session
    assert not TpmRefusedError(Cc.RSA_DECRYPT, 0x101).is_about_session


def test_reader_when_asked_for_more_than_there_is_then_refused():
    reader = Reader(b"\x00\x05abc", "X")
    with pytest.raises(TpmFormatError, match="the response to X has 3 bytes where 5 should be"):
        reader.sized()


# -- public areas -------------------------------------------------------------------------------


def area(
    *,
    kind: int = 1,
    name_alg: int = 0xB,
    scheme: str = "00100017000b",
    bits: int = 2048,
    exponent: int = 0,
    modulus: bytes = b"\xc1" * 256,
    tail: bytes = b"",
) -> bytes:
    return (
        tpm.u16(kind)
        + tpm.u16(name_alg)
        + tpm.u32(0x20C20)
        + tpm.sized(b"policy")
        + bytes.fromhex(scheme)
        + tpm.u16(bits)
        + tpm.u32(exponent)
        + tpm.sized(modulus)
        + tail
    )


def test_public_when_parsed_then_its_name_is_its_digest():
    public = tpm.parse_public(area())
    assert public.name == b"\x00\x0b" + hashlib.sha256(area()).digest()
    assert (public.attributes, public.policy, public.exponent) == (0x20C20, b"policy", 65537)
    assert public.modulus == int.from_bytes(b"\xc1" * 256, "big")
    assert tpm.parse_public(area(exponent=3)).exponent == 3


def test_template_when_built_then_it_is_a_public_area_without_a_modulus():
    template = RsaTemplate(tpm.Attribute(0x20C20), b"policy")
    assert template.build() == area(modulus=b"")
    parent = RsaTemplate(tpm.Attribute(0x30472), is_parent=True).build()
    assert parent.hex() == "0001000b00030472000000060080004300100800000000000000"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (area(kind=0x23), "type 0x0023"),
        (area(name_alg=4), "name algorithm 0x0004"),
        (area(scheme="000600800043"), "not for RSA-OAEP"),
        (area(scheme="001000170004"), "not for RSA-OAEP"),
        (area(bits=1024), "1024 bits"),
        (area(modulus=b"\xc1" * 255), "255 bytes"),
        (area(modulus=b"\x01" * 256), "256 bytes"),
        (area(modulus=b""), "0 bytes"),
        (area(tail=b"x"), "1 bytes too many"),
    ],
)
def test_public_when_it_is_another_then_refused(data: bytes, why: str):
    with pytest.raises(TpmFormatError, match=why):
        tpm.parse_public(data)


def test_public_when_truncated_then_refused():
    for size in range(len(area())):
        with pytest.raises(TpmFormatError):
            tpm.parse_public(area()[:size])
