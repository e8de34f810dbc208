# SPDX-License-Identifier: Apache-2.0
"""``hcalld ctl``, as a user types it."""

from __future__ import annotations

import json
import os
import pathlib

import pytest
from click.testing import CliRunner, Result

from hcalld.cli import cli
from hcalld.control import client
from hcalld.control.messages import CaptureState
from hcalld.core.errors import HcalldError
from hcalld.domain import hmc
from hcalld.domain.attribute_records import load
from hcalld.domain.attributes import PartitionAttributes
from hcalld.stores.directory import StateDirectory
from hcalld.testing.pks import PksMachine

DYNAMIC = "linux_dynamic_key_secure_boot"


@pytest.fixture(autouse=True)
def state_dir(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("HCALLD_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["ctl", *arguments])


def good(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.exception
    return result.stdout


def bad(*arguments: str) -> str:
    """What the command line ends with in one line and exit status 1."""
    result = run(*arguments)
    assert isinstance(result.exception, HcalldError), result.output
    assert result.stdout == ""
    assert "\n" not in str(result.exception)
    return str(result.exception)


def in_force(state_dir: pathlib.Path, partition: str = "guest") -> PartitionAttributes:
    store = StateDirectory(state_dir).open(partition, create=False)
    try:
        held = load(store.load().records)
    finally:
        store.close()
    assert held is not None
    return held.attributes


def machine(state_dir: pathlib.Path, attributes: PartitionAttributes | None = None) -> PksMachine:
    return PksMachine(attributes, store=StateDirectory(state_dir).open("guest"))


@pytest.fixture
def guest(state_dir: pathlib.Path) -> None:
    """A partition that was on and is off."""
    machine(state_dir).store.close()


# -- set ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("guest")
def test_set_when_it_is_allowed_then_it_says_what_changed(state_dir: pathlib.Path):
    assert good(
        "set", "guest", "secure_boot=2", "keystore_kbytes=0x80", "pks.max_label_size=255"
    ) == ("secure_boot: 0 -> 2\nkeystore_kbytes: 64 -> 128\npks.max_label_size: 255 already\n")
    assert in_force(state_dir) == PartitionAttributes(secure_boot=2, keystore_kbytes=128)


@pytest.mark.usefixtures("guest")
def test_set_when_it_is_set_then_the_next_power_on_has_it(state_dir: pathlib.Path):
    good("set", "guest", "secure_boot=2")
    again = machine(state_dir)
    again.power_on()

    assert again.attributes.secure_boot == 2
    again.store.close()


@pytest.mark.usefixtures("guest")
def test_set_when_one_of_several_is_refused_then_none_is_set(state_dir: pathlib.Path):
    assert "cannot be reduced from 64 to 8" in bad(
        "set", "guest", "secure_boot=2", "keystore_kbytes=8"
    )
    assert in_force(state_dir) == PartitionAttributes()


@pytest.mark.usefixtures("guest")
def test_set_when_dynamic_keys_are_switched_then_firmwares_object_follows(
    state_dir: pathlib.Path,
):
    good("set", "guest", f"{DYNAMIC}=1", "secure_boot=2")
    store = StateDirectory(state_dir).open("guest")
    assert hmc.SB_VERSION_KEY in {record.key for record in store.load().records}
    store.close()
    assert "set secure_boot to 0 first" in bad("set", "guest", f"{DYNAMIC}=0")

    good("set", "guest", f"{DYNAMIC}=0", "secure_boot=0")

    store = StateDirectory(state_dir).open("guest")
    assert hmc.SB_VERSION_KEY not in {record.key for record in store.load().records}
    store.close()


@pytest.mark.usefixtures("guest")
@pytest.mark.parametrize(
    ("text", "policies"),
    [("all", None), ("pwset,WORLDREADABLE", ("PWSET", "WORLDREADABLE")), ("", ())],
)
def test_set_when_policies_are_named_then_they_are_those(
    state_dir: pathlib.Path, text: str, policies: tuple[str, ...] | None
):
    good("set", "guest", "pks.supported_policies=PWSET")
    good("set", "guest", f"pks.supported_policies={text}")

    assert in_force(state_dir).pks.supported_policies == policies


@pytest.mark.usefixtures("guest")
@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("secure_boot", "expected NAME=VALUE"),
        ("=1", "expected NAME=VALUE"),
        ("secure_boot=", "expected a whole number"),
        ("secure_boot=on", "expected a whole number"),
        ("secure_boot=3", "secure_boot"),
        ("keystore_kbytes=3", "0 (off) or 4 to 128"),
        ("keystore_kbytes=129", "keystore_kbytes"),
        ("size=3", "no attribute 'size'; attributes are: keystore_kbytes,"),
        ("pks.supported_policies=NONE", "supported_policies"),
    ],
)
def test_set_when_an_argument_is_wrong_then_it_is_refused_by_name(
    state_dir: pathlib.Path, setting: str, told: str
):
    assert told in bad("set", "guest", "pks.object_overhead=0", setting)
    assert in_force(state_dir) == PartitionAttributes()


@pytest.mark.usefixtures("guest")
def test_set_when_an_attribute_is_given_twice_then_it_is_refused():
    assert "given twice" in bad("set", "guest", "secure_boot=1", "secure_boot=2")


def test_set_when_nothing_is_set_then_it_is_a_wrong_use():
    assert run("set", "guest").exit_code == 2


def test_set_when_there_is_no_such_partition_then_it_is_made_only_if_asked(
    state_dir: pathlib.Path,
):
    refused = bad("set", "guest", "secure_boot=2")
    assert "no partition 'guest'" in refused
    assert "--create" in refused
    assert not (state_dir / "partitions").exists()
    assert "keystore_kbytes" in bad("set", "--create", "guest", "keystore_kbytes=3")
    assert not (state_dir / "partitions").exists()

    assert good("set", "--create", "guest", "secure_boot=2") == "secure_boot: 2\n"
    assert in_force(state_dir) == PartitionAttributes(secure_boot=2)


@pytest.mark.parametrize("arguments", [("set", "guest", "secure_boot=1"), ("show", "guest")])
def test_when_the_guest_is_on_then_it_says_who_uses_the_partition(
    state_dir: pathlib.Path, arguments: tuple[str, ...]
):
    on = machine(state_dir)

    assert f"in use by process {os.getpid()}" in bad(*arguments)
    on.store.close()
    good(*arguments)


@pytest.mark.usefixtures("guest")
def test_set_when_it_is_done_then_it_is_on_stable_storage(
    state_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    from hcalld.stores.sqlite import SqliteStore

    dirty: list[bool] = []
    close = SqliteStore.close

    def closing(store: SqliteStore) -> None:
        dirty.append(store.dirty)
        close(store)

    monkeypatch.setattr(SqliteStore, "close", closing)
    good("set", "guest", "secure_boot=2")

    assert dirty == [False]


# -- show -----------------------------------------------------------------------------------


def test_show_when_the_guest_was_on_then_attributes_and_profile(state_dir: pathlib.Path):
    machine(state_dir, PartitionAttributes(keystore_kbytes=8)).store.close()
    good("set", "guest", "secure_boot=2")

    lines = [line.split() for line in good("show", "guest").splitlines()]

    assert lines[0] == ["attribute", "in", "force", "profile"]
    assert ["keystore_kbytes", "8", "8"] in lines
    assert ["secure_boot", "2", "0"] in lines
    assert ["pks.supported_policies", "all", "all"] in lines
    assert lines[-1] == ["keystore:", "0", "objects,", "0", "of", "8192", "bytes"]


def test_show_when_the_guest_was_never_on_then_it_says_so():
    good("set", "--create", "guest", "secure_boot=2", f"{DYNAMIC}=1")

    lines = good("show", "guest").splitlines()

    assert lines[-1].startswith("never powered on")
    assert lines[-2] == "keystore: 1 objects, 43 of 65536 bytes"


def test_show_when_json_is_asked_for_then_all_of_it(state_dir: pathlib.Path):
    machine(state_dir).store.close()
    good("set", "guest", "secure_boot=2")

    shown = json.loads(good("show", "--json", "guest"))

    assert (shown["partition"], shown["was_powered_on"]) == ("guest", True)
    assert (shown["attributes"]["secure_boot"], shown["profile"]["secure_boot"]) == (2, 0)
    assert shown["attributes"]["pks.object_overhead"] == 32
    assert shown["keystore"] == {"objects": 0, "used_space": 0, "total_size": 65536}


# -- check ----------------------------------------------------------------------------------


def profiles(folder: pathlib.Path, text: str, name: str = "guest") -> str:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.toml").write_text(text)
    return str(folder)


@pytest.mark.usefixtures("guest")
def test_check_when_the_profile_changed_then_it_says_what_would_be(
    tmp_path: pathlib.Path, state_dir: pathlib.Path
):
    where = profiles(tmp_path / "profiles", "secure_boot = 2\nkeystore_kbytes = 64")

    lines = good("check", "guest", "--profile-dir", where).splitlines()

    assert lines[0].startswith("at the next power-on (")
    assert lines[1:] == ["secure_boot: 0 -> 2"]
    assert in_force(state_dir) == PartitionAttributes()


@pytest.mark.usefixtures("guest")
def test_check_when_nothing_changed_then_it_says_so(tmp_path: pathlib.Path):
    where = profiles(tmp_path / "profiles", "secure_boot = 0", "default")

    assert good("check", "guest", "--profile-dir", where).startswith("nothing to do")


@pytest.mark.usefixtures("guest")
def test_check_when_it_would_be_refused_then_it_says_why(tmp_path: pathlib.Path):
    where = profiles(tmp_path / "profiles", "keystore_kbytes = 8")

    assert "cannot be reduced" in bad("check", "guest", "--profile-dir", where)


@pytest.mark.usefixtures("guest")
def test_check_when_the_profile_is_for_a_guest_of_another_name_then_it_is_the_partitions(
    tmp_path: pathlib.Path,
):
    where = profiles(tmp_path / "profiles", 'secure_boot = 1\n[hcalld]\nname = "other"')

    assert "secure_boot: 0 -> 1" in good("check", "guest", "--profile-dir", where)


# -- capture --------------------------------------------------------------------------------


def test_capture_stop_when_it_is_not_whole_then_that_is_the_end(
    monkeypatch: pytest.MonkeyPatch,
):
    state = CaptureState(path="/a.pcapng", frames=9, is_whole=False, not_written=4)
    monkeypatch.setattr(client, "ask", lambda *_, **__: state)
    result = run("capture", "stop")
    assert isinstance(result.exception, HcalldError)
    assert "/a.pcapng: the capture is not whole: 4 frames not written" in str(result.exception)
    assert result.stdout.startswith("/a.pcapng: 9 frames")
