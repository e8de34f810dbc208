# SPDX-License-Identifier: Apache-2.0
"""``hcalld sev``: what a guest's owner and a platform's operator do about SEV.

The names and files are those of sevctl and QEMU where they have any.
"""

from __future__ import annotations

from typing import Final

from hcalld.cli.lazy import LazyGroup

_COMMANDS: Final = {
    "export": "hcalld.cli.sev.export",
    "verify": "hcalld.cli.sev.verify",
    "session": "hcalld.cli.sev.session",
    "qemu-args": "hcalld.cli.sev.qemu_args",
    "emulator": "hcalld.cli.sev.emulator",
    "measure": "hcalld.cli.sev.measure",
    "validate": "hcalld.cli.sev.validate",
    "secret": "hcalld.cli.sev.secret",
    "report": "hcalld.cli.sev.report",
    "root": "hcalld.cli.sev.root",
    "vm": "hcalld.cli.sev.vm",
    "status": "hcalld.cli.sev.platforms:status",
    "id": "hcalld.cli.sev.platforms:ids",
    "reset": "hcalld.cli.sev.platforms:reset",
    "pdh-gen": "hcalld.cli.sev.platforms:pdh_gen",
    "pek-gen": "hcalld.cli.sev.platforms:pek_gen",
    "csr": "hcalld.cli.sev.owning:csr",
    "oca": "hcalld.cli.sev.owning:oca",
    "import": "hcalld.cli.sev.owning:import_",
}

command = LazyGroup(
    name="sev",
    short_help="Launch guests with SEV: sessions, measurements, secrets.",
    help="What the owner of a guest with SEV does, and the operator of its platform.",
    modules=_COMMANDS,
)
