# SPDX-License-Identifier: Apache-2.0
"""What the kernel's selftests want of a userland beside busybox, from Debian's packages.

tpm2's are written in Python, some of powerpc's and kexec's in bash; kselftest's runner wants
coreutils' timeout, whose ``--foreground`` busybox does not know, and kexec's getfattr.
"""

from __future__ import annotations

from typing import Final

from . import pins
from .tpm2_tools import debian

PYTHON_VERSION: Final = "3.13.5-2+deb13u5"

PYTHON: Final = debian(
    "python3.13-minimal",
    PYTHON_VERSION,
    "97f105bf55261826397e8da3add7414d04a3fd86d3cf9981cea677f85a21d461",
)

MODULES: Final = (
    debian(
        "libpython3.13-minimal",
        PYTHON_VERSION,
        "d57052619c2c747077ab5357fd78bed92f039d26ce88548ce3a84b7f8d91c02d",
    ),
    debian(
        "libpython3.13-stdlib",
        PYTHON_VERSION,
        "c14d7ef8414ac495856f7ae6ffe0fc61847ff6b9bb8f00106b247beaa3e88ff5",
    ),
)
"""Packages of Python's standard library, taken whole but for :data:`LEFT_OUT`."""

MODULES_PLACE: Final = "usr/lib/python3.13"

LEFT_OUT: Final = ("ensurepip", "idlelib", "lib2to3", "pydoc_data", "sqlite3", "tkinter", "turtle")
"""Parts of it that no test of the kernel's uses."""

_LIB: Final = "usr/lib/powerpc64le-linux-gnu"

FILES: Final[dict[pins.Pin, dict[str, str]]] = {
    PYTHON: {"/bin/python3": "usr/bin/python3.13"},
    debian(
        "libexpat1",
        "2.8.3-1~deb13u1",
        "e2cdde8f4f2c0c871e09c5868a8a5d3869070f8fc8432912c93af3757edb593e",
    ): {"/lib/libexpat.so.1": f"{_LIB}/libexpat.so.1"},
    debian(
        "zlib1g",
        "1:1.3.dfsg+really1.3.1-1+b1",
        "f526e830310db11983cf51cfde95a74bc449a7bdc44b6ce68827d78802f1b4ae",
    ): {"/lib/libz.so.1": f"{_LIB}/libz.so.1"},
    debian(
        "bash",
        "5.2.37-2+b10",
        "0640e86a3f601ed6483f023b5c115b6bd7f2c5d6a36869eb475c3d6d3068c9f5",
    ): {"/bin/bash": "usr/bin/bash"},
    debian(
        "libtinfo6",
        "6.5+20250216-2",
        "f5f047f7bea847099905f8bddd3a495c4e271f1a3c3fe2d0e86a0b3b05e505a1",
    ): {"/lib/libtinfo.so.6": f"{_LIB}/libtinfo.so.6"},
    debian(
        "coreutils", "9.7-3", "e957dbba78571202de4302b94b977157d461c772f1710be8502e2ef920d7c124"
    ): {"/bin/tail": "usr/bin/tail", "/bin/timeout": "usr/bin/timeout"},
    debian(
        "attr", "1:2.5.2-3", "ac86eac00c08c49183deea876b404586d5ee86f7e0c8c939a7f2c3c3389861af"
    ): {"/bin/getfattr": "usr/bin/getfattr"},
    debian(
        "libattr1", "1:2.5.2-3", "f5f329a89172576acd9f326f2aa2c233ff6b38503b9c17476bdf5be07be3d449"
    ): {"/lib/libattr.so.1": f"{_LIB}/libattr.so.1"},
    # The C library loads it by name when a thread ends itself.
    debian(
        "libgcc-s1",
        "14.2.0-19",
        "9fef01c88bc508ff05ff9ce5d0cc05de36798591e060b07749c3835616ed5696",
    ): {"/lib/libgcc_s.so.1": f"{_LIB}/libgcc_s.so.1"},
    pins.LIBC: {"/lib/libm.so.6": f"{_LIB}/libm.so.6"},
}
"""Where the archive has what of which package. The tools' archive has the C library."""
