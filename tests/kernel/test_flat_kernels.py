# SPDX-License-Identifier: Apache-2.0
"""The flat images of real kernels, which ESM blobs have digests of, are objcopy's."""

from __future__ import annotations

import pathlib
import subprocess
from collections.abc import Callable

import pytest

from hcalld.domain.esm.flat_kernel import flat_kernel

KERNELS = (
    *("kernel-debian", "kernel-debian-sid", "kernel-debian-64k"),
    *("kernel-own", "kernel-own-64k"),
)


@pytest.mark.kernel
@pytest.mark.parametrize("kernel", KERNELS)
def test_image_when_objcopy_makes_it_then_the_same_bytes(
    require: Callable[[str], pathlib.Path], tmp_path: pathlib.Path, kernel: str
):
    vmlinux = require(kernel)
    flat = tmp_path / "flat"
    program = require("powerpc64le-linux-gnu-objcopy")
    subprocess.run([program, "-O", "binary", "-S", vmlinux, flat], check=True)
    assert flat_kernel(vmlinux.read_bytes()) == flat.read_bytes()
