# SPDX-License-Identifier: Apache-2.0
"""A daemon that gets its master key from elsewhere than a file in its directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.daemon import Daemon, run_hcalld
from tests.e2e.fakeshim import FakeShim, connect, hello
from tests.e2e.lab import Lab
from tests.e2e.swtpm import Swtpm

from hcalld.core.secret import Secret
from hcalld.stores.keys.source import key_text
from hcallproto.abi.families import pks
from hcallproto.abi.returns import H

BUFFER = 0x1000
KEY = Secret(bytes(range(32)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The user's files, and a service's credentials."""
    (tmp_path / "pass").write_text("correct horse battery\n")
    (tmp_path / "wrong").write_text("incorrect horse battery\n")
    (tmp_path / "hcalld").write_bytes(key_text(KEY))
    for path in tmp_path.iterdir():
        path.chmod(0o600)
    return tmp_path


@contextlib.contextmanager
def key_of(kind: str, lab: Lab, folder: Path) -> Iterator[str]:
    """What ``--key`` says, while it is true."""
    if kind == "tpm":
        lab.require("tpm2_unseal")
        with Swtpm(lab.require("swtpm"), folder / "tpm").running() as tcti:
            yield f"tpm:{tcti}#sha256:7"
    else:
        yield {
            "file": f"file:{folder / 'new.key'}",
            "credential": "credential:hcalld",
            "passphrase": f"passphrase-file:{folder / 'pass'}",
            "passphrase in a credential": "passphrase-credential:pass",
        }[kind]


def gen_password(daemon: Daemon) -> int:
    with FakeShim(connect(daemon.socket)) as shim:
        shim.negotiate(hello("guest"))
        return shim.call(pks.GEN_PASSWORD.number, 3, 0, BUFFER, 64).status


@pytest.mark.parametrize(
    "kind", ["file", "credential", "passphrase", "passphrase in a credential", "tpm"]
)
def test_a_guests_state_outlives_the_daemon(kind: str, lab: Lab, folder: Path) -> None:
    with key_of(kind, lab, folder) as key:
        environ = {"HCALLD_KEY": key, "CREDENTIALS_DIRECTORY": str(folder)}
        daemon = lab.daemon(environ=environ)
        assert gen_password(daemon) == H.SUCCESS
        daemon.kill()
        daemon.start()
        assert gen_password(daemon) == H.IN_USE
        assert daemon.terminate() == 0
    assert "key" not in os.listdir(daemon.state_dir)


def refused(daemon: Daemon, *words: str, environ: dict[str, str] | None = None) -> str:
    """The one line with which a daemon ends at start, before it listens."""
    ended = run_hcalld("serve", *daemon.options, *words, environ=environ)
    assert ended.returncode == 1, ended
    (line,) = ended.stderr.splitlines()
    assert line.startswith("hcalld: ")
    assert not daemon.socket.exists()
    return line


def test_a_key_that_does_not_serve_ends_the_daemon_at_start(lab: Lab, folder: Path) -> None:
    """And not the first guest."""
    daemon = lab.daemon("--key", f"passphrase-file:{folder / 'pass'}")
    assert gen_password(daemon) == H.SUCCESS
    assert daemon.terminate() == 0
    del daemon.options[: daemon.options.index("--socket-path")]
    assert "wrong passphrase" in refused(daemon, "--key", f"passphrase-file:{folder / 'wrong'}")
    assert "use --key passphrase:" in refused(daemon, "--key", f"file:{folder / 'hcalld'}")
    assert "no such passphrase file" in refused(daemon, "--key", "passphrase-file:/none")
    assert "--key: expected file:PATH" in refused(daemon, "--key", "none")
    line = refused(daemon, "--key", "credential:none", environ={"CREDENTIALS_DIRECTORY": "/"})
    assert "use --key passphrase:" in line
    daemon.options += ["--state-dir", str(folder / "fresh")]
    line = refused(daemon, "--key", "credential:none", environ={"CREDENTIALS_DIRECTORY": "/"})
    assert "LoadCredentialEncrypted=none" in line


def test_the_key_moves_while_the_daemon_runs(lab: Lab, folder: Path) -> None:
    daemon = lab.daemon()
    assert gen_password(daemon) == H.SUCCESS
    key = f"passphrase-file:{folder / 'pass'}"
    ended = run_hcalld("state", "rekey", "--state-dir", str(daemon.state_dir), "--new-key", key)
    assert ended.returncode == 0, ended
    assert "key" not in os.listdir(daemon.state_dir)
    assert gen_password(daemon) == H.IN_USE
    assert daemon.terminate() == 0
    daemon.options += ["--key", key]
    daemon.start()
    assert gen_password(daemon) == H.IN_USE
