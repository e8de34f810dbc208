# SPDX-License-Identifier: Apache-2.0
"""The kernel's selftests as an artefact: what they are made from, and what is no such thing."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.provision import selftest_packages, selftests
from tests.provision.cache import Cache
from tests.provision.errors import ProvisionError

from hcalld.guest.cpio import Directory, File


@pytest.fixture
def linux(tmp_path: Path) -> Path:
    """A tree that has all that is looked for."""
    root = tmp_path / "linux"
    for name in selftests.SOURCES:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if "/" in name or name in ("include", "scripts", "usr"):
            path.mkdir(exist_ok=True)
        else:
            path.write_text(f"# {name}\n")
    (root / "tools/testing/selftests/lib.mk").write_text("all:\n")
    (root / "drivers").mkdir()
    return root


def test_checked_tree_when_it_is_none_then_it_says_what_is_missing(linux: Path):
    assert selftests.checked_tree(str(linux)) == linux
    (linux / "Kconfig").unlink()
    with pytest.raises(ProvisionError, match="where Kconfig is missing"):
        selftests.checked_tree(str(linux))
    with pytest.raises(ProvisionError, match="expected the absolute path of a Linux source tree"):
        selftests.checked_tree("linux")


def test_digest_when_a_source_changes_then_it_does(linux: Path):
    before = selftests.digest_of_tree(linux)
    (linux / "drivers/driver.c").write_text("int x;\n")
    for name in ("test.o", ".test.cmd", "test.d"):
        (linux / "tools/testing/selftests" / name).write_bytes(b"made")
    (linux / "tools/testing/selftests/program").write_bytes(b"\x7fELF\2\1\1")
    assert selftests.digest_of_tree(linux) == before
    (linux / "tools/testing/selftests/lib.mk").write_text("all: x\n")
    changed = selftests.digest_of_tree(linux)
    assert changed != before
    (linux / "tools/testing/selftests/lib.mk").rename(linux / "tools/testing/selftests/lib2.mk")
    assert selftests.digest_of_tree(linux) not in (before, changed)


def test_build_tree_when_a_developers_tree_is_built_then_it_stays_as_it_is(
    linux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (linux / "tools/testing/selftests/program").write_bytes(b"\x7fELF\2\1\1")
    (linux / "tools/testing/selftests/link").symlink_to("lib.mk")
    seen: list[Path] = []

    def build(copy: Path, _directory: Path, _log: Path) -> None:
        assert copy != linux
        seen.extend(path.relative_to(copy) for path in copy.rglob("*") if not path.is_dir())
        (copy / "Makefile").write_text("changed\n")

    monkeypatch.setattr(selftests, "build", build)
    before = selftests.digest_of_tree(linux)
    selftests.build_tree(Cache(tmp_path / "cache"), linux, tmp_path)
    assert selftests.digest_of_tree(linux) == before
    assert {"Makefile", "tools/testing/selftests/lib.mk", "tools/testing/selftests/link"} <= {
        *map(str, seen)
    }
    assert Path("tools/testing/selftests/program") not in seen


def test_lacking_collections_when_a_list_has_none_of_one_then_it_is_named(tmp_path: Path):
    tests = tmp_path / "kselftest-list.txt"
    assert selftests.lacking_collections(tests) == list(selftests.COLLECTIONS)
    tests.write_text("kexec:a.sh\npowerpc/mm:b\n")
    assert selftests.lacking_collections(tests) == ["tpm2"]


def test_modules_when_taken_then_what_no_test_uses_is_left_out(tmp_path: Path):
    for name in ("os.py", "turtle.py", "tkinter/a.py", "unittest/case.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert selftests.modules(tmp_path) == {
        "/usr/lib/python3.13/os.py": File(b"", 0o644),
        "/usr/lib/python3.13/unittest": Directory(),
        "/usr/lib/python3.13/unittest/case.py": File(b"", 0o644),
    }


def test_packages_when_listed_then_each_program_has_one_place_and_each_file_a_digest():
    paths = [path for files in selftest_packages.FILES.values() for path in files]
    assert len(paths) == len(set(paths))
    assert {"/bin/python3", "/bin/bash", "/bin/timeout", "/bin/getfattr"} <= set(paths)
    assert all(pin.sha256 for pin in (*selftest_packages.FILES, *selftest_packages.MODULES))
