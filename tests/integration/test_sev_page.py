# SPDX-License-Identifier: Apache-2.0
"""``docs/sev.md``: its commands, as they stand there, by a shell in an empty folder.

All but those with QEMU and libvirt, which ``tests/kvm/test_page.py`` runs after the first ones of
these.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.conftest import ROOT, Require
from tests.e2e.pages import Block, PageShell, blocks_of
from tests.e2e.patience import wait_until

PAGE = "sev.md"
WITH_QEMU = "With QEMU"
WITH_LIBVIRT = "With libvirt"
FROM_NOTHING = "From nothing to a secret"
SOCKETS = {
    FROM_NOTHING: ".local/state/hcalld/hcalld.sock",
    "Another platform": "two.sock",
}
"""Of the daemons that a section starts."""

pytestmark = [pytest.mark.timeout(300)]


class Page:
    """The page's reader: blocks done so far, and what they printed."""

    def __init__(self, shell: PageShell, home: Path) -> None:
        self.shell = shell
        self.home = home
        self.folder = home / "build" / "try"
        self.blocks = list(blocks_of(PAGE))
        self.sections = list(dict.fromkeys(block.section for block in self.blocks))

    def read(self, section: str) -> str:
        """Runs all blocks of a section; gives what was printed."""
        return "".join(self._run(block) for block in self.blocks if block.section == section)

    def _run(self, block: Block) -> str:
        # Made already; everything else is as a reader types it.
        text = re.sub(r"^make .*$", "", block.text, flags=re.MULTILINE)
        said = self.shell.run(text)
        if "hcalld serve" in text:
            # Whoever types needs as long.
            name = SOCKETS[block.section]
            socket = (self.home if name.startswith(".") else self.folder) / name
            wait_until(socket.exists, f"{name} of {text}")
        return said


@contextlib.contextmanager
def open_page(
    require: Require, home: Path, *, before: Sequence[str] = (), **environ: str
) -> Iterator[Page]:
    """Somebody in a new clone, who has run ``make venv sev``."""
    require("gcc")
    require("virt-qemu-sev-validate")
    build = home / "guest_stub" / "x86" / "build"
    subprocess.run(
        ["make", "-C", str(ROOT / "guest_stub" / "x86"), f"BUILD={build}"],
        check=True,
        capture_output=True,
    )
    with PageShell(home, home, before=before, **environ) as shell:
        yield Page(shell, home)


@pytest.fixture
def page(require: Require, socket_dir: Path) -> Iterator[Page]:
    with open_page(require, socket_dir) as opened:
        yield opened


def is_over(log: str) -> bool:
    """Whether the launched guest is gone for the daemon too; who launched it is so before."""
    return log.rfind("guest gone") > log.rfind("launch finished")


def check_secret(page: Page, said: str) -> None:
    """What the first section is there to show."""
    assert re.search(r"^state +INIT$", said, re.MULTILINE), "the platform's status"
    assert re.search(r"^ARK .*\(the trusted root\)$", said, re.MULTILINE), "its certificates"
    assert "NOT" not in said
    assert "the measurement is that of the wanted launch\n" in said, "the owner"
    assert "OK: Looks good to me\n" in said, "libvirt's validator"
    assert "\nopen sesame\n" in said, "the secret in the guest's memory"
    assert re.search(r"^verified +yes$", said, re.MULTILINE), "the report"
    assert (page.folder / "memory.bin").read_bytes().count(b"open sesame") == 1
    path = page.folder / "hcalld.log"
    wait_until(lambda: is_over(path.read_text("utf-8")), "the daemon's word that the guest is gone")
    log = path.read_text("utf-8")
    events = ("launch begun", "launch measured", "secret injected", "launch finished", "guest gone")
    # The last guest is the launched one; those before it asked the platform.
    places = [log.rindex(event) for event in events]
    assert places == sorted(places), log
    assert re.search(r"launch begun +handle=1 partition=sev-1 .*policy=NODBG\|NOSEND", log), log
    assert "open sesame" not in log


def test_the_pages_commands_do_what_it_says(page: Page) -> None:
    assert page.sections == [FROM_NOTHING, WITH_QEMU, WITH_LIBVIRT, "Another platform"]
    check_secret(page, page.read(FROM_NOTHING))
    said = page.read("Another platform")
    sent, received = (page.folder / name for name in ("sent.bin", "received.bin"))
    assert sent.read_bytes() == received.read_bytes()
    assert any(sent.read_bytes())
    assert "sent to guest.stream: 256 packets" in said
    assert "received from guest.stream: 256 packets" in said
    assert re.search(r"^owner +external$", said, re.MULTILINE), "the owner by hcalld sev import"
    assert said.endswith("the platform has new keys, and no owner\n")
