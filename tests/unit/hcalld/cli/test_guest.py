# SPDX-License-Identifier: Apache-2.0
"""``hcalld guest``: what is refused before anything is started, and what is only listed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.lowlevel
from click.testing import CliRunner, Result
from tests.esm import kernel_elf

from hcalld.cli.guest import command
from hcalld.cli.guest.options import run_trio
from hcalld.core.errors import ConfigError, HcalldError
from hcalld.guest import run as guest_run
from hcalld.guest.run import make_folder, problems_in

SUITE = """\
name = "short"
about = "a few"
[[test]]
name = "a:b"
[[test]]
name = "a:c"
result = "skip"
why = "no device"
[[left_out]]
name = "a:d*"
why = "too long"
"""


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Options that name things which are there."""
    (tmp_path / "vmlinux").write_bytes(kernel_elf())
    for name in ("initramfs", "qemu", "script"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "tests/suites").mkdir(parents=True)
    (tmp_path / "tests/suites/short.toml").write_text(SUITE)
    return [
        *("--kernel", f"{tmp_path}/vmlinux", "--initramfs", f"{tmp_path}/initramfs"),
        *("--qemu", f"{tmp_path}/qemu", "--output", f"{tmp_path}/runs"),
    ]


def invoke(*words: str) -> Result:
    # What `make` says to those who run the tests is not for these commands.
    unset = ("HCALLD_KERNEL_OWN", "HCALLD_INITRAMFS_SELFTESTS", "HCALLD_QEMU", "HCALLD_SELFTESTS")
    return CliRunner(env=dict.fromkeys(unset)).invoke(command, list(words))


def test_list_when_asked_then_each_test_is_there_with_what_is_expected(
    words: list[str], tmp_path: Path
):
    """A kernel is not asked for."""
    done = invoke("run", *words[4:], "--tests", f"{tmp_path}/tests", "--list")
    assert done.exit_code == 0, done.output
    assert done.output == (
        "short: a few\n  pass    a:b\n  skip    a:c  (no device)\n  not run a:d*  (too long)\n"
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "give --tests"),
        (["--tests", "TMP/tests", "--suite", "other"], "there is none; expected of short"),
        (["--script", "TMP/script", "--suite", "short"], "cannot be together"),
        (["--script", "TMP/none"], "does not exist"),
        (["--script", "TMP/script", "--file", "there"], "expected PATH=FILE"),
        (["--script", "TMP/script", "--file", "there=TMP/script"], "expected PATH=FILE"),
        (["--script", "TMP/script", "--file", "/there=TMP/none"], "No such file"),
        (["--script", "TMP/script", "--qemu", "TMP/none"], "there is no such program"),
        (["--script", "TMP/script", "--memory-mib", "1"], "not in the range"),
        (["--script", "TMP/script", "--kernel", "TMP/script"], "is no ELF file; expected the file"),
    ],
)
def test_run_when_options_are_wrong_then_it_says_so(
    more: list[str], message: str, words: list[str], tmp_path: Path
):
    done = invoke("run", *words, *(word.replace("TMP", str(tmp_path)) for word in more))
    assert done.exit_code != 0
    assert message in done.output + str(done.exception)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("option", ["--kernel", "--initramfs"])
@pytest.mark.parametrize("what", ["run", "shell"])
def test_command_when_nothing_is_named_to_boot_then_it_says_where_to_get_it(
    what: str, option: str, words: list[str], tmp_path: Path
):
    place = words.index(option)
    more = ["--script", f"{tmp_path}/script"] if what == "run" else []
    done = invoke(what, *words[:place], *words[place + 2 :], *more)
    assert done.exit_code == 1
    assert f"{option} or HCALLD_" in str(done.exception)
    assert "'make guest'" in str(done.exception)


def test_shell_when_tpm_and_secure_are_asked_then_it_is_refused(words: list[str]):
    done = invoke("shell", *words, "--tpm", "--secure")
    assert done.exit_code == 2
    assert "--tpm is not for --secure" in done.output


def test_shell_when_a_secure_vm_is_to_boot_a_zimage_then_it_is_refused(
    words: list[str], tmp_path: Path, require: Callable[[str], Path]
):
    require("swtpm")
    with (tmp_path / "vmlinux").open("ab") as file:
        file.write(b".kernel:vmlinux.strip\0")
    done = invoke("shell", *words, "--secure")
    assert done.exit_code == 1
    assert "is a zImage" in str(done.exception)
    assert "give the vmlinux that it was made of" in str(done.exception)
    assert not (tmp_path / "runs").exists()


def test_folder_when_it_is_there_then_no_other_run_gets_it(tmp_path: Path):
    assert make_folder(tmp_path / "a" / "b").is_dir()
    with pytest.raises(ConfigError, match="expected a new folder"):
        make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        make_folder(tmp_path / "file" / "b")


def test_problems_when_a_log_has_one_many_times_then_it_is_said_once(tmp_path: Path):
    log = tmp_path / "daemon.log"
    assert problems_in(log) == []
    log.write_text("guest connected\n" + "[warning] protocol breach \x1b[31m\n" * 500)
    (said,) = problems_in(log)
    assert "protocol breach \\u001b" in said
    for sign in guest_run.DAEMON_PROBLEMS:
        log.write_text(f"{sign}\n")
        assert len(problems_in(log)) == 1


def test_run_trio_when_work_ends_then_its_result_comes_and_errors_are_plain():
    async def work() -> int:
        await trio.lowlevel.checkpoint()
        return 42

    async def fail() -> int:
        async with trio.open_nursery():
            raise ConfigError("what was wrong")

    assert run_trio(work) == 42
    with pytest.raises(ConfigError, match="what was wrong"):
        run_trio(fail)


def test_run_trio_when_the_program_is_asked_to_end_then_it_does():
    import os
    import signal

    async def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        with contextlib.suppress(trio.TooSlowError):
            await trio.sleep_forever()

    with pytest.raises(HcalldError, match="ended by SIGTERM"):
        run_trio(work)
