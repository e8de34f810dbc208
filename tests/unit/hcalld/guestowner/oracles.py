# SPDX-License-Identifier: Apache-2.0
"""What other programs say: libvirt's virt-qemu-sev-validate, and sev-snp-measure from PyPI."""

from __future__ import annotations

import pathlib
import subprocess
import sys

from tests.conftest import Require

LOOKS_GOOD = "OK: Looks good to me\n"
MISMATCH = 1


def snp_measure(folder: pathlib.Path, *words: str) -> str:
    """What sev-snp-measure prints; it is installed beside the interpreter, maybe off PATH."""
    script = pathlib.Path(sys.executable).parent / "sev-snp-measure"
    done = subprocess.run(
        [str(script), *words], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def validate(
    require: Require, folder: pathlib.Path, *words: str
) -> subprocess.CompletedProcess[str]:
    """virt-qemu-sev-validate, with the system's Python: it has what the program needs."""
    program = require("virt-qemu-sev-validate")
    return subprocess.run(
        ["/usr/bin/python3", str(program), *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
