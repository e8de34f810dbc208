# SPDX-License-Identifier: Apache-2.0
"""``hcalld sev vm`` as people use it, where there is no ``/dev/kvm``: attestation, and a move."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import Require
from tests.e2e.daemon import COMMAND, run_hcalld
from tests.e2e.patience import patience, wait_until
from tests.e2e.sevhosts import ROOT, Host, Pair
from tests.unit.hcalld.guestowner.images import SECRET_BASE, firmware
from tests.unit.hcalld.guestowner.oracles import LOOKS_GOOD, validate

from hcalld.sevvm.machine import MIB
from hcallproto.payloads.sev import PlatformState

SECRET = b"correct horse battery staple"
NONCE = "00112233445566778899aabbccddeeff"
KERNEL = ("--kernel", "vmlinuz", "--initrd", "initrd", "--append", "console=ttyS0 quiet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of an owner."""
    (tmp_path / "firmware").write_bytes(firmware(size=0x20000))
    (tmp_path / "vmlinuz").write_bytes(os.urandom(5000))
    (tmp_path / "initrd").write_bytes(os.urandom(3000))
    (tmp_path / "passphrase").write_bytes(SECRET)
    return tmp_path


def of(host: Host) -> tuple[str, ...]:
    """The options that name a platform."""
    return ("--socket", str(host.daemon.socket), "--platform", host.name)


def hcalld(*words: str, cwd: Path) -> str:
    """Run a command of hcalld that must succeed; gives what it prints."""
    ended = subprocess.run(
        [*COMMAND, *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=patience(60),
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert ended.returncode == 0, ended
    return ended.stdout


def make_session(host: Host, folder: Path, policy: str) -> None:
    """What an owner does before a launch."""
    hcalld("sev", "export", *of(host), "chain", cwd=folder)
    hcalld("sev", "session", "--root", str(ROOT), "chain", policy, cwd=folder)


OWNED = ("--dh-cert", "vm_godh.b64", "--session", "vm_session.b64")


@contextlib.contextmanager
def running(*words: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on while others are run."""
    process = subprocess.Popen(
        [*COMMAND, *words],
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=patience(10))


def line_with(process: subprocess.Popen[str], what: str) -> str:
    """The next line that has this in it."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if what in line:
            return line.strip()
    raise AssertionError(f"the command did not say {what!r} but {lines}")


@pytest.mark.parametrize("memory", ["plain", "encrypted"])
def test_an_owner_gives_a_secret_to_the_guest_that_he_wants(
    memory: str, pair: Pair, folder: Path, require: Require
) -> None:
    """Judged by libvirt's program, which makes the secret's packet as well."""
    host = pair.source(memory)
    policy = "none"
    make_session(host, folder, policy)
    words = ("--firmware", "firmware", *KERNEL, "--policy", policy, *OWNED)
    more = ("--measurement-out", "measurement", "--wait-secret", "header", "payload")
    after = ("--memory-out", "memory", "--decrypt", "--report-out", "report", "--mnonce", NONCE)
    command = ("sev", "vm", "launch", *of(host), *words, *more, *after)
    with running(*command, cwd=folder) as process:
        told = line_with(process, "validate it: ").partition(": ")[2]
        line_with(process, "waiting for a secret")
        own = shlex.split(told.replace("FILE", "vm_tk.bin"))
        assert own[0] == "hcalld"
        assert hcalld(*own[1:], cwd=folder) == "the measurement is that of the wanted launch\n"
        status = host.status()
        version = status.version
        said = validate(
            require,
            folder,
            *("--measurement", (folder / "measurement").read_text().strip()),
            *("--tk", "vm_tk.bin", "--policy", "0", "--firmware", "firmware"),
            *("--kernel", "vmlinuz", "--initrd", "initrd", "--cmdline", KERNEL[-1]),
            *("--api-major", str(version.api_major), "--api-minor", str(version.api_minor)),
            *("--build-id", str(version.build), "--inject-secret", "luks-key:passphrase"),
            *("--secret-header", "header", "--secret-payload", "payload"),
        )
        assert said.stdout.startswith(LOOKS_GOOD), said
        output, _ = process.communicate(timeout=patience(30))
        assert process.returncode == 0, output
    assert f"secret: 80 bytes at {SECRET_BASE:#x}" in output
    assert ": RUNNING, policy 0x0 (none)" in output
    area = (folder / "memory").read_bytes()[SECRET_BASE:][:80]
    assert area[20 + 20 :].rstrip(b"\0") == SECRET
    wanted = ("--firmware", "firmware", *KERNEL, "--mnonce", NONCE)
    trusted = ("--sev", "chain", "--root", str(ROOT))
    hcalld("sev", "report", *trusted, *wanted, "report", cwd=folder)


def test_an_altered_secret_ends_the_launch(pair: Pair, folder: Path) -> None:
    """Exit status 1, one line, and no guest."""
    host = pair.source()
    make_session(host, folder, "nodbg")
    words = ("--firmware", "firmware", "--policy", "nodbg", *OWNED)
    more = ("--measurement-out", "measurement", "--wait-secret", "header", "payload")
    with running("sev", "vm", "launch", *of(host), *words, *more, cwd=folder) as process:
        told = line_with(process, "validate it: ").partition(": ")[2]
        own = shlex.split(told.replace("FILE", "vm_tk.bin"))
        packing = ("luks-key:passphrase", *own[4:], "--header", "head", "--payload", "body")
        hcalld("sev", "secret", own[3], *packing, cwd=folder)
        body = (folder / "body").read_text()
        (folder / "payload").write_text(("B" if body[0] == "A" else "A") + body[1:])
        (folder / "header").write_bytes((folder / "head").read_bytes())
        output, _ = process.communicate(timeout=patience(30))
        assert process.returncode == 1, output
    assert "KVM_SEV_LAUNCH_SECRET: the platform refuses: SEV_RET_BAD_MEASUREMENT" in output
    assert "RUNNING" not in output


@pytest.mark.parametrize("way", ["file", "socket"])
def test_a_guest_of_two_processors_moves(
    way: str, pair: Pair, folder: Path, socket_dir: Path
) -> None:
    """And is the same there; what is too much or too little is told."""
    source, target = pair.source(), pair.target()
    (folder / "target").write_bytes(target.chain())
    make_session(source, folder, "es,sev")
    where = "guest" if way == "file" else f"unix:{socket_dir / 'guest'}"
    init = "es-init" if way == "file" else "init2"
    processors = ("--vcpus", "2", "--vcpu-type", "EPYC", "--init", init)
    launch = ("--firmware", "firmware", "--policy", "es,sev", *processors, *OWNED)
    sent = ("--memory-out", "before", "--decrypt", "--send-to", where, "--target-chain", "target")
    received = ("--from", where, "--vcpus", "2", "--memory-out", "after", "--decrypt")
    launching = ("sev", "vm", "launch", *of(source), *launch, *sent)
    receiving = ("sev", "vm", "receive", *of(target), *received)
    if way == "file":
        output = hcalld(*launching, cwd=folder)
        little = ("--from", str(folder / "guest"), "--memory", "8")
        short = run_hcalld("sev", "vm", "receive", *of(target), *little)
        assert short.returncode == 1
        assert "give as much memory, and as many processors" in short.stderr
        assert "258 packets" in hcalld(*receiving, cwd=folder)
    else:
        with running(*receiving, "--hold", cwd=folder) as process:
            wait_until(Path(where.removeprefix("unix:")).exists, "somebody who waits")
            output = hcalld(*launching, cwd=folder)
            assert "258 packets" in line_with(process, "received from")
            assert "RUNNING" in line_with(process, "guest ")
            line_with(process, "held until")
            assert target.status().state == PlatformState.WORKING
            process.communicate(timeout=patience(10))
            assert process.returncode == 0
    assert f"sent to {where}: 258 packets" in output
    assert ": SENT, policy 0x24 (es, sev)" in output
    before = (folder / "before").read_bytes()
    assert (folder / "after").read_bytes() == before
    assert before[16 * MIB - 0x20000 :] == (folder / "firmware").read_bytes()
    wait_until(lambda: not target.status().guest_count, "the end of the guest")


def test_a_guest_does_not_go_where_it_may_not(pair: Pair, folder: Path) -> None:
    host = pair.source()
    (folder / "target").write_bytes(pair.target("elsewhere").chain())
    launch = ("sev", "vm", "launch", *of(host), "--firmware", str(folder / "firmware"))
    for policy in ("sev", "nosend"):
        target = ("--send-to", str(folder / policy), "--target-chain", str(folder / "target"))
        ended = run_hcalld(*launch, "--policy", policy, *target)
        assert ended.returncode == 1
        assert "KVM_SEV_SEND_START: the platform refuses: SEV_RET_POLICY_FAILURE" in ended.stderr
        assert not (folder / policy).exists()
