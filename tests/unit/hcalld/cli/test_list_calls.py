# SPDX-License-Identifier: Apache-2.0
"""``hcalld list``: the table of calls, for people and programs."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner, Result

from hcalld.cli.list_calls import command
from hcallproto.abi.registry import CALLS, FAMILIES
from hcallproto.abi.spec import Family


def run(*words: str) -> Result:
    done = CliRunner().invoke(command, list(words))
    assert not done.exception or done.exit_code == 2
    return done


def test_list_when_asked_then_each_call_has_one_line():
    done = run()
    assert done.exit_code == 0
    heading, *lines = done.stdout.splitlines()
    assert heading.split() == ["number", "call", "level", "served", "arguments"]
    assert [line.split()[:2] for line in lines] == [
        [f"0x{call.number:x}", call.name] for call in CALLS
    ]
    for call, line in zip(CALLS, lines, strict=True):
        assert line.split()[2:4] == [str(call.level.value), "-" if call.decode_only else "yes"]
        assert line.endswith(", ".join(arg.name for arg in call.args)), "cut or wrapped"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_list_when_a_family_is_named_then_only_its_calls_come(family: Family):
    lines = run(family.name).stdout.splitlines()[1:]
    assert [line.split()[1] for line in lines] == [call.name for call in family.calls]


def test_list_when_only_served_ones_are_asked_for_then_no_others_come():
    lines = run("--served").stdout.splitlines()[1:]
    assert [line.split()[1] for line in lines] == [
        call.name for call in CALLS if not call.decode_only
    ]


def test_list_when_json_is_asked_for_then_it_has_every_field():
    rows = json.loads(run("--json").stdout)
    assert [row["name"] for row in rows] == [call.name for call in CALLS]
    by_name = {row["name"]: row for row in rows}
    write = by_name["H_PKS_WRITE_OBJECT"]
    assert write["family"] == "pks"
    assert write["number"] == 0x42C
    assert write["level"] == 1
    assert write["served"] is True
    assert write["arguments"] == ["auth", "label", "label_size", "policy", "data", "data_size"]
    assert by_name["H_PKS_READ_OBJECT"]["outputs"] == ["size", "policy"]
    assert all(row["doc"] for row in rows)


def test_list_when_json_and_filters_are_asked_for_then_both_hold():
    rows = json.loads(run("--json", "--served", "pks").stdout)
    assert rows
    assert all(row["served"] and row["family"] == "pks" for row in rows)


def test_list_when_the_family_is_unknown_then_the_known_ones_are_named():
    done = run("pk")
    assert done.exit_code == 2
    assert "no family 'pk'; families are: " in done.stderr
    for family in FAMILIES:
        assert family.name in done.stderr


def test_list_when_it_is_for_a_terminal_then_it_fits_its_width():
    terminal = {"TTY_COMPATIBLE": "1", "COLUMNS": "60", "TERM": "xterm"}
    done = CliRunner().invoke(command, ["pks"], env=terminal)
    assert done.exit_code == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    assert max(map(len, plain.splitlines())) <= 60
    assert "H_PKS_GET_CONFIG" in plain
