# SPDX-License-Identifier: Apache-2.0
"""``docs/capture.md``: its commands, as they stand there, on captures of the guest stub.

Each ``sh`` block is run by a shell of its own, in order and in one folder. A line with ``hcalld
serve`` has a guest that makes its calls, and ends; ``hcalld ctl`` asks a daemon whose guest calls
all the time. Files that the page has no command for are there: keys, and a second capture.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.e2e.lab import Lab
from tests.e2e.machine import socket_chardev
from tests.e2e.patience import patience, wait_until
from tests.e2e.stubwords import CALLING

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "capture.md"
CALLS: Final = "pks_config pks_object pks=1 require=1"
pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]


def blocks() -> Iterator[str]:
    """The page's blocks of commands."""
    text = PAGE.read_text("utf-8")
    yield from re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


class Desk:
    """Where a user works: a folder, an environment, a guest."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.folder = lab.artifacts
        self.socket = lab.socket_dir / "hcalld.sock"
        lab.require("tshark")
        path = [Path(sys.executable).parent, os.environ["PATH"]]
        self.environ = {
            **os.environ,
            "PATH": os.pathsep.join(map(str, path)),
            "HOME": str(self.folder),
            "HCALLD_STATE_DIR": str(self.folder / "state"),
            "XDG_RUNTIME_DIR": str(lab.socket_dir),
        }

    def run(self, block: str) -> str:
        """The commands of a block that end by themselves."""
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", block],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=patience(120),
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def serve(self, block: str) -> subprocess.Popen[bytes]:
        """The commands of a block that has a daemon."""
        process = subprocess.Popen(
            ["bash", "-e", "-c", f"exec {block.strip()}"], cwd=self.folder, env=self.environ
        )
        wait_until(self.socket.exists, "the daemon's socket")
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """End a daemon."""
        process.send_signal(signal.SIGTERM)
        assert process.wait(patience(30)) == 0
        self.socket.unlink(missing_ok=True)


def test_the_pages_commands_do_what_it_says(lab: Lab) -> None:
    desk = Desk(lab)
    (desk.folder / "capture.pass").write_text("a passphrase of some length\n")
    (desk.folder / "capture.pass").chmod(0o600)
    public = X25519PrivateKey.generate().public_key()
    (desk.folder / "public.pem").write_bytes(
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    printed = []
    for block in blocks():
        lines = block.splitlines()
        for line in lines:
            if line.startswith("hcalld serve"):
                daemon = desk.serve(line)
                machine = lab.stub(CALLS, chardev=socket_chardev(desk.socket))
                machine.report().must_pass("pks_object")
                desk.stop(daemon)
                shutil.copy(desk.folder / "boot.pcapng", desk.folder / "again.pcapng")
        rest = "\n".join(line for line in lines if not line.startswith("hcalld serve"))
        if "hcalld ctl" in rest:
            daemon = desk.serve("hcalld serve")
            guest = lab.stub(CALLING, chardev=socket_chardev(desk.socket), smp=2)
            guest.console.expect("= soak")
            printed.append(desk.run(rest))
            guest.close()
            desk.stop(daemon)
        elif rest:
            printed.append(desk.run(rest))
    said = "\n".join(printed)
    assert "now.pcapng" in said
    assert "H_PKS_READ_OBJECT(" in said, "hcalld decode"
    assert "CALL H_PKS_WRITE_OBJECT(" in said, "tshark"
    assert re.search(r"^H_PKS_\w+\t", said, re.MULTILINE), "its fields"
    assert "no differences" in said, "hcalld diff"
    assert (desk.folder / ".local/lib/wireshark/plugins/hcalld.lua").is_file()
    # For good: without naming the file.
    command = "tshark -r boot.pcapng -T fields -e hcall.name -Y hcall.ret"
    assert "H_PKS_GET_CONFIG" in desk.run(command)
