# SPDX-License-Identifier: Apache-2.0
"""Signed updates: whatever bytes come, there is an outcome or the one refusal."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hcalld.crypto.certificates import CertificateError, load_certificate
from hcalld.crypto.cms import CmsError, parse_signed_data
from hcalld.domain.secvar.answers import Authority, Remove, Store, UpdateRefused
from hcalld.domain.secvar.authoring import Draft, parse_update_file, stored_object
from hcalld.domain.secvar.authvar import evaluate
from hcalld.domain.secvar.content import ContentError, check_content, merge
from hcalld.domain.secvar.variables import OTHER, VARIABLES, Content, encode_name
from hcalld.testing.secvars import LATER, Identity, Variables, identity
from hcallproto.payloads.efi import (
    CERT_X509,
    SIGNATURE_TYPES,
    EfiError,
    EfiTime,
    Signature,
    SignatureList,
    SignedUpdate,
    StoredVariable,
    parse_signature_lists,
    parse_stored,
    parse_update,
)

NAMES = [*(variable.name for variable in VARIABLES), "another"]

times = st.builds(
    EfiTime, st.integers(0, 0xFFFF), *(st.integers(0, 0xFF) for _ in EfiTime._fields[1:])
)
guids = st.sampled_from(sorted(SIGNATURE_TYPES)) | st.binary(min_size=16, max_size=16)


@st.composite
def lists(draw: Any, types: st.SearchStrategy[bytes] = guids) -> SignatureList:
    """A list whose signatures come from few values, so that some are the same."""
    size = draw(st.integers(1, 3))
    signatures = st.builds(
        Signature,
        st.binary(min_size=size, max_size=size).map(lambda data: bytes(b & 1 for b in data)),
        st.sampled_from([bytes(16), b"o" * 16]),
    )
    header = draw(st.sampled_from([b"", b"h"]))
    return SignatureList(
        draw(types), 16 + size, tuple(draw(st.lists(signatures, max_size=4))), header
    )


def build(several: list[SignatureList]) -> bytes:
    return b"".join(each.build() for each in several)


databases = st.lists(lists(st.sampled_from([CERT_X509, *sorted(SIGNATURE_TYPES)[:2]])), max_size=4)


# -- structures -------------------------------------------------------------------------------


@given(st.lists(lists(), max_size=4))
def test_lists_when_built_then_they_are_read_back(several: list[SignatureList]):
    assert parse_signature_lists(build(several)) == tuple(several)


@given(st.binary(max_size=200))
def test_lists_when_random_then_they_are_read_whole_or_refused(data: bytes):
    try:
        several = parse_signature_lists(data)
    except EfiError:
        return
    assert build(list(several)) == data


@given(st.lists(lists(), min_size=1, max_size=3), st.data())
def test_lists_when_a_byte_is_changed_then_they_are_read_whole_or_refused(
    several: list[SignatureList], data: st.DataObject
):
    raw = bytearray(build(several))
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] = data.draw(st.integers(0, 255))
    try:
        found = parse_signature_lists(bytes(raw))
    except EfiError:
        return
    assert build(list(found)) == raw


@given(times, st.binary(min_size=1, max_size=40), st.binary(max_size=40))
def test_updates_when_built_then_they_are_read_back(time: EfiTime, pkcs7: bytes, data: bytes):
    update = SignedUpdate(time, pkcs7, data)
    assert parse_update(update.build()) == update
    stored = StoredVariable(time, data)
    assert parse_stored(stored.build()) == stored


@given(times, times)
def test_times_when_compared_then_as_numbers_of_their_digits(one: EfiTime, other: EfiTime):
    def number(time: EfiTime) -> int:
        total = 0
        for field in time:
            total = total * 0x10000 + field
        return total

    assert (one < other) == (number(one) < number(other))


# -- merging ----------------------------------------------------------------------------------


@given(databases)
def test_merge_when_the_same_again_then_nothing_changes(several: list[SignatureList]):
    data = build(several)
    assert merge(data, data) == data


@given(databases, databases)
def test_merge_when_done_twice_then_it_is_as_once(
    current: list[SignatureList], added: list[SignatureList]
):
    once = merge(build(current), build(added))
    assert merge(once, build(added)) == once


@given(databases, databases)
def test_merge_when_done_then_nothing_is_lost_and_the_order_stays(
    current: list[SignatureList], added: list[SignatureList]
):
    merged = list(parse_signature_lists(merge(build(current), build(added))))
    assert len(merged) >= len(current)
    for before, after in zip(current, merged, strict=False):
        assert (after.type, after.signature_size, after.header) == (
            before.type,
            before.signature_size,
            before.header,
        )
        assert after.signatures[: len(before.signatures)] == before.signatures

    def entries(several: list[SignatureList]) -> set[tuple[bytes, bytes, Signature]]:
        return {(each.type, each.header, entry) for each in several for entry in each.signatures}

    assert entries(merged) == entries(current) | entries(added)


@given(databases, databases)
def test_merge_when_nothing_was_twice_then_nothing_is(
    current: list[SignatureList], added: list[SignatureList]
):
    """An append of hashes never brings an entry that is there."""

    def entries(several: list[SignatureList]) -> list[tuple[bytes, int, bytes, Signature]]:
        return [
            (each.type, each.signature_size, each.header, entry)
            for each in several
            if each.type != CERT_X509
            for entry in each.signatures
        ]

    merged = list(parse_signature_lists(merge(build(current), build(added))))
    before, after = entries(current), entries(merged)
    for entry in set(after):
        assert after.count(entry) <= max(before.count(entry), entries(added).count(entry), 1)
        if entry in before:
            assert after.count(entry) == before.count(entry)


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_merge_when_random_then_there_is_a_result_or_the_one_error(current: bytes, added: bytes):
    with contextlib.suppress(ContentError):
        assert merge(current, added).startswith(current) or parse_signature_lists(current)


@given(st.sampled_from([*VARIABLES, OTHER]), st.binary(min_size=1, max_size=100))
def test_content_when_random_then_there_is_a_result_or_the_one_error(variable: Any, data: bytes):
    try:
        check_content(variable, data)
    except ContentError:
        return
    assert variable.content is Content.OPAQUE


# -- bytes of a guest -------------------------------------------------------------------------


@given(st.binary(max_size=300))
@example(b"\x30\x82\xff\xff")
def test_parsers_when_random_then_each_raises_its_one_error(data: bytes):
    for parser, error in ((parse_signed_data, CmsError), (load_certificate, CertificateError)):
        with pytest.raises(error):
            parser(data)
    for reader in (parse_update, parse_stored):
        with contextlib.suppress(EfiError):
            reader(data)


PK = identity("pk")
KEK = identity("kek")
GOOD = {name: Draft(name, PK.lists, LATER).sign(PK.certificate, PK.key).message for name in NAMES}


def enrolled() -> Variables:
    variables = Variables()
    variables.put("PK", PK.stored)
    variables.put("KEK", KEK.stored)
    return variables


@given(
    st.binary(max_size=12) | st.sampled_from([encode_name(name) for name in NAMES]),
    st.binary(max_size=200),
    st.dictionaries(st.sampled_from([encode_name(name) for name in NAMES]), st.binary(max_size=60)),
    st.booleans(),
    st.booleans(),
)
def test_update_when_everything_is_random_then_it_is_refused(
    name: bytes, message: bytes, stored: dict[bytes, bytes], is_append: bool, latch: bool
):
    with pytest.raises(UpdateRefused):
        evaluate(
            name,
            message,
            is_append=is_append,
            lookup=stored.get,
            without_verification=latch,
        )


@given(st.sampled_from(NAMES), st.data(), st.booleans(), st.booleans())
def test_update_when_bytes_are_changed_then_it_is_what_was_signed_or_refused(
    name: str, data: st.DataObject, is_append: bool, latch: bool
):
    message = bytearray(GOOD[name])
    for _ in range(data.draw(st.integers(0, 3))):
        position = data.draw(st.integers(0, len(message) - 1))
        message[position] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(len(message) - 3, len(message)))
    try:
        accepted = evaluate(
            encode_name(name),
            bytes(message[:cut]),
            is_append=is_append,
            lookup=enrolled().get,
            without_verification=latch,
        )
    except UpdateRefused:
        return
    assert accepted.used_latch == (latch and name == "PK")
    if not accepted.used_latch:
        assert accepted.authority is Authority.PK
        assert accepted.change == Store(stored_object(PK.lists, LATER))


@given(
    st.sampled_from(NAMES[1:]),
    st.sampled_from([PK, KEK]),
    times,
    st.none() | st.tuples(times, st.booleans()),
    st.booleans(),
)
def test_update_when_it_is_taken_then_time_never_goes_back_over_data(
    name: str,
    signer: Identity,
    time: EfiTime,
    current: tuple[EfiTime, bool] | None,
    is_append: bool,
):
    variables = enrolled()
    variables.pop(encode_name(name), None)
    if current is not None:
        variables.put(name, stored_object(PK.lists * current[1], current[0]))
    data = b"" if name == "sbat" else KEK.lists
    message = signer.update(name, data, time, is_append=is_append)
    try:
        change = evaluate(
            encode_name(name),
            message,
            is_append=is_append,
            lookup=variables.get,
            without_verification=True,
        ).change
    except UpdateRefused:
        is_old = current is not None and not is_append and time <= current[0]
        assert is_old or (name == "KEK" and signer is KEK)
        return
    if isinstance(change, Remove):
        assert (data, signer, is_append) == (b"", PK, False)
        return
    assert isinstance(change, Store)
    stored = parse_stored(change.data)
    if current is not None and not (is_append and not current[1]):
        assert stored.time >= current[0]
    if stored.time != time:
        assert is_append


@given(st.binary(max_size=20))
def test_update_files_when_random_then_they_are_split_or_refused(data: bytes):
    try:
        assert parse_update_file(data).build() == data
    except ValueError:
        assert len(data) <= 8 or data[:7] != bytes(7) or data[7] > 1
