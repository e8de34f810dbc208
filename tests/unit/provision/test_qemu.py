# SPDX-License-Identifier: Apache-2.0
"""QEMU: what is built from what, without building it."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from tests.provision import qemu
from tests.provision.cache import Cache
from tests.provision.errors import ProvisionError

NEW_QTEST = """\
--- /dev/null
+++ b/tests/qtest/spapr-hcall-proxy-test.c
@@ -0,0 +1 @@
+int main;
--- /dev/null
+++ b/hw/ppc/spapr_hcall_proxy.c
@@ -0,0 +1 @@
+int device;
--- a/tests/qtest/rtas-test.c
+++ b/tests/qtest/rtas-test.c
@@ -1 +1 @@
-a
+b
"""


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A user's tree: a source, a build tree, a repository."""
    tree = tmp_path / "user"
    for name in ("configure", "VERSION", "hw/a.c", "build/build.ninja", "build/a.o", ".git/config"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    return tree


@pytest.fixture
def patch(tmp_path: Path) -> Path:
    path = tmp_path / "0001.patch"
    path.write_text(NEW_QTEST)
    return path


def test_find_base_when_a_tree_is_named_then_it_is_copied_without_what_no_build_needs(
    cache: Cache, tree: Path
):
    base = qemu.find_base(cache, {"QEMU_SRC": str(tree)})
    work = qemu.work_of(cache, base, is_asan=False)
    qemu.lay_pristine(cache, base, work)
    names = {path.relative_to(work.pristine).as_posix() for path in work.pristine.rglob("*.*")}
    assert names == {"hw/a.c"}
    assert (work.pristine / "configure").read_text() == "configure"
    first = qemu.digest_of_tree(work.pristine)
    (tree / "hw/a.c").write_text("edited")
    qemu.lay_pristine(cache, base, work)
    assert qemu.digest_of_tree(work.pristine) != first
    assert base == qemu.find_base(cache, {"QEMU_SRC": str(tree)})


def test_find_base_when_a_tarball_is_named_then_it_is_unpacked_without_its_top_folder(
    cache: Cache, tree: Path, tmp_path: Path
):
    shutil.rmtree(tree / ".git")
    with tarfile.open(tmp_path / "qemu.tar.gz", "w:gz") as tar:
        tar.add(tree, "qemu-10.0.99")
    base = qemu.find_base(cache, {"QEMU_SRC": str(tmp_path / "qemu.tar.gz")})
    assert not base.is_exact
    work = qemu.work_of(cache, base, is_asan=False)
    qemu.lay_pristine(cache, base, work)
    assert (work.pristine / "hw/a.c").read_text() == "hw/a.c"
    assert (work.tree / "hw/a.c").read_text() == "hw/a.c"


def test_find_base_when_tarball_is_of_something_else_then_it_is_refused(
    cache: Cache, tmp_path: Path
):
    (tmp_path / "README").write_text("")
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        tar.add(tmp_path / "README", "other/README")
    base = qemu.find_base(cache, {"QEMU_SRC": str(tmp_path / "other.tar")})
    work = qemu.work_of(cache, base, is_asan=False)
    with pytest.raises(ProvisionError, match="holds no QEMU source"):
        qemu.lay_pristine(cache, base, work)
    assert not work.pristine.exists()


@pytest.mark.parametrize("name", ["nothing", "folder"])
def test_find_base_when_it_is_no_source_then_it_is_refused(cache: Cache, tmp_path: Path, name: str):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ProvisionError, match="expected a QEMU source tree"):
        qemu.find_base(cache, {"QEMU_SRC": str(tmp_path / name)})


def test_entry_inputs_when_anything_changes_then_the_key_does(patch: Path):
    inputs = [
        qemu.entry_inputs("base", [], is_asan=False),
        qemu.entry_inputs("other", [], is_asan=False),
        qemu.entry_inputs("base", [patch], is_asan=False),
        qemu.entry_inputs("base", [], is_asan=True),
    ]
    assert all(one != other for index, one in enumerate(inputs) for other in inputs[:index])


def test_work_of_when_the_series_changes_then_the_build_tree_stays_but_asan_has_its_own(
    cache: Cache, tree: Path
):
    base = qemu.find_base(cache, {"QEMU_SRC": str(tree)})
    plain = qemu.work_of(cache, base, is_asan=False)
    assert plain == qemu.work_of(cache, base, is_asan=False)
    assert plain != qemu.work_of(cache, base, is_asan=True)


def test_qtest_names_when_the_series_adds_one_then_changed_ones_are_left_out(patch: Path):
    assert qemu.qtest_names([patch]) == ["spapr-hcall-proxy-test"]
    assert qemu.qtest_names([]) == []


def test_not_yet_there_when_the_source_has_all_new_files_then_nothing_is_applied(
    patch: Path, tmp_path: Path
):
    pristine = tmp_path / "pristine"
    assert qemu.not_yet_there([patch], pristine) == [patch]
    for name in ("tests/qtest/spapr-hcall-proxy-test.c", "hw/ppc/spapr_hcall_proxy.c"):
        assert qemu.not_yet_there([patch], pristine) == [patch]
        (pristine / name).parent.mkdir(parents=True, exist_ok=True)
        (pristine / name).write_text("")
    assert qemu.not_yet_there([patch], pristine) == []


def test_source_when_made_then_it_is_one_commit_with_the_same_name_everywhere(
    tree: Path, tmp_path: Path
):
    shutil.rmtree(tree / ".git")
    tarball = tmp_path / "qemu.tar"
    with tarfile.open(tarball, "w") as tar:
        tar.add(tree, "qemu")
    commits = []
    for name in ("one", "two"):
        source = qemu.source(Cache(tmp_path / name), {"QEMU_SRC": str(tarball)})
        log = ["git", "-C", str(source), "log", "--format=%H"]
        done = subprocess.run(log, capture_output=True, text=True, check=True)
        commits += done.stdout.split()
        status = ["git", "-C", str(source), "status", "--porcelain", "--ignored"]
        assert not subprocess.run(status, capture_output=True, check=True).stdout
    assert len(commits) == 2
    assert commits[0] == commits[1]


def test_source_when_a_tree_is_named_then_it_is_refused(cache: Cache, tree: Path):
    with pytest.raises(ProvisionError, match="expected none or a tarball"):
        qemu.source(cache, {"QEMU_SRC": str(tree)})
