# SPDX-License-Identifier: Apache-2.0
"""Which packages are needed, and what happens where they cannot be installed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import pytest
from tests.provision import system
from tests.provision.errors import ProvisionError


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A machine without packages, on which every command succeeds; gives the commands."""
    commands: list[list[str]] = []
    there: set[str] = set()

    def run(_what: str, words: list[str], **_more: object) -> None:
        commands.append(words)
        if "install" in words:
            there.update(word for word in words if not word.startswith("-"))

    monkeypatch.setattr(system, "installed", there.copy)
    monkeypatch.setattr(system, "run", run)
    monkeypatch.setattr(system, "has_venv", lambda: False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.delenv("HCALLD_APT", raising=False)
    return commands


def test_needs_when_read_then_every_purpose_is_known():
    assert {purpose for needs in system.NEEDS.values() for purpose in needs} == (
        system.PACKAGES.keys()
    )


def test_needed_when_verbs_share_packages_then_each_is_named_once():
    names = system.needed(["qemu", "kernel-own", "qemu"])
    assert names == sorted(set(names))
    assert {"ninja-build", "bc", "debian-archive-keyring"} <= set(names)


def test_needed_when_the_machine_cannot_run_it_then_its_packages_are_not(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(system.UNABLE, "demo-kvm", lambda: None)
    able = system.needed(["demo"])
    assert {"gcc", "qemu-system-x86", "swtpm"} <= set(able)
    monkeypatch.setitem(system.UNABLE, "demo-kvm", lambda: "there is none")
    assert set(able) - set(system.needed(["demo"])) == {"qemu-system-x86"}


def test_parse_installed_when_a_package_is_only_half_there_then_it_is_not_counted():
    text = (
        "gcc\tinstall ok installed\nflex\tdeinstall ok config-files\nbison\tinstall ok unpacked\n\n"
    )
    assert system.parse_installed(text) == {"gcc"}


def test_ensure_when_packages_are_missing_then_they_are_named_and_installed(
    bare: list[list[str]], capsys: pytest.CaptureFixture[str]
):
    system.ensure(["stub"])
    assert "update" in bare[0]
    assert bare[1][-2:] == ["gcc-powerpc64le-linux-gnu", "make"]
    assert bare[1][:2] == ["env", "DEBIAN_FRONTEND=noninteractive"]
    said = capsys.readouterr().err
    assert "installing 2 Debian packages" in said
    assert "gcc-powerpc64le-linux-gnu make" in said


def test_ensure_when_nothing_is_missing_then_apt_is_not_called(
    bare: list[list[str]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(system, "installed", lambda: set(system.needed(["stub"])))
    system.ensure(["stub"])
    assert bare == []


def test_ensure_when_python_brings_its_own_venv_then_the_package_is_not_missing(
    bare: list[list[str]], monkeypatch: pytest.MonkeyPatch
):
    assert "python3-venv" in system.missing(["python3-venv"])
    monkeypatch.setattr(system, "has_venv", lambda: True)
    assert system.missing(["python3-venv"]) == []


def test_ensure_when_installing_is_forbidden_then_it_says_what_to_run(
    bare: list[list[str]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HCALLD_APT", "no")
    with pytest.raises(ProvisionError, match="run as root: apt-get install --yes"):
        system.ensure(["stub"])
    assert bare == []


def test_ensure_when_neither_root_nor_sudo_then_it_says_what_root_is_to_run(
    bare: list[list[str]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(ProvisionError) as caught:
        system.ensure(["stub"])
    assert "this user is not root and there is no sudo" in str(caught.value)
    assert "have root run: apt-get install --yes --no-install-recommends" in str(caught.value)
    assert bare == []


def test_ensure_when_sudo_is_there_then_only_apt_runs_by_it(
    bare: list[list[str]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(system, "as_root", lambda: ["sudo"])
    system.ensure(["stub"])
    assert [words[:4] for words in bare] == [
        ["sudo", "env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]
    ] * 2


def test_ensure_when_updating_fails_then_it_installs_from_the_lists_that_are_there(
    bare: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    really: Callable[..., None] = vars(system)["run"]

    def run(what: str, words: list[str], **more: object) -> None:
        if "update" in words:
            raise ProvisionError("a third party's source is gone")
        really(what, words, **more)

    monkeypatch.setattr(system, "run", run)
    system.ensure(["stub"])
    assert ["install" in words for words in bare] == [True]
    assert "going on with what is there" in capsys.readouterr().err


def test_ensure_when_apt_installs_nothing_after_all_then_it_says_so(
    bare: list[list[str]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(system, "run", lambda _what, words, **_more: bare.append(words))
    with pytest.raises(ProvisionError, match="after apt-get said it had installed"):
        system.ensure(["stub"])


def test_apt_steps_when_packages_are_set_up_then_they_are_counted():
    condense = system.apt_steps()
    lines = [
        "0 upgraded, 92 newly installed, 0 to remove and 3 not upgraded.",
        "Unpacking gcc (4:14.2.0-1) ...",
        "Setting up gcc (4:14.2.0-1) ...",
        "Setting up bison (2:3.8.2) ...",
    ]
    assert [condense(line) for line in lines] == [None, None, "1 of 92 set up", "2 of 92 set up"]


def test_installed_when_this_is_no_debian_then_it_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(ProvisionError, match="expected Debian 12 or 13"):
        system.installed()
