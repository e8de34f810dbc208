# SPDX-License-Identifier: Apache-2.0
"""``hcalld dissector``: where the file is that Wireshark reads captures with."""

from __future__ import annotations

import click


@click.command(name="dissector", short_help="Show where Wireshark's Lua file is.")
def command() -> None:
    """Print the path of the Lua file with which Wireshark and tshark read captures.

    tshark -X lua_script:$(hcalld dissector) -r capture.pcapng
    """
    from hcallproto.capture import DISSECTOR

    click.echo(DISSECTOR)
