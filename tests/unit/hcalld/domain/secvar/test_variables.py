# SPDX-License-Identifier: Apache-2.0
"""The table of secure variables, against what Linux and firmware have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hcalld.domain.labels import OS_LINUX, os_label
from hcalld.domain.secvar import variables
from hcalld.domain.secvar.variables import (
    BY_NAME,
    CONTENT_TYPES,
    OTHER,
    VARIABLES,
    Append,
    Content,
    Signer,
)
from hcallproto.payloads import efi

LABEL_SIZES = {
    "PK": 20,
    "KEK": 22,
    "db": 20,
    "dbx": 22,
    "grubdb": 28,
    "grubdbx": 30,
    "sbat": 24,
    "moduledb": 32,
    "trustedcadb": 38,
}
"""Bytes of the labels that Linux makes (plpks-secvar.c)."""


def test_variables_when_labelled_then_their_labels_have_linuxs_sizes():
    assert {v.name: len(os_label(b"", v.label_name, OS_LINUX)) for v in VARIABLES} == LABEL_SIZES


def test_variables_when_dynamic_only_then_static_mode_does_not_show_them():
    assert [v.name for v in VARIABLES if v.is_static] == ["PK", "moduledb", "trustedcadb"]


@pytest.mark.parametrize("name", ["db", "dbx", "grubdb", "grubdbx", "sbat"])
def test_variables_when_boot_code_reads_them_then_anyone_may(name: str):
    assert BY_NAME[name].policy == 0x0900_0000


@pytest.mark.parametrize("name", ["PK", "KEK", "moduledb", "trustedcadb"])
def test_variables_when_only_linux_reads_them_then_it_needs_the_password(name: str):
    assert BY_NAME[name].policy == 0x0100_0000


def test_variables_when_they_are_keys_of_updates_then_only_pk_signs_them():
    assert {v.name for v in VARIABLES if v.signers == (Signer.PK,)} == {"PK", "KEK"}
    assert all(v.signers == (Signer.PK, Signer.KEK) for v in VARIABLES[2:])
    assert {v.name for v in VARIABLES if v.vendor == efi.GLOBAL_VARIABLE} == {"PK", "KEK"}
    assert all(v.append is Append.MERGED for v in VARIABLES[2:])
    assert all(v.vendor == efi.IMAGE_SECURITY_DATABASE for v in VARIABLES[2:])


def test_variable_of_when_the_name_is_known_then_it_is_that_and_otherwise_other():
    for variable in VARIABLES:
        assert variables.variable_of(variable.label_name) is variable
    for name in (b"", b"db", b"d\0b\0\0\0", "DB".encode("utf-16-le"), b"\0\xd8"):
        assert variables.variable_of(name) is OTHER
    assert OTHER.vendor == efi.POWER_VENDOR


def test_content_when_a_variable_has_types_then_each_is_a_known_one():
    for content in Content:
        if content is not Content.OPAQUE:
            assert CONTENT_TYPES[content] <= efi.SIGNATURE_TYPES.keys()


def test_variables_when_documented_then_the_table_is_this_one():
    text = (Path(__file__).parents[5] / "docs" / "secvar.md").read_text()
    rows = [
        (
            v.name,
            ", ".join(signer.value for signer in v.signers),
            v.content.value,
            v.append.value,
            ", ".join(sorted(bit.name or "" for bit in v.policy)),
            "both" if v.is_static else "dynamic",
        )
        for v in VARIABLES
    ]
    for row in rows:
        assert f"| {' | '.join(row)} |\n" in text
    names = [row[0] for row in rows]
    assert re.findall(r"^\| (\w+) \| PK", text, re.MULTILINE) == names
