# SPDX-License-Identifier: Apache-2.0
"""The ``hcalld`` command itself: subcommands, version, capabilities, exit statuses."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

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


@pytest.mark.parametrize("error", [ConfigError("a\tprofile"), StoreError("b"), HcalldError("c")])
def test_main_when_a_user_can_act_then_it_is_one_line_and_status_1(
    error: HcalldError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(prog_name: str) -> None:
        assert prog_name == "hcalld"
        raise error

    monkeypatch.setattr(cli, "cli", fail)
    monkeypatch.setattr(coredumps, "forbid", lambda: None)  # it would hold for this process
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"hcalld: {error}\n"


def test_main_when_interrupted_in_a_nursery_then_it_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(prog_name: str) -> None:
        raise BaseExceptionGroup("a", [BaseExceptionGroup("b", [KeyboardInterrupt()])])

    monkeypatch.setattr(cli, "cli", interrupted)
    monkeypatch.setattr(coredumps, "forbid", lambda: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == cli.EXIT_INTERRUPTED
    assert capsys.readouterr().err == "Aborted!\n"


def test_main_when_more_than_an_interrupt_is_in_a_group_then_all_is_raised(
    monkeypatch: pytest.MonkeyPatch,
):
    def failed(prog_name: str) -> None:
        raise BaseExceptionGroup("a", [KeyboardInterrupt(), ValueError()])

    monkeypatch.setattr(cli, "cli", failed)
    monkeypatch.setattr(coredumps, "forbid", lambda: None)
    with pytest.raises(BaseExceptionGroup):
        cli.main()


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
