# SPDX-License-Identifier: Apache-2.0
"""The cache: keys, completeness, locks."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest
from tests.provision import cache as module
from tests.provision.cache import Cache, default_root, digest_of, sha256_of
from tests.provision.errors import ProvisionError


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def write(text: str):
    def make(directory: Path) -> None:
        (directory / "file").write_text(text)

    return make


def never(_directory: Path) -> None:
    raise AssertionError("made again although it is there")


def test_digest_of_when_order_differs_then_it_is_the_same():
    assert digest_of({"a": "1", "b": "2"}) == digest_of({"b": "2", "a": "1"})


@pytest.mark.parametrize("other", [{"a": "2"}, {"b": "1"}, {"a": "1", "b": ""}, {}, {"a": "1,b:2"}])
def test_digest_of_when_inputs_differ_then_it_differs(other: dict[str, str]):
    assert digest_of({"a": "1"}) != digest_of(other)


def test_entry_when_asked_twice_then_it_is_made_once(cache: Cache):
    first = cache.entry("kind", {"a": "1"}, write("content"))
    assert cache.entry("kind", {"a": "1"}, never) == first
    assert (first / "file").read_text() == "content"
    assert json.loads((first / "inputs.json").read_text()) == {"a": "1"}
    assert cache.has("kind", {"a": "1"})
    assert not cache.has("kind", {"a": "2"})


def test_entry_when_inputs_differ_then_both_stay(cache: Cache):
    first = cache.entry("kind", {"a": "1"}, write("one"))
    second = cache.entry("kind", {"a": "2"}, write("two"))
    assert (first / "file").read_text() == "one"
    assert (second / "file").read_text() == "two"


def test_entry_when_making_fails_then_nothing_is_left_and_the_next_try_makes_it(cache: Cache):
    def fail(directory: Path) -> None:
        (directory / "half").write_text("")
        raise ProvisionError("the compiler fell over")

    with pytest.raises(ProvisionError, match="fell over"):
        cache.entry("kind", {"a": "1"}, fail)
    assert list((cache.root / "kind").iterdir()) == []
    made = cache.entry("kind", {"a": "1"}, write("whole"))
    assert sorted(path.name for path in made.iterdir()) == ["file", "inputs.json"]


def test_entry_when_two_runs_want_it_at_once_then_one_makes_it(cache: Cache):
    made: list[str] = []

    def make(directory: Path) -> None:
        made.append(directory.name)
        time.sleep(0.05)

    threads = [
        threading.Thread(target=cache.entry, args=("kind", {"a": "1"}, make)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_lock_when_held_by_another_then_it_waits_and_says_so(
    cache: Cache, capsys: pytest.CaptureFixture[str]
):
    order: list[str] = []

    def second() -> None:
        with cache.lock("name"):
            order.append("second")

    thread = threading.Thread(target=second)
    with cache.lock("name"):
        thread.start()
        time.sleep(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert "waiting for another run that holds the lock name" in capsys.readouterr().err


def test_scratch_when_left_by_an_error_then_it_is_removed(cache: Cache):
    kept: list[Path] = []

    def fail() -> None:
        with cache.scratch() as directory:
            (directory / "file").write_text("")
            kept.append(directory)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not kept[0].exists()


def test_prune_when_entries_are_old_then_only_those_beyond_the_newest_go(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "KEEP_ENTRIES", 2)
    entries = [cache.entry("kind", {"a": str(number)}, write("")) for number in range(4)]
    long_ago = time.time() - 2 * module.KEEP_SECONDS
    for number, entry in enumerate(entries[:3]):
        os.utime(entry, (long_ago + number, long_ago + number))
    left_over = cache.root / "kind" / ".making-killed"
    left_over.mkdir()
    os.utime(left_over, (long_ago, long_ago))
    cache.prune(cache.root / "kind")
    assert [entry.exists() for entry in entries] == [False, False, True, True]
    assert not left_over.exists()


def test_default_root_when_variable_is_set_then_it_is_that(tmp_path: Path):
    assert default_root({"HCALLD_CACHE": str(tmp_path)}) == tmp_path


def test_default_root_when_nothing_is_set_then_it_is_in_the_users_cache():
    assert default_root({}) == Path.home() / ".cache/hcalld"
    assert default_root({"XDG_CACHE_HOME": "relative"}) == Path.home() / ".cache/hcalld"
    assert default_root({"XDG_CACHE_HOME": "/var/c"}) == Path("/var/c/hcalld")


def test_default_root_when_relative_then_it_is_refused():
    with pytest.raises(ProvisionError, match="absolute"):
        default_root({"HCALLD_CACHE": "here"})


@pytest.mark.parametrize("path", ["/var/my cache", "/var/a:b"])
def test_default_root_when_nothing_can_be_built_below_it_then_it_is_refused(path: str):
    with pytest.raises(ProvisionError, match="without"):
        default_root({"HCALLD_CACHE": path})


def test_make_directories_when_in_the_way_of_a_file_then_it_says_what_to_do(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ProvisionError, match="set HCALLD_CACHE"):
        Cache(tmp_path / "file/cache").make_directories()


def test_sha256_of_when_file_is_known_then_digest_is(tmp_path: Path):
    # FIPS 180-4 example: the one-block message "abc".
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(tmp_path / "abc") == expected
