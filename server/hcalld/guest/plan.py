# SPDX-License-Identifier: Apache-2.0
"""Suites: what one boot runs, and how each of its tests is expected to end.

A suite is a TOML file. It is kept in the tree, and a change of any result fails a run, for the
better too: then the file is corrected, with the reason.
"""

from __future__ import annotations

import pathlib
import re
from typing import Final, Literal, TypeVar

import msgspec

from hcalld.core.errors import ConfigError
from hcalld.guest.ktap import Outcome

Expectation = Literal["pass", "fail", "skip", "xfail", "timeout"]

_T = TypeVar("_T")

_TEST: Final = re.compile(r"[\w./-]+:[\w.+-]+")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")


class Expected(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One test, as kselftest names it: ``COLLECTION:PROGRAM``."""

    name: str
    result: Expectation = "pass"
    why: str = ""
    """Must be there where the result is not ``pass``."""
    parts: dict[str, Expectation] = msgspec.field(default_factory=dict)
    """Parts that end in another way than the test; others pass, or skip with it."""

    @property
    def has_no_reason(self) -> bool:
        """Whether it does not pass, and nothing says why."""
        return (self.result != "pass" or bool(self.parts)) and not self.why


class LeftOut(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A test that is not run, and why; a name that ends with ``*`` stands for all others."""

    name: str
    why: str


class Suite(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One boot."""

    name: str
    about: str
    memory_mib: int = 1024
    smp: int = 2
    append: str = ""
    """More of the kernel's command line."""
    tpm: bool = False
    """The machine has QEMU's tpm-spapr, with a swtpm behind it."""
    secure: bool = False
    """The kernel becomes a secure VM: there is a blob for it, and a TPM of the partition's."""
    updates: bool = False
    """The guest has signed updates of secure variables, made for this boot."""
    boot_image: bool = False
    """The guest has its kernel as ``/boot/vmlinuz-VERSION``, for kexec."""
    profile: str = ""
    """The partition's profile, as ``hcalld serve --profile-dir`` takes it; that of a secure VM
    without one says what its kernel needs."""
    timeout_s: int = 900
    """For all of it, from the kernel's first line."""
    test_timeout_s: int = 300
    """For each test; a guest under TCG on a busy machine is slow."""
    test: tuple[Expected, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


def decoded(text: str, kind: type[_T], where: str) -> _T:
    """Reads TOML.

    Raises:
        ConfigError: It is none, or not of that kind.
    """
    try:
        return msgspec.toml.decode(text, type=kind)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{where}: {error}") from None


def parse(text: str, where: str) -> Suite:
    """Reads a suite.

    Args:
        text: TOML.
        where: Its file, for messages.

    Raises:
        ConfigError: It is none.
    """
    suite = decoded(text, Suite, where)
    for problem in _problems(suite):
        raise ConfigError(f"{where}: {problem}")
    return suite


def _problems(suite: Suite) -> list[str]:
    problems = []
    if not _NAME.fullmatch(suite.name):
        problems.append(f"the name {suite.name!r} is none; expected small letters, digits, hyphens")
    seen: set[str] = set()
    left_out = {out.name for out in suite.left_out}
    for test in suite.test:
        if not _TEST.fullmatch(test.name):
            problems.append(f"{test.name!r} is no test; expected COLLECTION:PROGRAM")
        if test.name in seen:
            problems.append(f"{test.name} is there twice; expected each test once")
        seen.add(test.name)
        if test.has_no_reason:
            problems.append(no_reason(test))
        if test.name in left_out:
            problems.append(f"{test.name} is expected and left out; expected one of both")
    for key, value in (
        ("memory_mib", suite.memory_mib),
        ("smp", suite.smp),
        ("timeout_s", suite.timeout_s),
        ("test_timeout_s", suite.test_timeout_s),
    ):
        if value < 1:
            problems.append(f"{key} is {value}; expected a positive number")
    if suite.tpm and suite.secure:
        problems.append(
            "tpm and secure are both set; a secure VM's pages are closed to QEMU's tpm-spapr"
        )
    return problems


def no_reason(test: Expected) -> str:
    """Says that a test lacks a reason."""
    return f"{test.name} does not pass; expected the key `why` to say why"


def load(directory: pathlib.Path) -> list[Suite]:
    """Reads all suites of a directory, in the order of their files' names.

    Raises:
        ConfigError: There is none, one is wrong, or two have one name.
    """
    paths = sorted(directory.glob("*.toml"))
    suites = [parse(path.read_text("utf-8"), str(path)) for path in paths]
    if not suites:
        raise ConfigError(f"{directory} has no suite; expected files *.toml there")
    names = [suite.name for suite in suites]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two suites in {directory} have the name {name}")
    return suites


def is_met(expected: Expectation, outcome: Outcome) -> bool:
    """Whether a test ended as expected."""
    return expected == outcome.value
