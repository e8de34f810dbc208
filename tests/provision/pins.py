# SPDX-License-Identifier: Apache-2.0
"""What is fetched from Debian's archive, pinned by digest.

Debian removes a superseded version from its suites: within weeks from sid, with a point release
from trixie. What is kept in the cache stays usable; on a machine whose cache is empty the newest
version that is there is taken instead, and said. Then the pin here wants refreshing: the output
names the new version and digest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

STABLE: Final = "trixie"
UNSTABLE: Final = "sid"

GUEST_ARCHITECTURE: Final = "ppc64el"
"""That of nearly all guests."""


@dataclass(frozen=True, slots=True)
class Pin:
    """A file of Debian's archive.

    Attributes:
        package: Name of the source or binary package.
        suite: Suite that carries it.
        is_source: Whether it is the upstream tarball of a source package.
        version: Debian version.
        file: Name of the file in the archive.
        sha256: Its digest.
        family: Regular expression of the package names that may stand in for it, for packages
            that carry a version in their name.
        series: What the versions that may stand in for it start with.
        architecture: Debian's name of it, for a binary package.
    """

    package: str
    suite: str
    is_source: bool
    version: str
    file: str
    sha256: str
    family: str = ""
    series: str = ""
    architecture: str = GUEST_ARCHITECTURE


QEMU: Final = Pin(
    package="qemu",
    suite=STABLE,
    is_source=True,
    version="1:10.0.13+ds-0+deb13u1",
    file="qemu_10.0.13+ds.orig.tar.xz",
    sha256="6a0888e806c2ffc0c5f0733e974f9aea55491950d3c47c98669c8b236dde59ae",
    series="1:10.0.",
)
"""The base of ``qemu_patches/v10.0``."""

KERNEL_DEBIAN: Final = Pin(
    package="linux-image-6.12.107+deb13-powerpc64le",
    suite=STABLE,
    is_source=False,
    version="6.12.107-1",
    file="linux-image-6.12.107+deb13-powerpc64le_6.12.107-1_ppc64el.deb",
    sha256="b31bd6d3a2e7e557702e9481a8957a7ea7dbbc533cc1d588519fcd40ecbdff8b",
    family=r"linux-image-6\.12\.[0-9.]+\+deb13-powerpc64le",
    series="6.12.",
)
"""The stock kernel of Debian 13, the flavour with pages of 4 KiB."""

KERNEL_DEBIAN_SID: Final = Pin(
    package="linux-binary-7.2.13+deb14-powerpc64le",
    suite=UNSTABLE,
    is_source=False,
    version="7.2.13-1",
    file="linux-binary-7.2.13+deb14-powerpc64le_7.2.13-1_ppc64el.deb",
    sha256="74a8ea320b1435c6973b2ad8a4cb81402cf46341956508751ed9df53f3aa720e",
    family=r"linux-binary-[0-9.]+\+deb[0-9]+-powerpc64le",
)
"""Debian's newest stock kernel, which shows the keystore's configuration in sysfs."""

KERNEL_DEBIAN_64K: Final = Pin(
    package="linux-binary-7.2.13+deb14-powerpc64le-64k",
    suite=UNSTABLE,
    is_source=False,
    version="7.2.13-1",
    file="linux-binary-7.2.13+deb14-powerpc64le-64k_7.2.13-1_ppc64el.deb",
    sha256="772a52fc337b25e61030cb15a4f34892cb2082a60f77e835e8821b3b69d542d1",
    family=r"linux-binary-[0-9.]+\+deb[0-9]+-powerpc64le-64k",
)
"""The same with pages of 64 KiB: its buffers lie where those of 4 KiB pages never do."""

KERNEL_X86: Final = Pin(
    package="linux-image-6.12.107+deb13-cloud-amd64",
    suite=STABLE,
    is_source=False,
    version="6.12.107-1",
    file="linux-image-6.12.107+deb13-cloud-amd64_6.12.107-1_amd64.deb",
    sha256="04434ff520f860423eafe4203d986a35682ce73c2f71baa39e988ca0da93ac91",
    family=r"linux-image-6\.12\.[0-9.]+\+deb13-cloud-amd64",
    series="6.12.",
    architecture="amd64",
)
"""The stock kernel of Debian 13 for virtual machines on x86-64, the smallest that there is."""

KERNEL_SOURCE: Final = Pin(
    package="linux-source-7.2",
    suite=UNSTABLE,
    is_source=False,
    version="7.2.13-1",
    file="linux-source-7.2_7.2.13-1_all.deb",
    sha256="30a8c5fc63f9028a62e6d7b3f7f43bee67425dbce2a05fceba83f9b87c92083d",
    family=r"linux-source-[0-9]+\.[0-9]+",
)
"""What our own kernel is built from, new enough to have trusted keys wrapped by the keystore."""

BUSYBOX: Final = Pin(
    package="busybox-static",
    suite=STABLE,
    is_source=False,
    version="1:1.37.0-6+b9",
    file="busybox-static_1%3a1.37.0-6+b9_ppc64el.deb",
    sha256="421e663911fdd9e8e68f91eb0e41321d39e2e83e0c5eaad4e409a27925aebd41",
)
"""The userland of the initramfs."""

KEYUTILS: Final = Pin(
    package="keyutils",
    suite=STABLE,
    is_source=False,
    version="1.6.3-6",
    file="keyutils_1.6.3-6_ppc64el.deb",
    sha256="2e170b8a7d0fa751866e24af666694098c038a4e87b3a8cdca0b507a5854fc29",
)
"""keyctl, by which a guest's user has trusted keys and reads keyrings."""

LIBKEYUTILS: Final = Pin(
    package="libkeyutils1",
    suite=STABLE,
    is_source=False,
    version="1.6.3-6",
    file="libkeyutils1_1.6.3-6_ppc64el.deb",
    sha256="db8896105825180bde7f6ac352b8b770582a6b5b9f91ffcdd97bc6b3876f366a",
)
"""What keyctl is linked with."""

KEXEC_TOOLS: Final = Pin(
    package="kexec-tools",
    suite=STABLE,
    is_source=False,
    version="1:2.0.29-2",
    file="kexec-tools_1%3a2.0.29-2_ppc64el.deb",
    sha256="08a73beb9ac2ab95d24ea124f8f5e3186225666347fc3770ad9920502da0e74d",
)
"""kexec, by either of the kernel's two system calls."""

LIBC: Final = Pin(
    package="libc6",
    suite=STABLE,
    is_source=False,
    version="2.41-12+deb13u4",
    file="libc6_2.41-12+deb13u4_ppc64el.deb",
    sha256="917cbd81a9038133bd58bbfe0991db889a78eb446be2080015b7804942b45ec2",
)
"""What both are linked with."""
