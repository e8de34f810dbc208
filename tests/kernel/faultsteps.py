# SPDX-License-Identifier: Apache-2.0
"""A guest's script in step with rules of faults that a test puts in force meanwhile.

The script says where it is and tries to read a variable until that fails in a way of its own:
the last rule of each step. So neither side waits for a time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Self

from tests.kernel.guestside import BOOT_S, LIBRARY, results

from hcalld.control.client import ControlClient
from hcalld.control.endpoint import NAME
from hcalld.control.messages import AddFault, ClearFaults, ListFaults
from hcalld.faults.rules import Rule

if TYPE_CHECKING:
    from tests.e2e.daemon import Daemon
    from tests.e2e.machine import Machine

SIGNAL: Final = "moduledb"
"""The variable that is read for nothing else."""

PREFIX_SIZE: Final = 16
"""Of the bytes of a label before the variable's name (plpks.c ``struct label_attr``)."""


def label_size(variable: str) -> int:
    """Bytes of a variable's label; its name is in UTF-16."""
    return PREFIX_SIZE + 2 * len(variable)


GO: Final = Rule(
    call="H_PKS_READ_OBJECT",
    arguments={"label_size": label_size(SIGNAL)},
    returns="H_HARDWARE",
    times=1,
)

STEPS: Final = f"""\
{LIBRARY}
# get VARIABLE: reads its size with one call; cat would ask again after an error.
get() {{ dd if=$vars/$1/size bs=4k count=1; }}

# until_told NAME: says that it is there, and waits for the test's rules.
until_told() {{
    say at $1
    until get {SIGNAL} 2>&1 | grep -q 'Input/output error'; do sleep 0.02; done
    dmesg -c > /dev/null
}}

# step NAME COMMAND...: says how it ended, and what the kernel logged.
step() {{
    try "$@"
    echo "@${{1}}_log"; dmesg -c; echo @
}}

# Reading the used space asks the hypervisor; what fails is shown as 0.
is_zero() {{ [ "$(used)" = 0 ]; }}

# add NAME: makes a trusted key.
add() {{ keyctl add trusted $1 "new 32" @u; }}

# load NAME: loads /tmp/wrapped under another name.
load() {{ keyctl add trusted $1 "load $(cat /tmp/wrapped)" @u; }}

printf 'eight bytes of flags, and no update' > /tmp/junk
"""


def steps_of(text: str) -> dict[str, str]:
    """What a script said, by name; ``NAME_log`` is what the kernel logged meanwhile.

    Of a log each line ends with ``|``, and has no time.
    """
    logs = re.findall(r"^@(\w+_log)\n(.*?)^@$", text, re.MULTILINE | re.DOTALL)
    stamp = re.compile(r"^\[[^\]]*\] ", re.MULTILINE)
    return results(text) | {name: stamp.sub("", log).replace("\n", "|") for name, log in logs}


class Conductor:
    """Puts rules in force where a guest's script waits for them.

    Args:
        daemon: whose rules.
        machine: the guest, if it runs already.
    """

    def __init__(self, daemon: Daemon, machine: Machine) -> None:
        self._client = ControlClient(daemon.state_dir / NAME)
        self._machine = machine

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def met(self, call: str) -> int:
        """How often rules of a call have answered it."""
        faults = self._client.ask(ListFaults()).faults
        return sum(fault.met for fault in faults if fault.rule.call == call)

    def at(self, place: str, rules: Sequence[Rule]) -> None:
        """When the script is at a place, replaces all rules by others and lets it go on."""
        self._machine.console.expect(f"^@at={place}$", BOOT_S)
        self._client.ask(ClearFaults())
        for rule in [*rules, GO]:
            self._client.ask(AddFault(rule=rule))
