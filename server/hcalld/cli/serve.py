# SPDX-License-Identifier: Apache-2.0
"""``hcalld serve``: run the daemon."""

from __future__ import annotations

import gc
import grp
import os
import pathlib
import pwd
import sys
from typing import TYPE_CHECKING, TextIO

import click

from hcalld.cli import paths
from hcalld.cli.lazy import loading
from hcalld.cli.locks import LOCKS, lock_of
from hcalld.cli.options import key_option, source_of, state_dir_option
from hcalld.core.errors import ConfigError, HcalldError

if TYPE_CHECKING:
    from hcalld.captures.sealing import CaptureKey
    from hcalld.observe.capture import CaptureOptions


def _uid(name: str) -> int:
    if name.isdecimal():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise click.UsageError(
            f"--allow-uid {name}: no such user; give a name or a number"
        ) from None


def _gid(name: str | None) -> int | None:
    if name is None:
        return None
    if name.isdecimal():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise click.UsageError(
            f"--socket-group {name}: no such group; give a name or number"
        ) from None


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise click.UsageError(f"--socket-mode {text}: expected an octal mode such as 0600")
    return mode


def _split_address(text: str) -> tuple[str, int]:
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65535:
        raise click.UsageError(f"--listen {text}: expected HOST:PORT, such as 127.0.0.1:7707")
    return host.strip("[]"), int(port)


def _make_directory(path: pathlib.Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot make the socket's directory: {error.strerror}; name another path "
            "by --socket-path"
        ) from None


def _leaves(group: BaseExceptionGroup[HcalldError]) -> list[HcalldError]:
    """The errors of a group, whatever groups are in it."""
    found: list[HcalldError] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def _open_trace(name: str | None) -> TextIO | None:
    if name is None:
        return None
    if name == "-":
        return sys.stdout
    try:
        return open(name, "a", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--trace {name}: {error.strerror}; expected a file to write") from None


def _capture(
    path: pathlib.Path | None, mib: int | None, files: int | None, secrets: str | None
) -> CaptureOptions | None:
    if (mib is not None and path is None) or (files is not None and mib is None):
        raise click.UsageError("--capture-files needs --capture-size, and that --capture")
    if secrets is not None and path is None:
        raise click.UsageError("--capture-secrets needs --capture")
    if path is None:
        return None
    from hcalld.observe.capture import CaptureOptions

    size = None if mib is None else mib << 20
    return CaptureOptions(path=path, file_bytes=size, files=files, key=_capture_key(secrets))


def _capture_key(how: str | None) -> CaptureKey | None:
    if how is None:
        return None
    from hcalld.captures.sealing import CaptureKey

    return CaptureKey(lock_of(how, "passphrase of the capture", "--capture-secrets"))


@click.command(name="serve", short_help="Run the daemon.")
@click.option(
    "--socket-path",
    type=click.Path(path_type=pathlib.Path),
    help="Unix socket to listen on (default: hcalld.sock in the runtime directory).",
)
@click.option("--fd", type=int, help="Inherited socket instead: connected or listening.")
@click.option("--listen", metavar="HOST:PORT", help="TCP address to listen on (needs TLS).")
@click.option("--tls-cert", type=click.Path(path_type=pathlib.Path), help="PEM certificate.")
@click.option("--tls-key", type=click.Path(path_type=pathlib.Path), help="PEM private key.")
@click.option("--tls-ca", type=click.Path(path_type=pathlib.Path), help="PEM CA of the clients.")
@click.option(
    "--allow-plaintext-tcp",
    is_flag=True,
    help="TCP without TLS: anybody who reaches the port reads and writes guest secrets.",
)
@click.option("--socket-mode", default="0600", show_default=True, help="Mode of the socket.")
@click.option("--socket-group", help="Group of the socket.")
@click.option(
    "--allow-uid",
    multiple=True,
    help="User that may connect, by name or number; may be repeated (default: the daemon's).",
)
@click.option("--allow-any-uid", is_flag=True, help="Do not look at the peer's uid.")
@click.option(
    "--control",
    type=click.Path(path_type=pathlib.Path),
    help="Unix socket for 'hcalld ctl' (default: 'control' in the state directory; with "
    "--memory none).",
)
@click.option("--no-control", is_flag=True, help="No such socket.")
@click.option(
    "--metrics",
    metavar="ADDRESS",
    help="Serve metrics for Prometheus: HOST:PORT on this machine, or a unix socket's path.",
)
@click.option(
    "--allow-remote-metrics",
    is_flag=True,
    help="Serve metrics to other machines: anybody who reaches the port sees what guests call.",
)
@state_dir_option
@key_option
@click.option("--memory", is_flag=True, help="Keep state in memory only; lost at the end.")
@click.option(
    "--profile-dir",
    type=click.Path(path_type=pathlib.Path),
    envvar="HCALLD_PROFILE_DIR",
    help="Directory of <name>.toml partition profiles.",
)
@click.option("--refuse-unknown", is_flag=True, help="Refuse guests without a profile.")
@click.option(
    "--trace",
    is_flag=False,
    flag_value="-",
    metavar="[FILE]",
    help="Write one decoded line per call to FILE, or to stdout.",
)
@click.option(
    "--capture",
    type=click.Path(path_type=pathlib.Path),
    metavar="FILE",
    help="Write all guests' frames to a pcapng FILE, without secrets.",
)
@click.option(
    "--capture-size", type=click.IntRange(1), metavar="MIB", help="Begin a new file after so many."
)
@click.option(
    "--capture-files", type=click.IntRange(1), help="Keep so many of these; the oldest go."
)
@click.option(
    "--capture-secrets",
    is_flag=False,
    flag_value="passphrase:",
    metavar="[HOW]",
    help=f"Keep secrets too, encrypted, and all that a replay needs. What opens it: {LOCKS}.",
)
@click.option(
    "--faults",
    type=click.Path(path_type=pathlib.Path),
    metavar="FILE",
    help="Rules of faults on purpose, in TOML; 'hcalld fault' changes them later.",
)
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
)
@click.option(
    "--spin-us",
    type=click.IntRange(0, 1000),
    default=20,
    show_default=True,
    help="Look for a guest's next call for so long before waiting in the event loop.",
)
@click.option(
    "--idle-seconds",
    type=click.FloatRange(0.1),
    default=30,
    show_default=True,
    help="A guest without calls for so long gives up its memory in the daemon.",
)
@click.option(
    "--allow-core-dumps",
    is_flag=True,
    help="Let debuggers and core dumps at the daemon's memory, guests' secrets included.",
)
def command(
    *,
    socket_path: pathlib.Path | None,
    fd: int | None,
    listen: str | None,
    tls_cert: pathlib.Path | None,
    tls_key: pathlib.Path | None,
    tls_ca: pathlib.Path | None,
    allow_plaintext_tcp: bool,
    socket_mode: str,
    socket_group: str | None,
    allow_uid: tuple[str, ...],
    allow_any_uid: bool,
    control: pathlib.Path | None,
    no_control: bool,
    metrics: str | None,
    allow_remote_metrics: bool,
    state_dir: pathlib.Path | None,
    key: str | None,
    memory: bool,
    profile_dir: pathlib.Path | None,
    refuse_unknown: bool,
    trace: str | None,
    capture: pathlib.Path | None,
    capture_size: int | None,
    capture_files: int | None,
    capture_secrets: str | None,
    faults: pathlib.Path | None,
    log_format: str,
    log_level: str,
    spin_us: int,
    idle_seconds: float,
    allow_core_dumps: bool,
) -> None:
    """Run the daemon in the foreground until SIGTERM.

    It listens on a unix socket for QEMU's spapr-hcall-proxy device; 'hcalld qemu-args'
    prints the options that QEMU needs. Readiness is told to systemd (sd_notify) and in
    the log.
    """
    with loading():
        import trio

        from hcalld.app import ControlOptions, ServeOptions, TcpOptions, serve
        from hcalld.control.endpoint import NAME
        from hcalld.metrics.address import parse_address
        from hcalld.observe import log
        from hcalld.runtime import coredumps

    log.configure("json" if log_format == "json" else "text", log_level)
    if fd is not None and socket_path is not None:
        raise click.UsageError("--fd and --socket-path exclude each other")
    if allow_any_uid and allow_uid:
        raise click.UsageError("--allow-uid and --allow-any-uid exclude each other")
    if no_control and control is not None:
        raise click.UsageError("--control and --no-control exclude each other")
    if allow_remote_metrics and metrics is None:
        raise click.UsageError("--allow-remote-metrics is for --metrics")
    if refuse_unknown and profile_dir is None:
        raise click.UsageError("--refuse-unknown needs --profile-dir")
    if listen is None and (allow_plaintext_tcp or any((tls_cert, tls_key, tls_ca))):
        raise click.UsageError("--tls-* and --allow-plaintext-tcp are for --listen")
    tcp = None
    if listen is not None:
        host, port = _split_address(listen)
        files = (tls_cert, tls_key, tls_ca)
        if not all(files) and not (allow_plaintext_tcp and not any(files)):
            raise click.UsageError(
                "--listen needs --tls-cert, --tls-key and --tls-ca (client certificates are "
                "required), or --allow-plaintext-tcp"
            )
        tcp = TcpOptions(host=host, port=port, certificate=tls_cert, key=tls_key, client_ca=tls_ca)
    if socket_path is None and fd is None and tcp is None:
        socket_path = paths.socket_path()
        _make_directory(socket_path.parent)
    kept = None if memory else state_dir or paths.state_dir()
    control_options = None
    if control is not None:
        control_options = ControlOptions(path=control)
    elif kept is not None and not no_control:
        control_options = ControlOptions(path=kept / NAME, is_default=True)
    options = ServeOptions(
        socket_path=socket_path,
        fd=fd,
        tcp=tcp,
        socket_mode=_mode(socket_mode),
        socket_group=_gid(socket_group),
        allowed_uids=None
        if allow_any_uid
        else frozenset(map(_uid, allow_uid)) or frozenset({os.geteuid()}),
        control=control_options,
        metrics=None if metrics is None else parse_address(metrics, is_open=allow_remote_metrics),
        state_dir=kept,
        key_source=None if memory else source_of(key),
        profile_dir=profile_dir,
        refuse_unknown=refuse_unknown,
        trace=_open_trace(trace),
        capture=_capture(capture, capture_size, capture_files, capture_secrets),
        faults=faults,
        spin_us=spin_us,
        idle_seconds=idle_seconds,
    )
    if not allow_core_dumps:
        coredumps.forbid()
    # A full collection would look at all modules, 30 ms in which no guest is answered.
    gc.freeze()
    failures: list[HcalldError] = []
    try:
        trio.run(serve, options, strict_exception_groups=True)
    except* HcalldError as group:
        failures = _leaves(group)
    if failures:
        raise failures[0]
