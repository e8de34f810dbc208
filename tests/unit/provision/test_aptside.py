# SPDX-License-Identifier: Apache-2.0
"""The apt of one's own: where it asks, what it writes, how it tries again."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from tests.provision import aptside
from tests.provision.aptside import (
    RETRY_AFTER_S,
    AptSide,
    choose_mirror,
    configuration,
    newest_first,
    source_line,
)
from tests.provision.deb822 import IndexedFile
from tests.provision.errors import ProvisionError

MAIN = "http://mirror.example/debian/\tDebian\tDebian\tbookworm"


def test_choose_mirror_when_others_come_first_then_debians_archive_is_chosen():
    targets = "\n".join(
        [
            "https://packages.example/node\tnode\tnode\tnodistro",
            "http://mirror.example/debian-security/\tDebian\tDebian-Security\tbookworm-security",
            "http://mirror.example/debian/\tDebian\tDebian\tbookworm-updates",
            MAIN,
        ]
    )
    assert choose_mirror(targets) == "http://mirror.example/debian/"


def test_choose_mirror_when_lists_were_never_fetched_then_the_address_has_to_do():
    targets = "http://mirror.example/debian-security/\t\t\t\nhttp://mirror.example/debian/\t\t\t"
    assert choose_mirror(targets) == "http://mirror.example/debian/"


@pytest.mark.parametrize(
    "targets",
    [
        "",
        "http://mirror.example/debian/",
        "http://mirror.example/ubuntu/\tUbuntu\tUbuntu\tnoble",
        "cdrom://Debian/\tDebian\tDebian\tbookworm",
    ],
)
def test_choose_mirror_when_there_is_none_then_none_is_chosen(targets: str):
    assert choose_mirror(targets) is None


def test_mirror_when_machine_has_none_then_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(aptside, "output", lambda _words: "")
    with pytest.raises(ProvisionError, match="HCALLD_DEBIAN_MIRROR"):
        aptside.mirror({})


def test_mirror_when_named_then_the_machine_is_not_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(aptside, "output")
    assert aptside.mirror({"HCALLD_DEBIAN_MIRROR": "file:///srv"}) == "file:///srv"


def test_source_line_when_written_then_signatures_are_checked():
    keys = Path("/keys.gpg")
    source = source_line("http://m.example/", "trixie", keys, is_source=True)
    assert source == "deb-src [signed-by=/keys.gpg] http://m.example/ trixie main\n"
    binary = source_line("http://m.example/", "sid", keys, is_source=False)
    assert binary == "deb [arch=ppc64el signed-by=/keys.gpg] http://m.example/ sid main\n"


def test_configuration_when_read_by_apt_then_everything_lies_below_the_directory(tmp_path: Path):
    assert shutil.which("apt-config"), "apt is not there; expected Debian"
    (tmp_path / "apt.conf").write_text(configuration(tmp_path))
    names = {
        "lists": "Dir::State::Lists/d",
        "cache": "Dir::Cache/d",
        "state": "Dir::State/d",
        "sources": "Dir::Etc::SourceList/f",
    }
    words = [word for name, key in names.items() for word in (name, key)]
    done = subprocess.run(
        ["apt-config", "-c", tmp_path / "apt.conf", "shell", *words],
        capture_output=True,
        text=True,
        check=True,
    )
    found = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert found.keys() == names.keys()
    for value in found.values():
        assert value.strip("'").startswith(str(tmp_path))
    dump = subprocess.run(
        ["apt-config", "-c", tmp_path / "apt.conf", "dump", "APT::Architectures"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "amd64" not in dump.stdout
    assert "ppc64el" in dump.stdout


def side(tmp_path: Path, pauses: list[float]) -> AptSide:
    return AptSide(tmp_path, "trixie", is_source=False, environ={}, pause=pauses.append)


def test_retry_when_it_succeeds_at_last_then_it_paused_in_between(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pauses: list[float] = []
    failures = iter([ProvisionError("log\nE: File has unexpected size"), ProvisionError("x"), None])

    def attempt() -> None:
        failure = next(failures)
        if failure:
            raise failure

    side(tmp_path, pauses).retry("index", attempt)
    assert pauses == list(RETRY_AFTER_S[:2])
    assert "File has unexpected size" in capsys.readouterr().err


def test_retry_when_it_never_succeeds_then_the_last_failure_is_told(tmp_path: Path):
    pauses: list[float] = []
    tries: list[int] = []

    def attempt() -> None:
        tries.append(1)
        raise ProvisionError(f"attempt {len(tries)}")

    with pytest.raises(ProvisionError, match=f"attempt {len(RETRY_AFTER_S) + 1}"):
        side(tmp_path, pauses).retry("index", attempt)
    assert pauses == list(RETRY_AFTER_S)


def test_update_once_when_the_mirror_is_behind_then_the_index_is_taken_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    commands: list[list[str]] = []

    def run(_what: str, words: list[str], **_more: object) -> None:
        commands.append(words)
        if "Acquire::Check-Valid-Until=false" not in words:
            raise ProvisionError("E: Release file for x is expired (invalid since 15d).")

    monkeypatch.setattr(aptside, "run", run)
    side(tmp_path, []).update_once("index")
    assert len(commands) == 2
    assert "the mirror is behind" in capsys.readouterr().err


def test_update_once_when_the_signature_is_wrong_then_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    commands: list[list[str]] = []

    def run(_what: str, words: list[str], **_more: object) -> None:
        commands.append(words)
        raise ProvisionError("E: The repository is not signed.")

    monkeypatch.setattr(aptside, "run", run)
    with pytest.raises(ProvisionError, match="not signed"):
        side(tmp_path, []).update_once("index")
    assert len(commands) == 1


def test_newest_first_when_versions_are_debians_then_dpkg_decides():
    files = [IndexedFile("", version, "") for version in ("1.9", "1.10", "1:0", "1.10~rc1")]
    assert [file.version for file in newest_first(files)] == ["1:0", "1.10", "1.10~rc1", "1.9"]


def test_keyring_when_none_is_there_then_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(aptside, "KEYRINGS", (tmp_path / "none.gpg",))
    with pytest.raises(ProvisionError, match="install the package debian-archive-keyring"):
        aptside.keyring()
