# SPDX-License-Identifier: Apache-2.0
"""Whether the patch series applies and passes QEMU's checkpatch.pl, asked once for each series.

Perl reads every patch, and the whole source becomes a repository for it: half a minute of
processor. What passed is an entry of the cache, made from all that the answer depends on.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from . import qemu, series
from .cache import Cache, sha256_of
from .errors import ProvisionError


def check(
    cache: Cache, environ: Mapping[str, str], script: Path = qemu.PATCHES.parent / "refresh.sh"
) -> int:
    """Checks the series, unless the very same has passed.

    Args:
        cache: Where to find and keep that it has.
        environ: May name another source by ``QEMU_SRC``.
        script: What checks it.

    Returns:
        How many patches have passed.

    Raises:
        ProvisionError: It does not pass; the script has said why on standard error.
    """
    patches = series.read_series(qemu.PATCHES)
    source = qemu.source(cache, environ)
    inputs = {
        "script": sha256_of(script),
        "series": series.digest_of_series(patches),
        "source": qemu.find_base(cache, environ).digest,
    }

    def make(_directory: Path) -> None:
        done = subprocess.run([script, "check", source], stdout=sys.stderr, check=False)
        if done.returncode:
            raise ProvisionError(
                f"{script.name} finds fault with {qemu.PATCHES}, see above; mend the patch by "
                f"'{script.name} open' and '{script.name} write'"
            )

    cache.entry("series-checked", inputs, make)
    return len(patches)
