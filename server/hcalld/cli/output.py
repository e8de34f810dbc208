# SPDX-License-Identifier: Apache-2.0
"""Standard output that cannot be written."""

from __future__ import annotations

import errno
import os
from typing import Final

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Only a write fails with these."""


def drop_output() -> None:
    """Forget what could not be written: else Python tries again as it ends, with a traceback."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
