# SPDX-License-Identifier: Apache-2.0
"""Linux's retry paths: a profile has long operations answered busy first, with continue tokens.

A signed update is issued again after the time that the code hints at, for at most 5 s in all;
wrapping and unwrapping at once, for ever (plpks.c).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from tests.kernel.guestside import calls, profile, results, succeed
from tests.kernel.secvars import EBUSY, EINVAL, EPERM, OK, Sequence
from tests.kernel.test_secvar import DYNAMIC_MODE, DYNAMIC_SPACE, LATCH, Author, enrol, run

if TYPE_CHECKING:
    from tests.e2e.daemon import Daemon
    from tests.e2e.lab import Lab
    from tests.kernel.conftest import Keys

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

TRUSTED = """\
try new keyctl add trusted kmk "new 32" @u
keyctl print %trusted:kmk > /tmp/kmk
try load keyctl add trusted again "load $(cat /tmp/kmk)" @u
[ "$(keyctl print %trusted:again)" = "$(cat /tmp/kmk)" ] && say same yes
"""


def codes(daemon: Daemon, name: str) -> list[str]:
    """How the issues of a call were answered."""
    return [match[1] for line in calls(daemon, name) if (match := re.search(r"\) = (\w+)", line))]


@pytest.mark.parametrize(
    ("answers", "hint_ms", "code"),
    [
        (3, 10, "H_LONG_BUSY_ORDER_10_MSEC"),
        (200, 0, "H_BUSY"),
        (4, 100, "H_LONG_BUSY_ORDER_100_MSEC"),
    ],
)
def test_long_operations_are_issued_again(
    answers: int, hint_ms: int, code: str, keys: Keys, lab: Lab
) -> None:
    busy = f"[pks]\nbusy_answers = {answers}\nbusy_hint_ms = {hint_ms}\n"
    daemon = lab.daemon(*profile(lab, LATCH + busy))
    author, steps = Author(), Sequence()
    file = author("PK", keys.pk.esl, keys.pk)
    steps.works("PK", "PK", file, author.stored(keys.pk.esl))
    machine = lab.linux(
        "own", steps.script() + TRUSTED, daemon, userland="initramfs-tools", files=steps.files
    )
    text = succeed(machine)
    steps.check(text)
    got = results(text)
    assert (got["new"], got["load"], got["same"]) == (OK, OK, "yes")
    for name in ("H_PKS_SIGNED_UPDATE", "H_PKS_WRAP_OBJECT", "H_PKS_UNWRAP_OBJECT"):
        assert codes(daemon, name) == [code] * answers + ["H_SUCCESS"]
        lines = calls(daemon, name)
        told = [re.search(r"= \w+ token=(\w+)", line) for line in lines]
        given = [re.search(r"token=(\w+)\)", line) for line in lines]
        # Each issue brings the token of the answer before.
        assert [found and found[1] for found in given[1:]] == [
            found and found[1] for found in told[:-1]
        ]
        assert given[0] is not None
        assert given[0][1] == "0"


def test_refusals_come_through_busy_answers(keys: Keys, lab: Lab) -> None:
    """The errors are those of the operation, whichever issue finds them."""
    busy = "[pks]\nbusy_answers = 2\nbusy_hint_ms = 1\n"
    daemon = lab.daemon(*profile(lab, DYNAMIC_MODE + LATCH + busy))
    author, steps = Author(), Sequence(base=DYNAMIC_SPACE)
    enrol(steps, author, keys)
    file = author("db", keys.db.esl, keys.stranger)
    steps.fails("by a stranger", "db", file, EPERM)
    steps.fails("malformed", "db", file[:100], EINVAL)
    file = author("db", keys.db.esl, keys.kek)
    steps.works("by KEK", "db", file, author.stored(keys.db.esl))
    run(lab, daemon, steps)


def test_linux_gives_up_after_five_seconds_of_hints(keys: Keys, lab: Lab) -> None:
    busy = "[pks]\nbusy_answers = 50\nbusy_hint_ms = 1000\n"
    daemon = lab.daemon(*profile(lab, LATCH + busy))
    author, steps = Author(), Sequence()
    steps.fails("PK", "PK", author("PK", keys.pk.esl, keys.pk), EBUSY)
    run(lab, daemon, steps)
    answered = codes(daemon, "H_PKS_SIGNED_UPDATE")
    assert set(answered) == {"H_LONG_BUSY_ORDER_1_SEC"}
    assert 5 <= len(answered) <= 6
