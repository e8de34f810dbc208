# SPDX-License-Identifier: Apache-2.0
"""``docs/secure-vm.md``: its commands, as they stand there, end in a secure VM."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from tests.e2e.console import LINUX_FAILURES, Console
from tests.e2e.patience import patience
from tests.provision import initramfs

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "secure-vm.md"
MAX_COMMANDS: Final = 10
PROMPT: Final = r"~ # "
FAILURES: Final = (*LINUX_FAILURES, r"OS terminated", r"(?m)^hcalld: ")
SECRET: Final = b"nobody else's business\n"

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]


def block(language: str) -> str:
    """The page's only block of a language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    (text,) = [text for kind, text in found if kind == language]
    return str(text)


@pytest.fixture
def folder(require: Callable[[str], Path], artifacts: Path) -> Path:
    """What the page says that one needs."""
    require("swtpm")
    require("openssl")
    program = (require("stub") / "esmb-get-file").read_bytes()
    added = initramfs.overlay({"/bin/esmb-get-file": program})
    (artifacts / "vmlinux").symlink_to(require("kernel-own"))
    (artifacts / "initrd.img").write_bytes(require("initramfs-tools").read_bytes() + added)
    (artifacts / "disk.pass").write_bytes(SECRET)
    (artifacts / "profiles").mkdir()
    (artifacts / "profiles" / "secure.toml").write_text(block("toml"), "utf-8")
    (artifacts / "bin").mkdir()
    (artifacts / "bin" / "qemu-system-ppc64").symlink_to(require("qemu"))
    return artifacts


@contextmanager
def typed(folder: Path, socket_dir: Path) -> Iterator[tuple[subprocess.Popen[bytes], Console]]:
    """A shell with the page's commands, and its terminal."""
    path = [folder / "bin", Path(sys.executable).parent, os.environ["PATH"]]
    reading, writing = os.pipe()
    shell = subprocess.Popen(
        ["bash", "-e", "-c", block("sh")],
        cwd=folder,
        env={
            **os.environ,
            "PATH": os.pathsep.join(map(str, path)),
            "HCALLD_STATE_DIR": str(folder / "state"),
            "XDG_RUNTIME_DIR": str(socket_dir),
        },
        stdin=subprocess.PIPE,
        stdout=writing,
        stderr=writing,
        start_new_session=True,
    )
    os.close(writing)
    console = Console(reading, folder / "terminal.log", FAILURES)
    try:
        yield shell, console
    finally:
        # The daemon, and whatever has not ended.
        os.killpg(shell.pid, signal.SIGTERM)
        if shell.stdin is not None:
            shell.stdin.close()
        shell.wait(patience(20))
        console.close()


def test_the_page_has_few_commands():
    lines = re.sub(r"\\\n", "", block("sh")).splitlines()
    assert len([line for line in lines if line and not line.startswith("#")]) <= MAX_COMMANDS


def test_its_commands_boot_a_secure_vm(folder: Path, socket_dir: Path):
    in_guest = re.findall(r"^# (.*)$", block(""), re.MULTILINE)
    assert len(in_guest) == 3
    with typed(folder, socket_dir) as (shell, console):
        assert shell.stdin is not None
        for line in (*in_guest, "esmb-get-file rootd", "exit"):
            console.expect(PROMPT, 180)
            shell.stdin.write(line.encode() + b"\n")
            shell.stdin.flush()
        assert shell.wait(patience(120)) == 0
    text = console.text
    assert "the guest is what the blob is for" in text
    assert "guest enters secure mode" in text
    assert re.search(r"/sys/devices/system/cpu/svm\n1\n", text)
    assert SECRET.decode() in text
    assert (folder / "disk.img").read_bytes()[:6] == b"hello\n"
    assert " UV_SHARE_PAGE(" in (folder / "trace.log").read_text("utf-8")
