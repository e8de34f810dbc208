# SPDX-License-Identifier: Apache-2.0
"""H_TPM_COMM to real TPMs: swtpm is the TPM, tpm2-tools are the witness."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.daemon import Daemon
from tests.e2e.fakeshim import FakeShim, connect, hello
from tests.e2e.lab import Lab
from tests.e2e.machine import ByteOrder, Memory
from tests.e2e.patience import wait_until
from tests.e2e.tpm import Tools, listening_swtpm, pty_swtpm

from hcalld.backends.tpms import FOLDER_NAME, swtpm_key
from hcalld.stores.directory import StateDirectory
from hcallproto.wire import frames as f

MUST_RUN = (
    "tpm_random",
    "tpm_error",
    "tpm_bad",
    "tpm_edges",
    "tpm_cpus",
    "tpm_close",
    "tpm_user",
)
ZEROS = bytes(32)


def daemon_with(lab: Lab, profile: str, *options: str) -> Daemon:
    """A daemon whose guests have what a profile says."""
    profiles = lab.artifacts / "profiles"
    profiles.mkdir()
    (profiles / "default.toml").write_text(profile, "utf-8")
    return lab.daemon("--profile-dir", str(profiles), *options)


def swtpm_daemon(lab: Lab, more: str = "") -> Daemon:
    program = lab.require("swtpm")
    return daemon_with(lab, f'[tpm]\nbackend = "swtpm"\nprogram = "{program}"\n{more}')


@contextlib.contextmanager
def tpm_of(lab: Lab, backend: str) -> Iterator[str]:
    """A TPM of the host; gives the profile that names it."""
    program, state = lab.require("swtpm"), lab.artifacts / "tpm"
    if backend == "socket":
        with listening_swtpm(program, state, lab.socket_dir) as path:
            yield f'[tpm]\nbackend = "socket"\npath = "{path}"\n'
    elif backend == "device":
        with pty_swtpm(program, state) as path:
            yield f'[tpm]\nbackend = "device"\npath = "{path}"\n'
    else:
        yield f'[tpm]\nbackend = "swtpm"\nprogram = "{program}"\n'


def process_of(daemon: Daemon) -> int:
    """The swtpm that was started last."""
    return int(re.findall(r"swtpm started .*process=(\d+)", daemon.log_text())[-1])


def is_running(process_id: int) -> bool:
    """Nobody may wait for an orphan: what is left of it is no process any more."""
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


# -- the guest stub ------------------------------------------------------------------------------


@pytest.mark.qemu
@pytest.mark.parametrize("memory", ["shared", "private"])
@pytest.mark.parametrize("byte_order", ["le", "be"])
@pytest.mark.parametrize("backend", ["swtpm", "socket", "device"])
def test_every_bound_of_the_call(
    backend: str, byte_order: ByteOrder, memory: Memory, lab: Lab
) -> None:
    with tpm_of(lab, backend) as profile:
        daemon = daemon_with(lab, profile)
        # Linux passes on what is written to a tty in pieces of 2048 bytes, and swtpm takes the
        # first for the command.
        append = "tpm require=1" + (" max=2048" if backend == "device" else "")
        machine = lab.stub(append, daemon, byte_order=byte_order, memory=memory)
        machine.report().must_pass(*MUST_RUN)
        daemon.close()
    assert "TPM session lost" not in daemon.log_text()


@pytest.mark.qemu
def test_without_a_state_directory(lab: Lab) -> None:
    with tpm_of(lab, "swtpm") as profile:
        daemon = daemon_with(lab, profile, "--memory")
    lab.stub("tpm require=1", daemon).report().must_pass(*MUST_RUN)
    (folder,) = re.findall(r"swtpm started .*folder=(\S+)", daemon.log_text())
    assert daemon.terminate() == 0
    assert not Path(folder).exists()


@pytest.mark.qemu
def test_a_partition_without_one(lab: Lab) -> None:
    lab.stub("tpm_none require=1", lab.daemon()).report().must_pass("tpm_none")


@pytest.mark.qemu
def test_two_guests_have_two_tpms(lab: Lab) -> None:
    daemon = swtpm_daemon(lab)
    seen = []
    for name in ("a", "b", "a"):
        machine = lab.stub("tpm_extend require=1", daemon, name=name)
        machine.report().must_pass("tpm_extend")
        seen.append(re.findall(r"# tpm pcr (\w+)", machine.console.text)[-1])
    # Each begins with a PCR of zeros, the one that is powered on again too.
    assert seen == [hashlib.sha256(ZEROS + b"h" * 32).hexdigest()] * 3
    assert len(set(re.findall(r"swtpm started .*folder=(\S+)", daemon.log_text()))) == 2


@pytest.mark.qemu
@pytest.mark.parametrize("backend", ["swtpm", "socket", "device"])
def test_a_reset_closes_the_session(backend: str, lab: Lab) -> None:
    with tpm_of(lab, backend) as profile:
        daemon = daemon_with(lab, profile)
        machine = lab.stub("tpm_reset require=1", daemon, can_reboot=True)
        machine.report().must_pass("tpm_reset")
        assert len(re.findall(r"^KTAP version 1$", machine.console.text, re.MULTILINE)) == 2
        daemon.close()


# -- witnesses -------------------------------------------------------------------------------------


@pytest.mark.qemu
def test_what_a_guest_extends_the_host_sees_and_the_other_way_round(lab: Lab) -> None:
    lab.require("tpm2_pcrread")
    with listening_swtpm(lab.require("swtpm"), lab.artifacts / "tpm", lab.socket_dir) as path:
        daemon = daemon_with(lab, f'[tpm]\nbackend = "socket"\npath = "{path}"\n')
        tools = Tools("socket", path)
        assert tools.pcr(16) == ZEROS
        lab.stub("tpm_extend require=1", daemon).report().must_pass("tpm_extend")
        extended = hashlib.sha256(ZEROS + b"h" * 32).digest()
        assert tools.pcr(16) == extended
        again = hashlib.sha256(b"by the host").digest()
        tools.run("tpm2_pcrextend", f"16:sha256={again.hex()}")
        expected = hashlib.sha256(extended + again).digest()
        machine = lab.stub("tpm_pcr require=1", daemon)
        machine.report().must_pass("tpm_pcr")
        assert f"# tpm pcr {expected.hex()}" in machine.console.text
        assert tools.pcr(16) == expected


def test_programs_over_the_hypercall_and_over_the_state_it_leaves(lab: Lab) -> None:
    lab.require("tpm2_nvread")
    program = lab.require("swtpm")
    daemon = swtpm_daemon(lab)
    ours = Tools("daemon", daemon.socket, "lpar7")
    assert ours.run("tpm2_getrandom", "--hex", "16") != ours.run("tpm2_getrandom", "--hex", "16")
    secret = b"kept by the TPM of lpar7"
    ours.run("tpm2_nvdefine", "-C", "o", "-s", "24", "-a", "ownerread|ownerwrite", "0x1500007")
    ours.run("tpm2_nvwrite", "-C", "o", "-i", "-", "0x1500007", stdin=secret)
    key = lab.artifacts / "key.ctx"
    ours.run("tpm2_createprimary", "-C", "o", "-G", "rsa2048", "-c", key)
    ours.run("tpm2_evictcontrol", "-C", "o", "-c", key, "0x81000007")
    public = ours.run("tpm2_readpublic", "-c", "0x81000007")
    ours.run("tpm2_pcrextend", f"16:sha256={'ab' * 32}")
    extended = ours.pcr(16)
    assert extended == hashlib.sha256(ZEROS + b"\xab" * 32).digest()
    assert b"handle" not in ours.run("tpm2_getcap", "handles-transient")
    # A daemon that is restarted in good order goes on with the same TPM.
    assert daemon.terminate() == 0
    daemon.start()
    assert ours.pcr(16) == extended
    assert daemon.terminate() == 0
    directory = StateDirectory(daemon.state_dir)
    folder = directory.folder("lpar7") / FOLDER_NAME
    assert secret not in b"".join(path.read_bytes() for path in folder.iterdir())
    secret_key = swtpm_key(directory, "lpar7").reveal()
    (folder / "tpm2-00.volatilestate").unlink()
    with listening_swtpm(program, folder, lab.socket_dir, key=secret_key) as path:
        theirs = Tools("socket", path)
        assert theirs.run("tpm2_nvread", "-C", "o", "0x1500007") == secret
        assert theirs.run("tpm2_readpublic", "-c", "0x81000007") == public
        assert theirs.pcr(16) == ZEROS
        theirs.run("tpm2_nvundefine", "-C", "o", "0x1500007")
    daemon.start()
    assert b"0x1500007" not in ours.run("tpm2_getcap", "handles-nv-index")
    assert ours.run("tpm2_readpublic", "-c", "0x81000007") == public
    for text in (daemon.log_text(), "\n".join(daemon.trace_lines())):
        assert secret.decode() not in text
        assert secret.hex() not in text


# -- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.qemu
def test_a_swtpm_that_dies_under_its_guest(lab: Lab) -> None:
    daemon = swtpm_daemon(lab)
    machine = lab.stub("tpm_watch require=1 run-ms=20000", daemon)
    machine.console.expect("# tpm ready")
    wait_until(lambda: "swtpm started" in daemon.log_text(), "swtpm's start")
    os.kill(process_of(daemon), signal.SIGKILL)
    machine.report().must_pass("tpm_watch")
    assert "# tpm code=-16" in machine.console.text
    assert "has ended with status -9" in daemon.log_text()
    assert daemon.log_text().count("swtpm started") == 2


@pytest.mark.qemu
@pytest.mark.parametrize("goes_on", [True, False])
def test_a_swtpm_that_hangs_under_its_guest(goes_on: bool, lab: Lab) -> None:
    daemon = swtpm_daemon(lab, "timeout_ms = 500\n")
    machine = lab.stub("tpm_watch require=1 run-ms=20000", daemon)
    machine.console.expect("# tpm ready")
    wait_until(lambda: "swtpm started" in daemon.log_text(), "swtpm's start")
    process_id = process_of(daemon)
    os.kill(process_id, signal.SIGSTOP)
    machine.console.expect("# tpm code=-16")
    if goes_on:
        os.kill(process_id, signal.SIGCONT)
    machine.report().must_pass("tpm_watch")
    assert "no whole response within 0.5 s" in daemon.log_text()
    if not goes_on:
        assert daemon.log_text().count("swtpm started") == 2


@pytest.mark.qemu
def test_a_daemon_that_is_killed_with_a_command_under_way(lab: Lab) -> None:
    daemon = swtpm_daemon(lab)
    machine = lab.stub("tpm_watch require=1 run-ms=20000", daemon)
    machine.console.expect("# tpm ready")
    wait_until(lambda: "swtpm started" in daemon.log_text(), "swtpm's start")
    process_id = process_of(daemon)
    os.kill(process_id, signal.SIGSTOP)
    stopped = len(daemon.trace_lines())
    wait_until(lambda: _is_quiet(daemon, stopped), "the last response")
    daemon.kill()
    wait_until(lambda: not is_running(process_id), "swtpm's end")
    daemon.start()
    machine.report().must_pass("tpm_watch")
    assert "# tpm code=-16" in machine.console.text
    assert any("sent again" in line for line in daemon.trace_lines())


def _is_quiet(daemon: Daemon, before: int) -> bool:
    """The guest's next command waits: its last one has been answered."""
    lines = len(daemon.trace_lines())
    time.sleep(0.3)
    return lines == len(daemon.trace_lines()) and lines >= before


@pytest.mark.qemu
@pytest.mark.parametrize("how", ["terminated", "killed"])
def test_no_swtpm_is_left(how: str, lab: Lab) -> None:
    daemon = swtpm_daemon(lab)
    machine = lab.stub("tpm_watch run-ms=60000", daemon)
    machine.console.expect("# tpm ready")
    wait_until(lambda: "swtpm started" in daemon.log_text(), "swtpm's start")
    process_id = process_of(daemon)
    assert is_running(process_id)
    if how == "terminated":
        assert daemon.terminate() == 0
        assert not is_running(process_id)
    else:
        daemon.kill()
        wait_until(lambda: not is_running(process_id), "swtpm's end")


def test_a_swtpm_that_is_not_installed_keeps_the_guest_off(lab: Lab) -> None:
    daemon = daemon_with(lab, '[tpm]\nbackend = "swtpm"\nprogram = "no-such-swtpm"\n')
    shim = FakeShim(connect(daemon.socket))
    shim.send(hello("lpar7"))
    assert "no-such-swtpm is not there; install swtpm" in shim.expect(f.Goodbye).text
    shim.close()
