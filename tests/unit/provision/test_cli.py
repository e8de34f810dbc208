# SPDX-License-Identifier: Apache-2.0
"""The command line, as the Makefile uses it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.provision import cli, system
from tests.provision.cache import Cache
from tests.provision.errors import ProvisionError

ROOT = Path(__file__).resolve().parents[3]


def provision(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    # -I and a foreign working directory: nothing of the environment that runs the tests helps.
    return subprocess.run(
        [sys.executable, "-S", str(ROOT / "tests/provision"), *words],
        cwd="/",
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_main_when_run_as_a_folder_then_it_needs_the_standard_library_alone():
    done = provision("--help")
    assert done.returncode == 0
    for name in ("qemu", "kernel-debian", "kernel-own", "initramfs", "all", "qemu-src"):
        assert name in done.stdout


def test_run_when_paths_are_given_then_the_command_gets_them_and_its_status_is_kept(tmp_path: Path):
    (tmp_path / "qemu").write_text("")
    (tmp_path / "image").write_text("")
    done = provision(
        *("run", "--with", "qemu,initramfs", "--"),
        *(sys.executable, "-c", "import os; print(os.environ['HCALLD_QEMU']); raise SystemExit(5)"),
        HCALLD_QEMU=str(tmp_path / "qemu"),
        HCALLD_INITRAMFS=str(tmp_path / "image"),
        HCALLD_CACHE=str(tmp_path / "cache"),
    )
    assert (done.returncode, done.stdout) == (5, f"{tmp_path / 'qemu'}\n")


@pytest.mark.parametrize("value", ["relative", "/nonexistent/qemu"])
def test_run_when_a_given_path_is_none_then_it_is_refused(value: str, tmp_path: Path):
    done = provision("qemu", HCALLD_QEMU=value, HCALLD_CACHE=str(tmp_path))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"provision: error: HCALLD_QEMU is '{value}'; expected")


def test_run_when_a_name_is_unknown_then_it_is_refused(tmp_path: Path):
    done = provision("run", "--with", "qemu,tpm", "--", "true", HCALLD_CACHE=str(tmp_path))
    assert done.returncode == 1
    assert "--with names tpm; expected some of qemu" in done.stderr


def test_run_when_the_command_is_not_there_then_it_is_told(tmp_path: Path):
    (tmp_path / "qemu").write_text("")
    done = provision(
        *("run", "--with", "qemu", "--", "/nonexistent/command"),
        HCALLD_QEMU=str(tmp_path / "qemu"),
        HCALLD_CACHE=str(tmp_path / "cache"),
    )
    assert done.returncode == 1
    assert "/nonexistent/command cannot be run: No such file" in done.stderr


def test_main_when_the_cache_is_relative_then_it_is_refused():
    done = provision("initramfs", HCALLD_CACHE="cache")
    assert done.returncode == 1
    assert "provision: error: HCALLD_CACHE is 'cache'" in done.stderr


def test_make_ready_when_all_is_given_then_no_package_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[list[str]] = []
    monkeypatch.setattr(system, "ensure", lambda names: asked.append(list(names)))
    (tmp_path / "vmlinux").write_text("")
    environ = {"HCALLD_KERNEL_OWN": str(tmp_path / "vmlinux")}
    ready = cli.make_ready(["kernel-own"], Cache(tmp_path / "cache"), environ)
    assert ready == {"kernel-own": tmp_path / "vmlinux"}
    assert asked == [[]]


def test_make_ready_when_several_are_wanted_then_order_is_that_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made: list[str] = []

    def maker(name: str):
        def make(_cache: Cache, _environ: object) -> Path:
            made.append(name)
            return tmp_path / name

        return make

    monkeypatch.setattr(system, "ensure", lambda _names: None)
    monkeypatch.setattr(cli, "MAKERS", {name: maker(name) for name in ("qemu", "initramfs")})
    cli.make_ready(["initramfs", "qemu"], Cache(tmp_path / "cache"), {})
    assert made == ["qemu", "initramfs"]


def test_announce_when_things_are_to_be_made_then_size_and_time_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cli.announce(["qemu", "stub", "kernel-own"], Cache(tmp_path), {})
    said = capsys.readouterr().err
    assert "qemu, kernel-own" in said
    assert "MB to download" in said
    (tmp_path / "qemu" / "0123").mkdir(parents=True)
    (tmp_path / "kernel-own" / "0123").mkdir(parents=True)
    cli.announce(["qemu", "stub", "kernel-own"], Cache(tmp_path), {})
    assert capsys.readouterr().err == ""


def test_tables_when_compared_then_everything_that_can_be_made_has_needs_and_a_variable():
    assert cli.MAKERS.keys() == cli.VARIABLES.keys()
    assert cli.MAKERS.keys() <= system.NEEDS.keys()
    assert set(cli.ALL) <= cli.MAKERS.keys()


def test_given_paths_when_asan_is_wanted_then_a_plain_program_does_not_stand_in(tmp_path: Path):
    (tmp_path / "qemu").write_text("")
    environ = {"HCALLD_QEMU": str(tmp_path / "qemu")}
    assert cli.given_paths(["qemu-asan"], environ) == {}
    with pytest.raises(ProvisionError):
        cli.given_paths(["qemu"], {"HCALLD_QEMU": "/nonexistent"})
