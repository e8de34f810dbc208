# SPDX-License-Identifier: Apache-2.0
"""The log: one event a line, for people or for collectors, and safe for a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import structlog

from hcalld.core.secret import Secret
from hcalld.observe import log

FORMATS = ("text", "json")


@pytest.fixture(autouse=True)
def _defaults() -> Iterator[None]:
    """Puts structlog back as it was."""
    yield
    structlog.reset_defaults()


def logged(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    assert out == "", "stdout is for the trace"
    return err.splitlines()


def test_text_when_an_event_is_logged_then_it_is_one_line_with_its_values(
    capsys: pytest.CaptureFixture[str],
):
    log.configure("text", "info")
    structlog.get_logger().info("guest connected", partition="lpar7", vcpus=4)
    (text,) = logged(capsys)
    assert "[info" in text
    assert "guest connected" in text
    assert "partition=lpar7" in text
    assert "vcpus=4" in text
    assert "\x1b" not in text, "it is no terminal"


def test_json_when_an_event_is_logged_then_it_is_one_object(capsys: pytest.CaptureFixture[str]):
    log.configure("json", "info")
    structlog.get_logger().bind(peer="unix").warning("event", kind="RESET")
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
    logger = structlog.get_logger()
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
        structlog.get_logger().exception("bug in a handler")
    text = "\n".join(logged(capsys))
    assert "Traceback (most recent call last)" in text
    assert "RuntimeError: broken" in text
    assert "horse" not in text.replace('password = "correct horse battery staple"', "")


@pytest.mark.parametrize("log_format", FORMATS)
def test_secret_when_logged_by_accident_then_it_redacts_itself(
    capsys: pytest.CaptureFixture[str], log_format: log.LogFormat
):
    log.configure(log_format, "info")
    structlog.get_logger().info("oops", password=Secret(b"hunter2 hunter2!"))
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
    structlog.get_logger().info("guest connected", name=hostile, program=f"x{hostile}y")
    _, err = capsys.readouterr()
    assert err.endswith("\n")
    assert err[:-1].isprintable()
