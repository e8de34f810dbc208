# SPDX-License-Identifier: Apache-2.0
"""Signed updates: each rule, each refusal, and the order in which they are judged."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest

from hcalld.crypto.signing import sign_detached
from hcalld.domain.secvar.answers import (
    Accepted,
    Authority,
    Reason,
    Remove,
    Store,
    UpdateRefused,
    Wipe,
)
from hcalld.domain.secvar.authoring import Draft, stored_object, wipe
from hcalld.domain.secvar.authvar import (
    MAX_TRIES,
    MAX_UPDATE_SIZE,
    evaluate,
    is_wipe_message,
    signed_hash,
    usable_certificates,
)
from hcalld.domain.secvar.variables import VARIABLES, encode_name
from hcalld.testing.secvars import LATER, TIME, Identity, Variables, identity
from hcallproto.payloads.efi import (
    CERT_SHA256,
    CERT_X509,
    SBAT,
    EfiTime,
    SignedUpdate,
    StoredVariable,
    signature_list,
)

PK = identity("pk")
KEK = identity("kek")
KEK2 = identity("kek2")
STRANGER = identity("stranger")
EARLIER = EfiTime(2026, 1, 2, 3, 4, 4)

HASH = signature_list(CERT_SHA256, b"\1" * 32).build()
OTHER_HASH = signature_list(CERT_SHA256, b"\2" * 32).build()
BOTH_HASHES = signature_list(CERT_SHA256, b"\1" * 32, b"\2" * 32).build()
LEVELS = signature_list(SBAT, b"sbat,1\n").build()

GOOD = {
    "PK": STRANGER.lists,
    "KEK": STRANGER.lists,
    "db": HASH,
    "dbx": HASH,
    "grubdb": HASH,
    "grubdbx": HASH,
    "sbat": LEVELS,
    "moduledb": STRANGER.lists,
    "trustedcadb": STRANGER.lists,
    "another": b"\xff anything",
}
"""Data that each variable takes."""
BY_PK_ONLY = ("PK", "KEK")
BY_BOTH = tuple(name for name in GOOD if name not in BY_PK_ONLY)


@pytest.fixture
def variables() -> Variables:
    """A partition with PK and a KEK."""
    found = Variables()
    found.put("PK", PK.stored)
    found.put("KEK", KEK.stored)
    return found


def judge(
    variables: Variables,
    name: str,
    message: bytes,
    *,
    is_append: bool = False,
    latch: bool = False,
) -> Accepted:
    return evaluate(
        encode_name(name),
        message,
        is_append=is_append,
        lookup=variables.get,
        without_verification=latch,
    )


def refused(
    variables: Variables,
    name: str,
    message: bytes,
    *,
    is_append: bool = False,
    latch: bool = False,
) -> tuple[Reason, str]:
    before = dict(variables)
    with pytest.raises(UpdateRefused) as caught:
        judge(variables, name, message, is_append=is_append, latch=latch)
    assert variables == before
    assert caught.value.why in str(caught.value)
    return caught.value.reason, caught.value.why


def stored(data: bytes, time: EfiTime = LATER) -> Store:
    return Store(stored_object(data, time))


# -- who may sign -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOOD)
def test_update_when_signed_by_pk_then_every_variable_takes_it(variables: Variables, name: str):
    accepted = judge(variables, name, PK.update(name, GOOD[name]))
    assert accepted == Accepted(stored(GOOD[name]), Authority.PK)
    assert not accepted.used_latch
    assert accepted.change == Store(StoredVariable(LATER, GOOD[name]).build())


@pytest.mark.parametrize("name", BY_BOTH)
def test_update_when_signed_by_kek_then_databases_take_it(variables: Variables, name: str):
    accepted = judge(variables, name, KEK.update(name, GOOD[name]))
    assert accepted == Accepted(stored(GOOD[name]), Authority.KEK)


@pytest.mark.parametrize("name", BY_PK_ONLY)
def test_update_when_signed_by_kek_then_keys_do_not_take_it(variables: Variables, name: str):
    reason, why = refused(variables, name, KEK.update(name, GOOD[name]))
    assert reason is Reason.AUTHORITY
    assert why.startswith("no signature by PK over this name")


@pytest.mark.parametrize("name", GOOD)
def test_update_when_signed_by_a_stranger_then_none_takes_it(variables: Variables, name: str):
    reason, _ = refused(variables, name, STRANGER.update(name, GOOD[name]))
    assert reason is Reason.AUTHORITY


@pytest.mark.parametrize("name", GOOD)
def test_update_when_there_is_no_pk_then_none_is_taken(variables: Variables, name: str):
    del variables[encode_name("PK")]
    for signer in (PK, KEK):
        reason, why = refused(variables, name, signer.update(name, GOOD[name]))
        assert reason is Reason.AUTHORITY
        assert "there is no PK" in why


@pytest.mark.parametrize(
    ("pk", "flaw"),
    [
        (b"", "0 bytes"),
        (bytes(31), "expected a head of 28"),
        (bytes(8), "it has no certificate"),
        (stored_object(HASH, TIME), "a list of type SHA256"),
        (stored_object(signature_list(CERT_X509, b"x").build(), TIME), "not an X.509 certificate"),
    ],
)
def test_update_when_the_pk_cannot_be_used_then_kek_is_not_tried(
    variables: Variables, pk: bytes, flaw: str
):
    variables.put("PK", pk)
    reason, why = refused(variables, "db", KEK.update("db", HASH))
    assert reason is Reason.AUTHORITY
    assert why.startswith("the stored PK cannot be used")
    assert flaw in why


def test_update_when_pk_holds_two_certificates_then_only_the_first_counts(variables: Variables):
    variables.put("PK", PK.stored + STRANGER.lists)
    assert judge(variables, "db", PK.update("db", HASH)).authority is Authority.PK
    assert refused(variables, "db", STRANGER.update("db", HASH))[0] is Reason.AUTHORITY


def test_update_when_there_are_several_keks_then_each_is_tried(variables: Variables):
    variables.put("KEK", KEK.stored + KEK2.lists)
    for kek in (KEK, KEK2):
        assert judge(variables, "db", kek.update("db", HASH)).authority is Authority.KEK


@pytest.mark.parametrize(
    "bad", [HASH, signature_list(CERT_X509, b"x").build(), b"\0"], ids=["hash", "bad", "cut"]
)
def test_update_when_a_kek_is_bad_then_those_after_it_do_not_count(
    variables: Variables, bad: bytes
):
    variables.put("KEK", KEK.stored + bad + KEK2.lists)
    assert judge(variables, "db", KEK.update("db", HASH)).authority is Authority.KEK
    assert refused(variables, "db", KEK2.update("db", HASH))[0] is Reason.AUTHORITY


def test_update_when_a_bad_kek_is_in_one_list_with_a_good_one_then_the_first_counts():
    lists = signature_list(CERT_X509, KEK.der, bytes(len(KEK.der))).build()
    assert len(usable_certificates(stored_object(lists, TIME)).certificates) == 1


@pytest.mark.parametrize("kek", [None, bytes(8), b"", b"\1" * 9])
def test_update_when_there_is_no_kek_then_pk_still_counts(variables: Variables, kek: bytes | None):
    del variables[encode_name("KEK")]
    if kek is not None:
        variables.put("KEK", kek)
    assert judge(variables, "db", PK.update("db", HASH)).authority is Authority.PK
    assert refused(variables, "db", KEK.update("db", HASH))[0] is Reason.AUTHORITY


def test_update_when_several_signed_it_then_one_of_them_is_enough(variables: Variables):
    draft = Draft("db", HASH, LATER)
    one, two = (
        sign_detached(draft.to_be_signed(), each.certificate, each.key) for each in (STRANGER, KEK)
    )
    both = _with_all_signers(one, two)
    assert judge(variables, "db", draft.with_signature(both).message).authority is Authority.KEK


def test_update_when_keys_and_signers_are_many_then_the_tries_are_bounded(variables: Variables):
    draft = Draft("db", HASH, LATER)
    good = sign_detached(draft.to_be_signed(), KEK.certificate, KEK.key)
    others = [
        sign_detached(bytes([number]), STRANGER.certificate, STRANGER.key) for number in range(15)
    ]
    alone = draft.with_signature(good).message
    among = draft.with_signature(_with_all_signers(good, *others)).message

    variables.put("KEK", stored_object(KEK2.lists * 15 + KEK.lists, TIME))
    assert judge(variables, "db", among).authority is Authority.KEK
    variables.put("KEK", stored_object(KEK2.lists * (MAX_TRIES // 16) + KEK.lists, TIME))
    assert judge(variables, "db", alone).authority is Authority.KEK
    assert refused(variables, "db", among)[0] is Reason.AUTHORITY


def _with_all_signers(*signed: bytes) -> bytes:
    """A SignedData with the signers of several; certificates are left out."""
    signers = sorted(map(_signer_of, signed))
    return _tlv(
        0x30,
        bytes.fromhex("020101310d300b0609608648016503040201300b06092a864886f70d010701"),
        _tlv(0x31, *signers),
    )


def _tlv(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return bytes([tag, 0x82]) + len(body).to_bytes(2, "big") + body


def _signer_of(pkcs7: bytes) -> bytes:
    """The last element: a set with one signer, of 256 to 65535 bytes."""
    end = len(pkcs7)
    # A signature may hold the same two bytes by chance.
    (at,) = (
        at
        for at in range(end - 4)
        if pkcs7[at : at + 2] == b"\x31\x82"
        and at + 4 + int.from_bytes(pkcs7[at + 2 : at + 4], "big") == end
    )
    return pkcs7[at + 4 :]


def test_update_when_attributes_are_signed_then_the_refusal_says_so(variables: Variables):
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

    draft = Draft("db", HASH, LATER)
    builder = pkcs7.PKCS7SignatureBuilder().set_data(draft.to_be_signed())
    builder = builder.add_signer(PK.certificate, PK.key, hashes.SHA256())
    options = [pkcs7.PKCS7Options.DetachedSignature, pkcs7.PKCS7Options.Binary]
    der = builder.sign(Encoding.DER, options)
    reason, why = refused(variables, "db", draft.with_signature(der).message)
    assert reason is Reason.AUTHORITY
    assert why.endswith("signed attributes are not used: sign without them")


# -- what is signed ---------------------------------------------------------------------------


def test_hash_when_made_then_it_is_of_name_vendor_attributes_time_and_data():
    name = b"d\0b\0"
    vendor = bytes.fromhex("cbb219d73a3d9645a3bcdad00e67656f")
    time = bytes.fromhex("ea070102030406" + "00" * 9)
    for is_append, attributes in ((False, 0x27), (True, 0x67)):
        expected = hashlib.sha256(name + vendor + bytes([attributes, 0, 0, 0]) + time + b"data")
        assert signed_hash(name, LATER, b"data", is_append=is_append) == expected.digest()


def test_update_when_name_flag_time_or_data_are_changed_then_the_signature_is_wrong(
    variables: Variables,
):
    message = PK.update("db", HASH)
    assert judge(variables, "db", message)
    changed = bytearray(message)
    changed[6] += 1  # the second
    for name, altered, is_append in (
        ("dbx", message, False),
        ("grubdb", message, False),
        ("db", message, True),
        ("db", bytes(changed), False),
        ("db", message[:-1] + b"\2", False),
        ("db", message[:-1], False),
        ("db", message + b"\0", False),
    ):
        reason, _ = refused(variables, name, altered, is_append=is_append)
        assert reason is Reason.AUTHORITY


# -- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (b"", Reason.NAME_SIZE),
        (b"d", Reason.NAME_SIZE),
        (b"d\0b", Reason.NAME_SIZE),
        (b"d\0b\0\0\0", Reason.NAME),
        (b"\0\0", Reason.NAME),
        (b"d\0\0\0b\0", Reason.NAME),
    ],
)
def test_name_when_odd_or_with_nul_then_it_is_refused_before_anything_else(
    variables: Variables, name: bytes, reason: Reason
):
    with pytest.raises(UpdateRefused) as caught:
        evaluate(name, b"", is_append=False, lookup=variables.get, without_verification=False)
    assert caught.value.reason is reason


def test_name_when_a_zero_byte_is_no_nul_character_then_it_is_taken(variables: Variables):
    name = b"\0d\0\xd8" + b"\xff\xff"  # neither latin nor whole surrogates
    draft = Draft("x", b"data", LATER)
    covered = draft.to_be_signed().removeprefix(encode_name("x"))
    pkcs7 = sign_detached(name + covered, PK.certificate, PK.key)
    message = draft.with_signature(pkcs7).message
    accepted = evaluate(
        name, message, is_append=False, lookup=variables.get, without_verification=False
    )
    assert accepted.change == stored(b"data")


# -- structure --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 39])
def test_update_when_it_ends_within_its_head_then_its_size_is_wrong(
    variables: Variables, size: int
):
    assert refused(variables, "db", PK.update("db", HASH)[:size])[0] is Reason.SIZE


def test_update_when_the_pkcs7_goes_beyond_the_end_then_its_size_is_wrong(variables: Variables):
    message = PK.update("db", b"")
    assert refused(variables, "db", message[:-1])[0] is Reason.SIZE


def test_update_when_as_long_as_may_be_then_it_is_taken_and_above_not(variables: Variables):
    room = MAX_UPDATE_SIZE - len(PK.update("x", b""))
    accepted = judge(variables, "x", PK.update("x", bytes(room)))
    assert isinstance(accepted.change, Store)
    assert accepted.change.size == 8 + room
    assert refused(variables, "x", PK.update("x", bytes(room + 1)))[0] is Reason.SIZE


@pytest.mark.parametrize("position", [*range(7, 16), *range(20, 40)])
def test_update_when_a_byte_of_its_head_is_wrong_then_it_is_malformed(
    variables: Variables, position: int
):
    message = bytearray(PK.update("db", HASH))
    message[position] ^= 0xFF
    assert refused(variables, "db", bytes(message))[0] is Reason.CONTENT


@pytest.mark.parametrize("latch", [False, True])
@pytest.mark.parametrize("pkcs7", [b"x", b"\x30\x00", b"\x30\x80"])
def test_update_when_the_pkcs7_is_none_then_it_is_malformed_latch_or_not(
    variables: Variables, pkcs7: bytes, latch: bool
):
    message = SignedUpdate(LATER, pkcs7, PK.lists).build()
    assert refused(variables, "PK", message, latch=latch)[0] is Reason.CONTENT


def test_update_when_any_byte_is_changed_then_nothing_but_a_refusal_comes(variables: Variables):
    message = PK.update("db", HASH)
    taken = set()
    for position in range(len(message)):
        changed = bytearray(message)
        changed[position] ^= 0x55
        try:
            judge(variables, "db", bytes(changed))
            taken.add(position)
        except UpdateRefused:
            pass
    # What is never looked at: certificates, issuer and algorithms inside the PKCS#7.
    first = 40 + len(message[40:]) - len(HASH) - 256
    assert all(40 <= position < first for position in taken)


# -- time -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["PK", "KEK", "db", "another"])
@pytest.mark.parametrize("time", [TIME, EARLIER, EfiTime(0, 0, 0, 0, 0, 0)])
def test_replace_when_not_later_then_it_is_refused(variables: Variables, name: str, time: EfiTime):
    variables.setdefault(encode_name(name), stored_object(GOOD[name], TIME))
    reason, why = refused(variables, name, PK.update(name, GOOD[name], time))
    assert reason is Reason.AUTHORITY
    assert f"the update is of {time}, expected a time after" in why


def test_replace_when_the_object_is_a_head_then_its_time_counts(variables: Variables):
    variables.put("db", stored_object(b"", TIME))
    assert refused(variables, "db", PK.update("db", HASH, TIME))[0] is Reason.AUTHORITY
    assert judge(variables, "db", PK.update("db", HASH)).change == stored(HASH)


def test_update_when_there_is_no_object_then_any_time_will_do(variables: Variables):
    time = EfiTime(0, 0, 0, 0, 0, 0)
    for is_append in (False, True):
        message = PK.update("db", HASH, time, is_append=is_append)
        assert judge(variables, "db", message, is_append=is_append).change == stored(HASH, time)


@pytest.mark.parametrize(("time", "kept"), [(EARLIER, TIME), (TIME, TIME), (LATER, LATER)])
@pytest.mark.parametrize("name", ["db", "KEK", "another"])
def test_append_when_there_are_data_then_the_later_time_is_kept(
    variables: Variables, name: str, time: EfiTime, kept: EfiTime
):
    variables.put(name, stored_object(KEK.lists, TIME))
    data = {"db": HASH, "KEK": KEK2.lists, "another": b"more"}[name]
    message = PK.update(name, data, time, is_append=True)
    accepted = judge(variables, name, message, is_append=True)
    assert accepted.change == stored(KEK.lists + data, kept)


def test_append_when_the_object_is_a_head_then_the_time_may_go_back(variables: Variables):
    variables.put("db", stored_object(b"", TIME))
    message = PK.update("db", HASH, EARLIER, is_append=True)
    assert judge(variables, "db", message, is_append=True).change == stored(HASH, EARLIER)


@pytest.mark.parametrize("damaged", [b"", bytes(7), b"\1" + bytes(8)])
def test_update_when_the_stored_object_is_none_of_ours_then_it_is_refused(
    variables: Variables, damaged: bytes
):
    variables.put("db", damaged)
    for is_append in (False, True):
        message = PK.update("db", HASH, is_append=is_append)
        reason, why = refused(variables, "db", message, is_append=is_append)
        assert reason is Reason.AUTHORITY
        assert "cannot be said" in why


# -- outcome ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in GOOD if name != "PK"])
def test_replace_when_empty_and_signed_by_pk_then_the_object_is_removed(
    variables: Variables, name: str
):
    assert judge(variables, name, PK.update(name, b"")).change == Remove()


@pytest.mark.parametrize("name", BY_BOTH)
def test_replace_when_empty_and_signed_by_kek_then_the_time_stays(variables: Variables, name: str):
    assert judge(variables, name, KEK.update(name, b"")).change == stored(b"")


@pytest.mark.parametrize("latch", [False, True])
def test_pk_when_empty_then_it_is_refused(variables: Variables, latch: bool):
    # The public library deletes PK.
    reason, why = refused(variables, "PK", PK.update("PK", b""), latch=latch)
    assert reason is Reason.CONTENT
    assert "cannot be emptied" in why


def test_pk_when_its_content_is_wrong_then_it_is_refused(variables: Variables):
    # The public library accepts it, because its next check succeeds.
    for data in (HASH, PK.lists + PK.lists, b"\0"):
        for latch in (False, True):
            message = PK.update("PK", data)
            assert refused(variables, "PK", message, latch=latch)[0] is Reason.CONTENT


@pytest.mark.parametrize("latch", [False, True])
def test_pk_when_appended_then_the_flag_is_refused_before_anything_else(
    variables: Variables, latch: bool
):
    assert refused(variables, "PK", b"", is_append=True, latch=latch)[0] is Reason.FLAGS


def test_append_when_a_database_then_it_is_merged(variables: Variables):
    variables.put("db", stored_object(HASH, TIME))
    message = KEK.update("db", BOTH_HASHES, is_append=True)
    assert judge(variables, "db", message, is_append=True).change == stored(BOTH_HASHES)


def test_append_when_kek_then_it_is_put_behind(variables: Variables):
    message = PK.update("KEK", KEK.lists, is_append=True)
    accepted = judge(variables, "KEK", message, is_append=True)
    assert accepted.change == stored(KEK.lists + KEK.lists)


def test_append_when_empty_then_the_data_stay(variables: Variables):
    variables.put("db", stored_object(HASH, TIME))
    message = KEK.update("db", b"", is_append=True)
    assert judge(variables, "db", message, is_append=True).change == stored(HASH)


@pytest.mark.parametrize("signer", [PK, KEK], ids=["PK", "KEK"])
def test_append_when_it_cannot_be_merged_then_nothing_changes(
    variables: Variables, signer: Identity
):
    # The public library loses the variable: removed (PK) or emptied (KEK).
    variables.put("db", stored_object(HASH, TIME))
    message = signer.update("db", OTHER_HASH[:-1], is_append=True)
    assert refused(variables, "db", message, is_append=True)[0] is Reason.CONTENT
    variables.put("db", stored_object(HASH[:-1], TIME))
    message = signer.update("db", OTHER_HASH, is_append=True)
    assert refused(variables, "db", message, is_append=True)[0] is Reason.CONTENT


@pytest.mark.parametrize("name", [variable.name for variable in VARIABLES])
def test_replace_when_malformed_then_no_variable_takes_it(variables: Variables, name: str):
    # The public library stores malformed lists in most.
    assert refused(variables, name, PK.update(name, GOOD[name][:-1]))[0] is Reason.CONTENT


# -- the latch --------------------------------------------------------------------------------


def test_latch_when_set_then_pk_needs_neither_signature_nor_time(variables: Variables):
    message = STRANGER.update("PK", STRANGER.lists, EARLIER)
    accepted = judge(variables, "PK", message, latch=True)
    assert accepted == Accepted(stored(STRANGER.lists, EARLIER), Authority.LATCH)
    assert accepted.used_latch


def test_latch_when_the_signature_is_good_then_it_is_used_up_all_the_same(variables: Variables):
    assert judge(variables, "PK", PK.update("PK", KEK.lists), latch=True).used_latch


def test_latch_when_the_signature_is_for_another_variable_then_pk_takes_it(variables: Variables):
    message = PK.update("KEK", STRANGER.lists)
    assert judge(variables, "PK", message, latch=True).used_latch


@pytest.mark.parametrize("damaged", [None, b"", b"\xff" * 31, bytes(8)])
def test_latch_when_there_is_no_pk_that_can_be_used_then_one_can_be_written(
    variables: Variables, damaged: bytes | None
):
    del variables[encode_name("PK")]
    if damaged is not None:
        variables.put("PK", damaged)
    message = PK.update("PK", PK.lists)
    assert judge(variables, "PK", message, latch=True).change == stored(PK.lists)


@pytest.mark.parametrize("name", [name for name in GOOD if name != "PK"])
def test_latch_when_set_then_others_are_verified_all_the_same(variables: Variables, name: str):
    message = STRANGER.update(name, GOOD[name])
    assert refused(variables, name, message, latch=True)[0] is Reason.AUTHORITY
    variables.put(name, stored_object(GOOD[name], TIME))
    message = PK.update(name, GOOD[name], TIME)
    assert refused(variables, name, message, latch=True)[0] is Reason.AUTHORITY
    assert not judge(variables, name, PK.update(name, GOOD[name]), latch=True).used_latch


# -- the wipe message -------------------------------------------------------------------------


def wipe_message(signer: Identity, data: bytes | None = None) -> bytes:
    draft = wipe(LATER)
    if data is not None:
        draft = dataclasses.replace(draft, data=data)
    return draft.sign(signer.certificate, signer.key).message


@pytest.mark.parametrize("signer", [PK, STRANGER], ids=["PK", "stranger"])
def test_wipe_when_the_latch_is_set_then_all_is_wiped(variables: Variables, signer: Identity):
    accepted = judge(variables, "PK", wipe_message(signer), latch=True)
    assert accepted == Accepted(Wipe(), Authority.LATCH)


def test_wipe_when_the_latch_is_not_set_then_it_is_refused(variables: Variables):
    reason, why = refused(variables, "PK", wipe_message(PK))
    assert reason is Reason.CONTENT
    assert "counts only under" in why
    assert refused(variables, "PK", wipe_message(STRANGER))[0] is Reason.AUTHORITY


def test_wipe_when_the_head_is_another_then_only_the_text_counts(variables: Variables):
    data = bytes(range(44)) + wipe(LATER).data[44:]
    assert judge(variables, "PK", wipe_message(PK, data), latch=True).change == Wipe()


@pytest.mark.parametrize("cut", [slice(None, -1), slice(1, None), slice(44, None)])
def test_wipe_when_the_text_is_not_exactly_there_then_it_is_none(variables: Variables, cut: slice):
    data = wipe(LATER).data[cut]
    assert not is_wipe_message(data)
    assert refused(variables, "PK", wipe_message(PK, data), latch=True)[0] is Reason.CONTENT
    longer = wipe(LATER).data + b"\n"
    assert refused(variables, "PK", wipe_message(PK, longer), latch=True)[0] is Reason.CONTENT


def test_wipe_when_sent_for_another_variable_then_it_is_content_as_any(variables: Variables):
    data = wipe(LATER).data
    message = PK.update("KEK", data)
    assert refused(variables, "KEK", message, latch=True)[0] is Reason.CONTENT


# -- order of checks --------------------------------------------------------------------------


def test_order_when_several_things_are_wrong_then_the_first_is_named(variables: Variables):
    variables.put("db", stored_object(HASH, TIME))
    malformed = HASH[:-1]
    # structure before signature
    bare = SignedUpdate(EARLIER, b"x", malformed).build()
    assert refused(variables, "db", bare)[0] is Reason.CONTENT
    # signature before time and content
    _, why = refused(variables, "db", STRANGER.update("db", malformed, EARLIER))
    assert why.startswith("no signature")
    # time before content
    _, why = refused(variables, "db", PK.update("db", malformed, EARLIER))
    assert why.startswith("the update is of")
    # content
    assert refused(variables, "db", PK.update("db", malformed))[0] is Reason.CONTENT
