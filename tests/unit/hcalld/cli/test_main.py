# SPDX-License-Identifier: Apache-2.0
"""The ``hcalld`` command itself: subcommands, version, capabilities, exit statuses."""

from __future__ import annotations

import array
import contextlib
import fcntl
import importlib
import importlib.metadata
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner
from tests.unit.hcalld.cli.process import running
from tests.unit.hcallproto.capture.sample import read_of_db

from hcalld import cli
from hcalld.core.errors import ConfigError, HcalldError, StoreError
from hcalld.runtime import coredumps
from hcallproto.codegen.capabilities import capabilities

SUBCOMMANDS = tuple(cli.COMMANDS)


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_when_asked_then_every_subcommand_has_a_line(option: str):
    done = CliRunner().invoke(cli.cli, [option])
    assert done.exit_code == 0
    listed = done.output.partition("Commands:")[2]
    for name in SUBCOMMANDS:
        assert f"  {name}" in listed
    assert len(listed.split("\n\n")[0].strip().splitlines()) == len(SUBCOMMANDS)


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_help_when_asked_of_a_subcommand_then_it_comes(name: str):
    done = CliRunner().invoke(cli.cli, [name, "--help"])
    assert done.exit_code == 0
    assert f"{name} " in done.output.splitlines()[0]


def test_subcommand_when_it_is_unknown_then_the_status_is_2():
    done = CliRunner().invoke(cli.cli, ["serf"])
    assert done.exit_code == 2
    assert "No such command 'serf'" in done.stderr


def test_subcommand_when_there_is_none_then_the_help_comes():
    done = CliRunner().invoke(cli.cli, [])
    assert done.exit_code == 2
    assert "Commands:" in done.output


def test_version_when_asked_then_it_is_the_distributions():
    done = CliRunner().invoke(cli.cli, ["--version"])
    assert done.exit_code == 0
    assert importlib.metadata.version("hcalld") in done.output


def test_capabilities_when_asked_then_they_are_json_on_stdout():
    done = CliRunner().invoke(cli.cli, ["--print-capabilities"])
    assert done.exit_code == 0
    assert done.stderr == ""
    assert json.loads(done.stdout) == capabilities()


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Have the command line end so."""

    def fail(*, prog_name: str, standalone_mode: bool) -> None:
        assert (prog_name, standalone_mode) == ("hcalld", False)
        raise error

    monkeypatch.setattr(cli, "cli", fail)
    monkeypatch.setattr(coredumps, "forbid", lambda: None)  # it would hold for this process


@pytest.mark.parametrize("error", [ConfigError("a\tprofile"), StoreError("b"), HcalldError("c")])
def test_main_when_a_user_can_act_then_it_is_one_line_and_status_1(
    error: HcalldError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    raising(monkeypatch, error)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"hcalld: {error}\n"


def _aborted(cause: BaseException | None) -> click.Abort:
    """As click raises it, of Ctrl-C and of a "no"."""
    error = click.Abort()
    error.__context__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        BaseExceptionGroup("a", [BaseExceptionGroup("b", [KeyboardInterrupt()])]),
        _aborted(KeyboardInterrupt()),
    ],
    ids=["plain", "in a nursery", "at a prompt"],
)
def test_main_when_interrupted_then_it_dies_of_that_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException
):
    raising(monkeypatch, error)
    killed: list[tuple[int, int]] = []
    handlers: list[tuple[int, object]] = []
    monkeypatch.setattr(os, "kill", lambda *args: killed.append(args))
    monkeypatch.setattr(signal, "signal", lambda *args: handlers.append(args))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert killed == [(os.getpid(), signal.SIGINT)]
    assert handlers == [(signal.SIGINT, signal.SIG_DFL)]
    # If it is blocked.
    assert ended.value.code == 130
    assert capsys.readouterr().err == "Aborted!\n"


def test_main_when_the_user_says_no_then_it_is_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    raising(monkeypatch, _aborted(None))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "Aborted!\n"


def test_main_when_the_command_line_is_wrong_then_it_is_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    raising(monkeypatch, click.UsageError("no such thing"))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "Error: no such thing\n" in capsys.readouterr().err


def test_main_when_a_command_has_a_status_then_it_is_that(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(coredumps, "forbid", lambda: None)
    for status in (0, 3):
        monkeypatch.setattr(cli, "cli", lambda status=status, **_: status)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == status


def test_main_when_more_than_an_interrupt_is_in_a_group_then_all_is_raised(
    monkeypatch: pytest.MonkeyPatch,
):
    raising(monkeypatch, BaseExceptionGroup("a", [KeyboardInterrupt(), ValueError()]))
    with pytest.raises(BaseExceptionGroup):
        cli.main()


@contextlib.contextmanager
def waiting(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command that has read all of its input, and waits for more."""
    with running(*words) as (process, stdin, _):
        stdin.write(bytes(read_of_db().data[:-8]))
        stdin.flush()
        unread = array.array("i", [1])
        while unread[0]:
            assert process.poll() is None
            fcntl.ioctl(stdin, termios.FIONREAD, unread)
            time.sleep(0.01)
        yield process


@pytest.mark.parametrize(
    "words",
    [
        ("decode", "-"),
        ("report", "-", "--output"),
        ("replay", "code", "--guest", "lpar7", "-"),
        ("replay", "guest", "--guest", "lpar7", "-", "--socket-path"),
    ],
    ids=" ".join,
)
def test_every_command_when_interrupted_then_it_dies_of_that(
    tmp_path: pathlib.Path, words: tuple[str, ...]
):
    where = os.fspath(tmp_path / "made")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        if words[-1] == "--socket-path":
            listener.bind(where)
            listener.listen()
        more = [where] if words[-1].startswith("--") else []
        with waiting(*words, *more) as process:
            process.send_signal(signal.SIGINT)
            _, err = process.communicate()
    assert process.returncode == -signal.SIGINT, err
    assert b"Traceback" not in err
    assert err.endswith(b"Aborted!\n")


def test_module_when_run_then_it_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "hcalld", "--version"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout.startswith("hcalld, version")


def test_start_when_help_is_asked_then_no_event_loop_is_loaded():
    code = "import sys, hcalld.cli; hcalld.cli.cli(['--help'], standalone_mode=False);"
    code += "print('loaded:', 'trio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "loaded: False" in done.stdout


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_options_when_listed_then_each_has_help(name: str):
    command = cli.cli.get_command(click.Context(cli.cli), name)
    assert command is not None
    assert command.short_help or command.help
    for param in command.params:
        if isinstance(param, click.Option) and param.type.name != "choice":
            assert param.help, f"{name} {param.opts}"


def test_commands_when_listed_then_their_modules_have_them():
    for module in cli.COMMANDS.values():
        assert isinstance(importlib.import_module(module).command, click.Command)
