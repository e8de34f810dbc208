# SPDX-License-Identifier: Apache-2.0
"""A platform's record that is damaged: each byte of it."""

from __future__ import annotations

import os
import zlib

import pytest
from tests.sev_platform import flipped, root

from hcalld.core.errors import StoreError
from hcalld.core.records import Put, Record
from hcalld.domain.sev.identity import unpack_identity
from hcalld.domain.sev.platform import IDENTITY_KEY, NAMESPACE, Platform
from hcalld.domain.sev.settings import SevSettings


@pytest.fixture(scope="module")
def value() -> bytes:
    platform = Platform.build((), SevSettings(), os.urandom, root())
    (change,) = platform.take_changes()
    assert isinstance(change, Put)
    return change.record.value


def build(value: bytes) -> Platform:
    return Platform.build(
        [Record(NAMESPACE, IDENTITY_KEY, value)], SevSettings(), os.urandom, root()
    )


def reason(value: bytes) -> str:
    """Why a record is refused; "" if it is as good as before."""
    try:
        build(value)
    except StoreError as error:
        return str(error)
    return ""


def test_a_record_with_any_byte_altered_is_refused_in_words(value: bytes):
    altered = {offset: flipped(value, offset, 0x55) for offset in range(len(value))}
    reasons = {offset: reason(data) for offset, data in altered.items()}
    assert all("SEV platform" in why for why in reasons.values() if why)
    unseen = [offset for offset, why in reasons.items() if not why]
    # Hints of how it was compressed, which change nothing; how many, the random keys decide.
    assert len(unseen) < len(value) // 50
    good = build(value).identity
    assert all(build(altered[offset]).identity == good for offset in unseen)


@pytest.mark.parametrize("cut", [1, 2, 5, 100, 1000])
def test_a_record_that_is_cut_is_refused(value: bytes, cut: int):
    with pytest.raises(StoreError, match="SEV platform"):
        build(value[:-cut])


@pytest.mark.parametrize("more", [b"\0", bytes(100), b"more"])
def test_a_record_with_more_behind_it_is_refused(value: bytes, more: bytes):
    with pytest.raises(StoreError, match="SEV platform"):
        build(value + more)


def test_a_record_that_would_unpack_to_very_much_is_refused():

    with pytest.raises(StoreError, match="SEV platform"):
        unpack_identity(zlib.compress(bytes(64 << 20)))
