# SPDX-License-Identifier: Apache-2.0
"""Runs the acts that are named, or all: ``python -m tests.demo [keystore] [secure] [sev]``."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.demo import keystore, secure, sev
from tests.demo.stage import DemoError, Stage, terminal

ACTS: Final = {"keystore": keystore.act, "secure": secure.act, "sev": sev.act}


def main(names: list[str]) -> int:
    """Runs acts; gives the exit status."""
    unknown = [name for name in names if name not in ACTS]
    if unknown:
        print(f"demo: no act {' '.join(unknown)}; expected {', '.join(ACTS)}", file=sys.stderr)
        return 2
    for name in names or ACTS:
        started = time.monotonic()
        folder = Path(tempfile.mkdtemp(prefix="hcalld-demo-"))
        try:
            ACTS[name](Stage(folder))
        except (DemoError, AssertionError) as error:
            # What the tests' machines and daemons say is an assertion.
            print(f"demo: {error}\nLogs are kept in {folder}", file=sys.stderr)
            return 1
        except BaseException:
            shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)
        terminal.print(f"\nDone in {time.monotonic() - started:.0f} s.", style="dim")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
