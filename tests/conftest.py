# SPDX-License-Identifier: Apache-2.0
"""What every tier of tests stands on: tools, tiers, artefacts, Hypothesis profiles.

Tools. ``require("qemu")`` gives the path of a tool, or skips the test: this file is the only
place that skips. ``HCALLD_REQUIRE=qemu,kernel`` names the tiers whose tools must be there;
a lacking one then fails the test. ``make`` sets it, and the variables of :data:`TOOLS`.

Tiers. With ``HCALLD_REQUIRE``, a run is also judged as a whole: each named tier must have run
at least one test and nothing may have been skipped; ``tests/provision/tiers.py`` does so by
folder where ``make`` loads it, and here it is done by marker.

Soak and bench tests run only when ``-m`` names them. Tests of a tier that this machine cannot run,
as kvm without ``/dev/kvm``, are left out, and the head and the summary of the run say why.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Final

import hypothesis
import pytest
from tests.provision.tiers import TierCheck, is_worker, unable

ROOT: Final = Path(__file__).resolve().parent.parent
ARTIFACTS: Final = ROOT / "tests" / "artifacts"

Require = Callable[[str], Path]


# -- tools ------------------------------------------------------------------------------


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As for what a shell runs in the background: programs under test would ignore it as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclasses.dataclass(frozen=True)
class Tool:
    """Something that a test needs and a machine may lack.

    Attributes:
        tier: whose name in ``HCALLD_REQUIRE`` makes it a must.
        variable: the environment variable that holds its path.
        make: the ``make`` target that provides it.
    """

    tier: str
    variable: str
    make: str


TOOLS: Final[dict[str, Tool]] = {
    "qemu": Tool("qemu", "HCALLD_QEMU", "qemu"),
    "stub": Tool("qemu", "HCALLD_STUB_DIR", "stub"),
    "kernel-debian": Tool("kernel", "HCALLD_KERNEL_DEBIAN", "guest"),
    "kernel-debian-sid": Tool("kernel", "HCALLD_KERNEL_DEBIAN_SID", "guest"),
    "kernel-debian-64k": Tool("kernel", "HCALLD_KERNEL_DEBIAN_64K", "guest"),
    "kernel-own": Tool("kernel", "HCALLD_KERNEL_OWN", "guest"),
    "kernel-own-64k": Tool("kernel", "HCALLD_KERNEL_OWN_64K", "guest"),
    "initramfs": Tool("kernel", "HCALLD_INITRAMFS", "guest"),
    "initramfs-tools": Tool("kernel", "HCALLD_INITRAMFS_TOOLS", "guest"),
    "initramfs-tpm": Tool("kernel", "HCALLD_INITRAMFS_TPM", "guest"),
    "initramfs-selftests": Tool("kernel", "HCALLD_INITRAMFS_SELFTESTS", "guest"),
    "kernel-x86": Tool("kvm", "HCALLD_KERNEL_X86", "kvmtest"),
    "sev-library": Tool("kvm", "HCALLD_SEV_LIBRARY", "sev"),
    "sev-firmware": Tool("kvm", "HCALLD_SEV_FIRMWARE", "sev"),
}
"""Any other name is a program, looked for in ``PATH``."""


def required_tiers() -> frozenset[str]:
    """The tiers that ``HCALLD_REQUIRE`` names."""
    return frozenset(filter(None, os.environ.get("HCALLD_REQUIRE", "").split(",")))


def find_tool(name: str) -> tuple[Path | None, str]:
    """The path of a tool, or None and what to do."""
    tool = TOOLS.get(name)
    if tool is None:
        program = shutil.which(name)
        return (Path(program) if program else None), f"the program {name} is not installed"
    value = os.environ.get(tool.variable)
    if not value:
        why = f"{tool.variable} is not set; `make test` makes {name} ready and sets it"
        return None, why
    path = Path(value)
    if not path.exists():
        return None, f"{tool.variable} names {path}, which is not there; run `make {tool.make}`"
    return path, ""


def is_required(name: str) -> bool:
    """Whether the lack of a tool is a failure: its tier is required, or any for a program."""
    tool = TOOLS.get(name)
    return bool(required_tiers()) if tool is None else tool.tier in required_tiers()


@pytest.fixture(scope="session")
def require() -> Require:
    """``require(tool)`` gives a tool's path; without it the test is skipped, or fails."""

    def _require(name: str) -> Path:
        path, why = find_tool(name)
        if path is not None:
            return path
        if is_required(name):
            pytest.fail(f"{name} is required: {why}", pytrace=False)
        pytest.skip(f"no {name}: {why}")

    return _require


# -- artefacts --------------------------------------------------------------------------

_FOLDER: Final = pytest.StashKey[Path]()
_LOCK: Final = pytest.StashKey[int]()
_HAS_FAILED: Final = pytest.StashKey[bool]()
_MAX_NAME: Final = 150


def folder_name(nodeid: str) -> str:
    """A test's id as the name of a directory."""
    name = re.sub(r"[^A-Za-z0-9._=+-]+", "-", nodeid.removeprefix("tests/")).strip("-.")
    return name[:_MAX_NAME]


@pytest.fixture
def artifacts(request: pytest.FixtureRequest) -> Path:
    """The test's own directory below ``tests/artifacts``, for logs, captures and stores.

    Empty at first, and of this run alone. It is kept when the test fails, and with
    ``HCALLD_KEEP`` set. ``HCALLD_ARTIFACTS`` names another place for all of them.
    """
    root = Path(os.environ.get("HCALLD_ARTIFACTS", ARTIFACTS))
    folder, lock = claim_folder(root / folder_name(request.node.nodeid))
    request.node.stash[_FOLDER] = folder
    request.node.stash[_LOCK] = lock
    return folder


def claim_folder(wanted: Path) -> tuple[Path, int]:
    """Make a directory, or one with a number, that no other run is using; and empty it.

    Returns:
        Its path, and a file descriptor that keeps other runs off until it is closed.
    """
    number = 1
    while True:
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}~{number}")
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            number += 1
            continue
        # Its last user may have removed it after we opened it.
        if folder.exists() and os.path.samestat(os.fstat(lock), folder.stat()):
            for path in folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            return folder, lock
        os.close(lock)


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    """A directory with a short name: a unix socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="hcalld-", dir="/tmp") as name:
        yield Path(name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Names the artefacts of a failed test, and removes those of others."""
    report = yield
    item.stash[_HAS_FAILED] = item.stash.get(_HAS_FAILED, False) or report.failed
    folder = item.stash.get(_FOLDER, None)
    if folder is not None and report.failed:
        report.sections.append(("artifacts", os.path.relpath(folder)))
    if folder is not None and report.when == "teardown":
        if not (item.stash[_HAS_FAILED] or "HCALLD_KEEP" in os.environ):
            shutil.rmtree(folder, ignore_errors=True)
        os.close(item.stash[_LOCK])
    return report


# -- tiers ------------------------------------------------------------------------------


def on_demand(config: pytest.Config) -> set[str]:
    """The tiers that run only on demand and that ``-m`` asks for."""
    asked = set(re.findall(r"(?<!not )\b\w+", config.getoption("markexpr")))
    return asked & {"soak", "bench"}


def pytest_configure(config: pytest.Config) -> None:
    """Chooses the Hypothesis profile, and starts the check of the whole run."""
    hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
    required = required_tiers()
    if required and not config.getoption("tiers", "") and not is_worker(config):
        # Asked for alone, soak or bench tests need not use every tool.
        check = TierCheck(sorted(on_demand(config) or required), unable())
        config.pluginmanager.register(check, "hcalld-markers")


def pytest_report_header() -> list[str]:
    """Says which tiers this machine cannot run."""
    return [f"{tier}: not run: {reason}" for tier, reason in unable().items()]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what runs only on demand, or not on this machine."""
    left_out = ({"soak", "bench"} - on_demand(config)) | unable().keys()
    deselected = [item for item in items if left_out & {m.name for m in item.iter_markers()}]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item not in deselected]


# -- Hypothesis -------------------------------------------------------------------------

hypothesis.settings.register_profile("dev", max_examples=100, deadline=None)
hypothesis.settings.register_profile(
    "ci", max_examples=150, deadline=None, print_blob=True, derandomize=True
)
hypothesis.settings.register_profile(
    "nightly", max_examples=20_000, deadline=None, print_blob=True, stateful_step_count=100
)
