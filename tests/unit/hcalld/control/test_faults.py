# SPDX-License-Identifier: Apache-2.0
"""Rules of faults over the control socket, and as a user types them."""

from __future__ import annotations

import json
import pathlib
import shlex
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio
from click.testing import CliRunner, Result
from tests.unit.hcalld.control.conftest import Control, Logs
from tests.unit.hcalld.control.test_commands import parts_of
from tests.unit.hcalld.runtime.daemon import Daemon
from tests.unit.test_documents import FAULT_COMMANDS

from hcalld.cli import cli
from hcalld.config import Profiles
from hcalld.control import faulting
from hcalld.control.commands import bound_to
from hcalld.core.errors import HcalldError
from hcalld.faults.engine import Faults
from hcalld.faults.rules import MAX_RULES, Close, Rule, calls_of
from hcallproto.abi.families import pks
from hcallproto.abi.returns import H

Run = Callable[..., Any]


@pytest.fixture
async def daemon(control: Control, nursery: trio.Nursery, logs: Logs) -> AsyncIterator[Daemon]:
    """A daemon with a control socket."""
    daemon = Daemon(nursery, Profiles(None))
    control.start(bound_to(parts_of(daemon.server, nursery)))
    yield daemon
    daemon.close()


@pytest.fixture
def run(control: Control, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs ``hcalld fault`` in a thread."""
    monkeypatch.setenv("HCALLD_STATE_DIR", str(control.path.parent))

    async def command(text: str) -> Result:
        words = ["fault", *shlex.split(text)]
        return await trio.to_thread.run_sync(lambda: CliRunner().invoke(cli, words))

    return command


async def good(run: Run, text: str) -> str:
    done = await run(text)
    assert done.exit_code == 0, f"{done.output} {done.exception}"
    return str(done.stdout)


async def bad(run: Run, text: str) -> str:
    done = await run(text)
    assert isinstance(done.exception, HcalldError), done.output
    return str(done.exception)


def ended(logs: Logs) -> list[tuple[str, Any]]:
    """Rules that the log says have ended, with what they did."""
    return [
        (entry["log_level"], entry.get("met", entry.get("reason")))
        for entry in logs
        if entry["event"] == "fault ended"
    ]


async def test_rules_when_they_come_and_go_then_calls_fail_and_work(
    daemon: Daemon, control: Control, logs: Logs
):
    client = await control.client()
    shim = await daemon.guest()
    rule = {"call": "H_PKS_GET_CONFIG", "return": "H_BUSY", "after": 1}
    added = await client.ask(command="fault-add", rule=rule)
    fault = {"number": 1, "rule": rule, "matched": 0, "met": 0, "spent": False}
    assert added == {"reply": "fault-added", "fault": fault, "warnings": []}
    seen = [(await shim.call(pks.GET_CONFIG, 0x1000, 44)).status for _ in range(3)]
    assert seen == [H.SUCCESS, H.BUSY, H.BUSY]
    told = [{**fault, "matched": 3, "met": 2}]
    assert await client.ask(command="fault-list") == {"reply": "faults", "faults": told}
    removed = await client.ask(command="fault-remove", number=1)
    assert removed == {"reply": "faults", "faults": told}
    assert (await shim.call(pks.GET_CONFIG, 0x1000, 44)).status == H.SUCCESS
    assert await client.ask(command="fault-list") == {"reply": "faults", "faults": []}
    assert ended(logs) == [("info", 2)]
    refused = await client.ask(command="fault-remove", number=1)
    assert (refused["kind"], refused["message"]) == ("failed", "no rule 1; in force are: none")


async def test_rules_when_they_are_cleared_then_those_that_never_matched_are_told(
    daemon: Daemon, control: Control, logs: Logs
):
    client = await control.client()
    for call in ("pks", "tpm"):
        await client.ask(command="fault-add", rule={"call": call, "close": "before"})
    cleared = await client.ask(command="fault-clear")
    assert [fault["number"] for fault in cleared["faults"]] == [1, 2]
    assert ended(logs) == [("warning", "no call has ever matched it")] * 2
    assert not daemon.server.faults.is_active


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"call": "H_NONE", "close": "before"}, "call: no call 'H_NONE'"),
        ({"call": "pks"}, "nothing goes wrong"),
        ({"return": 1 << 64}, "return"),
        ({"call": "pks", "close": "before", "more": 1}, "unknown field `more`"),
        ({"close": "before", "arguments": {str(n): 0 for n in range(17)}}, "length <= 16"),
        (5, "Expected `object`"),
    ],
)
async def test_rule_when_it_is_malformed_then_it_is_refused(
    daemon: Daemon, control: Control, rule: object, told: str
):
    reply = await (await control.client()).ask(command="fault-add", rule=rule)
    assert reply["kind"] == "malformed"
    assert told in reply["message"]
    assert len(daemon.server.faults) == 0


def test_rules_when_the_daemon_ends_then_each_is_told_of(logs: Logs):
    faults = Faults([Rule(call="pks", close=Close.AFTER), Rule(call="uv", drop_reply=True)])
    (hcall,) = calls_of("H_PKS_GET_CONFIG")
    faults.meet("a", 0, hcall, [0] * 32)
    faulting.end(faults)
    assert ended(logs) == [("info", 1), ("warning", "no call has ever matched it")]


# -- the command line --------------------------------------------------------------------------


async def test_add_when_all_is_said_then_the_daemon_has_the_rule(daemon: Daemon, run: Run):
    out = await good(
        run,
        "add H_PKS_READ_OBJECT --guest lpar7 --vcpu 3 --arg label_size=0x14 --arg auth=7 "
        "--after 2 --times 5 --probability 0.5 --seed 9 --delay-ms 20 --corrupt out --offset 0x10 "
        "--bits 0x80",
    )
    assert out == (
        "1: H_PKS_READ_OBJECT of 'lpar7' by cpu3, with label_size=20, auth=7, after 2, 5 times, "
        "with probability 0.5 (seed 9): delay 20 ms, corrupt out\n"
    )
    (active,) = daemon.server.faults
    assert (active.rule.corrupt.offset, active.rule.corrupt.bits) == (16, 128)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("words", "summary"),
    [
        ("pks --return H_BUSY --times 1", "pks, once: return H_BUSY"),
        ("--return -7", "every call: return -7"),
        ("H_TPM_COMM --gone tpm", "H_TPM_COMM: no tpm"),
        ("--close after", "every call: close after"),
        ("uv --drop-reply", "uv: no reply"),
        ("ATTEND --delay-ms 5", "ATTEND: delay 5 ms"),
        (
            "H_PKS_GEN_PASSWORD --arg consumer=OS --gone space",
            "H_PKS_GEN_PASSWORD, with consumer=OS: no space",
        ),
    ],
)
async def test_add_when_one_thing_goes_wrong_then_it_is_shown(
    daemon: Daemon, run: Run, words: str, summary: str
):
    assert await good(run, f"add {words}") == f"1: {summary}\n"
    assert await good(run, "list") == f"1: {summary} (matched 0, met 0)\n"
    assert json.loads(await good(run, "list --json"))["faults"][0]["number"] == 1


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("H_NONE --close before", "call: no call 'H_NONE'"),
        ("pks", "nothing goes wrong"),
        ("pks --return H_BUSY --drop-reply", "return and drop_reply contradict each other"),
        ("pks --return U_BUSY", "does not return U_BUSY"),
        ("pks --close before --times 0", "times: Expected `int` >= 1"),
        ("pks --close before --arg nothing=1", "arguments: no argument 'nothing'"),
        ("H_PKS_READ_OBJECT --corrupt nothing", "corrupt: no result 'nothing'"),
    ],
)
async def test_add_when_it_could_never_be_met_then_it_is_refused(
    daemon: Daemon, run: Run, words: str, why: str
):
    assert why in await bad(run, f"add {words}")
    assert len(daemon.server.faults) == 0


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("pks --corrupt", "requires an argument"),
        ("pks --bits 1 --close before", "--offset and --bits are for --corrupt"),
        ("pks --close before --arg consumer", "expected NAME=VALUE"),
        ("pks --close before --arg auth=1 --arg auth=2", "given twice"),
        ("pks --corrupt out --bits many", "'many' is no number; expected"),
        ("pks --close never", "is not one of"),
    ],
)
async def test_add_when_it_is_typed_wrongly_then_it_is_a_wrong_use(
    daemon: Daemon, run: Run, words: str, why: str
):
    done = await run(f"add {words}")
    assert done.exit_code == 2
    assert why in done.stderr


async def test_add_when_another_rule_takes_every_call_then_it_is_refused(daemon: Daemon, run: Run):
    await good(run, "add pks --drop-reply")
    why = await bad(run, "add H_PKS_READ_OBJECT --guest a --close before")
    assert why == "rule 1 (no reply) takes every call that this one would; remove it first"
    await good(run, "remove 1")
    await good(run, "add H_PKS_READ_OBJECT --guest a --close before")


async def test_add_when_there_are_too_many_then_it_is_refused(daemon: Daemon, run: Run):
    for _ in range(MAX_RULES):
        daemon.server.faults.add(Rule(drop_reply=True, times=1))
    assert "256 rules are in force already" in await bad(run, "add --close before")


async def test_add_when_the_guest_is_not_there_then_the_user_is_warned(daemon: Daemon, run: Run):
    done = await run("add pks --guest lpar8 --close before")
    assert done.stderr == (
        "hcalld: no guest is connected as partition 'lpar8'; connected are: none. The rule waits "
        "for it\n"
    )
    await daemon.guest()
    assert (await run("add pks --guest lpar7 --drop-reply")).stderr == ""
    assert "connected are: 'lpar7'" in (await run("add uv --guest x --drop-reply")).stderr


async def test_add_when_only_the_ultravisor_makes_the_call_then_the_user_is_warned(
    daemon: Daemon, run: Run
):
    done = await run("add H_SVM_PAGE_IN --return H_BUSY")
    assert "H_SVM_PAGE_IN is the ultravisor's own call" in done.stderr
    assert (await run("add svm --drop-reply")).stderr == ""


async def test_remove_and_clear_when_nothing_matched_then_the_user_is_told(
    daemon: Daemon, run: Run
):
    assert await good(run, "list") == "no rules are in force\n"
    assert await good(run, "clear") == "no rules were in force\n"
    for _ in range(3):
        await good(run, "add pks --times 1 --drop-reply")
    done = await run("remove 2")
    assert done.stdout == "removed 2: pks, once: no reply (matched 0, met 0)\n"
    assert done.stderr == "hcalld: no call has ever matched rule 2\n"
    assert await bad(run, "remove 2") == "no rule 2; in force are: 1, 3"
    shim = await daemon.guest()
    await shim.start(pks.GET_CONFIG, 0x1000, 44)
    await daemon.settle()
    done = await run("clear")
    assert done.stdout == (
        "removed 1: pks, once: no reply (matched 1, met 1, spent)\n"
        "removed 3: pks, once: no reply (matched 0, met 0)\n"
    )
    assert done.stderr == "hcalld: no call has ever matched rule 3\n"


# -- files -------------------------------------------------------------------------------------


async def test_check_when_a_file_is_right_then_its_rules_are_shown(
    run: Run, tmp_path: pathlib.Path
):
    file = tmp_path / "faults.toml"
    file.write_text('[[fault]]\ncall = "pks"\nclose = "after"\n[[fault]]\ndelay_ms = 1\n')
    assert await good(run, f"check {file}") == "1: pks: close after\n2: every call: delay 1 ms\n"
    file.write_text("")
    assert "no rules; each begins with [[fault]]" in (await run(f"check {file}")).stderr


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[[fault]]\ntimes = 0\nclose = 'after'\n", "faults.toml: rule 1: times: Expected"),
        (b"[[fault]]\nclose = 'after'\n" * 2, "faults.toml: rule 2: rule 1 (close after) takes"),
        (b"[[fault", "faults.toml: "),
        (b"\xff", "faults.toml: no UTF-8 at byte 0"),
        (b"#" * ((1 << 20) + 1), "faults.toml: more than 1048576 bytes"),
        (None, "faults.toml: No such file or directory"),
    ],
)
async def test_check_when_a_file_is_wrong_then_it_says_where(
    run: Run, tmp_path: pathlib.Path, content: bytes | None, why: str
):
    file = tmp_path / "faults.toml"
    if content is not None:
        file.write_bytes(content)
    assert why in await bad(run, f"check {file}")


# -- the document ------------------------------------------------------------------------------


async def test_documents_when_they_show_a_command_then_it_succeeds(
    daemon: Daemon, run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    """In the order of the document, each in force until it says otherwise."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faults.toml").write_text('[[fault]]\nclose = "after"\n')
    assert {command.words[2] for command in FAULT_COMMANDS} == {
        *("add", "list", "remove", "clear", "check")
    }
    for command in FAULT_COMMANDS:
        await good(run, shlex.join(command.words[2:]))
