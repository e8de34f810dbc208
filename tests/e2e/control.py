# SPDX-License-Identifier: Apache-2.0
"""``hcalld ctl`` against a daemon of a test, and the daemon's trace of what pages did."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any, Final

import msgspec
from tests.e2e.daemon import COMMAND, Daemon, run_hcalld
from tests.e2e.lab import PARTITION
from tests.e2e.machine import Machine
from tests.e2e.patience import patience, wait_until

from hcalld.control.client import ask
from hcalld.control.endpoint import NAME
from hcalld.control.messages import ListGuests

PAGE: Final = 1 << 16
OWN_PAGES: Final = 1 << 44
"""Real addresses below are the hypervisor's own pages, which hold what is out."""
_CROSSING: Final = re.compile(
    r"HV>UV UV_PAGE_(OUT|IN)\(lpid=0x1, \w+=0x([0-9a-f]+), [^)]*\) = U_SUCCESS"
)
_PAGE_IN: Final = re.compile(r" cpu(\d+) #\d+ PAGE_IN\(gpa=0x([0-9a-f]+)\)")


def ctl(daemon: Daemon, *words: str) -> Any:
    """Runs a command of ``hcalld ctl`` that succeeds; gives its JSON."""
    done = run_hcalld("ctl", *words, "--json", "--state-dir", str(daemon.state_dir))
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return json.loads(done.stdout)


def page_out(daemon: Daemon, *words: str) -> dict[str, Any]:
    """Pages the guest out; gives what became of it."""
    command = [*COMMAND, "ctl", "page-out", PARTITION, *words, "--json"]
    done = subprocess.run(
        [*command, "--state-dir", str(daemon.state_dir)],
        capture_output=True,
        text=True,
        timeout=patience(300),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def start_page_out(daemon: Daemon) -> subprocess.Popen[str]:
    """Begins to page the guest out."""
    return subprocess.Popen(
        [*COMMAND, "ctl", "page-out", PARTITION, "--state-dir", str(daemon.state_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def the_guest(daemon: Daemon) -> dict[str, Any]:
    """The only guest, as ``hcalld ctl guests`` tells of it; without a process, to ask often."""
    (guest,) = ask(daemon.state_dir / NAME, ListGuests()).guests
    assert guest.problem == ""
    found: dict[str, Any] = msgspec.to_builtins(guest)
    return found


def guest_at_rest(daemon: Daemon, machine: Machine) -> dict[str, Any]:
    """The same, while the machine is stopped and none of its calls waits; it goes on then."""
    machine.qmp.execute("stop")
    found: list[dict[str, Any]] = [{}]

    def is_quiet() -> bool:
        before = found[0]
        found[0] = the_guest(daemon)
        return before == found[0] and not before["waiting"]

    wait_until(is_quiet, "the end of the guest's calls", 60)
    return found[0]


class Traced:
    """What pages did, by lines of the trace.

    A turn of very many calls is not told whole, such as that which shares all bounce buffers.

    Attributes:
        went: How often a page went out.
        came: How often one came in that was out.
    """

    def __init__(self, lines: list[str]) -> None:
        self.went = self.came = 0
        for line in lines:
            for direction, address in _CROSSING.findall(line):
                if direction == "OUT":
                    self.went += 1
                elif int(address, 16) < OWN_PAGES:
                    self.came += 1


def missed(lines: list[str]) -> dict[int, set[int]]:
    """Which CPUs missed which page."""
    found: dict[int, set[int]] = {}
    for line in lines:
        match = _PAGE_IN.search(line)
        if match is not None:
            found.setdefault(int(match[2], 16) & -PAGE, set()).add(int(match[1]))
    return found
