# SPDX-License-Identifier: Apache-2.0
"""Can this machine run x86 guests under KVM? The tests of tier kvm are real QEMUs that do."""

from __future__ import annotations

import fcntl
import functools
import os
import platform
from typing import Final

DEVICE: Final = "/dev/kvm"

# Linux include/uapi/linux/kvm.h.
KVM_GET_API_VERSION: Final = 0xAE00
KVM_CREATE_VM: Final = 0xAE01
API_VERSION: Final = 12


@functools.cache
def why_not(device: str = DEVICE) -> str | None:
    """Says why no x86 guest can run under KVM here; None if one can.

    The device is used for what QEMU uses it for: a container may show it and not allow it.
    """
    reason = _lack(device)
    return None if reason is None else f"no usable {device} on this machine ({reason})"


def _lack(device: str) -> str | None:
    if platform.machine() != "x86_64":
        return f"its processor is {platform.machine()}, and x86_64 is needed"
    try:
        file = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return "there is none"
    except OSError as error:
        return f"it cannot be opened: {error.strerror}"
    try:
        version = fcntl.ioctl(file, KVM_GET_API_VERSION, 0)
        if version != API_VERSION:
            return f"its API has version {version}, and {API_VERSION} is needed"
        os.close(fcntl.ioctl(file, KVM_CREATE_VM, 0))
    except OSError as error:
        return f"it makes no virtual machine: {error.strerror}"
    finally:
        os.close(file)
    return None
