# SPDX-License-Identifier: Apache-2.0
"""The list of generated files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from hcallproto.abi.registry import FAMILIES
from hcallproto.codegen import capabilities, dissector, family_tables, wire_tables
from hcallproto.codegen.c_header import c_header
from hcallproto.codegen.rst import fill
from hcallproto.codegen.sev_header import sev_header


@dataclasses.dataclass(frozen=True, slots=True)
class Output:
    """A generated file, or one with generated blocks."""

    path: str
    """Relative to the top of the source tree."""
    generate: Callable[[str | None], str]
    """From the present text, None if there is no file, to the text that must be there."""


OUTPUTS: tuple[Output, ...] = (
    Output("guest_stub/include/hcall_numbers.h", lambda _: c_header()),
    Output("ioctl_shim/include/sev_table.h", lambda _: sev_header()),
    Output("docs/capabilities.json", capabilities.document),
    Output("protocol/hcallproto/capture/hcalld.lua", dissector.lua),
    Output("docs/wire.rst", lambda text: fill("docs/wire.rst", text, wire_tables.BLOCKS)),
    Output(
        "docs/hcalls/index.rst",
        lambda text: fill("docs/hcalls/index.rst", text, family_tables.INDEX_BLOCKS),
    ),
    *(
        Output(
            f"docs/hcalls/{family.name}.rst",
            lambda text, family=family: fill(  # type: ignore[misc]
                f"docs/hcalls/{family.name}.rst", text, family_tables.blocks(family)
            ),
        )
        for family in FAMILIES
    ),
)
