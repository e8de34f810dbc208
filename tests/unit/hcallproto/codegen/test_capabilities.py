# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest

from hcallproto.abi.registry import CALLS
from hcallproto.abi.spec import Level
from hcallproto.codegen import capabilities as module
from hcallproto.codegen.capabilities import capabilities, document
from hcallproto.codegen.errors import CodegenError


def test_every_call_is_there_once():
    families = capabilities()["families"].values()
    served = [name for family in families for name in family["served"]]
    decode_only = [name for family in families for name in family["decode-only"]]
    assert served == [call.name for call in CALLS if not call.decode_only]
    assert decode_only == [call.name for call in CALLS if call.decode_only]


def test_shape_is_that_of_a_vhost_user_back_end():
    found = capabilities()
    assert found["type"] == "spapr-hcall"
    assert found["protocol-versions"] == [1]
    assert found["features"] == ["shared-ram", "sc2", "commands", "page-states"]
    assert found["families"]["pks"]["hypertas"] == ["hcall-pks"]
    assert found["families"]["sev"]["hypertas"] == []


def test_features_come_with_a_call_that_needs_them(monkeypatch: pytest.MonkeyPatch):
    hypercalls = tuple(call for call in CALLS if call.level is Level.SC1)
    monkeypatch.setattr(module, "CALLS", hypercalls)
    assert capabilities()["features"] == ["shared-ram"]
    commands = tuple(call for call in CALLS if call.level is Level.COMMAND)
    monkeypatch.setattr(module, "CALLS", (*hypercalls, *commands))
    assert capabilities()["features"] == ["shared-ram", "commands"]


def test_document_is_json():
    assert json.loads(document(None)) == capabilities()
    assert document(None).endswith("}\n")


def test_document_is_idempotent():
    assert document(document(None)) == document(None)


def test_call_may_become_served():
    old = capabilities()
    pks = old["families"]["pks"]
    pks["decode-only"].append(pks["served"].pop())
    assert document(json.dumps(old)) == document(None)


def test_nothing_may_vanish():
    old = capabilities()
    old["families"]["pks"]["served"].append("H_PKS_OLD")
    old["features"].append("telepathy")
    with pytest.raises(CodegenError, match="H_PKS_OLD, telepathy would vanish"):
        document(json.dumps(old))
