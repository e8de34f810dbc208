# SPDX-License-Identifier: Apache-2.0
"""Patch series on a tree that stays: applied, changed, taken off, and refused."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.provision import series
from tests.provision.cache import Cache
from tests.provision.errors import ProvisionError

LONG_AGO = 1_000_000_000


class Trees:
    """A pristine tree, the tree that is built, and patches made by git."""

    def __init__(self, root: Path) -> None:
        self.cache = Cache(root / "cache")
        self.cache.make_directories()
        self.pristine = root / "pristine"
        self.tree = root / "tree"
        self.patches = root / "patches"
        self.log = root / "log"
        self.patches.mkdir()
        for name in ("hw/spapr.c", "hw/meson.build", "old.c", "untouched.c"):
            for tree in (self.pristine, self.tree):
                path = tree / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("".join(f"{name} line {number}\n" for number in range(30)))
                os.utime(path, (LONG_AGO, LONG_AGO))

    def patch(self, name: str, changes: dict[str, str | None]) -> Path:
        """Makes a patch in git's form that gives files this content, or removes them."""
        old, new = self.patches / "a", self.patches / "b"
        for folder in (old, new):
            subprocess.run(["rm", "-rf", folder], check=True)
            folder.mkdir()
        for file, content in changes.items():
            if (self.pristine / file).is_file():
                (old / file).parent.mkdir(parents=True, exist_ok=True)
                (old / file).write_bytes((self.pristine / file).read_bytes())
            if content is not None:
                (new / file).parent.mkdir(parents=True, exist_ok=True)
                (new / file).write_text(content)
        done = subprocess.run(
            ["git", "diff", "--no-index", "--no-prefix", "a", "b"],
            cwd=self.patches,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        path = self.patches / name
        path.write_text(f"From: base\nSubject: [PATCH] {name}\n---\n{done.stdout}-- \n2.0\n")
        return path

    def synchronize(self, *patches: Path, fuzz: int = 0) -> int:
        return series.synchronize(
            self.cache,
            list(patches),
            pristine=self.pristine,
            tree=self.tree,
            log=self.log,
            fuzz=fuzz,
        )

    def differing(self) -> set[str]:
        """Names the files in which the two trees differ."""
        names = {
            path.relative_to(tree).as_posix()
            for tree in (self.pristine, self.tree)
            for path in tree.rglob("*")
            if path.is_file()
        }
        return {
            name for name in names if content(self.pristine / name) != content(self.tree / name)
        }


def content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    return Trees(tmp_path)


def edited(trees: Trees, name: str, line: int, text: str) -> str:
    lines = (trees.pristine / name).read_text().splitlines(keepends=True)
    lines[line] = text + "\n"
    return "".join(lines)


def test_synchronize_when_series_changes_adds_and_removes_then_only_those_files_are_written(
    trees: Trees,
):
    patch = trees.patch(
        "1.patch",
        {
            "hw/spapr.c": edited(trees, "hw/spapr.c", 3, "changed"),
            "hw/new/device.c": "new\n",
            "old.c": None,
        },
    )
    assert trees.synchronize(patch) == 3
    assert "changed" in (trees.tree / "hw/spapr.c").read_text()
    assert (trees.tree / "hw/new/device.c").read_text() == "new\n"
    assert not (trees.tree / "old.c").exists()
    assert (trees.tree / "hw/spapr.c").stat().st_mtime > LONG_AGO
    assert (trees.tree / "untouched.c").stat().st_mtime == LONG_AGO
    assert (trees.tree / "hw/meson.build").stat().st_mtime == LONG_AGO


def test_synchronize_when_nothing_changed_then_nothing_is_written(trees: Trees):
    patch = trees.patch("1.patch", {"hw/spapr.c": edited(trees, "hw/spapr.c", 3, "changed")})
    trees.synchronize(patch)
    os.utime(trees.tree / "hw/spapr.c", (LONG_AGO, LONG_AGO))
    assert trees.synchronize(patch) == 0
    assert (trees.tree / "hw/spapr.c").stat().st_mtime == LONG_AGO


def test_synchronize_when_series_is_taken_off_then_the_tree_is_pristine(trees: Trees):
    patch = trees.patch("1.patch", {"old.c": None, "new.c": "new\n"})
    trees.synchronize(patch)
    assert trees.differing() == {"old.c", "new.c"}
    assert trees.synchronize() == 2
    assert trees.differing() == set()


def test_synchronize_when_a_patch_leaves_the_series_then_only_its_files_go_back(trees: Trees):
    first = trees.patch("1.patch", {"hw/spapr.c": edited(trees, "hw/spapr.c", 3, "one")})
    second = trees.patch("2.patch", {"hw/meson.build": edited(trees, "hw/meson.build", 3, "two")})
    assert trees.synchronize(first, second) == 2
    os.utime(trees.tree / "hw/spapr.c", (LONG_AGO, LONG_AGO))
    assert trees.synchronize(first) == 1
    assert trees.differing() == {"hw/spapr.c"}
    assert (trees.tree / "hw/spapr.c").stat().st_mtime == LONG_AGO


def test_synchronize_when_patches_build_on_each_other_then_order_holds(trees: Trees):
    first = trees.patch("1.patch", {"new.c": "one\n"})
    (trees.pristine / "new.c").write_text("one\n")
    second = trees.patch("2.patch", {"new.c": "one\ntwo\n"})
    (trees.pristine / "new.c").unlink()
    trees.synchronize(first, second)
    assert (trees.tree / "new.c").read_text() == "one\ntwo\n"
    with pytest.raises(ProvisionError, match=r"applying 2\.patch"):
        trees.synchronize(second, first)


def test_synchronize_when_a_patch_does_not_apply_then_the_tree_is_as_it_was(trees: Trees):
    good = trees.patch("1.patch", {"hw/spapr.c": edited(trees, "hw/spapr.c", 3, "one")})
    trees.synchronize(good)
    bad = trees.patch("2.patch", {"hw/meson.build": edited(trees, "hw/meson.build", 3, "two")})
    bad.write_text(bad.read_text().replace(" hw/meson.build line 6", " something else"))
    with pytest.raises(ProvisionError, match=r"applying 2\.patch"):
        trees.synchronize(bad)
    assert trees.differing() == {"hw/spapr.c"}
    assert trees.synchronize(bad, fuzz=2) == 2
    assert trees.differing() == {"hw/meson.build"}


def test_synchronize_when_the_source_has_a_patch_already_then_it_is_not_taken_for_reversed(
    trees: Trees,
):
    patch = trees.patch("1.patch", {"hw/spapr.c": edited(trees, "hw/spapr.c", 3, "one")})
    with pytest.raises(ProvisionError, match=r"applying 1\.patch"):
        trees.synchronize(patch, patch)
    assert trees.differing() == set()


def test_synchronize_when_interrupted_while_writing_then_the_next_run_repairs_it(
    trees: Trees, monkeypatch: pytest.MonkeyPatch
):
    patch = trees.patch("1.patch", {"a.c": "a\n", "b.c": "b\n"})
    really = series._copy_if_different

    def interrupted(source: Path, target: Path) -> bool:
        if target.name == "b.c":
            raise KeyboardInterrupt
        return really(source, target)

    monkeypatch.setattr(series, "_copy_if_different", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trees.synchronize(patch)
    monkeypatch.undo()
    assert trees.differing() == {"a.c"}
    trees.synchronize()
    assert trees.differing() == set()


def test_synchronize_when_tree_is_hard_linked_then_the_pristine_copy_is_not_written(trees: Trees):
    (trees.tree / "hw/spapr.c").unlink()
    os.link(trees.pristine / "hw/spapr.c", trees.tree / "hw/spapr.c")
    before = (trees.pristine / "hw/spapr.c").read_text()
    trees.synchronize(trees.patch("1.patch", {"hw/spapr.c": edited(trees, "hw/spapr.c", 3, "x")}))
    assert (trees.pristine / "hw/spapr.c").read_text() == before


@pytest.mark.parametrize("name", ["../outside.c", "/etc/passwd", "a/../../b"])
def test_touched_files_when_a_name_leaves_the_tree_then_it_is_refused(name: str):
    with pytest.raises(ProvisionError, match="outside the tree"):
        series.touched_files(f"--- a/{name}\n+++ b/{name}\n@@ -1 +1 @@\n")


def test_touched_files_when_a_file_is_renamed_then_both_names_are_given():
    text = "diff --git a/x.c b/y.c\nsimilarity index 100%\nrename from x.c\nrename to y.c\n"
    assert series.touched_files(text) == {"x.c", "y.c"}


def test_read_series_when_there_is_none_then_it_is_empty(tmp_path: Path):
    assert series.read_series(tmp_path / "none") == []
    assert series.read_series(tmp_path) == []
    (tmp_path / "series").write_text("# nothing yet\n\n")
    assert series.read_series(tmp_path) == []


def test_read_series_when_it_names_patches_then_their_order_is_kept(tmp_path: Path):
    for name in ("0001-a.patch", "0002-b.patch", "not-named.patch"):
        (tmp_path / name).write_text("")
    (tmp_path / "series").write_text("0002-b.patch  # first\n\n0001-a.patch\n")
    names = [path.name for path in series.read_series(tmp_path)]
    assert names == ["0002-b.patch", "0001-a.patch"]


def test_read_series_when_a_patch_is_missing_then_it_says_which(tmp_path: Path):
    (tmp_path / "series").write_text("0001-a.patch\n")
    with pytest.raises(ProvisionError, match=r"names 0001-a\.patch, which is not beside it"):
        series.read_series(tmp_path)


def test_digest_of_series_when_content_or_order_changes_then_it_changes(tmp_path: Path):
    first, second, renamed = (tmp_path / name for name in ("a", "b", "c"))
    first.write_text("1")
    second.write_text("2")
    renamed.write_text("1")
    digests = [
        series.digest_of_series(patches)
        for patches in ([], [first], [first, second], [second, first])
    ]
    assert len(set(digests)) == 4
    assert series.digest_of_series([renamed]) == series.digest_of_series([first])


def test_mirror_when_a_users_tree_changes_then_the_tree_that_is_built_follows(
    trees: Trees, tmp_path: Path
):
    user = tmp_path / "user"
    subprocess.run(["cp", "-a", trees.pristine, user], check=True)
    (user / ".git").mkdir()
    (user / ".git/config").write_text("")

    def leave_out(path: Path) -> bool:
        return path.name == ".git"

    (user / "untouched.c").write_text("edited by its owner\n")
    (user / "old.c").unlink()
    (user / "added.c").write_text("added\n")
    series.mirror(user, trees.pristine, tree=trees.tree, leave_out=leave_out)
    assert trees.differing() == {"untouched.c", "old.c", "added.c"}
    assert trees.synchronize() == 3
    assert trees.differing() == set()
    assert not (trees.tree / ".git").exists()
    assert (trees.tree / "hw/spapr.c").stat().st_mtime == LONG_AGO
    assert sorted(path.name for path in user.iterdir()) == [".git", "added.c", "hw", "untouched.c"]
