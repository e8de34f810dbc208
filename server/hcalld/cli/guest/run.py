# SPDX-License-Identifier: Apache-2.0
"""``hcalld guest run``: the kernel's selftests, ours, and scripts."""

from __future__ import annotations

import functools
import pathlib
import sys
from typing import TYPE_CHECKING, Any

import click

from hcalld.cli.guest.options import file_type, folder_type, run_trio, setup_options
from hcalld.core.errors import ConfigError

if TYPE_CHECKING:
    from hcalld.cli.guest.options import Chosen
    from hcalld.guest.ktap import Result
    from hcalld.guest.plan import Expected, Suite
    from hcalld.guest.run import Booted, Setup


@click.command(name="run", short_help="Run selftests, or a script, and judge the results.")
@setup_options
@click.option(
    "--tests",
    type=folder_type,
    envvar="HCALLD_SELFTESTS",
    help="Our collections of tests, and 'suites', a folder that says what is run and expected.",
)
@click.option(
    "--suite",
    "names",
    multiple=True,
    help="Run this suite; may be repeated (default: all).",
)
@click.option(
    "--differences",
    type=file_type,
    multiple=True,
    help="How this kernel's results differ from the suites', as differences.toml of a run has it.",
)
@click.option("--script", type=file_type, help="Run this instead; KTAP that it prints is counted.")
@click.option("--list", "is_list", is_flag=True, help="List suites and tests, and end.")
@click.option(
    "--boot-seconds",
    type=click.FloatRange(1),
    default=180,
    show_default=True,
    help="How long a kernel may take to its first process.",
)
@click.option(
    "--seconds", type=click.IntRange(1), help="How long the tests of a boot may take together."
)
@click.option(
    "--junit",
    type=click.Path(path_type=pathlib.Path),
    help="Where JUnit XML goes (default: junit.xml among the boots' folders).",
)
def command(
    *,
    chosen: Chosen,
    tests: pathlib.Path | None,
    names: tuple[str, ...],
    differences: tuple[pathlib.Path, ...],
    script: pathlib.Path | None,
    is_list: bool,
    boot_seconds: float,
    seconds: int | None,
    junit: pathlib.Path | None,
) -> None:
    """Boot a kernel once for each suite, and compare how its tests end with what is expected.

    Exit status 1: a test ended in another way than expected, a guest crashed, hung or never
    came up.
    """
    import msgspec

    from hcalld.guest.junit import document
    from hcalld.guest.summary import found, lines

    files: dict[str, Any] = {}
    if script is not None:
        if names:
            raise click.UsageError("--script and --suite cannot be together")
        suites, files = _script(script)
    else:
        if tests is None:
            raise click.UsageError("give --tests, such as guest_stub/linux/selftests, or --script")
        suites = _chosen(tests, names, differences)
    if seconds is not None:
        suites = [msgspec.structs.replace(suite, timeout_s=seconds) for suite in suites]
    if is_list:
        _list(suites)
        return
    made = chosen.setup(files=files, tests=tests, boot_s=boot_seconds, on_result=_show)
    _check_programs(suites)
    boots = run_trio(functools.partial(_run_all, made, suites))
    xml = junit or made.output / "junit.xml"
    xml.write_bytes(document(boots))
    for line in lines(boots):
        click.echo(line)
    if changed := found(boots):
        _write_differences(made, changed)
    if not all(booted.is_good for booted in boots):
        sys.exit(1)


def _chosen(
    tests: pathlib.Path, names: tuple[str, ...], differences: tuple[pathlib.Path, ...]
) -> list[Suite]:
    from hcalld.guest.differences import applied, parse
    from hcalld.guest.plan import load

    loaded = load(tests / "suites")
    for path in differences:
        loaded = applied(loaded, parse(path.read_text("utf-8"), str(path)), str(path))
    suites = {suite.name: suite for suite in loaded}
    for name in names:
        if name not in suites:
            raise ConfigError(f"--suite {name}: there is none; expected of {', '.join(suites)}")
    return [suites[name] for name in names] if names else list(suites.values())


def _script(path: pathlib.Path) -> tuple[list[Suite], dict[str, Any]]:
    """A suite of a user's script alone, and the files that the guest needs for it."""
    from hcalld.guest import boot
    from hcalld.guest.plan import Expected, Suite

    suite = Suite(
        name="script",
        about=f"the script {path.name}",
        test_timeout_s=3600,
        timeout_s=3600,
        test=(Expected(name=f"{boot.USER}:run"),),
    )
    return [suite], boot.user_script(path.read_bytes(), suite.test_timeout_s)


def _write_differences(setup: Setup, changed: list[tuple[str, Expected]]) -> None:
    from hcalld.guest.differences import written

    path = setup.output / "differences.toml"
    path.write_text(written(f"the kernel {setup.kernel.path}", changed), "utf-8")
    click.echo(
        f"If these results are this kernel's, 'hcalld guest run --differences {path}' expects them"
    )


def _check_programs(suites: list[Suite]) -> None:
    from hcalld.guest.processes import must_have

    if any(suite.tpm or suite.secure for suite in suites):
        must_have("swtpm", "is the TPM of a guest")


def _list(suites: list[Suite]) -> None:
    for suite in suites:
        click.echo(f"{suite.name}: {suite.about}")
        for test in suite.test:
            why = f"  ({test.why})" if test.why else ""
            click.echo(f"  {test.result:7} {test.name}{why}")
        for out in suite.left_out:
            click.echo(f"  not run {out.name}  ({out.why})")


def _show(result: Result) -> None:
    from hcalld.guest.verdict import name_of
    from hcallproto.payloads.quoting import printable

    reason = f"  ({result.reason})" if result.reason else ""
    click.echo(printable(f"  {result.outcome:7} {name_of(result)}{reason}"))


async def _run_all(setup: Setup, suites: list[Suite]) -> list[Booted]:
    from hcalld.guest.run import run_suite

    boots = []
    for suite in suites:
        click.echo(f"{suite.name}: {suite.about}")
        boots.append(await run_suite(setup, suite))
        for error in boots[-1].errors:
            click.echo(f"  {error}")
    return boots
