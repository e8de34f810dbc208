# SPDX-License-Identifier: Apache-2.0
"""``hcalld serve``: every option reaches the daemon, and every wrong one gets one line."""

from __future__ import annotations

import grp
import os
import pathlib
import pwd
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hcalld import app
from hcalld.app import ControlOptions, ServeOptions, TcpOptions
from hcalld.captures.sealing import Keys
from hcalld.cli import paths
from hcalld.cli.serve import command
from hcalld.core.errors import ConfigError, HcalldError, StoreError
from hcalld.core.secret import Secret
from hcalld.crypto import passphrase as passphrases
from hcalld.crypto.locks import Passphrase
from hcalld.metrics.address import MetricsOptions
from hcalld.observe import log
from hcalld.observe.capture import CaptureOptions
from hcalld.runtime import coredumps
from hcalld.stores.keys import FileKeySource
from hcallproto.errors import CaptureError

ROOT = pwd.getpwuid(0).pw_name
ROOT_GROUP = grp.getgrgid(0).gr_name


class Fake:
    """Stands in for the daemon: keeps its options, fails as told."""

    def __init__(self) -> None:
        self.options: ServeOptions | None = None
        self.error: Exception | None = None
        self.has_core_dumps = True

    def forbid(self) -> None:
        self.has_core_dumps = False

    async def serve(self, options: ServeOptions) -> None:
        self.options = options
        if self.error is not None:
            raise self.error


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Fake:
    fake = Fake()
    monkeypatch.setattr(app, "serve", fake.serve)
    # Else it would hold for this process and for all that come after.
    monkeypatch.setattr(coredumps, "forbid", fake.forbid)
    for name in ("HCALLD_KEY", "HCALLD_STATE_DIR", "HCALLD_PROFILE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    return fake


def run(*words: str) -> Result:
    return CliRunner().invoke(command, list(words))


def served(fake: Fake, *words: str) -> ServeOptions:
    done = run(*words)
    assert done.exit_code == 0, (done.output, done.exception)
    assert fake.options is not None
    return fake.options


def refused(*words: str) -> str:
    """A wrong use: status 2 and one line of error below the usage."""
    done = run(*words)
    assert done.exit_code == 2, done.exception
    assert done.stderr.startswith("Usage: ")
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("Error: ")
    return lines[-1]


def failed(*words: str) -> str:
    """Something a user can act on, which main() turns into one line and status 1."""
    done = run(*words)
    assert isinstance(done.exception, HcalldError)
    assert "\n" not in str(done.exception)
    return str(done.exception)


# -- every option --------------------------------------------------------------------------------


def test_options_when_none_is_given_then_the_defaults_hold(fake: Fake, tmp_path: pathlib.Path):
    options = served(fake)
    assert options == ServeOptions(
        socket_path=tmp_path / "run" / "hcalld.sock",
        allowed_uids=frozenset({os.geteuid()}),
        control=ControlOptions(path=paths.state_dir() / "control", is_default=True),
        state_dir=paths.state_dir(),
    )
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700


Case = tuple[tuple[str, ...], str, Any]

CASES: dict[str, Case] = {
    "socket_path": (("--socket-path", "/x/hc.sock"), "socket_path", pathlib.Path("/x/hc.sock")),
    "fd": (("--fd", "5"), "fd", 5),
    "metrics": (
        ("--metrics", "127.0.0.1:9477"),
        "metrics",
        MetricsOptions(host="127.0.0.1", port=9477),
    ),
    "allow_remote_metrics": (
        ("--metrics", "0.0.0.0:9477", "--allow-remote-metrics"),
        "metrics",
        MetricsOptions(host="0.0.0.0", port=9477),
    ),
    "listen": (
        ("--listen", "[::1]:7707", "--allow-plaintext-tcp"),
        "tcp",
        TcpOptions(host="::1", port=7707),
    ),
    **dict.fromkeys(
        ("tls_cert", "tls_key", "tls_ca"),
        (
            (
                *("--listen", "127.0.0.1:0", "--tls-cert", "c.pem"),
                *("--tls-key", "k.pem", "--tls-ca", "a.pem"),
            ),
            "tcp",
            TcpOptions(
                host="127.0.0.1",
                port=0,
                certificate=pathlib.Path("c.pem"),
                key=pathlib.Path("k.pem"),
                client_ca=pathlib.Path("a.pem"),
            ),
        ),
    ),
    "allow_plaintext_tcp": (
        ("--listen", "localhost:65535", "--allow-plaintext-tcp"),
        "tcp",
        TcpOptions(host="localhost", port=65535),
    ),
    "socket_mode": (("--socket-mode", "0660"), "socket_mode", 0o660),
    "socket_group": (("--socket-group", ROOT_GROUP), "socket_group", 0),
    "allow_uid": (
        ("--allow-uid", ROOT, "--allow-uid", "1234"),
        "allowed_uids",
        frozenset({0, 1234}),
    ),
    "allow_any_uid": (("--allow-any-uid",), "allowed_uids", None),
    "control": (
        ("--control", "/x/ctl"),
        "control",
        ControlOptions(path=pathlib.Path("/x/ctl")),
    ),
    "no_control": (("--no-control",), "control", None),
    "state_dir": (("--state-dir", "/x/state"), "state_dir", pathlib.Path("/x/state")),
    "memory": (("--memory",), "state_dir", None),
    "profile_dir": (("--profile-dir", "/x/etc"), "profile_dir", pathlib.Path("/x/etc")),
    "refuse_unknown": (("--refuse-unknown", "--profile-dir", "/x"), "refuse_unknown", True),
    "spin_us": (("--spin-us", "0"), "spin_us", 0),
    "idle_seconds": (("--idle-seconds", "0.5"), "idle_seconds", 0.5),
    "faults": (("--faults", "/x/faults.toml"), "faults", pathlib.Path("/x/faults.toml")),
    "capture": (
        ("--capture", "/x/all.pcapng"),
        "capture",
        CaptureOptions(path=pathlib.Path("/x/all.pcapng")),
    ),
    **dict.fromkeys(
        ("capture_size", "capture_files"),
        (
            ("--capture", "c.pcapng", "--capture-size", "3", "--capture-files", "2"),
            "capture",
            CaptureOptions(path=pathlib.Path("c.pcapng"), file_bytes=3 << 20, files=2),
        ),
    ),
}
ELSEWHERE = {
    "capture_secrets",
    "key",
    "allow_core_dumps",
    "trace",
    "log_format",
    "log_level",
    "help",
}
"""Options with tests of their own, below."""


def test_options_when_one_is_added_then_it_is_tested():
    assert {param.name for param in command.params} - ELSEWHERE == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_option_when_given_then_the_daemon_gets_it(fake: Fake, name: str):
    words, field, expected = CASES[name]
    assert getattr(served(fake, *words), field) == expected


def test_control_when_state_is_elsewhere_then_so_is_the_socket(fake: Fake):
    control = served(fake, "--state-dir", "/x/state").control
    assert control == ControlOptions(path=pathlib.Path("/x/state/control"), is_default=True)


def test_control_when_state_is_in_memory_then_there_is_one_only_if_asked_for(fake: Fake):
    assert served(fake, "--memory").control is None
    assert served(fake, "--memory", "--control", "/x/ctl").control == ControlOptions(
        path=pathlib.Path("/x/ctl")
    )


@pytest.mark.parametrize(
    "words", [("--capture-size", "1"), ("--capture", "/x", "--capture-files", "2")]
)
def test_capture_when_what_a_limit_is_of_is_missing_then_it_is_a_wrong_use(words: tuple[str, ...]):
    assert "--capture-files needs --capture-size" in refused(*words)


def test_secrets_when_there_is_no_capture_then_it_is_a_wrong_use():
    assert "--capture-secrets needs --capture" in refused("--capture-secrets")


def test_secrets_when_they_are_captured_then_a_passphrase_opens_them(
    fake: Fake, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(passphrases, "LOG_N", 10)
    path = tmp_path / "pass"
    path.write_text("correct horse")
    path.chmod(0o600)
    options = served(fake, "--capture", "/x", "--capture-secrets", f"passphrase-file:{path}")
    assert options.capture is not None
    assert options.capture.key is not None
    record = options.capture.key.of_file().record
    assert Keys(Passphrase(Secret(b"correct horse"))).of(record)
    with pytest.raises(CaptureError, match="wrong passphrase"):
        Keys(Passphrase(Secret(b"incorrect"))).of(record)


def test_control_when_it_is_wanted_and_not_wanted_then_it_is_a_wrong_use():
    assert "exclude each other" in refused("--control", "/x", "--no-control")


def test_group_when_it_is_a_number_then_it_need_not_have_a_name(fake: Fake):
    assert served(fake, "--socket-group", "54321").socket_group == 54321


@pytest.mark.parametrize("words", [("--fd", "5"), ("--listen", "[::]:1", "--allow-plaintext-tcp")])
def test_socket_when_another_listener_is_given_then_there_is_no_default_one(
    fake: Fake, words: tuple[str, ...], tmp_path: pathlib.Path
):
    assert served(fake, *words).socket_path is None
    assert not (tmp_path / "run").exists()


def test_socket_when_both_are_given_then_both_are_served(fake: Fake):
    words = ("--listen", "h:1", "--allow-plaintext-tcp", "--socket-path", "/x")
    options = served(fake, *words)
    assert options.socket_path == pathlib.Path("/x")
    assert options.tcp is not None


def test_environment_when_it_names_directories_then_they_hold_unless_options_do(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HCALLD_STATE_DIR", "/env/state")
    monkeypatch.setenv("HCALLD_PROFILE_DIR", "/env/etc")
    options = served(fake)
    assert options.state_dir == pathlib.Path("/env/state")
    assert options.profile_dir == pathlib.Path("/env/etc")
    assert served(fake, "--state-dir", "/x").state_dir == pathlib.Path("/x")


def test_key_when_given_then_the_daemon_asks_there(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HCALLD_KEY", "file:/env/key")
    for words, path in (((), "/env/key"), (("--key", "file:/x/key"), "/x/key")):
        source = served(fake, *words).key_source
        assert isinstance(source, FileKeySource)
        assert source.path == pathlib.Path(path)
    assert served(fake, "--memory").key_source is None
    assert "--key: expected file:PATH" in failed("--key", "nowhere")


def test_core_dumps_when_not_allowed_then_they_are_off_before_the_daemon_runs(fake: Fake):
    served(fake, "--allow-core-dumps")
    assert fake.has_core_dumps
    served(fake)
    assert not fake.has_core_dumps


def test_trace_when_no_file_is_named_then_it_is_stdout(fake: Fake):
    options = served(fake, "--trace", "--memory")
    assert options.trace is not None
    assert options.trace.writable()
    assert options.state_dir is None, "--memory was not taken for a file"


def test_trace_when_a_file_is_named_then_lines_are_added_to_it(fake: Fake, tmp_path: pathlib.Path):
    path = tmp_path / "trace"
    path.write_text("before\n")
    for words in (("--trace", str(path)), (f"--trace={path}",)):
        trace = served(fake, *words).trace
        assert trace is not None
        with trace:
            trace.write("after\n")
    assert path.read_text() == "before\nafter\nafter\n"


def test_trace_when_the_file_cannot_be_opened_then_one_line_says_so(fake: Fake):
    assert "No such file or directory; expected a file to write" in failed("--trace", "/no/such/f")


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_log_when_format_and_level_are_chosen_then_they_are_used(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, log_format: str, level: str
):
    configured: list[tuple[str, str]] = []
    monkeypatch.setattr(log, "configure", lambda *how: configured.append(how))
    served(fake, "--log-format", log_format, "--log-level", level)
    assert configured == [(log_format, level)]


# -- wrong ones ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--fd", "3", "--socket-path", "/x"), "--fd and --socket-path exclude each other"),
        (("--fd", "three"), "not a valid integer"),
        (("--listen", "h:1"), "--listen needs --tls-cert, --tls-key and --tls-ca"),
        (("--listen", "h:1", "--tls-cert", "c"), "--listen needs --tls-cert"),
        (
            ("--listen", "h:1", "--tls-cert", "c", "--tls-key", "k", "--allow-plaintext-tcp"),
            "--listen needs --tls-cert",
        ),
        (("--tls-cert", "c"), "are for --listen"),
        (("--allow-plaintext-tcp",), "are for --listen"),
        (("--allow-any-uid", "--allow-uid", "0"), "exclude each other"),
        (("--allow-remote-metrics",), "--allow-remote-metrics is for --metrics"),
        (("--refuse-unknown",), "--refuse-unknown needs --profile-dir"),
        (("--spin-us", "1001"), "0<=x<=1000"),
        (("--spin-us", "-1"), "0<=x<=1000"),
        (("--idle-seconds", "0"), "x>=0.1"),
        (("--log-level", "loud"), "is not one of"),
        (("--log-format", "xml"), "is not one of"),
        (("--no-such-option",), "No such option"),
        (("extra",), "unexpected extra argument"),
    ],
)
def test_use_when_it_is_wrong_then_status_2_and_the_reason(
    fake: Fake, words: tuple[str, ...], told: str
):
    assert told in refused(*words)
    assert fake.options is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--listen", "host", "--allow-plaintext-tcp"), "expected HOST:PORT"),
        (("--listen", "h:65536", "--allow-plaintext-tcp"), "expected HOST:PORT"),
        (("--listen", "h:-1", "--allow-plaintext-tcp"), "expected HOST:PORT"),
        (("--listen", "h:²", "--allow-plaintext-tcp"), "expected HOST:PORT"),
        (("--socket-mode", "rw"), "expected an octal mode such as 0600"),
        (("--socket-mode", "1777"), "expected an octal mode"),
        (("--socket-mode", "0888"), "expected an octal mode"),
        (("--socket-mode", "-1"), "expected an octal mode"),
        (("--socket-group", "no-such-group"), "no such group; give a name or number"),
        (("--socket-group", "²"), "no such group"),
        (("--socket-group", ""), "no such group"),
        (("--allow-uid", "no-such-user"), "no such user; give a name or a number"),
        (("--allow-uid", "²"), "no such user"),
        (("--allow-uid", ""), "no such user"),
    ],
)
def test_value_when_it_is_wrong_then_one_line_names_the_option(
    fake: Fake, words: tuple[str, ...], told: str
):
    message = refused(*words)
    assert told in message
    assert words[0] in message
    assert fake.options is None


def test_socket_when_its_directory_cannot_be_made_then_one_line_says_so(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "file" / "run"))
    assert "cannot make the socket's directory: Not a directory; name another" in failed()


# -- ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda error: error,
        lambda error: ExceptionGroup("", [error]),
        lambda error: ExceptionGroup("", [ExceptionGroup("", [error, StoreError("second")])]),
    ],
    ids=["bare", "in a group", "in groups"],
)
def test_end_when_the_daemon_fails_then_the_reason_comes_out_of_all_groups(
    fake: Fake, wrap: Callable[[Exception], Exception]
):
    fake.error = wrap(ConfigError("no room"))
    assert failed() == "no room"


def test_end_when_the_daemon_has_a_bug_then_it_is_not_hidden(fake: Fake):
    fake.error = ExceptionGroup("", [RuntimeError("bug"), ConfigError("no room")])
    done = run()
    assert isinstance(done.exception, ExceptionGroup)
    assert done.exception.subgroup(RuntimeError) is not None


def hcalld(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hcalld", *words], capture_output=True, text=True, check=False
    )


def test_process_when_it_cannot_start_then_one_line_and_status_1(tmp_path: pathlib.Path):
    done = hcalld("serve", "--memory", "--socket-path", str(tmp_path / "no" / "hc.sock"))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("hcalld: ")
    assert done.stderr.count("\n") == 1


def test_process_when_its_use_is_wrong_then_status_2():
    done = hcalld("serve", "--fd", "0", "--socket-path", "/x")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
