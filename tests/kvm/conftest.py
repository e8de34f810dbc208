# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests with SEV guests in Debian's QEMU under KVM."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Require
from tests.e2e.daemon import Daemon
from tests.e2e.lab import Lab, lab
from tests.e2e.machine import Machine
from tests.e2e.sevqemu import VALIDATOR, Owner, SevGuest, Transcript
from tests.sev_platform import VECTORS

from hcalld.config import UNNAMED_PLATFORM
from hcalld.guest.sevhost import sev_environment
from hcalld.guestowner.client import SevClient
from hcalld.guestowner.platform import Platform
from hcallproto.payloads.sev.blobs import PlatformStatus

__all__ = ["SevLab", "lab", "sev"]


class SevLab:
    """A daemon with a platform, guests on it, and their owner.

    Args:
        lab: Starts and ends what the test starts.
        require: Gives the path of a tool.
        stack: Ends the machines.
    """

    def __init__(self, lab: Lab, require: Require, stack: contextlib.ExitStack) -> None:
        self.qemu = require("qemu-system-x86_64")
        self.firmware = require("sev-firmware")
        self.library = require("sev-library")
        self.artifacts = lab.artifacts
        self._lab = lab
        self._stack = stack
        self._machines = 0
        root = VECTORS / "root-2048.pem"
        profile = lab.artifacts / "profiles" / f"{UNNAMED_PLATFORM}.toml"
        profile.parent.mkdir()
        profile.write_text(f'[sev]\nroot = "{root}"\n')
        self.daemon: Daemon = lab.daemon("--profile-dir", str(profile.parent))
        self.owner = Owner(lab.artifacts, self.daemon.socket, root, require(VALIDATOR))
        # Beside the test's folder, which is removed when all is well.
        name = f"{lab.artifacts.name.removeprefix('kvm-')}.txt"
        self.transcript = Transcript(lab.artifacts.parent / "sev-transcripts" / name)

    def guest(self, **values: Any) -> SevGuest:
        """Describes a guest; with an owner's session unless it says otherwise."""
        if values.get("is_sev", True) and "session" not in values:
            values["session"] = self.owner.session(values.pop("policy", 1))
        return SevGuest(**{"qemu": self.qemu, "firmware": self.firmware, **values})

    def start(self, guest: SevGuest) -> Machine:
        """Starts a guest."""
        self._machines += 1
        name = "qemu" if self._machines == 1 else f"qemu{self._machines}"
        environ = sev_environment(self.library, self.daemon.socket) if guest.is_sev else {}
        machine = Machine(guest, self.artifacts, name=name, environ=environ)
        return self._stack.enter_context(machine)

    def firmware_with(self, at: int, name: str = "other.bin") -> Path:
        """Copies the firmware with one bit changed."""
        data = bytearray(self.firmware.read_bytes())
        data[at] ^= 1
        path = self.artifacts / name
        path.write_bytes(data)
        return path

    def platform(self) -> PlatformStatus:
        """Asks the platform how it is, by a connection of its own."""
        with SevClient(self.daemon.socket) as client:
            return Platform(client).status()


@pytest.fixture
def sev(lab: Lab, require: Require) -> Iterator[SevLab]:
    with contextlib.ExitStack() as stack:
        yield SevLab(lab, require, stack)
