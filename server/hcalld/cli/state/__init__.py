# SPDX-License-Identifier: Apache-2.0
"""``hcalld state``: look into partitions' stores, seed them, move them, keep their key.

Works on the files, with the same ownership as the daemon: a partition whose guest is
running is refused. Secrets are shown only with ``--reveal``.
"""

from __future__ import annotations

from typing import Final

from hcalld.cli.lazy import LazyGroup

_COMMANDS: Final = {
    "list": "hcalld.cli.state.listing:list_partitions",
    "show": "hcalld.cli.state.objects:show",
    "put": "hcalld.cli.state.objects:put",
    "remove": "hcalld.cli.state.objects:remove",
    "verify": "hcalld.cli.state.listing:verify",
    "export": "hcalld.cli.state.transfer:export_partition",
    "import": "hcalld.cli.state.transfer:import_partition",
    "backup": "hcalld.cli.state.backup:backup",
    "restore": "hcalld.cli.state.backup:restore",
    "rekey": "hcalld.cli.state.rekey:rekey",
}

command = LazyGroup(
    name="state",
    short_help="Look into partitions' stores, seed and move them.",
    help="Look into partitions' stores, seed and move them, while their guests are off.",
    modules=_COMMANDS,
)
