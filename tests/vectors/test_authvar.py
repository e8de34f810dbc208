# SPDX-License-Identifier: Apache-2.0
"""Published updates and those of other programs, under hcalld's rules.

That the published updates verify is the witness for what is signed: name, vendor,
attributes, time and data, in that order.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from hcalld.domain.secvar.answers import (
    Accepted,
    Authority,
    Reason,
    Remove,
    Store,
    UpdateRefused,
    Wipe,
)
from hcalld.domain.secvar.authoring import (
    certificates_lists,
    parse_update_file,
    sbat_list,
    stored_object,
    wipe,
)
from hcalld.domain.secvar.authvar import evaluate
from hcalld.domain.secvar.content import check_content
from hcalld.domain.secvar.variables import BY_NAME, VARIABLES, Variable, encode_name
from hcallproto.payloads.efi import (
    CERT_X509,
    EfiError,
    EfiTime,
    parse_signature_lists,
    parse_stored,
    parse_update,
)

FOLDER = Path(__file__).parent / "authvar"
PUBLISHED = FOLDER / "secvarctl"
AUTH_FILES = sorted((PUBLISHED / "authfiles").glob("*.auth"))
TOOLS = FOLDER / "tools"
EFITOOLS = sorted(TOOLS.glob("*.efitools.update"))

GOLDEN = {
    variable.label_name: (PUBLISHED / "goldenKeys" / variable.name / "data").read_bytes()
    for variable in VARIABLES
}
GOLDEN_TIME = EfiTime(2023, 4, 7, 9, 18, 56)


def judge(
    name: str,
    message: bytes,
    stored: dict[bytes, bytes],
    *,
    is_append: bool = False,
    latch: bool = False,
) -> Accepted:
    return evaluate(
        encode_name(name),
        message,
        is_append=is_append,
        lookup=stored.get,
        without_verification=latch,
    )


# -- secvarctl --------------------------------------------------------------------------------


def test_there_are_published_files():
    assert len(AUTH_FILES) == 32
    assert {path.stem for path in (PUBLISHED / "eslfiles").iterdir()} == set(BY_NAME)


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable.name)
def test_a_golden_object_is_what_its_variable_may_hold(variable: Variable):
    stored = parse_stored(GOLDEN[variable.label_name])
    assert stored.time == GOLDEN_TIME
    assert stored.build() == GOLDEN[variable.label_name]
    check_content(variable, stored.data)
    (each,) = parse_signature_lists(stored.data)
    data = each.signatures[0].data
    made = certificates_lists([data]) if each.type == CERT_X509 else sbat_list(data)
    assert made == stored.data


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable.name)
def test_a_published_list_is_read_and_made_again(variable: Variable):
    data = (PUBLISHED / "eslfiles" / f"{variable.name}.esl").read_bytes()
    check_content(variable, data)
    assert b"".join(each.build() for each in parse_signature_lists(data)) == data


def test_the_published_malformed_list_is_refused():
    with pytest.raises(EfiError):
        parse_signature_lists((PUBLISHED / "errorfiles/PK_invalid_cert_size.esl").read_bytes())


@pytest.mark.parametrize("path", AUTH_FILES, ids=lambda path: path.stem)
def test_a_published_update_is_taken_in_place_of_the_golden_object(path: Path):
    name, signer = path.stem.removeprefix("reset_").split("_by_")
    file = parse_update_file(path.read_bytes())
    assert file.build() == path.read_bytes()
    assert not file.is_append
    update = parse_update(file.message)
    assert update.build() == file.message
    assert EfiTime(2023, 4, 7, 9, 18, 59) <= update.time <= EfiTime(2023, 4, 7, 9, 19, 30)
    if path.stem == "reset_PK_by_PK":
        assert update.data == wipe(update.time).data
        return
    accepted = judge(name, file.message, GOLDEN)
    assert accepted.authority is Authority[signer]
    match accepted.change:
        case Store(data):
            assert data == stored_object(update.data, update.time)
            assert update.data or signer == "KEK"
        case change:
            assert change == Remove()
            assert (update.data, signer) == (b"", "PK")


@pytest.mark.parametrize("path", AUTH_FILES, ids=lambda path: path.stem)
def test_a_published_update_is_for_its_variable_only(path: Path):
    name, _ = path.stem.removeprefix("reset_").split("_by_")
    file = parse_update_file(path.read_bytes())
    for variable in VARIABLES:
        for is_append in (False, True):
            if (variable.name, is_append) in ((name, False), ("PK", True)):
                continue
            with pytest.raises(UpdateRefused) as caught:
                judge(variable.name, file.message, GOLDEN, is_append=is_append)
            assert caught.value.reason is Reason.AUTHORITY


def test_the_published_wipe_needs_the_latch():
    message = parse_update_file((PUBLISHED / "authfiles/reset_PK_by_PK.auth").read_bytes()).message
    with pytest.raises(UpdateRefused) as caught:
        judge("PK", message, GOLDEN)
    # Its signature and time are good: only the content is left to be refused.
    assert caught.value.reason is Reason.CONTENT
    assert judge("PK", message, GOLDEN, latch=True) == Accepted(Wipe(), Authority.LATCH)


def test_published_updates_in_the_order_of_their_times_lead_to_other_keys():
    """``PK_by_PK`` and ``KEK_by_PK`` install other keys: what the old ones signed is refused."""
    stored = dict(GOLDEN)
    for name in ("KEK_by_PK", "PK_by_PK"):
        file = parse_update_file((PUBLISHED / f"authfiles/{name}.auth").read_bytes())
        change = judge(name.split("_by_")[0], file.message, stored).change
        assert isinstance(change, Store)
        stored[encode_name(name.split("_by_")[0])] = change.data
    for signer in ("PK", "KEK"):
        file = parse_update_file((PUBLISHED / f"authfiles/db_by_{signer}.auth").read_bytes())
        with pytest.raises(UpdateRefused) as caught:
            judge("db", file.message, stored)
        assert caught.value.reason is Reason.AUTHORITY


# -- Debian's programs ------------------------------------------------------------------------


def enrolled() -> dict[bytes, bytes]:
    time = EfiTime(2026, 1, 1, 0, 0, 0)
    return {
        encode_name(name): stored_object((TOOLS / f"{name}.esl").read_bytes(), time)
        for name in ("PK", "KEK", "db")
    }


def test_there_are_files_of_efitools():
    assert len(EFITOOLS) == 7


@pytest.mark.parametrize("path", EFITOOLS, ids=lambda path: path.name)
def test_an_update_of_efitools_is_taken(path: Path):
    target, signer = path.name.removesuffix(".efitools.update").split("_by_")
    name = target.removesuffix("_append")
    message = path.read_bytes()
    update = parse_update(message)
    assert update.time == EfiTime(2026, 1, 2, 3, 4, 5)
    assert update.build() == message
    accepted = judge(name, message, enrolled(), is_append=target != name)
    assert accepted.authority is Authority[signer]
    assert isinstance(accepted.change, Store)
    assert accepted.change.data == stored_object(update.data, update.time)


@pytest.mark.parametrize("name", ["PK", "KEK", "db"])
def test_a_list_of_efitools_is_made_the_same(name: str):
    der = (TOOLS / f"{name}.der").read_bytes()
    assert (TOOLS / f"{name}.esl").read_bytes() == certificates_lists([der])


def test_an_update_of_sbvarsign_is_refused_for_its_signed_attributes():
    message = (TOOLS / "db_by_KEK.sbvarsign.update").read_bytes()
    with pytest.raises(UpdateRefused) as caught:
        judge("db", message, enrolled())
    assert caught.value.reason is Reason.AUTHORITY
    assert "signed attributes are not used" in caught.value.why
