# SPDX-License-Identifier: Apache-2.0
"""Measurements: what they cover, by the version of the platform."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import struct

import pytest
from tests.sev_platform import KEYS, VERSION

from hcalld.core.secret import Secret
from hcalld.crypto.sev.measurement import measure
from hcalld.testing.sev import made_up
from hcallproto.payloads.sev import Version

DIGEST = hashlib.sha256(b"firmware").digest()
NONCE = made_up("mnonce", 16)
LONG = [Version(0, 17, 0), Version(0, 18, 1), Version(1, 0, 0), VERSION]
SHORT = [Version(0, 0, 0), Version(0, 16, 255)]


@pytest.mark.parametrize("version", LONG)
def test_measurement_when_the_platform_is_of_today_then_it_covers_all(version: Version):
    covered = struct.pack("<BBBBI", 4, *version, 0x37010005) + DIGEST + NONCE
    expected = hmac.new(KEYS.tik.reveal(), covered, "sha256").digest()
    assert measure(KEYS.tik, version, 0x37010005, DIGEST, NONCE) == expected


@pytest.mark.parametrize("version", SHORT)
def test_measurement_when_the_platform_is_old_then_it_covers_no_version(version: Version):
    covered = struct.pack("<I", 5) + DIGEST + NONCE
    expected = hmac.new(KEYS.tik.reveal(), covered, "sha256").digest()
    assert measure(KEYS.tik, version, 5, DIGEST, NONCE) == expected


def test_measurement_when_anything_differs_then_another():
    other = hashlib.sha256(b"other").digest()
    all_ways = itertools.product(
        (KEYS.tik, Secret(bytes(16))),
        (VERSION, VERSION._replace(build=22), VERSION._replace(api_minor=56)),
        (0, 1),
        (DIGEST, other),
        (NONCE, bytes(16)),
    )
    found = {measure(*way) for way in all_ways}
    assert len(found) == 2 * 3 * 2 * 2 * 2
