# SPDX-License-Identifier: Apache-2.0
"""JUnit XML: what continuous integration makes of it, and of what a guest may print."""

from __future__ import annotations

import dataclasses
from xml.etree import ElementTree

import hypothesis
from hypothesis import strategies as st

from hcalld.guest.junit import document
from hcalld.guest.verdict import Verdict


@dataclasses.dataclass
class Boot:
    name: str = "tpm"
    seconds: float = 1.5
    verdicts: list[Verdict] = dataclasses.field(default_factory=list)
    errors: list[str] = dataclasses.field(default_factory=list)


def test_document_when_made_then_changes_are_failures_and_expected_failures_are_skips():
    boot = Boot(
        verdicts=[
            Verdict("a/b:good", "pass", "pass", "", ()),
            Verdict("a/b:known", "fail", "fail", "TCG has no such thing", ()),
            Verdict("a/b:bad", "fail", "pass", "", ("expected pass, was fail",), ("a note",)),
        ],
        errors=["the guest printed 'Oops'\nand so on"],
    )
    (suite,) = ElementTree.fromstring(document([boot]))
    assert suite.attrib == {
        "name": "tpm",
        "tests": "4",
        "failures": "1",
        "errors": "1",
        "skipped": "1",
        "time": "1.5",
    }
    good, known, bad, error = suite
    assert (good.get("classname"), good.get("name"), len(good)) == ("tpm.a/b", "good", 0)
    assert [child.tag for child in known] == ["skipped"]
    assert known[0].get("message") == "fail: TCG has no such thing"
    assert [child.tag for child in bad] == ["failure", "system-out"]
    assert bad[1].text == "a note"
    assert error[0].get("message") == "the guest printed 'Oops'"
    assert error[0].text == "the guest printed 'Oops'\nand so on"


@hypothesis.given(st.text(), st.text(), st.text())
def test_document_when_a_guest_prints_anything_then_it_is_xml(name: str, change: str, note: str):
    boot = Boot(verdicts=[Verdict(name, "fail", "pass", "", (change,), (note,))], errors=[note])
    (suite,) = ElementTree.fromstring(document([boot]))
    assert len(suite) == 2
