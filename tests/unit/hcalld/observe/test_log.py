# SPDX-License-Identifier: Apache-2.0
"""The log: one event a line, for people or for collectors, and safe for a terminal."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator

import pytest

from hcalld.core.log import Log
from hcalld.core.secret import Secret
from hcalld.observe import log

FORMATS = ("text", "json")


@pytest.fixture(autouse=True)
def _defaults() -> Iterator[None]:
    """Puts the log back as it was."""
    with log.restored():
        yield


def logged(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    assert out == "", "stdout is for the trace"
    return err.splitlines()


def test_text_when_an_event_is_logged_then_it_is_one_line_with_its_values(
    capsys: pytest.CaptureFixture[str],
):
    log.configure("text", "info")
    Log().info("guest connected", partition="lpar7", vcpus=4)
    (text,) = logged(capsys)
    assert "[info" in text
    assert "guest connected" in text
    assert "partition=lpar7" in text
    assert "vcpus=4" in text
    assert "\x1b" not in text, "it is no terminal"


def test_json_when_an_event_is_logged_then_it_is_one_object(capsys: pytest.CaptureFixture[str]):
    log.configure("json", "info")
    Log().bind(peer="unix").warning("event", kind="RESET")
    (text,) = logged(capsys)
    entry = json.loads(text)
    assert entry.pop("timestamp").endswith("Z")
    assert entry == {"event": "event", "level": "warning", "kind": "RESET", "peer": "unix"}


@pytest.mark.parametrize("log_format", FORMATS)
@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_level_when_set_then_what_is_below_is_not_logged(
    capsys: pytest.CaptureFixture[str], log_format: log.LogFormat, level: str, expected: list[str]
):
    log.configure(log_format, level)
    logger = Log()
    for name in ("debug", "info", "warning", "error"):
        getattr(logger, name)(f"event of {name}")
    lines = logged(capsys)
    assert len(lines) == len(expected)
    assert all(f"event of {name}" in text for name, text in zip(expected, lines, strict=True))


@pytest.mark.parametrize("log_format", FORMATS)
def test_exception_when_logged_then_the_traceback_is_there_and_no_variables(
    capsys: pytest.CaptureFixture[str], log_format: log.LogFormat
):
    log.configure(log_format, "info")
    password = "correct horse battery staple"  # what a traceback with locals would show

    def fail() -> None:
        assert password
        raise RuntimeError("broken")

    try:
        fail()
    except RuntimeError:
        Log().exception("bug in a handler")
    text = "\n".join(logged(capsys))
    assert "Traceback (most recent call last)" in text
    assert "RuntimeError: broken" in text
    assert "horse" not in text.replace('password = "correct horse battery staple"', "")


@pytest.mark.parametrize("log_format", FORMATS)
def test_secret_when_logged_by_accident_then_it_redacts_itself(
    capsys: pytest.CaptureFixture[str], log_format: log.LogFormat
):
    log.configure(log_format, "info")
    Log().info("oops", password=Secret(b"hunter2 hunter2!"))
    (text,) = logged(capsys)
    assert "hunter2" not in text
    assert "<secret>" in text


@pytest.mark.parametrize("log_format", FORMATS)
@pytest.mark.parametrize(
    "hostile",
    [
        "two\nlines",
        "\x1b[2Jclear",
        "carriage\rreturn",
        "c1 \x9b2J",
        "next\x85line",
        "\u2028",
        "\u202e",
    ],
)
def test_value_when_a_peer_chose_it_then_it_neither_steers_a_terminal_nor_forges_a_line(
    capsys: pytest.CaptureFixture[str], log_format: log.LogFormat, hostile: str
):
    log.configure(log_format, "info")
    Log().info("guest connected", name=hostile, program=f"x{hostile}y")
    _, err = capsys.readouterr()
    assert err.endswith("\n")
    assert err[:-1].isprintable()


def test_text_when_values_are_of_all_kinds_then_each_is_one_word_and_names_are_in_order(
    capsys: pytest.CaptureFixture[str],
):
    log.configure("text", "info")
    Log(peer="unix pid 1").info("guest ready", z=3, a="plain", none=None, equals="a=b")
    (text,) = logged(capsys)
    time, rest = text.split(" ", 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", time)
    values = "a=plain equals='a=b' none=None peer='unix pid 1' z=3"
    assert rest == f"[info     ] guest ready                    {values}"


def test_text_when_stderr_is_a_terminal_then_the_level_has_its_colour(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    log.configure("text", "info")
    Log().error("store failed", call="\x1b[2Jclear")
    (text,) = logged(capsys)
    assert "[\x1b[31merror    \x1b[0m]" in text
    assert "\x1b[2J" not in text


def test_bound_values_when_an_event_has_others_then_they_are_its_alone(
    capsys: pytest.CaptureFixture[str],
):
    log.configure("json", "info")
    bound = Log(peer="unix").bind(partition="lpar7")
    bound.info("event", kind="RESET", peer="tcp")
    bound.info("event")
    first, second = (json.loads(text) for text in logged(capsys))
    assert (first["peer"], first["partition"], first["kind"]) == ("tcp", "lpar7", "RESET")
    assert (second["peer"], second.get("kind")) == ("unix", None)
