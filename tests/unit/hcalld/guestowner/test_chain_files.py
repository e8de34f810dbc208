# SPDX-License-Identifier: Apache-2.0
"""Files with certificates, and what they prove."""

from __future__ import annotations

import pytest
from tests.sev_platform import VECTORS, chain, flipped, root

from hcalld.crypto.sev.roots import Root
from hcalld.guestowner.chain_files import (
    PLATFORM_SIZE,
    fingerprint,
    parse_platform,
    parse_root,
    verify,
)
from hcalld.guestowner.errors import GuestOwnerError
from hcallproto.payloads.sev.constants import Usage
from hcallproto.payloads.sev.errors import CertificateError

BITS = (2048, 4096)


@pytest.mark.parametrize("bits", BITS)
def test_verify_when_the_root_is_trusted_then_the_platform_is(bits: int):
    found = parse_platform((VECTORS / f"platform-{bits}.cert").read_bytes())
    for data in ((VECTORS / f"root-{bits}.pem").read_bytes(), root(bits).certificates):
        verdict = verify(found, parse_root(data))
        assert verdict.is_good
        assert not verdict.problem
        assert len(verdict.links) == 7


def test_verify_when_the_file_has_no_root_then_the_trusted_one_is_taken():
    found = parse_platform(chain().export[:PLATFORM_SIZE])
    assert found.amd is None
    assert verify(found, parse_root(root().certificates)).is_good
    with pytest.raises(GuestOwnerError, match="no ASK and ARK"):
        verify(found)


def test_verify_when_nothing_is_said_of_the_root_then_links_hold_and_it_is_not_good():
    verdict = verify(parse_platform(chain().export))
    assert verdict.is_whole
    assert not verdict.is_good
    assert fingerprint(chain().ark) in verdict.problem
    assert "is to be trusted; give the root that you trust by --root" in verdict.problem


def test_verify_when_the_root_is_anothers_then_it_is_not_good():
    verdict = verify(parse_platform(chain().export), parse_root(root(4096).certificates))
    assert verdict.is_whole
    assert not verdict.is_good
    assert verdict.problem.endswith("is not the one that --root has")
    # Below a root that has not signed them, nothing holds either.
    bare = verify(
        parse_platform(chain().export[:PLATFORM_SIZE]), parse_root(root(4096).certificates)
    )
    assert not bare.is_whole
    assert bare.problem.startswith("CEK certificate: signature of the ASK is missing")


@pytest.mark.parametrize(
    ("offset", "link"),
    [
        (0x414 + 20, "PDH <- PEK"),
        (2084 + 0x414 + 20, "PEK <- OCA"),
        (2084 + 0x61C + 20, "PEK <- CEK"),
        (2 * 2084 + 0x414 + 20, "OCA <- OCA"),
        (3 * 2084 + 0x414 + 20, "CEK <- ASK"),
        (PLATFORM_SIZE + 832 - 20, "ASK <- ARK"),
        (PLATFORM_SIZE + 1664 - 20, "ARK <- ARK"),
    ],
)
def test_verify_when_a_byte_is_altered_then_the_link_is_named(offset: int, link: str):
    trusted = parse_root(root().certificates)
    verdict = verify(parse_platform(flipped(chain().export, offset)), trusted)
    assert not verdict.is_whole
    assert verdict.problem.startswith(
        f"{link[:3]} certificate: signature of the {link[-3:]} is wrong"
    )
    assert [str(one).partition(":")[0] for one in verdict.links if one.error] == [link]


@pytest.mark.parametrize("size", [0, 2084, PLATFORM_SIZE - 1])
def test_parse_platform_when_it_is_too_short_then_it_says_what_is_expected(size: int):
    with pytest.raises(GuestOwnerError, match=f"{size} bytes; expected 8336"):
        parse_platform(chain().export[:size])


@pytest.mark.parametrize("data", [b"\0", bytes(1664), bytes(10000)])
def test_parse_platform_when_more_follows_that_is_no_root_then_it_is_refused(data: bytes):
    with pytest.raises(CertificateError):
        parse_platform(chain().export[:PLATFORM_SIZE] + data)


def test_parse_root_when_it_has_private_keys_then_certificates_alone_come_back():
    ask, ark = parse_root(root().to_pem().reveal())
    assert (ask, ark) == (root().ask, root().ark)
    assert (ask.usage, ark.usage) == (Usage.ASK, Usage.ARK)


def test_parse_root_when_it_is_none_then_it_says_what_is_expected():
    with pytest.raises(GuestOwnerError, match="5 bytes and no PEM; expected a file of hcalld sev"):
        parse_root(b"hello")
    pem = root().to_pem().reveal().replace(b"SEV ARK", b"SEV ASK")
    with pytest.raises(GuestOwnerError, match="blocks"):
        parse_root(pem)
    Root.from_pem(root().to_pem().reveal())
