# SPDX-License-Identifier: Apache-2.0
"""Facts of the machine that builds depend on."""

from __future__ import annotations

import os
import platform


def processors() -> int:
    """Gives the number of processors that this process may use."""
    return len(os.sched_getaffinity(0))


def platform_tag() -> str:
    """Names the distribution release and the processor, whose libraries a binary is bound to."""
    release = platform.freedesktop_os_release()
    return f"{release.get('ID', 'unknown')}-{release.get('VERSION_ID', '')}-{platform.machine()}"
