# SPDX-License-Identifier: Apache-2.0
"""No core dumps: a process's memory holds the master key and guests' secrets."""

from __future__ import annotations

import ctypes
import os
import resource
from typing import Final

from hcalld.core.errors import HcalldError

_PR_SET_DUMPABLE: Final = 4
"""Linux ``prctl.h``."""


def forbid() -> None:
    """Let nobody have this process's memory, however it dies; programs it starts have no core.

    Two ways, for each has a gap: the limit does not hold for a ``core_pattern`` that pipes
    into a program (core(5)), and what is not dumpable becomes so again with ``execve``
    (prctl(2)). A process that is not dumpable cannot be traced by its own user either, and
    its files in /proc belong to root.

    Raises:
        HcalldError: the kernel refused.
    """
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    except OSError as error:
        raise HcalldError(
            f"core dumps cannot be switched off ({error.strerror}); run hcalld on Linux, or "
            "with --allow-core-dumps"
        ) from None
