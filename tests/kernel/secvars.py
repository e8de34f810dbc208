# SPDX-License-Identifier: Apache-2.0
"""A sequence of writes to secure variables, and what each must have done.

The steps are run by one script in one boot. After each the guest tells how the write ended, what
the variable holds, and the space that all objects take; :meth:`Sequence.check` compares it with
what the test said, and the space with the sum that it makes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Final

from tests.kernel.guestside import LIBRARY, OVERHEAD, WRAPPING_KEY_SPACE, results

OK: Final = "ok"
EPERM: Final = "Operation not permitted"
EINVAL: Final = "Invalid argument"
ENOMEM: Final = "Cannot allocate memory"
EBUSY: Final = "Device or resource busy"
"""How programs print the errors."""

PAGE_SIZE: Final = 4096
"""Our own kernel's."""

ABSENT: Final = "absent"

ERRNOS: Final = {EPERM: -1, EINVAL: -22, ENOMEM: -12, EBUSY: -16}

STEP: Final = """\
step() {
    try write$1 update $2 /updates/$1
    if [ "$(cat $vars/$2/size 2>&1)" = "cat: read error: No such file or directory" ]; then
        say data$1 absent; say size$1 absent
    else
        say data$1 $(cat $vars/$2/data | sha256sum | cut -d' ' -f1); say size$1 $(cat $vars/$2/size)
    fi
    say used$1 $(used)
}
"""


@dataclasses.dataclass(frozen=True)
class Step:
    """One write.

    Attributes:
        what: What it is about, for the message of a failure.
        variable: Whose update is written.
        file: What is written.
        outcome: What the program says.
        after: What the variable holds afterwards; None: it is not there.
        space: What all objects take afterwards.
    """

    what: str
    variable: str
    file: bytes
    outcome: str
    after: bytes | None
    space: int


class Sequence:
    """Steps, and what they make of the variables.

    Args:
        before: What is there at first.
        base: The space of what is not a variable.
        page_size: The guest kernel's.
    """

    def __init__(
        self,
        before: dict[str, bytes] | None = None,
        base: int = WRAPPING_KEY_SPACE,
        page_size: int = PAGE_SIZE,
    ) -> None:
        self.objects = dict(before or {})
        self.steps: list[Step] = []
        self._base = base
        self._page_size = page_size

    @property
    def space(self) -> int:
        """What all objects take."""
        return self._base + sum(
            OVERHEAD + 16 + 2 * len(name) + len(data) for name, data in self.objects.items()
        )

    def works(self, what: str, variable: str, file: bytes, after: bytes | None) -> None:
        """A write that succeeds, and leaves the variable so."""
        assert len(file) <= self._page_size, f"{what}: Linux passes on a page of it"
        self.objects.pop(variable, None)
        if after is not None:
            self.objects[variable] = after
        self._add(what, variable, file, OK)

    def wipes(self, what: str, file: bytes) -> None:
        """A write of PK that deletes every variable."""
        self.objects.clear()
        self._add(what, "PK", file, OK)

    def fails(self, what: str, variable: str, file: bytes, outcome: str) -> None:
        """A write that is refused, and changes nothing."""
        self._add(what, variable, file, outcome)

    def _add(self, what: str, variable: str, file: bytes, outcome: str) -> None:
        after = self.objects.get(variable)
        self.steps.append(Step(what, variable, file, outcome, after, self.space))

    def script(self, before: str = "") -> str:
        """What the guest does.

        Args:
            before: What it does first; may define another ``update``.
        """
        lines = [f"step {number} {step.variable}" for number, step in enumerate(self.steps)]
        return LIBRARY + STEP + before + "\n".join(lines) + "\n"

    @property
    def files(self) -> dict[str, bytes]:
        """What the guest writes."""
        return {f"/updates/{number}": step.file for number, step in enumerate(self.steps)}

    def check(self, text: str) -> None:
        """Compares what the guest told with what was expected, and the kernel's log with it."""
        got = results(text)
        for number, step in enumerate(self.steps):
            data, size = ABSENT, ABSENT
            if step.after is not None:
                data, size = hashlib.sha256(step.after).hexdigest(), str(len(step.after))
            told = [got.get(f"{name}{number}") for name in ("write", "data", "size", "used")]
            assert told == [step.outcome, data, size, str(step.space)], (
                f"step {number}, {step.what}, of {step.variable}"
            )
        for outcome, errno in ERRNOS.items():
            for variable in {step.variable for step in self.steps}:
                refused = sum(
                    (step.variable, step.outcome) == (variable, outcome) for step in self.steps
                )
                line = f"secvar-sysfs: Error setting the {variable} variable {errno}\n"
                assert text.count(line) == refused, line
