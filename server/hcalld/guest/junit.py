# SPDX-License-Identifier: Apache-2.0
"""JUnit XML, which continuous integration systems show. Pure.

There is no standard; this is the part that they agree on. A test that ends as expected is a
success or, if it is expected to skip or to fail, a skip with the reason; any change is a failure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Protocol
from xml.etree import ElementTree

from hcalld.guest.verdict import Verdict

_NOT_XML: Final = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot have, not even escaped; a guest prints anything."""


class Boot(Protocol):
    """What is reported of one boot."""

    @property
    def name(self) -> str:
        """Its suite's."""

    @property
    def seconds(self) -> float:
        """How long it took."""

    @property
    def verdicts(self) -> Sequence[Verdict]:
        """One for each test."""

    @property
    def errors(self) -> Sequence[str]:
        """What went wrong with the boot itself."""


def document(boots: Sequence[Boot]) -> bytes:
    """Makes the document."""
    root = ElementTree.Element("testsuites", name="hcalld guest run")
    for boot in boots:
        suite = ElementTree.SubElement(root, "testsuite", name=clean(boot.name))
        failures = skips = 0
        for verdict in boot.verdicts:
            classname, _, name = verdict.name.rpartition(":")
            case = ElementTree.SubElement(
                suite,
                "testcase",
                classname=clean(f"{boot.name}.{classname}" if classname else boot.name),
                name=clean(name),
            )
            if verdict.is_changed:
                failures += 1
                _say(case, "failure", "; ".join(verdict.changes))
            elif verdict.got != "pass":
                skips += 1
                _say(case, "skipped", f"{verdict.got}: {verdict.why}" if verdict.why else "")
            if verdict.notes:
                ElementTree.SubElement(case, "system-out").text = clean("\n".join(verdict.notes))
        for number, error in enumerate(boot.errors, start=1):
            case = ElementTree.SubElement(
                suite, "testcase", classname=clean(boot.name), name=f"the boot, error {number}"
            )
            _say(case, "error", error)
        suite.set("tests", str(len(boot.verdicts) + len(boot.errors)))
        suite.set("failures", str(failures))
        suite.set("errors", str(len(boot.errors)))
        suite.set("skipped", str(skips))
        suite.set("time", f"{boot.seconds:.1f}")
    ElementTree.indent(root)
    text: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def clean(text: str) -> str:
    """Replaces what XML cannot have."""
    return _NOT_XML.sub("\ufffd", text)


def _say(case: ElementTree.Element, kind: str, text: str) -> None:
    first, _, _ = text.partition("\n")
    element = ElementTree.SubElement(case, kind, message=clean(first))
    element.text = clean(text)
