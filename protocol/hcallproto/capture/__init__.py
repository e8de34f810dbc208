# SPDX-License-Identifier: Apache-2.0
"""Captures: what passed between a guest and the daemon, kept in a pcapng file.

``pcapng`` is the container, ``records`` what we put into it; docs/capture.md says both.
"""

from pathlib import Path
from typing import Final

DISSECTOR: Final = Path(__file__).with_name("hcalld.lua")
"""Reads captures in Wireshark; made by ``hcallproto.codegen``."""
