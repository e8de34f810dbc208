# SPDX-License-Identifier: Apache-2.0
"""Pins: what is taken, what stands in, what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tests.provision import pins
from tests.provision.cache import Cache
from tests.provision.deb822 import IndexedFile
from tests.provision.errors import ProvisionError
from tests.provision.fetch import fetch, fetch_all
from tests.provision.pins import Pin

CONTENT = b"what was pinned"
PIN = Pin(
    package="kernel-1.2",
    suite="sid",
    is_source=False,
    version="1.2-1",
    file="kernel-1.2_1.2-1_all.deb",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    family=r"kernel-[0-9]+\.[0-9]+",
    series="1.",
)


class FakeArchive:
    """An archive of packages, versions and contents."""

    def __init__(self, packages: dict[str, dict[str, bytes]]) -> None:
        self.packages = packages
        self.downloads: list[tuple[str, str]] = []
        self.altered = b""
        self.together = 0

    def package_names(self, prefix: str) -> list[str]:
        return [name for name in self.packages if name.startswith(prefix)]

    def candidates(self, package: str) -> list[IndexedFile]:
        return [
            IndexedFile(
                f"{package}_{version}_all.deb", version, hashlib.sha256(content).hexdigest()
            )
            for version, content in self.packages.get(package, {}).items()
        ]

    def download(self, package: str, version: str, directory: Path) -> None:
        self.downloads.append((package, version))
        content = self.packages[package][version] + self.altered
        (directory / f"{package}_{version}_all.deb").write_bytes(content)

    def download_all(self, wanted: Sequence[tuple[str, str]], directory: Path) -> bool:
        if not all(version in self.packages.get(package, {}) for package, version in wanted):
            return False
        self.together += 1
        for package, version in wanted:
            self.download(package, version, directory)
        return True


class NoArchive(FakeArchive):
    """An archive that must not be asked."""

    def __init__(self) -> None:
        super().__init__({})

    def candidates(self, package: str) -> list[IndexedFile]:
        raise AssertionError(f"the archive was asked for {package}")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def test_fetch_when_pinned_version_is_there_then_it_is_taken_and_kept(cache: Cache):
    archive = FakeArchive({"kernel-1.2": {"1.2-2": b"newer", "1.2-1": CONTENT}})
    fetched = fetch(cache, PIN, archive=archive)
    assert fetched.path.read_bytes() == CONTENT
    assert fetched.is_pinned
    assert fetch(cache, PIN, archive=NoArchive()) == fetched


def test_fetch_when_pinned_version_has_another_digest_then_it_is_refused_and_not_kept(cache: Cache):
    archive = FakeArchive({"kernel-1.2": {"1.2-1": b"replaced"}})
    with pytest.raises(ProvisionError) as caught:
        fetch(cache, PIN, archive=archive)
    text = str(caught.value)
    assert hashlib.sha256(b"replaced").hexdigest() in text
    assert f"expected {PIN.sha256}, pinned in tests/provision/pins.py" in text
    assert "Do not use the file" in text
    assert not list((cache.root / "downloads").rglob("*.deb"))


def test_fetch_when_download_is_not_what_the_index_says_then_it_is_refused(cache: Cache):
    archive = FakeArchive({"kernel-1.2": {"1.2-3": b"newer"}})
    archive.altered = b"!"
    with pytest.raises(ProvisionError, match="as the signed index says"):
        fetch(cache, PIN, archive=archive)


def test_fetch_when_version_has_left_then_the_newest_of_the_family_stands_in_and_it_is_said(
    cache: Cache, capsys: pytest.CaptureFixture[str]
):
    archive = FakeArchive(
        {
            "kernel-1.2": {"1.2-3": b"older"},
            "kernel-1.10": {"1.10-1": b"newest"},
            "kernel-1.10-debug": {"1.11-1": b"not of the family"},
            "kernel-2.0": {"2.0-1": b"not of the series"},
        }
    )
    fetched = fetch(cache, PIN, archive=archive)
    assert (fetched.package, fetched.version) == ("kernel-1.10", "1.10-1")
    assert not fetched.is_pinned
    assert fetched.sha256 == hashlib.sha256(b"newest").hexdigest()
    said = capsys.readouterr().err
    assert "kernel-1.2 1.2-1, which is pinned, has left Debian sid" in said
    assert fetched.sha256 in said


def test_fetch_when_a_stand_in_was_chosen_then_the_archive_is_not_asked_again_but_it_is_said(
    cache: Cache, capsys: pytest.CaptureFixture[str]
):
    fetched = fetch(cache, PIN, archive=FakeArchive({"kernel-1.2": {"1.2-3": b"other"}}))
    capsys.readouterr()
    assert fetch(cache, PIN, archive=NoArchive()) == fetched
    assert "has left Debian sid" in capsys.readouterr().err


def test_fetch_when_pin_changes_then_the_former_stand_in_is_not_used(cache: Cache):
    fetch(cache, PIN, archive=FakeArchive({"kernel-1.2": {"1.2-3": b"other"}}))
    archive = FakeArchive({"kernel-1.2": {"1.2-4": b"new"}})
    changed = replace(PIN, version="1.2-4", sha256=hashlib.sha256(b"new").hexdigest())
    assert fetch(cache, changed, archive=archive).is_pinned


def test_fetch_when_stand_in_was_removed_then_it_is_fetched_again(cache: Cache):
    archive = FakeArchive({"kernel-1.2": {"1.2-3": b"other"}})
    fetch(cache, PIN, archive=archive).path.unlink()
    assert fetch(cache, PIN, archive=archive).path.read_bytes() == b"other"
    assert len(archive.downloads) == 2


def test_fetch_when_note_of_a_stand_in_is_damaged_then_it_is_chosen_again(cache: Cache):
    archive = FakeArchive({"kernel-1.2": {"1.2-3": b"other"}})
    fetch(cache, PIN, archive=archive)
    (note,) = (cache.root / "stand-ins").iterdir()
    note.write_text("{")
    assert fetch(cache, PIN, archive=archive).version == "1.2-3"


def test_fetch_when_there_is_nothing_then_it_says_what_to_do(cache: Cache):
    with pytest.raises(ProvisionError, match=r"Refresh tests/provision/pins\.py"):
        fetch(cache, PIN, archive=FakeArchive({"kernel-2.0": {"2.0-1": b""}}))


@pytest.mark.parametrize("pin", [pins.QEMU, pins.KERNEL_DEBIAN, pins.KERNEL_SOURCE, pins.BUSYBOX])
def test_pins_when_read_then_each_is_well_formed(pin: Pin):
    assert len(bytes.fromhex(pin.sha256)) == 32
    assert pin.version.startswith(pin.series)
    assert pin.is_source == (".orig.tar." in pin.file)


def pin_of(package: str, content: bytes) -> Pin:
    file = f"{package}_1_all.deb"
    return Pin(package, "sid", False, "1", file, hashlib.sha256(content).hexdigest())


def test_fetch_all_when_all_are_there_then_they_come_together_once(cache: Cache):
    contents = {name: name.encode() for name in ("one", "two", "three")}
    pins = [pin_of(name, content) for name, content in contents.items()]
    archive = FakeArchive({name: {"1": content} for name, content in contents.items()})
    fetched = fetch_all(cache, pins, archive=archive)
    assert {pin.package: found.path.read_bytes() for pin, found in fetched.items()} == contents
    assert all(found.is_pinned for found in fetched.values())
    assert archive.together == 1
    assert len(archive.downloads) == 3
    assert fetch_all(cache, pins, archive=NoArchive()) == fetched


def test_fetch_all_when_one_has_left_then_it_alone_has_a_stand_in(cache: Cache):
    pins = [pin_of("one", b"one"), pin_of("two", b"two")]
    archive = FakeArchive({"one": {"1": b"one"}, "two": {"2": b"newer"}})
    fetched = fetch_all(cache, pins, archive=archive)
    assert [found.is_pinned for found in fetched.values()] == [True, False]
    assert [found.path.read_bytes() for found in fetched.values()] == [b"one", b"newer"]
    assert archive.together == 0


def test_fetch_all_when_one_is_not_what_was_pinned_then_it_is_refused_and_the_other_kept(
    cache: Cache,
):
    pins = [pin_of("one", b"one"), pin_of("two", b"two")]
    archive = FakeArchive({"one": {"1": b"one"}, "two": {"1": b"replaced"}})
    with pytest.raises(ProvisionError, match="Do not use the file"):
        fetch_all(cache, pins, archive=archive)
    kept = [path.read_bytes() for path in (cache.root / "downloads").rglob("*.deb")]
    assert kept == [b"one"]
