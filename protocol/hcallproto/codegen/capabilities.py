# SPDX-License-Identifier: Apache-2.0
"""What ``hcalld --print-capabilities`` prints, and its checked-in copy.

The form is that of QEMU's vhost-user back ends (docs/interop/vhost-user.rst, "Backend
program conventions"): an object with ``type`` and ``features``. Strings are only ever
added: a management program may test for any of them.
"""

from __future__ import annotations

import json
from typing import Any

from hcallproto.abi.registry import CALLS, FAMILIES
from hcallproto.abi.spec import Level
from hcallproto.codegen.errors import CodegenError
from hcallproto.wire.schema import VERSION, Feature

_LEVEL_FEATURES = {
    Level.SC2: Feature.SC2 | Feature.PAGE_STATES,
    Level.COMMAND: Feature.COMMANDS,
}
"""Features that are of use only when a call of the level is served."""


def capabilities() -> dict[str, Any]:
    """The capabilities as a JSON-able object."""
    served_levels = {call.level for call in CALLS if not call.decode_only}
    idle = [
        bit for level, bits in _LEVEL_FEATURES.items() if level not in served_levels for bit in bits
    ]
    return {
        "type": "spapr-hcall",
        "protocol-versions": [VERSION],
        "features": [_spelling(bit) for bit in Feature if bit not in idle],
        "families": {
            family.name: {
                "hypertas": list(family.hypertas),
                "served": [call.name for call in family.calls if not call.decode_only],
                "decode-only": [call.name for call in family.calls if call.decode_only],
            }
            for family in FAMILIES
        },
    }


def document(current: str | None) -> str:
    """``docs/capabilities.json``.

    Raises:
        CodegenError: a string that the present file has would vanish.
    """
    new = capabilities()
    if current is not None:
        gone = sorted(_strings(json.loads(current)) - _strings(new))
        if gone:
            raise CodegenError(
                f"docs/capabilities.json: {', '.join(gone)} would vanish, but capabilities are "
                "only ever added; declare them again"
            )
    return json.dumps(new, indent=2) + "\n"


def _spelling(bit: Feature) -> str:
    assert bit.name is not None
    return bit.name.lower().replace("_", "-")


def _strings(value: Any) -> set[str]:
    """All strings and keys, without where they stand: a call may become served."""
    if isinstance(value, dict):
        return set(value).union(*map(_strings, value.values()))
    if isinstance(value, list):
        return set().union(*map(_strings, value))
    return {value} if isinstance(value, str) else set()
