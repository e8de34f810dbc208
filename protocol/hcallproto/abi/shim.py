# SPDX-License-Identifier: Apache-2.0
"""Calls that QEMU itself makes for a secure VM (docs/wire.rst, "States of pages").

Not among ``CALLS``: no guest can make one. Their codes are the ultravisor's, and only traces
and captures show them.
"""

from __future__ import annotations

from typing import Final

from hcallproto.abi.returns import U
from hcallproto.abi.spec import CodeWhen, Family, Hcall, Level, opaque
from hcallproto.wire.schema import ShimCall

_WIRE = "docs/wire.rst"

PAGE_IN = Hcall(
    name="PAGE_IN",
    number=ShimCall.PAGE_IN,
    level=Level.SC2,
    doc="A vCPU has come upon a page that is paged out.",
    source=_WIRE,
    args=(opaque("gpa", 4, "where"),),
    codes=(
        CodeWhen(U.SUCCESS, "it is there"),
        CodeWhen(U.P3, "it cannot be brought in: the guest is taken down"),
        CodeWhen(U.RETRY, "the VM is being made secure, the page is wanted by others, or new"),
        CodeWhen(U.BUSY, "its memory is new, or was gone, and more has to be done"),
        CodeWhen(U.PARAMETER, "its memory is new, and cannot be the VM's: it is taken down"),
    ),
)

ATTEND = Hcall(
    name="ATTEND",
    number=ShimCall.ATTEND,
    level=Level.SC2,
    doc="The daemon has asked for a call in whose name it can do something.",
    source=_WIRE,
    codes=(
        CodeWhen(U.SUCCESS, "nothing is left to do"),
        CodeWhen(U.BUSY, "there is more to do"),
        CodeWhen(U.PARAMETER, "what was to be done cannot be"),
        CodeWhen(U.P3, "a page that was to go out is no RAM any more"),
        CodeWhen(U.RETRY, "pages are wanted back all the time"),
    ),
)

FAMILY = Family(name="uv", title="QEMU's own calls", source=_WIRE, calls=(PAGE_IN, ATTEND))

BY_NUMBER: Final = {hcall.number: hcall for hcall in FAMILY.calls}
"""By r3 of a call of LEVEL_SHIM."""
