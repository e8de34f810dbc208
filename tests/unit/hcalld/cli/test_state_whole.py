# SPDX-License-Identifier: Apache-2.0
"""``hcalld state`` on whole partitions, their keys, and its words for scripts."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from tests.e2e.swtpm import Swtpm
from tests.unit.hcalld.cli.state_cli import bad, good, misused, run

from hcalld.crypto import passphrase as passphrases
from hcalld.stores.directory import StateDirectory
from hcalld.testing.pks import PksMachine, label
from hcallproto.abi.returns import H
from hcallproto.payloads.pks import Policy

DATA = b"what only the guest may know"


@pytest.fixture
def state_dir(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """With a partition ``guest`` of one object; passphrases and keys are in the cwd."""
    monkeypatch.setenv("HCALLD_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("HCALLD_KEY", raising=False)
    monkeypatch.setattr(passphrases, "LOG_N", 10)
    monkeypatch.chdir(tmp_path)
    for name in ("pass", "other"):
        path = tmp_path / name
        path.write_text(f"correct {name} horse\n")
        path.chmod(0o600)
    good("put", "-p", "guest", "--name", "n", "--policy", "worldreadable", "-", data=DATA)
    return tmp_path / "state"


WITH = ("--with", "passphrase-file:pass")


def raw(partition: str = "guest", *options: str) -> str:
    return good("show", "-p", partition, "--name", "n", "--raw", *options)


# -- export, import ---------------------------------------------------------------------------


def test_an_export_makes_the_partition_anew_elsewhere(
    state_dir: pathlib.Path, tmp_path: pathlib.Path
):
    said = good("export", *WITH, "guest", "out.hcx")
    assert said == "guest: exported (records: 1, generation: 1)\n"
    assert DATA not in (tmp_path / "out.hcx").read_bytes()
    assert (tmp_path / "out.hcx").stat().st_mode & 0o777 == 0o600
    elsewhere = ("--state-dir", str(tmp_path / "elsewhere"))
    assert "guest: imported (records: 1" in good("import", *elsewhere, *WITH, "out.hcx")

    assert raw("guest", *elsewhere) == DATA.decode()
    assert (state_dir / "key").read_bytes() != (tmp_path / "elsewhere" / "key").read_bytes()


def test_an_import_takes_another_name_and_replaces_only_when_told(state_dir: pathlib.Path):
    good("export", *WITH, "guest", "out.hcx")
    good("import", *WITH, "--partition", "copy", "out.hcx")
    good("put", "-p", "copy", "--name", "more", "-", data=b"d")
    assert "copy is there already; use --replace" in bad("import", *WITH, "-p", "copy", "out.hcx")
    assert good("show", "-p", "copy", "--name", "more", "--raw") == "d"
    good("import", *WITH, "-p", "copy", "--replace", "out.hcx")

    assert "no object" in bad("show", "-p", "copy", "--name", "more")
    assert raw("copy") == DATA.decode()


def test_passwords_of_a_run_are_not_exported(state_dir: pathlib.Path):
    guest = PksMachine(store=StateDirectory(state_dir).open("guest"))
    guest.gen_password()
    assert guest.write(label("t"), b"gone with the run", policy=Policy.TRANSIENT).code is H.SUCCESS
    guest.store.close()
    good("export", *WITH, "guest", "out.hcx")
    good("import", *WITH, "-p", "copy", "out.hcx")
    copy = PksMachine(store=StateDirectory(state_dir).open("copy"))

    assert copy.gen_password().code is H.SUCCESS
    assert copy.read(label("t")).code is H.NOT_FOUND
    copy.store.close()


@pytest.fixture
def keys(require: Callable[[str], pathlib.Path], tmp_path: pathlib.Path) -> None:
    """A recipient's key pair as OpenSSL makes it, and one of another kind."""
    openssl = str(require("openssl"))
    for kind in ("x25519", "ed25519"):
        private, public = f"{kind}.pem", f"{kind}.pub"
        words = [openssl, "genpkey", "-algorithm", kind, "-out", private]
        subprocess.run(words, cwd=tmp_path, check=True)
        words = [openssl, "pkey", "-in", private, "-pubout", "-out", public]
        subprocess.run(words, cwd=tmp_path, check=True)


def test_an_export_for_a_recipient_is_opened_by_the_private_key(
    state_dir: pathlib.Path, keys: None
):
    good("export", "--with", "recipient:x25519.pub", "guest", "out.hcx")
    assert "identity:FILE" in bad("import", *WITH, "-p", "copy", "out.hcx")
    good("import", "--with", "identity:x25519.pem", "-p", "copy", "out.hcx")

    assert raw("copy") == DATA.decode()


def test_other_keys_are_refused_with_what_makes_the_right_one(state_dir: pathlib.Path, keys: None):
    for name in ("ed25519.pub", "x25519.pem", "pass"):
        line = bad("export", "--with", f"recipient:{name}", "guest", "out.hcx")
        assert f"{name}: no X25519 public key in PEM" in line
    good("export", "--with", "recipient:x25519.pub", "guest", "out.hcx")
    for name in ("ed25519.pem", "x25519.pub", "pass"):
        line = bad("import", "--with", f"identity:{name}", "-p", "copy", "out.hcx")
        assert f"{name}: no X25519 private key in PEM" in line
    assert "cannot be read" in bad("export", "--with", "recipient:none", "guest", "2.hcx")


def test_keys_of_a_kind_that_nobody_knows_are_refused_too(
    state_dir: pathlib.Path,
    tmp_path: pathlib.Path,
    keys: None,
    require: Callable[[str], pathlib.Path],
):
    openssl = str(require("openssl"))
    words = [openssl, "ecparam", "-name", "sect163k1", "-genkey", "-noout", "-out", "binary.pem"]
    subprocess.run(words, cwd=tmp_path, check=True)
    words = [openssl, "pkey", "-in", "binary.pem", "-pubout", "-out", "binary.pub"]
    subprocess.run(words, cwd=tmp_path, check=True)

    line = bad("export", "--with", "recipient:binary.pub", "guest", "out.hcx")
    assert "binary.pub: no X25519 public key in PEM" in line
    good("export", "--with", "recipient:x25519.pub", "guest", "out.hcx")
    line = bad("import", "--with", "identity:binary.pem", "-p", "copy", "out.hcx")
    assert "binary.pem: no X25519 private key in PEM" in line


@pytest.mark.parametrize("how", ["", "recipient:", "rot13:x", "identity:x25519.pem", "file:key"])
def test_ways_to_lock_that_there_are_not_are_refused(state_dir: pathlib.Path, how: str):
    assert "recipient:FILE" in bad("export", "--with", how, "guest", "out.hcx")
    assert not pathlib.Path("out.hcx").exists()


def test_a_passphrase_typed_as_an_argument_is_not_repeated(state_dir: pathlib.Path):
    for command in (("export", "guest", "out.hcx"), ("import", "pass")):
        line = bad(*command, "--with", "passphrase:hunter22")
        assert "never an argument" in line
        assert "hunter22" not in line


def test_an_import_of_a_bad_file_changes_nothing(state_dir: pathlib.Path):
    good("export", *WITH, "guest", "out.hcx")
    whole = pathlib.Path("out.hcx").read_bytes()
    for content, message in (
        (whole[:-1], "is damaged"),
        (whole.replace(b"v1\n", b"v2\n", 1), "newer hcalld"),
        (b"", "not whole"),
        (b"\x7fELF", "no export of hcalld"),
    ):
        pathlib.Path("bad.hcx").write_bytes(content)
        line = bad("import", *WITH, "--replace", "bad.hcx")
        assert line.startswith("hcalld: bad.hcx: ")
        assert message in line
    other = ("--with", "passphrase-file:other")
    assert "out.hcx: wrong passphrase" in bad("import", *other, "--replace", "out.hcx")
    assert "cannot be read" in bad("import", *WITH, "none.hcx")

    assert good("list").split()[4:] == ["guest", "1", "1", "free"]


def test_records_that_no_daemon_could_load_are_not_imported(state_dir: pathlib.Path):
    from hcalld.core.secret import Secret
    from hcalld.crypto.locks import Passphrase
    from hcalld.stores.export import Export, ExportedRecord, pack

    for namespace, key in (("pks", b"z"), ("pks", b"o\x09x"), ("partition", b"z")):
        record = ExportedRecord(namespace=namespace, key=key, value=b"\x01")
        export = Export(partition="guest", generation=0, records=[record])
        lock = Passphrase(Secret(b"correct pass horse"))
        pathlib.Path("bad.hcx").write_bytes(pack(export, lock))
        bad("import", *WITH, "--replace", "bad.hcx")
    assert raw() == DATA.decode()


# -- backup, restore --------------------------------------------------------------------------


def test_a_backup_is_put_back_and_says_its_generation(state_dir: pathlib.Path):
    said = good("backup", "guest", "guest.bak")
    assert said.startswith("guest: copied (bytes: ")
    assert said.endswith("generation: 1)\n")
    good("put", "-p", "guest", "--name", "n", "--replace", "-", data=b"newer")
    assert "guest is there already; use --replace" in bad("restore", "guest", "guest.bak")
    assert raw() == "newer"
    assert good("restore", "--replace", "guest", "guest.bak") == "guest: restored (generation: 2)\n"

    assert raw() == DATA.decode()


def test_a_backup_restores_what_was_lost(state_dir: pathlib.Path):
    good("backup", "guest", "guest.bak")
    shutil.rmtree(state_dir / "partitions" / "guest")
    good("restore", "guest", "guest.bak")

    assert raw() == DATA.decode()
    assert "guest: good" in good("verify", "guest")


def test_a_backup_is_of_no_use_to_another_key_or_name(state_dir: pathlib.Path):
    good("backup", "guest", "guest.bak")
    elsewhere = ("--state-dir", "elsewhere")
    good("put", *elsewhere, "-p", "web", "--name", "n", "-", data=b"d")

    assert "another key" in bad("restore", *elsewhere, "guest", "guest.bak")
    assert "belongs to partition 'guest'" in bad("restore", "copy", "guest.bak")
    assert "cannot be read" in bad("restore", "guest", "none.bak")
    assert good("list").count("\n") == 2


# -- files ------------------------------------------------------------------------------------

WRITERS = [("export", *WITH, "guest"), ("backup", "guest")]
writers = pytest.mark.parametrize("command", WRITERS, ids=["export", "backup"])


@writers
def test_a_file_that_is_there_is_replaced_only_by_force(
    state_dir: pathlib.Path, command: tuple[str, ...]
):
    pathlib.Path("out").write_text("precious")
    assert "out: is there already; use --force" in bad(*command, "out")
    assert pathlib.Path("out").read_text() == "precious"
    good(*command, "--force", "out")
    assert pathlib.Path("out").read_bytes() != b"precious"


@writers
@pytest.mark.parametrize("kind", ["directory", "link", "fifo", "nowhere"])
def test_what_is_no_file_is_not_written_to(
    state_dir: pathlib.Path, command: tuple[str, ...], kind: str
):
    out = pathlib.Path("out")
    if kind == "directory":
        out.mkdir()
    elif kind == "link":
        out.symlink_to("target")
    elif kind == "fifo":
        os.mkfifo(out)
    else:
        out = pathlib.Path("nowhere/out")
    line = bad(*command, "--force", str(out))
    assert ("not a regular file" if kind != "nowhere" else "nowhere is not there") in line


@writers
def test_a_full_disk_leaves_nothing(
    state_dir: pathlib.Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    pathlib.Path("out").write_text("precious")
    sync = os.fsync

    def refuse(fd: int) -> None:
        if "out" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(28, "No space left on device")
        sync(fd)

    monkeypatch.setattr(os, "fsync", refuse)
    before = set(os.listdir())
    for words in ((*command, "out2"), (*command, "--force", "out")):
        line = bad(*words)
        assert "cannot be written (No space left on device); nothing is left of it" in line
    assert set(os.listdir()) == before
    assert pathlib.Path("out").read_text() == "precious"


@writers
def test_a_partition_in_use_is_not_copied(state_dir: pathlib.Path, command: tuple[str, ...]):
    store = StateDirectory(state_dir).open("guest")
    assert "in use by process" in bad(*command, "out")
    store.close()
    assert "no partition 'none'" in bad(*command[:-1], "none", "out")
    assert not pathlib.Path("out").exists()


# -- keys -------------------------------------------------------------------------------------


@pytest.fixture
def tpm(require: Callable[[str], pathlib.Path], tmp_path: pathlib.Path) -> Iterator[str]:
    require("tpm2_unseal")
    with Swtpm(require("swtpm"), tmp_path / "tpm").running() as tcti:
        yield f"tpm:{tcti}"


def test_the_key_goes_round_all_kinds_of_places(
    state_dir: pathlib.Path, tmp_path: pathlib.Path, tpm: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    shutil.copy(state_dir / "key", tmp_path / "hcalld")
    places = [
        "passphrase-file:pass",
        "passphrase-credential:other",
        tpm,
        f"{tpm}#sha256:0,7",
        "credential:hcalld",
        f"file:{tmp_path}/new.key",
    ]
    options: tuple[str, ...] = ()
    before = (state_dir / "partitions" / "guest" / "keystore.db").read_bytes()
    for place in places:
        done = run("rekey", *options, "--new-key", place)
        assert done.exit_code == 0, done.output
        options = ("--key", place)
        assert raw("guest", *options) == DATA.decode()
    assert (state_dir / "partitions" / "guest" / "keystore.db").read_bytes() == before
    assert not (state_dir / "key").exists()
    assert "credential hcalld still holds the key" in done.stderr
    monkeypatch.setenv("HCALLD_KEY", f"file:{tmp_path}/new.key")
    assert raw() == DATA.decode()


def test_a_wrong_kind_of_place_is_refused_with_the_right_one(state_dir: pathlib.Path):
    line = bad("list", "--key", "passphrase-file:pass", "guest")
    assert "kept by a source of kind file, not passphrase; use --key file:PATH" in line
    good("rekey", "--new-key", "passphrase-file:pass")
    assert "use --key passphrase:" in bad("list", "guest")
    assert "wrong passphrase" in bad("list", "--key", "passphrase-file:other", "guest")
    assert "expected file:PATH" in bad("list", "--key", "nowhere")


def test_a_wrong_passphrase_is_said_once_for_all_partitions(state_dir: pathlib.Path):
    good("put", "-p", "web", "--name", "n", "-", data=b"d")
    good("rekey", "--new-key", "passphrase-file:pass")
    for command in ("list", "verify"):
        done = run(command, "--key", "passphrase-file:other")
        assert done.exit_code == 1
        assert done.stderr.count("wrong passphrase") == 1


def test_a_new_directory_takes_any_source(state_dir: pathlib.Path, tpm: str):
    for number, key in enumerate(("passphrase-file:pass", tpm)):
        options = ("--state-dir", f"state{number}", "--key", key)
        good("put", *options, "-p", "guest", "--name", "n", "-", data=DATA)
        assert raw("guest", *options) == DATA.decode()
        assert "key" not in os.listdir(f"state{number}")
        assert "of kind" in bad("list", "--state-dir", f"state{number}", "guest")


def test_rekey_needs_the_key_and_a_directory(state_dir: pathlib.Path):
    assert "no state directory" in bad(
        "rekey", "--state-dir", "none", "--new-key", "passphrase-file:pass"
    )
    assert "--new-key: expected file:PATH" in bad("rekey", "--new-key", "nowhere")
    assert "--new-key" in misused("rekey")
    (state_dir / "key").unlink()
    assert "is missing" in bad("rekey", "--new-key", "passphrase-file:pass")


def test_rekey_without_a_note_tries_the_key_on_every_partition(state_dir: pathlib.Path):
    (state_dir / "key-source").unlink()
    (state_dir / "key").write_bytes(b"hcalld-key-v1 " + b"00" * 32 + b"\n")
    assert "another key" in bad("rekey", "--new-key", "passphrase-file:pass")
    assert not (state_dir / "key-source").exists()


def test_rekey_leaves_the_old_file_if_asked(state_dir: pathlib.Path):
    good("rekey", "--keep-old", "--new-key", "passphrase-file:pass")
    assert (state_dir / "key").exists()


def test_a_passphrase_is_read_once_where_the_key_is_needed_twice(state_dir: pathlib.Path):
    """A pipe gives it once, and nobody wants to type it again."""
    good("rekey", "--new-key", "passphrase-file:pass")
    for old, new in (("pass", "other"), ("other", "pass")):
        pipes = []
        for name in (old, new):
            reading, writing = os.pipe()
            os.write(writing, pathlib.Path(name).read_bytes())
            os.close(writing)
            pipes.append(reading)
        good("rekey", *(f"--{'new-' * n}key=passphrase-fd:{fd}" for n, fd in enumerate(pipes)))
        for reading in pipes:
            os.close(reading)
    assert raw("guest", "--key", "passphrase-file:pass") == DATA.decode()


def test_a_descriptor_gives_the_passphrase_to_a_process(state_dir: pathlib.Path):
    good("rekey", "--new-key", "passphrase-file:pass")
    with open("pass", "rb") as file:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "hcalld", "state", "show", "--raw"),
                *("--key", f"passphrase-fd:{file.fileno()}", "-p", "guest", "--name", "n"),
            ],
            pass_fds=[file.fileno()],
            capture_output=True,
            check=True,
        )
    assert done.stdout == DATA


# -- for scripts ------------------------------------------------------------------------------


def test_list_is_json_if_asked(state_dir: pathlib.Path):
    good("put", "-p", "web", "--name", "n", "-", data=b"d")
    store = StateDirectory(state_dir).open("web")
    listed = json.loads(good("list", "--json"))
    store.close()
    assert listed == {
        "partitions": [
            {"partition": "guest", "objects": 1, "generation": 1, "state": "free"},
            {
                "partition": "web",
                "objects": None,
                "generation": None,
                "state": "in use",
                "holder": str(os.getpid()),
            },
        ]
    }
    (item,) = json.loads(good("list", "--json", "guest"))["objects"]
    assert item["label_hex"] == (bytes(8) + b"\0\x02\x10" + bytes(5) + b"n").hex()
    assert item["consumer"] == "os"
    assert item["policy"] == ["WORLDREADABLE"]
    assert item["bytes"] == len(DATA)


def test_show_is_json_if_asked_and_reveals_only_if_asked(state_dir: pathlib.Path):
    options = ("show", "-p", "guest", "--name", "n", "--json")
    shown = json.loads(good(*options))
    assert shown["generation"] == 1
    assert "data_hex" not in shown
    assert json.loads(good(*options, "--reveal"))["data_hex"] == DATA.hex()
    assert "--raw excludes" in misused(*options, "--raw")


def test_verify_is_json_if_asked(state_dir: pathlib.Path):
    good("put", "-p", "web", "--name", "n", "-", data=b"d")
    path = state_dir / "partitions" / "web" / "keystore.db"
    path.write_bytes(path.read_bytes()[:5000])
    done = run("verify", "--json")
    assert done.exit_code == 1
    fine, broken = json.loads(done.stdout)["partitions"]
    assert fine == {"partition": "guest", "objects": 1, "generation": 1, "good": True}
    assert broken["good"] is False
    assert str(path) in broken["error"]


def test_show_says_the_generation(state_dir: pathlib.Path):
    assert "generation 1" in good("show", "-p", "guest", "--name", "n")
