# SPDX-License-Identifier: Apache-2.0
"""``hcalld state``, as a user types it."""

from __future__ import annotations

import pathlib
import struct

import pytest
from tests.unit.hcalld.cli.state_cli import bad, good, misused, run

from hcalld.core.records import Put, Record, Run
from hcalld.domain.labels import SED_LABEL
from hcalld.stores.directory import StateDirectory
from hcalld.testing.pks import OUT_GPA, PksMachine
from hcallproto.abi.returns import H
from hcallproto.payloads.pks import Consumer, Policy


@pytest.fixture
def state_dir(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("HCALLD_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def machine(state_dir: pathlib.Path, partition: str = "guest") -> PksMachine:
    return PksMachine(store=StateDirectory(state_dir).open(partition))


# -- put ------------------------------------------------------------------------------------


def test_a_seeded_sed_key_is_what_linux_reads(state_dir: pathlib.Path, tmp_path: pathlib.Path):
    key = tmp_path / "key"
    key.write_bytes(b"k" * 23)
    good("put", "-p", "guest", "--sed-key", str(key))
    guest = machine(state_dir)

    assert guest.read(SED_LABEL, 64).registers == ((4, 64), (5, Policy.WORLDREADABLE))
    assert guest.guest.read(OUT_GPA + 24, 27) == struct.pack(">I", 23) + b"k" * 23
    guest.store.close()


@pytest.mark.parametrize("size", [0, 33])
def test_a_sed_key_of_a_wrong_size_is_refused(state_dir: pathlib.Path, size: int):
    line = bad("put", "-p", "guest", "--sed-key", "-", data=bytes(size))

    assert f"the key has {size} bytes, expected 1 to 32" in line


@pytest.mark.parametrize(
    ("options", "consumer", "label"),
    [
        (["--sed"], Consumer.OS, SED_LABEL),
        (["--name", "n"], Consumer.OS, bytes(8) + b"\0\x02\x10" + bytes(5) + b"n"),
        (
            ["--prefix", "pre", "--os", "common", "--name-hex", "00ff"],
            Consumer.OS,
            b"pre" + bytes(5) + b"\0\x04\x10" + bytes(5) + b"\0\xff",
        ),
        (["--os", "0x7f", "--name", ""], Consumer.OS, bytes(8) + b"\0\x7f\x10" + bytes(5)),
        (["--consumer", "firmware", "--name", "SB_VERSION"], Consumer.FIRMWARE, b"SB_VERSION"),
        (["--consumer", "bootloader", "--name-hex", "0102"], Consumer.BOOTLOADER, b"\1\2"),
        (["--label-hex", "616263"], Consumer.OS, b"abc"),
        (["--secvar", "db"], Consumer.OS, bytes(8) + b"\0\x02\x10" + bytes(5) + b"d\0b\0"),
    ],
)
def test_labels_are_given_in_several_ways(
    state_dir: pathlib.Path, options: list[str], consumer: Consumer, label: bytes
):
    good("put", "-p", "guest", *options, "--policy", "worldreadable", "-", data=b"data")
    guest = machine(state_dir)
    (item,) = guest.keystore.objects()

    assert (item.consumer, item.label, item.stored.data) == (consumer, label, b"data")
    assert item.stored.policy == Policy.WORLDREADABLE
    guest.store.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "one of --sed, --secvar, --name"),
        (["--sed", "--name", "n"], "one of --sed, --secvar, --name"),
        (["--name", "n", "--label-hex", "00"], "one of --sed, --secvar, --name"),
        (["--sed", "--prefix", "p"], "--prefix goes with"),
        (["--label-hex", "00", "--prefix", "p"], "--prefix goes with"),
        (["--consumer", "firmware", "--name", "n", "--prefix", "p"], "--prefix goes with"),
        (["--consumer", "firmware", "--sed"], "--sed goes with consumer os"),
        (["--consumer", "firmware", "--secvar", "db"], "--secvar goes with consumer os"),
        (["--secvar", "db", "--prefix", "p"], "--prefix goes with"),
        (["--secvar", "\udcff"], "expected text"),
        (["--name", "n", "--prefix", "123456789"], "at most 8"),
        (["--name", "n", "--os", "beos"], "expected linux, common"),
        (["--name", "n", "--os", "256"], "expected linux, common"),
        (["--label-hex", "0"], "hexadecimal"),
        (["--name-hex", "xx"], "hexadecimal"),
        (["--name", "n", "--policy", "nice"], "no policy 'nice'; policies are: "),
        (["--name", "n", "--policy", "transient"], "would be dropped"),
        (["--name", "n", "--consumer", "me"], "consumer"),
    ],
)
def test_misuse_is_explained_and_makes_nothing(
    state_dir: pathlib.Path, options: list[str], message: str
):
    assert message in misused("put", "-p", "guest", *options, "-", data=b"data")
    assert not state_dir.exists()


def test_the_data_come_from_one_place(state_dir: pathlib.Path, tmp_path: pathlib.Path):
    key = tmp_path / "key"
    key.write_bytes(b"k")

    assert "one of them" in misused("put", "-p", "guest", "--name", "n")
    assert "one of them" in misused("put", "-p", "guest", "--sed-key", str(key), "-")
    assert "/nonexistent" in misused("put", "-p", "g", "--name", "n", "/nonexistent")


@pytest.mark.parametrize(("size", "word"), [(0, "no bytes"), (65537, "too many bytes")])
def test_data_of_a_wrong_size_are_refused(state_dir: pathlib.Path, size: int, word: str):
    assert word in bad("put", "-p", "guest", "--name", "n", "-", data=bytes(size))
    assert not state_dir.exists()


def test_a_label_of_a_wrong_size_is_refused(state_dir: pathlib.Path):
    line = bad("put", "-p", "guest", "--name", "x" * 240, "-", data=b"d")

    assert "the label has 256 bytes, expected 1 to 255" in line
    assert "0 bytes" in bad(
        "put", "-p", "g", "--consumer", "firmware", "--name", "", "-", data=b"d"
    )


def test_a_name_that_is_not_text_is_taken_as_its_bytes(state_dir: pathlib.Path):
    good("put", "-p", "guest", "--prefix", "p\udcfe", "--name", "n\udcff", "-", data=b"d")

    label = b"p\xfe".ljust(8, b"\0") + b"\0\2\x10" + bytes(5) + b"n\xff"
    assert b"d".hex() in good("show", "-p", "guest", "--label-hex", label.hex(), "--reveal")


def test_an_object_that_is_there_is_replaced_only_when_told(state_dir: pathlib.Path):
    good("put", "-p", "guest", "--name", "n", "-", data=b"old")
    line = bad("put", "-p", "guest", "--name", "n", "-", data=b"new")
    assert "there already; use --replace" in line
    assert good("show", "-p", "guest", "--name", "n", "--raw") == "old"
    good("put", "-p", "guest", "--name", "n", "--replace", "-", data=b"new")
    assert good("show", "-p", "guest", "--name", "n", "--raw") == "new"


def test_no_more_goes_in_than_the_largest_keystore_holds(state_dir: pathlib.Path):
    for name in ("a", "b"):
        good("put", "-p", "guest", "--name", name, "-", data=bytes(65000))

    assert "free" in bad("put", "-p", "guest", "--name", "c", "-", data=bytes(2000))


# -- list, show, remove, verify ---------------------------------------------------------------


def test_list_shows_partitions_and_objects(state_dir: pathlib.Path):
    assert good("list").split() == ["partition", "objects", "generation", "state"]
    good("put", "-p", "web 1/[red]", "--sed", "--policy", "worldreadable", "-", data=b"secret")
    listed = good("list")
    assert "web 1/[red]" in listed
    assert "free" in listed
    objects = good("list", "web 1/[red]")
    assert '"sed-opal"/"/default/pri\\0"' in objects
    assert "WORLDREADABLE" in objects
    assert "secret" not in objects


def test_list_of_a_missing_partition_names_those_there_are(state_dir: pathlib.Path):
    good("put", "-p", "web1", "--name", "n", "-", data=b"d")

    assert "no partition 'guest'" in bad("list", "guest")
    assert "there are: web1" in bad("show", "-p", "guest", "--name", "n")
    assert "there are: web1" in bad("remove", "-p", "guest", "--name", "n")


def test_show_hides_the_data_unless_told(state_dir: pathlib.Path):
    good("put", "-p", "guest", "--name", "n", "--policy", "pwset", "-", data=b"secret")
    shown = good("show", "-p", "guest", "--name", "n")

    assert "PWSET" in shown
    assert "bytes      6" in shown
    assert b"secret".hex() not in shown
    assert b"secret".hex() in good("show", "-p", "guest", "--name", "n", "--reveal")


def test_labels_that_a_guest_made_up_cannot_steer_the_terminal(state_dir: pathlib.Path):
    guest = machine(state_dir)
    evil = b"\x1b[2J\x1b]0;owned\x07[bold]"
    guest.write(evil, b"d", consumer=Consumer.FIRMWARE)
    guest.store.close()

    for output in (
        good("list", "guest"),
        good("show", "-p", "guest", "--consumer", "firmware", "--label-hex", evil.hex()),
    ):
        assert "\x1b" not in output
        assert "[bold]" in output


def test_remove_removes_whatever_the_policy_says(state_dir: pathlib.Path):
    good("put", "-p", "guest", "--name", "n", "--policy", "immutable", "-", data=b"d")
    good("remove", "-p", "guest", "--name", "n")

    assert "no object" in bad("remove", "-p", "guest", "--name", "n")
    assert "no object" in bad("show", "-p", "guest", "--name", "n")
    assert 'label u"db" (00' in bad("show", "-p", "guest", "--secvar", "db")


def test_a_partition_in_use_is_refused_in_one_line(state_dir: pathlib.Path):
    guest = machine(state_dir)

    for arguments in (
        ("list", "guest"),
        ("show", "-p", "guest", "--sed"),
        ("remove", "-p", "guest", "--sed"),
        ("verify", "guest"),
    ):
        assert "partition guest is in use by process" in bad(*arguments)
    assert "in use" in bad("put", "-p", "guest", "--sed", "-", data=b"d")
    assert "in use by process" in good("list")
    guest.store.close()


def test_seeding_does_not_disturb_the_run(state_dir: pathlib.Path):
    """The daemon was stopped while its guest runs: the password is still there."""
    guest = machine(state_dir)
    guest.gen_password()
    guest.store.close()
    good("put", "-p", "guest", "--sed", "--policy", "WORLDREADABLE", "-", data=b"d")
    store = StateDirectory(state_dir).open("guest")
    assert not store.begin_run(Run(b"pure machine....", 0))
    store.close()
    again = machine(state_dir)

    assert again.gen_password().code is H.IN_USE
    assert again.read(SED_LABEL).code is H.SUCCESS
    again.store.close()


def test_verify_says_which_store_is_not_good(state_dir: pathlib.Path):
    for name in ("a", "b"):
        good("put", "-p", name, "--name", "n", "-", data=b"d")
    assert good("verify").splitlines() == [
        "a: good (objects: 1, generation: 1)",
        "b: good (objects: 1, generation: 1)",
    ]
    path = StateDirectory(state_dir).folder("b") / "keystore.db"
    path.write_bytes(path.read_bytes()[:5000])
    result = run("verify")
    assert result.exit_code == 1
    assert result.stdout.startswith("a: good")
    assert str(path) in result.stderr
    assert "restore it from a backup" in bad("verify", "b")
    result = run("list")
    assert result.exit_code == 1
    assert "not readable" in result.stdout


def test_a_record_of_a_newer_daemon_is_refused(state_dir: pathlib.Path):
    store = StateDirectory(state_dir).open("guest")
    store.commit([Put(Record("pks", b"z", b"\x01"))], None)
    store.close()

    assert "newer hcalld" in bad("list", "guest")


def test_state_dir_comes_from_the_option_too(tmp_path: pathlib.Path):
    option = ("--state-dir", str(tmp_path / "other"))
    good("put", *option, "-p", "guest", "--name", "n", "-", data=b"d")

    assert "guest" in good("list", *option)
    assert "guest" not in good("list", "--state-dir", str(tmp_path / "none"))
