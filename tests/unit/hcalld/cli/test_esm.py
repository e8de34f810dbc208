# SPDX-License-Identifier: Apache-2.0
"""``hcalld esm``, as a user types it; swtpm is the TPM."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives import serialization
from tests.e2e.patience import wait_until
from tests.esm import CMDLINE, INITRD, kernel_elf, private_key, private_pem, public_pem

from hcalld.cli import cli
from hcalld.cli.esm import tpms
from hcalld.cli.esm.tpms import TpmDevice, TpmSocket, exchange, tpm_at
from hcalld.core.errors import BackendUnavailable, ConfigError
from hcalld.domain.esm import blob as blobs
from hcalld.stores.directory import StateDirectory

Require = Callable[[str], pathlib.Path]

GUEST = ("--kernel", "vmlinux", "--cmdline", CMDLINE)
OWNER, MACHINE, OTHER = 1, 2, 3


@pytest.fixture(autouse=True)
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The current directory, with a guest's files and three keys."""
    monkeypatch.setenv("HCALLD_STATE_DIR", str(tmp_path / "state"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (work / "vmlinux").write_bytes(kernel_elf())
    (work / "initrd").write_bytes(INITRD)
    (work / "rootd").write_bytes(b"a passphrase")
    for number, name in enumerate(("owner", "machine", "other"), OWNER):
        (work / f"{name}.pem").write_bytes(public_pem(number))
        (work / f"{name}.key").write_bytes(private_pem(number))
    return work


def esm(*words: str, status: int = 0) -> Result:
    done = CliRunner().invoke(cli, ["esm", *words])
    assert done.exit_code == status, f"{words}: {done.output} {done.exception!r}"
    return done


def refused(*words: str) -> str:
    done = esm(*words, status=1)
    assert done.output.startswith("hcalld: "), done.output
    assert done.output.count("\n") == 1
    return done.output.removeprefix("hcalld: ")


def make(*words: str, output: str = "blob") -> Result:
    keys = ("--owner", "owner.pem", "--recipient", "machine.pem")
    return esm("make", *GUEST, "--initrd", "initrd", *keys, *words, "-o", output)


@pytest.fixture
def blob() -> str:
    make("--attach", "rootd", "--attach", "crypttab=rootd", "--comment", "mine")
    return "blob"


# -- make, add, show, verify --------------------------------------------------------------------


def test_make_when_given_a_guest_then_its_machine_opens_the_blob(blob: str):
    assert stat.S_IMODE(os.stat(blob).st_mode) == 0o600
    opener = ("--private-key", "machine.key")
    done = esm("verify", blob, *GUEST, "--initrd", "initrd", *opener)
    assert done.output == "blob: opened by lockbox-1; the guest is what the blob is for\n"
    esm("add", blob, "initrd", "-o", "initrd.esm")
    esm("verify", "initrd.esm", *GUEST, *opener)
    esm("extract", "initrd.esm", "crypttab", *opener, "-o", "out")
    assert pathlib.Path("out").read_bytes() == b"a passphrase"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("kernel", lambda: _flip("vmlinux", 0x1000)),
        ("initrd", lambda: _flip("initrd", -1)),
    ],
)
def test_verify_when_a_file_was_changed_then_it_is_named(
    blob: str, name: str, change: Callable[[], None]
):
    change()
    words = ("--initrd", "initrd", "--private-key", "machine.key")
    assert (
        refused("verify", blob, *GUEST, *words) == f"blob: {name}: not what the blob was made for\n"
    )


def _flip(name: str, position: int) -> None:
    data = bytearray(pathlib.Path(name).read_bytes())
    data[position] ^= 1
    pathlib.Path(name).write_bytes(data)


def test_verify_when_several_things_differ_then_all_are_named(blob: str):
    _flip("initrd", 0)
    words = ("--kernel", "vmlinux", "--cmdline", CMDLINE + " ", "--initrd", "initrd")
    said = refused("verify", blob, *words, "--private-key", "owner.key")
    assert "initrd: not" in said
    assert "bootargs: not" in said


def test_verify_when_the_key_is_another_then_told(blob: str):
    said = refused("verify", blob, *GUEST, "--initrd", "initrd", "--private-key", "other.key")
    assert said.startswith("blob: key unavailable: none of 2 lockboxes is for this key")


def test_verify_when_a_file_in_the_blob_was_altered_then_told(blob: str):
    found = blobs.parse(pathlib.Path(blob).read_bytes())
    found.files["rootd"] = found.files["crypttab"]
    found.files["crypttab"] = blobs.Sealed(bytes(16), bytes(16), b"")
    pathlib.Path("bad").write_bytes(found.build())
    words = ("--initrd", "initrd", "--private-key", "machine.key")
    assert "file crypttab: altered" in refused("verify", "bad", *GUEST, *words)


def test_verify_when_the_initrd_is_missing_or_too_many_then_usage(blob: str):
    esm("verify", blob, *GUEST, "--private-key", "machine.key", status=2)
    esm("add", blob, "initrd", "-o", "both")
    words = ("--initrd", "initrd", "--private-key", "machine.key")
    esm("verify", "both", *GUEST, *words, status=2)
    pathlib.Path("empty").touch()
    words = ("--initrd", "empty", "--private-key", "machine.key")
    assert refused("verify", blob, *GUEST, *words) == "empty: empty, expected an initrd\n"


def test_show_when_not_opened_then_lockboxes_and_files(blob: str):
    lines = esm("show", blob).output.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["lockbox", "origin-lockbox"],
        ["lockbox", "lockbox-1"],
        ["file", "rootd"],
        ["file", "crypttab"],
    ]
    assert lines[1].endswith('"machine.pem"')
    assert "12 bytes" in lines[2]


def test_show_when_opened_then_the_digests_too(blob: str):
    esm("add", blob, "initrd", "-o", "both")
    shown = json.loads(esm("show", "both", "--json", "--private-key", "machine.key").output)
    assert shown["opened"] == "lockbox-1"
    assert list(shown["digests"]) == ["rtas", "kernel", "initrd", "bootargs"]
    assert shown["kernel_bytes"] == 8993
    assert shown["initrd_bytes"] == len(INITRD)
    text = esm("show", "both", "--private-key", "machine.key").output
    assert "opened     lockbox-1\n" in text
    assert "before the initrd" in text
    assert "passphrase" not in text


def test_show_when_the_blob_is_not_finished_then_told(blob: str):
    found = blobs.parse(pathlib.Path(blob).read_bytes())
    comment = blobs.Sealed(bytes(16), bytes(16), b"", "a\x1b[31m")
    pathlib.Path("part").write_bytes(blobs.Blob(found.lockboxes, None, {"f": comment}).build())
    shown = esm("show", "part").output
    assert "digests    none" in shown
    assert "\x1b" not in shown
    assert "has no digests" in refused("show", "part", "--private-key", "machine.key")


def test_show_when_it_is_no_blob_then_told():
    assert refused("show", "initrd").startswith(
        "initrd: neither a blob nor an initrd that hcalld esm add made: archive in the initrd"
    )
    assert refused("show", "vmlinux") == (
        "vmlinux: ESM blob: magic 0x7f454c46, expected 0xd00dfeed\n"
    )
    assert refused("show", "none") == "none: cannot be read (No such file or directory)\n"


def test_make_when_no_machine_is_named_then_warned():
    keys = ("--owner", "owner.pem")
    done = esm("make", *GUEST, "--initrd", "initrd", *keys, "-o", "blob")
    assert "no machine may run it yet" in done.output


@pytest.mark.parametrize(
    ("cmdline", "missing"),
    [
        ("console=hvc0 svm=1 swiotlb=force", []),
        ("svm=1x swiotlb=force", ["svm=1"]),
        ("svm=1", ["swiotlb=force"]),
        ("", ["svm=1", "swiotlb=force"]),
    ],
)
def test_make_when_linux_would_want_more_words_then_warned(cmdline: str, missing: list[str]):
    done = make("--cmdline", cmdline)
    warned = re.findall(r"^the command line has no (\S+): ", done.stderr, re.MULTILINE)
    assert warned == missing


def test_make_when_the_initrd_has_a_blob_then_refused(blob: str):
    esm("add", blob, "initrd", "-o", "both")
    keys = ("--owner", "owner.pem", "--recipient", "machine.pem")
    said = refused("make", *GUEST, "--initrd", "both", *keys, "-o", "another")
    assert said.startswith("both: has a blob already")
    assert not pathlib.Path("another").exists()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--attach", "rootd", "--attach", "rootd"), "two files of one name"),
        (("--attach", "1=rootd"), "blob: '1' is no file's name"),
        (("--recipient", "machine.key"), "machine.key: a private key, expected a public one"),
        (("--recipient", "owner.pem"), "has a lockbox: origin-lockbox"),
        (("--kernel", "initrd"), "initrd: kernel: not an ELF file"),
        (("--initrd", "nothing"), "nothing: empty, expected an initrd"),
        (("--attach", "large"), "large: too long, expected at most 65535 bytes"),
    ],
)
def test_make_when_something_cannot_be_taken_then_told(words: tuple[str, ...], why: str):
    pathlib.Path("nothing").touch()
    pathlib.Path("large").write_bytes(bytes(65536))
    keys = ("--owner", "owner.pem", "--recipient", "machine.pem")
    said = refused("make", *GUEST, "--initrd", "initrd", *keys, *words, "-o", "blob")
    assert why in said
    assert not pathlib.Path("blob").exists()


def test_files_when_there_already_then_not_replaced(blob: str):
    for words in (
        ("make", *GUEST, "--initrd", "initrd", "--owner", "owner.pem"),
        ("add", blob, "initrd"),
        ("authorize", blob, "--recipient", "other.pem", "--private-key", "owner.key"),
        ("extract", blob, "rootd", "--private-key", "owner.key"),
        ("pubkey", "--private-key", "owner.key"),
    ):
        assert "is there already" in refused(*words, "-o", blob)


def test_add_when_the_initrd_has_a_blob_then_refused(blob: str):
    esm("add", blob, "initrd", "-o", "both")
    assert "both: has a blob already" in refused("add", blob, "both", "-o", "three")
    assert refused("add", "initrd", "initrd", "-o", "three").startswith("initrd: ESM blob:")


# -- keys ---------------------------------------------------------------------------------------


def test_authorize_when_the_owner_does_then_the_other_machine_opens(blob: str):
    words = ("--recipient", "other.pem", "--comment", "new", "-o", "two")
    done = esm("authorize", blob, "--private-key", "owner.key", *words)
    assert done.output == "two: lockbox-2 added\n"
    opener = ("--private-key", "other.key")
    esm("verify", "two", *GUEST, "--initrd", "initrd", *opener)
    again = ("--recipient", "other.pem", "--private-key", "owner.key", "-o", "three")
    assert "has a lockbox: lockbox-2" in refused("authorize", "two", *again)
    esm("add", blob, "initrd", "-o", "both")
    assert "both: an initrd, expected the blob" in refused("authorize", "both", *again)


def test_pubkey_when_of_a_private_key_then_as_openssl_writes_it(require: Require):
    openssl = str(require("openssl"))
    done = subprocess.run(
        [openssl, "pkey", "-in", "machine.key", "-pubout"], capture_output=True, check=True
    )
    assert esm("pubkey", "--private-key", "machine.key").stdout_bytes == done.stdout
    esm("pubkey", "--private-key", "machine.key", "-o", "out.pem")
    assert pathlib.Path("out.pem").read_bytes() == done.stdout


def test_private_key_when_it_has_a_passphrase_then_it_is_read(blob: str):
    pem = private_key(MACHINE).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"sesame"),
    )
    pathlib.Path("locked.key").write_bytes(pem)
    pathlib.Path("pass").write_text("sesame\n")
    pathlib.Path("pass").chmod(0o600)
    opener = ("--private-key", "locked.key", "--passphrase-file")
    esm("show", blob, *opener, "pass")
    pathlib.Path("pass").write_text("other\n")
    assert "wrong passphrase" in refused("show", blob, *opener, "pass")
    pathlib.Path("bad.key").write_text("nothing")
    assert "no private key in PEM" in refused("show", blob, "--private-key", "bad.key")


def test_private_key_when_nobody_can_be_asked_for_its_passphrase_then_told(
    blob: str, monkeypatch: pytest.MonkeyPatch
):
    pem = private_key(MACHINE).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"sesame"),
    )
    pathlib.Path("locked.key").write_bytes(pem)

    def no_terminal(*_: object) -> int:
        raise OSError(6, "No such device")

    monkeypatch.setattr("hcalld.stores.keys.passphrase.os.open", no_terminal)
    assert "no terminal" in refused("show", blob, "--private-key", "locked.key")


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--private-key", "machine.key", "--partition", "lpar7"),
        ("--tpm", "swtpm:tpm"),
        ("--wrapping-key", "k", "--private-key", "machine.key"),
        ("--partition", "lpar7", "--passphrase-file", "pass"),
        ("--partition", "lpar7", "--tpm", "swtpm:tpm", "--wrapping-key", "k"),
    ],
)
def test_openers_when_they_do_not_go_together_then_usage(words: tuple[str, ...]):
    esm("pubkey", *words, status=2)


# -- TPMs ---------------------------------------------------------------------------------------


def test_tpm_when_a_partitions_is_provisioned_then_it_opens_blobs(require: Require):
    require("swtpm")
    done = esm("provision-tpm", "--partition", "lpar7", "--pubkey", "lpar7.pem")
    assert done.output == "lpar7: wrapping key 0x81800001 made\n"
    opener = ("--partition", "lpar7")
    assert esm("pubkey", *opener).stdout_bytes == pathlib.Path("lpar7.pem").read_bytes()
    make("--recipient", "lpar7.pem")
    esm("verify", "blob", *GUEST, "--initrd", "initrd", *opener)
    assert "has a new password" in esm("provision-tpm", *opener).output
    assert (
        "opened by lockbox-2" in esm("verify", "blob", *GUEST, "--initrd", "initrd", *opener).output
    )


def test_tpm_when_the_guest_is_on_then_its_own_is_left_alone(tmp_path: pathlib.Path):
    store = StateDirectory(tmp_path / "state").open("lpar7")
    try:
        assert "lpar7" in refused("provision-tpm", "--partition", "lpar7")
        assert "lpar7" in refused("pubkey", "--partition", "lpar7")
    finally:
        store.close()
    said = refused("pubkey", "--partition", "lpar7")
    assert said.startswith("lpar7: its TPM has no wrapping key; make one with hcalld esm")


def test_tpm_when_a_folder_is_named_then_a_swtpm_is_started_on_it(require: Require):
    require("swtpm")
    words = ("--tpm", "swtpm:tpm")
    done = esm("provision-tpm", *words, "-o", "key", "--pubkey", "tpm.pem")
    assert done.output == "swtpm:tpm: wrapping key 0x81800001 made\n"
    assert stat.S_IMODE(os.stat("key").st_mode) == 0o600
    make("--recipient", "tpm.pem")
    opener = (*words, "--wrapping-key", "key")
    esm("verify", "blob", *GUEST, "--initrd", "initrd", *opener)
    esm("provision-tpm", "--tpm", "swtpm:another", "-o", "another.key")
    said = refused("show", "blob", "--tpm", "swtpm:another", "--wrapping-key", "key")
    assert "key unavailable: the key at 0x81800001 is another" in said
    pathlib.Path("key").write_text("{}")
    assert "not a wrapping key" in refused("show", "blob", *opener)


def test_tpm_when_what_it_says_is_kept_for_a_partition_then_its_store_has_the_key(
    require: Require,
):
    require("swtpm")
    esm("provision-tpm", "--partition", "lpar7", "--tpm", "swtpm:tpm", "--pubkey", "p.pem")
    opener = ("--partition", "lpar7", "--tpm", "swtpm:tpm")
    assert esm("pubkey", *opener).stdout_bytes == pathlib.Path("p.pem").read_bytes()
    # The partition's own swtpm is another and has no key.
    assert "no object has this handle" in refused("pubkey", "--partition", "lpar7")


def test_provision_when_options_do_not_go_together_then_usage():
    for words in ((), ("--tpm", "swtpm:tpm"), ("-o", "k"), ("--partition", "lpar7", "-o", "k")):
        esm("provision-tpm", *words, status=2)
    pathlib.Path("k").touch()
    assert "is there already" in refused("provision-tpm", "--tpm", "swtpm:t", "-o", "k")


@pytest.mark.parametrize("where", ["", "x", "swtpm:", "tcp:host", "tcp:host:65536", "udp:a:1"])
def test_tpm_when_its_place_cannot_be_understood_then_told(where: str):
    with pytest.raises(ConfigError, match="expected swtpm:DIRECTORY"):
        tpm_at(where)


async def never(_transmit: object) -> None:
    raise AssertionError


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("unix:none", "cannot be reached"),
        ("tcp:127.0.0.1:1", "cannot be reached"),
        ("tcp:[::1]:1", "cannot be reached"),
        ("device:none", "cannot be opened"),
        ("swtpm:a/b/c", "cannot be started"),
    ],
)
def test_tpm_when_it_is_not_there_then_told(where: str, why: str):
    with pytest.raises(BackendUnavailable, match=why):
        tpm_at(where).carry_out(never)


def test_tpm_when_swtpm_does_not_start_then_what_it_says_is_told(require: Require):
    require("swtpm")
    pathlib.Path("tpm").mkdir()
    pathlib.Path("tpm/tpm2-00.permall").write_bytes(b"not a TPM's state")
    said = refused("provision-tpm", "--tpm", "swtpm:tpm", "-o", "key")
    assert said.startswith("swtpm of tpm: ")
    assert len(said) < 400


def test_tpm_when_swtpm_is_not_installed_then_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert "expected swtpm to be installed" in refused(
        "provision-tpm", "--tpm", "swtpm:tpm", "-o", "key"
    )


def test_tpm_when_swtpm_does_not_end_then_it_is_killed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
):
    program = tmp_path / "swtpm"
    program.write_text("#!/bin/sh\ntrap '' TERM\necho >ready\nexec sleep 60 <&- >&- 2>&-\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(tpms, "STOP_S", 0.2)

    async def nothing(_transmit: object) -> int:
        wait_until(lambda: pathlib.Path("tpm/ready").exists(), "the trap")
        return 5

    assert tpm_at("swtpm:tpm").carry_out(nothing) == 5


@contextlib.contextmanager
def peer(*parts: bytes) -> Iterator[socket.socket]:
    """A TPM that takes a command and says these."""
    ours, theirs = socket.socketpair()

    def answer() -> None:
        with theirs:
            theirs.recv(4096)
            for part in parts:
                theirs.sendall(part)

    thread = threading.Thread(target=answer)
    thread.start()
    with ours:
        yield ours
    thread.join()


def test_exchange_when_the_answer_comes_in_parts_then_whole():
    whole = b"\x80\x01\0\0\0\x0cabcdef"
    with peer(whole[:3], whole[3:11], whole[11:]) as connection:
        assert exchange("TPM", connection.fileno(), b"c") == whole


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ((), "ended without a response"),
        ((b"\x80\x01\0\0",), "ended without a response"),
        ((b"\x80\x01\0\0\x10\x01" + bytes(8),), "longer than 4096"),
        ((b"\x80\x01\0\0\x0f\xff" + bytes(4100),), "longer than 4096"),
    ],
)
def test_exchange_when_the_answer_is_none_then_told(parts: tuple[bytes, ...], why: str):
    with peer(*parts) as connection, pytest.raises(BackendUnavailable, match=why):
        exchange("TPM", connection.fileno(), b"c")


def test_exchange_when_nothing_comes_or_goes_then_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tpms, "TIMEOUT_S", 0.01)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(BackendUnavailable, match=r"no response within 0\.01 s"):
            exchange("TPM", ours.fileno(), b"c")
        monkeypatch.setattr(os, "write", lambda _fd, data: len(data) - 1)
        with pytest.raises(BackendUnavailable, match="only part"):
            exchange("TPM", ours.fileno(), b"cc")
    monkeypatch.undo()
    with pytest.raises(BackendUnavailable, match="Bad file descriptor"):
        exchange("TPM", ours.fileno() if ours.fileno() >= 0 else 9999, b"c")


def test_tpm_when_it_is_a_unix_socket_or_a_device_then_reached(socket_dir: pathlib.Path):
    answer = b"\x80\x01\0\0\0\x0a\0\0\0\0"

    async def steps(transmit: Callable[[bytes], object]) -> object:
        return await transmit(b"command")  # type: ignore[misc]

    path = socket_dir / "tpm"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        assert tpm_at(f"unix:{path}").carry_out(steps) == answer
        thread.join()
    # A pseudo-terminal is the nearest to a TPM's device that there is here.
    controller, terminal = os.openpty()
    subprocess.run(["stty", "raw", "-echo"], stdin=terminal, check=True)
    try:
        os.write(controller, answer)
        assert TpmDevice(pathlib.Path(os.ttyname(terminal))).carry_out(steps) == answer
    finally:
        os.close(controller)
        os.close(terminal)
    assert isinstance(tpm_at("tcp:127.0.0.1:5"), TpmSocket)
