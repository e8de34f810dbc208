# SPDX-License-Identifier: Apache-2.0
"""What guests' scripts and the tests that read their consoles have in common.

A script prints ``@name=value`` lines; :func:`results` collects them. Its shell functions are in
:data:`LIBRARY`, which a script begins with.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from tests.e2e.lab import PARTITION, Lab
from tests.e2e.patience import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.daemon import Daemon
    from tests.e2e.machine import Machine

INITIALIZED: Final = "plpks: POWER LPAR Platform KeyStore initialized successfully"
OFF: Final = "plpks: POWER LPAR Platform KeyStore is not supported or enabled"
WARNING: Final = "Password already set"

BOOT_S: Final = 120
"""A boot takes a few seconds; the rest is for machines under load."""

OVERHEAD: Final = 32
"""What each object is charged beside its label and data, as long as no profile says else."""

WRAPPING_KEY_LABEL: Final = 36
"""Bytes of the label of the key that Linux has made for trusted keys, at its first boot."""

WRAPPING_KEY_SPACE: Final = OVERHEAD + WRAPPING_KEY_LABEL + 32

CONFIG: Final = """\
for file in /sys/firmware/plpks/config/*; do
    echo "config ${file##*/}=$(cat $file)"
done
"""

FUNCTIONS: Final = """\
vars=/sys/firmware/secvar/vars

# say NAME VALUE...
say() { local said=$1; shift; echo "@$said=$*"; }

# try NAME COMMAND...: says ok, or the errno's text, which programs print last.
try() {
    local tried=$1 out; shift
    if out=$("$@" 2>&1); then say $tried ok; else say $tried "${out##*: }"; fi
}

# The keystore's used space.
used() { local n; read -r n < /sys/firmware/plpks/config/used_space && echo $n; }

# update VARIABLE FILE: writes a signed update at once, as secvarctl does.
update() { dd if=$2 of=$vars/$1/update bs=64k; }

# hex FILE
hex() { od -An -v -tx1 $1 | tr -d ' \\n'; }

# Has the kernel say every hypervisor's return code.
dyndbg() { echo 'file plpks.c +p' > /sys/kernel/debug/dynamic_debug/control; }
"""

LIBRARY: Final = f"""\
# Lines of the kernel's must not come into the middle of ours; its whole log follows at the end.
dmesg -n 3
trap 'status=$?; echo; dmesg; exit $status' EXIT
{FUNCTIONS}"""


def results(text: str) -> dict[str, str]:
    """What a script said, by name; said twice, it counts as it was last."""
    return dict(re.findall(r"^@(\w+)=(.*)$", text, re.MULTILINE))


def config_of(text: str) -> dict[str, str]:
    """What :data:`CONFIG` printed."""
    return dict(re.findall(r"^config (\w+)=(.*)$", text, re.MULTILINE))


def succeed(machine: Machine) -> str:
    """Waits for the end of a guest whose script must succeed; gives the console."""
    assert machine.wait(BOOT_S) == 0
    text = machine.console.text
    assert "EXIT: STATUS=0" in text
    return text


def profile(lab: Lab, text: str) -> list[str]:
    """A profile directory with one for every guest, as options of the daemon."""
    directory: Path = lab.artifacts / "profiles"
    directory.mkdir(exist_ok=True)
    (directory / f"{PARTITION}.toml").write_text(text, "utf-8")
    return ["--profile-dir", str(directory)]


def wait_until_off(daemon: Daemon) -> None:
    """Waits until the daemon has seen its last guest go, and let go of its store."""

    def is_gone() -> bool:
        log = daemon.log_text()
        return log.rfind("guest gone") > log.rfind("guest connected")

    wait_until(is_gone, "the guest's end")


def calls(daemon: Daemon, name: str = "") -> list[str]:
    """The trace's lines of a call, or of all."""
    return [line for line in daemon.trace_lines() if f" {name}" in line]
