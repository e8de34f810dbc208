# SPDX-License-Identifier: Apache-2.0
"""``hcalld sev vm`` as a user types it; ``integration/test_sev_vm.py`` has a daemon."""

from __future__ import annotations

import base64
import io
import pathlib
import threading

import pytest
from click.testing import CliRunner, Result
from tests.sev_platform import chain
from tests.unit.hcalld.guestowner.images import HASHES, SECRET_BASE, firmware
from tests.unit.hcalld.sevvm.fakeclient import MEASUREMENT, REPORT, FakeClient

from hcalld.cli import cli
from hcalld.cli.sev import vm
from hcalld.sevvm.machine import MIB
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode

BLOB = base64.b64encode(MEASUREMENT).decode()
LAUNCH = ("launch", "--firmware", "fw")
OWNED = ("--dh-cert", "dh", "--session", "session")
IMAGE = firmware()


@pytest.fixture(autouse=True)
def client(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    """The platform that is connected to; the current directory has a guest's files."""
    made = FakeClient()
    monkeypatch.setattr("hcalld.guestowner.client.SevClient", lambda path, platform: made)
    monkeypatch.setattr(vm, "POLL_SECONDS", 0.001)
    monkeypatch.chdir(tmp_path)
    for name, data in {
        "fw": IMAGE,
        "kernel": b"a kernel",
        "dh": base64.b64encode(b"certificate") + b"\n",
        "session": base64.encodebytes(bytes(200)),
        "chain": chain().export,
        "there": b"already",
    }.items():
        pathlib.Path(name).write_bytes(data)
    return made


def run(*words: str, status: int = 0, stdin: bytes | io.BytesIO = b"") -> Result:
    done = CliRunner().invoke(cli, ["sev", "vm", *words], input=stdin)
    assert done.exit_code == status, f"{words}: {done.output} {done.exception!r}"
    return done


REFUSED = {
    "--send-to alone": ("--send-to", "x"),
    "--target-chain alone": ("--target-chain", "chain"),
    "--mnonce alone": ("--mnonce", "00" * 16),
    "a short nonce": ("--report-out", "r", "--mnonce", "00" * 15),
    "--decrypt alone": ("--decrypt",),
    "--dh-cert alone": ("--dh-cert", "dh"),
    "--session alone": ("--session", "session"),
    "--gpa alone": ("--gpa", "0x1000"),
    "a bad address": ("--gpa", "here", "--wait-secret", "a", "b"),
    "a bad handle": ("--handle", "-1"),
    "SEV-ES without processors": ("--policy", "es"),
    "processors without SEV-ES": ("--vcpus", "1", "--vcpu-type", "EPYC"),
    "no memory": ("--memory", "0"),
    "an odd packet": ("--packet-size", "4095"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_makes_no_sense_is_refused(what: str, client: FakeClient):
    run(*LAUNCH, *REFUSED[what], status=2)
    assert client.asked == []


def test_no_file_is_overwritten_and_none_is_missing(client: FakeClient):
    for option in ("--report-out", "--memory-out", "--measurement-out"):
        assert "is there already" in run(*LAUNCH, option, "there", status=1).output
    assert "cannot be read" in run("launch", "--firmware", "none", status=1).output
    assert "give --firmware" in run("launch", status=2).output
    words = ("--dh-cert", "kernel", "--session", "session")
    assert "kernel: no base64" in run(*LAUNCH, *words, status=1).output
    assert client.asked == []
    assert pathlib.Path("there").read_bytes() == b"already"
    run(*LAUNCH, "--measurement-out", "there", "--force")
    assert pathlib.Path("there").read_text() == BLOB + "\n"


def test_a_launch_that_nobody_owns(client: FakeClient):
    assert run(*LAUNCH).output.splitlines() == [
        "guest 7: RUNNING, policy 0x0 (none)",
        f"measurement: {BLOB}",
        "nobody can validate it: there was no --dh-cert and --session",
        "guest 7: RUNNING, policy 0x0 (none)",
    ]
    (start,) = [fields for name, fields in client.asked if name == sev.LAUNCH_START.name]
    assert (start["policy"], start["handle"]) == (vm.DEFAULT_POLICY, 0)
    assert client.names[-2:] == ["LAUNCH_FINISH", "GUEST_STATUS"]


def test_it_says_how_to_validate_it(client: FakeClient):
    words = ("--kernel", "kernel", "--append", "a b", "--policy", "none", "--handle", "0x10")
    output = run(*LAUNCH, *words, *OWNED).output
    assert (
        f"validate it: hcalld sev validate {BLOB} --tk FILE --policy 0 --api-major 1 --api-minor 1 "
        "--build-id 1 --firmware fw --kernel kernel --append 'a b'\n"
    ) in output
    (start,) = [fields for name, fields in client.asked if name == sev.LAUNCH_START.name]
    assert start["handle"] == 16
    assert client.seen[:2] == [("dh_uaddr", b"certificate"), ("session_uaddr", bytes(200))]


def test_processors_are_launched_and_told_of(client: FakeClient):
    words = ("--policy", "es", "--vcpus", "2", "--vcpu-type", "EPYC", "--init", "init2")
    assert "--vcpus 2 --vcpu-type EPYC --init init2" in run(*LAUNCH, *words, *OWNED).output
    assert client.names[1] != "INIT2"
    assert "INIT2" in client.names
    (update,) = [fields for name, fields in client.asked if name == sev.LAUNCH_UPDATE_VMSA.name]
    assert update["len"] == 2 * 4096


# -- secrets ------------------------------------------------------------------------------------


def put_secret() -> None:
    pathlib.Path("header").write_bytes(base64.b64encode(b"h" * 52))
    pathlib.Path("payload").write_bytes(base64.b64encode(b"p" * 32))


@pytest.mark.parametrize(
    ("words", "address"), [((), SECRET_BASE), (("--gpa", "0x1000"), 0x1000)], ids=["footer", "gpa"]
)
def test_a_secret_is_waited_for(words: tuple[str, ...], address: int, client: FakeClient):
    timer = threading.Timer(0.05, put_secret)
    timer.start()
    output = run(*LAUNCH, "--wait-secret", "header", "payload", *words).output
    timer.join()
    assert f"secret: 32 bytes at {address:#x}\n" in output
    assert client.seen[-3:] == [
        ("hdr_uaddr", b"h" * 52),
        ("guest_uaddr", bytes(32)),
        ("trans_uaddr", b"p" * 32),
    ]
    assert client.names.index("LAUNCH_SECRET") < client.names.index("LAUNCH_FINISH")


def test_a_secret_has_a_place_or_the_launch_is_not_begun(client: FakeClient):
    pathlib.Path("fw").write_bytes(firmware(HASHES))
    line = run(*LAUNCH, "--wait-secret", "header", "payload", status=1).output
    assert "names no place" in line
    assert "--gpa" in line
    assert client.asked == []
    put_secret()
    run(*LAUNCH, "--wait-secret", "header", "payload", "--gpa", "0")


def test_a_refused_secret_ends_it(client: FakeClient):
    put_secret()
    client.refuse(sev.LAUNCH_SECRET, SevCode.BAD_MEASUREMENT)
    line = run(*LAUNCH, "--wait-secret", "header", "payload", status=1).output
    assert "KVM_SEV_LAUNCH_SECRET: the platform refuses" in line
    assert client.names[-1] == "LAUNCH_SECRET"


# -- afterwards ---------------------------------------------------------------------------------


def test_memory_and_report_are_written():
    words = ("--memory", "2", "--memory-out", "m", "--report-out", "r", "--mnonce", "ab" * 16)
    output = run(*LAUNCH, *words).output
    assert f"m: {2 * MIB} bytes" in output
    assert f"r: a report with the nonce {'ab' * 16}" in output
    assert pathlib.Path("r").read_bytes() == REPORT
    memory = pathlib.Path("m").read_bytes()
    assert memory == IMAGE.rjust(2 * MIB, b"\0")
    run(*LAUNCH, "--memory", "2", "--memory-out", "d", "--decrypt")
    assert pathlib.Path("d").read_bytes() == bytes(byte ^ 0xFF for byte in memory)


def test_a_guest_is_held_until_the_input_ends(client: FakeClient):
    output = run(*LAUNCH, "--hold", stdin=b"a line\nand another").output
    assert output.endswith("held until the standard input ends\n")


class Interrupted(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        if size:
            raise KeyboardInterrupt
        return b""


def test_ctrl_c_ends_the_holding():
    assert run(*LAUNCH, "--hold", stdin=Interrupted()).output.count("Aborted") == 0


def test_a_guest_goes_by_a_file(client: FakeClient):
    words = ("--memory", "1", "--send-to", "guest", "--target-chain", "chain")
    output = run(*LAUNCH, *words, "--packet-size", "4096").output
    assert "sent to guest: 256 packets" in output
    assert client.names[-2:] == ["SEND_FINISH", "GUEST_STATUS"]
    client.asked.clear()
    output = run("receive", "--from", "guest", "--memory", "1", "--memory-out", "m").output
    assert "received from guest: 256 packets" in output
    assert pathlib.Path("m").read_bytes() == IMAGE.rjust(MIB, b"\0")
    line = run("receive", "--from", "guest", "--memory", "2", status=1).output
    assert line.startswith("hcalld: guest: the stream ends with 1048576 bytes of memory")
    assert "none: No such file" in run("receive", "--from", "none", status=1).output
    line = run(*LAUNCH, "--send-to", "there", "--target-chain", "chain", status=1).output
    assert "there: File exists" in line
