# SPDX-License-Identifier: Apache-2.0
"""Suites: what is taken, what is refused, and those that are kept in the tree."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from hcalld.config import parse_profile
from hcalld.core.errors import ConfigError
from hcalld.guest import plan, secure

SELFTESTS: Final = Path(__file__).resolve().parents[4] / "guest_stub" / "linux" / "selftests"
HEAD: Final = 'name = "a"\nabout = "b"\n'


def test_parse_when_a_suite_says_little_then_the_rest_is_usual():
    suite = plan.parse(HEAD + '[[test]]\nname = "tpm2:test_smoke.sh"\n', "here")
    assert suite.test == (plan.Expected(name="tpm2:test_smoke.sh", result="pass"),)
    assert not suite.tpm
    assert not suite.secure


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "missing required field `name`"),
        ('name = "a"\n', "missing required field `about`"),
        ('name = "../a"\nabout = "b"\n', "the name '../a' is none"),
        (HEAD + "tpn = true\n", "unknown field `tpn`"),
        (HEAD + "tpm = 1\n", "Expected `bool`"),
        (HEAD + "memory_mib = 0\n", "memory_mib is 0; expected a positive number"),
        (HEAD + "tpm = true\nsecure = true\n", "tpm and secure are both set"),
        (HEAD + '[[test]]\nname = "a"\n', "'a' is no test; expected COLLECTION:PROGRAM"),
        (HEAD + '[[test]]\nname = "a:b; rm -r /"\n', "is no test"),
        (HEAD + '[[test]]\nname = "a:b"\nresult = "ok"\n', "Invalid enum value 'ok'"),
        (HEAD + '[[test]]\nname = "a:b"\nresult = "fail"\n', "expected the key `why`"),
        (HEAD + '[[test]]\nname = "a:b"\nparts = {c = "fail"}\n', "expected the key `why`"),
        (HEAD + '[[test]]\nname = "a:b"\n' * 2, "a:b is there twice"),
        (
            HEAD + '[[test]]\nname = "a:b"\n[[left_out]]\nname = "a:b"\nwhy = "c"\n',
            "a:b is expected and left out",
        ),
        ("name = ", "here: "),
    ],
)
def test_parse_when_a_suite_is_wrong_then_it_says_what_was_expected(text: str, message: str):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        plan.parse(text, "here")
    assert str(error.value).startswith("here: ")


def test_load_when_there_is_none_or_one_twice_then_it_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="has no suite"):
        plan.load(tmp_path)
    for name in ("one", "two"):
        (tmp_path / f"{name}.toml").write_text(HEAD)
    with pytest.raises(ConfigError, match=r"two suites in .* have the name a"):
        plan.load(tmp_path)


def test_load_when_it_reads_the_trees_suites_then_each_is_sound():
    suites = plan.load(SELFTESTS / "suites")
    assert [suite.name for suite in suites] == [
        *("kexec-secure", "kexec", "keystore", "powerpc", "secure", "tpm")
    ]
    for suite in suites:
        parse_profile(suite.profile, "default", suite.name)
        for test in suite.test:
            collection, _, program = test.name.partition(":")
            if (SELFTESTS / collection).is_dir():
                assert (SELFTESTS / collection / program).is_file(), test.name


@pytest.mark.parametrize(("page_shift", "used"), [(None, 12), (12, 12), (16, 16)])
def test_profile_when_a_guest_may_be_secure_then_it_has_its_kernels_pages(
    page_shift: int | None, used: int
):
    profile = parse_profile(secure.profile_for(page_shift), "default", "here")
    assert (profile.pef.enabled, profile.pef.page_shift) == (True, used)


def test_tree_when_a_collection_has_a_test_then_its_makefile_and_a_suite_name_it():
    suites = plan.load(SELFTESTS / "suites")
    expected = {test.name for suite in suites for test in suite.test}
    for script in SELFTESTS.glob("*/*.sh"):
        makefile = (script.parent / "Makefile").read_text()
        assert script.name in makefile.partition("TEST_PROGS :=")[2].splitlines()[0].split()
        assert f"{script.parent.name}:{script.name}" in expected
        assert script.stat().st_mode & 0o111, f"{script} is not executable"
        assert script.read_text().startswith("#!/bin/sh\n# SPDX-License-Identifier: GPL-2.0-or-")
