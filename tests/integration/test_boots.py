# SPDX-License-Identifier: Apache-2.0
"""The boots that guest_stub/unittests.toml lists, each with what it expects of itself.

SLOF takes seconds, so ``make test`` has it for a few of them, and test_stub.py for the rest of
what depends on firmware; ``make soak`` has all.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.daemon import Daemon
from tests.e2e.lab import Lab
from tests.e2e.machine import ByteOrder, Firmware, Machine

pytestmark = pytest.mark.qemu

CATALOGUE = Path(__file__).parents[2] / "guest_stub" / "unittests.toml"

WITH_SLOF = {("cas", "be"), ("pks-after-cas", "le")}
"""Boots that ``make test`` runs under SLOF too."""

_STUB_STATUS_OF_SUCCESS = (0, 77)


@dataclasses.dataclass(frozen=True, slots=True)
class Boot:
    """One boot of the catalogue, for one image and firmware."""

    name: str
    args: str
    image: ByteOrder
    firmware: Firmware
    smp: int
    memory_mb: int
    daemon: bool
    profile: dict[str, Any]
    status: int
    qemu_args: list[str]
    reboots: bool
    timeout_s: int
    follows: str | None


def boots() -> Iterator[Any]:
    """The catalogue, as parameters of the test; long ones are marked so."""
    catalogue = tomllib.loads(CATALOGUE.read_text("utf-8"))
    defaults = catalogue["defaults"]
    for entry in catalogue["boot"]:
        values = {**defaults, **entry}
        if "nodefault" in values["groups"]:
            continue
        for image in values["images"]:
            for firmware in values["firmware"]:
                is_long = "soak" in values["groups"] or (
                    firmware == "slof" and (values["name"], image) not in WITH_SLOF
                )
                yield pytest.param(
                    Boot(
                        name=values["name"],
                        args=values["args"],
                        image=image,
                        firmware=firmware,
                        smp=values["smp"],
                        memory_mb=values["memory_mb"],
                        daemon=values["daemon"],
                        profile=values["profile"],
                        status=values["status"],
                        qemu_args=values["qemu_args"],
                        reboots=values["reboots"],
                        timeout_s=values["timeout_s"],
                        follows=values.get("follows"),
                    ),
                    id=f"{values['name']}-{image}-{firmware}",
                    marks=[pytest.mark.soak] if is_long else [],
                )


def toml(profile: dict[str, Any]) -> str:
    """A profile as TOML: numbers and texts, and tables of them, which JSON writes alike."""
    lines = [
        f"{key} = {json.dumps(value)}"
        for key, value in profile.items()
        if not isinstance(value, dict)
    ]
    for key, table in profile.items():
        if isinstance(table, dict):
            lines += [f"[{key}]", *(f"{k} = {json.dumps(v)}" for k, v in table.items())]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("boot", list(boots()))
@pytest.mark.timeout(400)
def test_boot(boot: Boot, lab: Lab) -> None:
    daemon = None
    if boot.daemon:
        profiles = lab.artifacts / "profiles"
        profiles.mkdir()
        (profiles / "default.toml").write_text(toml(boot.profile), "utf-8")
        daemon = lab.daemon("--profile-dir", str(profiles))
    if boot.follows is not None:
        start(lab, find(boot.follows), daemon).report().must_pass()
        assert daemon is not None
        assert daemon.terminate() == 0
        daemon.start()
    machine = start(lab, boot, daemon)
    machine.wait(boot.timeout_s)
    report = machine.report()
    assert report.status == boot.status
    if boot.status in _STUB_STATUS_OF_SUCCESS:
        assert not list(report.failures())
    else:
        assert machine.process.returncode == 1


def find(name: str) -> Boot:
    """The first of a name."""
    boot: Boot = next(
        parameter.values[0] for parameter in boots() if parameter.values[0].name == name
    )
    return boot


def start(lab: Lab, boot: Boot, daemon: Daemon | None) -> Machine:
    return lab.stub(
        boot.args,
        daemon,
        byte_order=boot.image,
        firmware=boot.firmware,
        smp=boot.smp,
        memory_mib=boot.memory_mb,
        can_reboot=boot.reboots,
        extra=boot.qemu_args,
        # A boot that must fail says so in its status.
        failures=(),
    )
