# SPDX-License-Identifier: Apache-2.0
"""``hcalld ctl``: partitions as an HMC has them, and the guests of a running daemon.

``show``, ``set`` and ``check`` work on a partition's store, while no daemon has it. The others
ask a daemon, over its control socket (``hcalld.control``).
"""

from __future__ import annotations

import click

from hcalld.cli.lazy import LazyGroup

_COMMANDS = {
    "show": "hcalld.cli.ctl.attributes:show",
    "set": "hcalld.cli.ctl.attributes:set_attributes",
    "check": "hcalld.cli.ctl.attributes:check",
    "guests": "hcalld.cli.ctl.guests",
    "page-out": "hcalld.cli.ctl.page_out",
    "capture": "hcalld.cli.ctl.capture",
}


@click.group(
    name="ctl",
    cls=LazyGroup,
    modules=_COMMANDS,
    short_help="Show and set partitions' attributes; ask a daemon.",
)
def command() -> None:
    """Show and set partitions' attributes while their guests are off, or ask a daemon."""
