# SPDX-License-Identifier: Apache-2.0
"""The set of keys for tests; ``hcalld secvar defaults`` is tested with it."""

from __future__ import annotations

import hashlib

import pytest

from hcalld.domain.secvar.answers import Authority, Store, Wipe
from hcalld.domain.secvar.authoring import parse_update_file, stored_object
from hcalld.domain.secvar.authvar import evaluate
from hcalld.domain.secvar.content import check_content
from hcalld.domain.secvar.defaults import REVOKED, Identities, default_lists, default_updates
from hcalld.domain.secvar.variables import BY_NAME, VARIABLES, encode_name
from hcalld.testing.secvars import LATER, TIME, Variables, identity

IDENTITIES = Identities(
    identity("pk"), identity("kek"), identity("ca"), identity("db", is_ca=False)
)


def test_lists_when_made_then_every_variable_has_what_it_may_hold():
    lists = default_lists(IDENTITIES)
    assert set(lists) == {variable.name for variable in VARIABLES}
    for name, data in lists.items():
        check_content(BY_NAME[name], data)
    assert hashlib.sha256(REVOKED).digest() in lists["dbx"]


@pytest.mark.parametrize("name", [variable.name for variable in VARIABLES])
def test_updates_when_made_then_each_is_taken(name: str):
    variables = Variables()
    variables.put("PK", identity("pk").stored)
    variables.put("KEK", identity("kek").stored)
    variables.pop(encode_name(name), None)
    update = parse_update_file(default_updates(IDENTITIES, TIME, LATER)[f"{name}.update"])
    accepted = evaluate(
        encode_name(name),
        update.message,
        is_append=update.is_append,
        lookup=variables.get,
        without_verification=name == "PK",
    )
    assert accepted.change == Store(stored_object(default_lists(IDENTITIES)[name], TIME))
    if name != "PK":
        assert accepted.authority is (Authority.PK if name == "KEK" else Authority.KEK)


def test_updates_when_counted_then_pk_is_wiped_and_not_reset():
    files = default_updates(IDENTITIES, TIME, LATER)
    assert len(files) == 2 * len(VARIABLES)
    assert "PK.reset" not in files
    accepted = evaluate(
        encode_name("PK"),
        parse_update_file(files["PK.wipe"]).message,
        is_append=False,
        lookup=Variables().get,
        without_verification=True,
    )
    assert accepted.change == Wipe()
