# SPDX-License-Identifier: Apache-2.0
"""What the daemon loads before it listens: nothing that most daemons never need."""

from __future__ import annotations

import subprocess
import sys

SELDOM_NEEDED = {
    "asyncio": "by nothing: trio runs the daemon",
    "cryptography.x509": "by signed updates, and by who makes them",
    "h11": "by metrics",
    "importlib.metadata": "for a version",
    "jinja2": "by hcalld report",
    "prometheus_client": "by metrics",
    "rich": "by commands that draw on a terminal",
    "hcalld.guest": "by commands that run guests",
    "hcalld.guestowner": "by the other party of a launch",
    "hcalld.replay": "by hcalld replay",
    "hcalld.report": "by hcalld report",
    "hcalld.testing": "by tests",
}
"""Module to who needs it."""


def test_serve_when_it_starts_then_it_loads_nothing_that_it_seldom_needs():
    script = "import sys, hcalld.cli.serve, hcalld.app, hcalld.observe.log; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = SELDOM_NEEDED.keys() & set(done.stdout.split())
    assert not {name: SELDOM_NEEDED[name] for name in loaded}
