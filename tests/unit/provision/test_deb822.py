# SPDX-License-Identifier: Apache-2.0
"""Reading what apt-cache prints."""

from __future__ import annotations

import pytest
from tests.provision.deb822 import IndexedFile, binary_files, parse, source_tarballs
from tests.provision.errors import ProvisionError

SHOW = """\
Package: busybox-static
Source: busybox (1:1.37.0-6)
Version: 1:1.37.0-6+b9
Description: Standalone rescue shell
 with a continuation: that has a colon
 .
Filename: pool/main/b/busybox/busybox-static_1.37.0-6+b9_ppc64el.deb
SHA256: aaaa

Package: busybox-static
Version: 1:1.36.0-1
Filename: pool/main/b/busybox/busybox-static_1.36.0-1_ppc64el.deb
SHA256: bbbb
"""

SHOWSRC = """\
Package: qemu
Binary: qemu-system, qemu-system-data
Version: 1:10.0.13+ds-0+deb13u1
Files:
 0123 7000 qemu_10.0.13+ds-0+deb13u1.dsc
 4567 40010016 qemu_10.0.13+ds.orig.tar.xz
Checksums-Sha256:
 cccc 7000 qemu_10.0.13+ds-0+deb13u1.dsc
 dddd 40010016 qemu_10.0.13+ds.orig.tar.xz
 eeee 800 qemu_10.0.13+ds.orig.tar.xz.asc
 ffff 90000 qemu_10.0.13+ds-0+deb13u1.debian.tar.xz

Package: other
Version: 1
Checksums-Sha256:
 9999 1 other_1.orig.tar.gz
"""


def test_parse_when_stanzas_are_given_then_fields_and_continuations_are_kept():
    first, second = parse(SHOW)
    assert first["Version"] == "1:1.37.0-6+b9"
    expected = "Standalone rescue shell\nwith a continuation: that has a colon\n."
    assert first["Description"] == expected
    assert second["SHA256"] == "bbbb"


@pytest.mark.parametrize("text", ["", "\n", "\n\n \n"])
def test_parse_when_there_is_nothing_then_there_are_no_stanzas(text: str):
    assert parse(text) == []


@pytest.mark.parametrize("text", [" continued nothing\n", "no field here\n", "A: 1\n\n more\n"])
def test_parse_when_line_is_neither_then_it_is_refused(text: str):
    with pytest.raises(ProvisionError, match="apt printed the line"):
        parse(text)


def test_binary_files_when_shown_then_names_versions_and_digests_are_given():
    assert binary_files(SHOW) == [
        IndexedFile("busybox-static_1.37.0-6+b9_ppc64el.deb", "1:1.37.0-6+b9", "aaaa"),
        IndexedFile("busybox-static_1.36.0-1_ppc64el.deb", "1:1.36.0-1", "bbbb"),
    ]


def test_binary_files_when_package_is_only_known_from_dpkg_then_it_is_left_out():
    assert binary_files("Package: a\nVersion: 1\n") == []


def test_source_tarballs_when_shown_then_only_the_upstream_tarball_of_the_source_is_given():
    assert source_tarballs(SHOWSRC, "qemu") == [
        IndexedFile("qemu_10.0.13+ds.orig.tar.xz", "1:10.0.13+ds-0+deb13u1", "dddd")
    ]


def test_source_tarballs_when_source_has_none_then_none_are_given():
    assert source_tarballs("Package: qemu\nVersion: 1\n", "qemu") == []
