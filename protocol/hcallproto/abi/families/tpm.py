# SPDX-License-Identifier: Apache-2.0
"""H_TPM_COMM: a request to the TPM of the machine, and its answer.

Source: QEMU 10.0 ``docs/specs/ppc-spapr-uv-hcalls.rst`` and
``hw/ppc/spapr_tpm_proxy.c``. An error of the TPM itself is not an error of the call:
H_SUCCESS, with the TPM's response code in the response.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Final

from hcallproto.abi.registers import U32_MAX
from hcallproto.abi.returns import H
from hcallproto.abi.spec import (
    ArgKind,
    Buffer,
    BufferShape,
    CodeWhen,
    Condition,
    Direction,
    Family,
    Hcall,
    Level,
    Output,
    address,
    size,
    value,
)

_SPEC = "QEMU 10.0 ppc-spapr-uv-hcalls.rst"


class Operation(enum.IntEnum):
    """What is asked of the TPM (``TPM_COMM_OP_*``)."""

    EXECUTE = 1
    CLOSE_SESSION = 2


TPM_BUFFER_SIZE: Final = 4096
"""Greatest request and response; a response buffer must hold this much."""
TPM_HEADER_SIZE: Final = 10
"""Tag, size and code: no TPM command is shorter (TPM 2.0 part 1, 18.9)."""

_ONLY_EXECUTE = Condition("operation", Operation.EXECUTE)

TPM_COMM = Hcall(
    name="H_TPM_COMM",
    number=0xEF10,
    level=Level.SC1,
    doc="Send a request to the TPM and receive its response, or close the session.",
    source=_SPEC,
    args=(
        value("operation", 4, "what to do", names=Operation),
        dataclasses.replace(
            address("request", 5, "TPM command; may be the response buffer too"),
            only_when=_ONLY_EXECUTE,
        ),
        dataclasses.replace(
            size(
                "request_size",
                6,
                "bytes of the command",
                minimum=TPM_HEADER_SIZE,
                maximum=TPM_BUFFER_SIZE,
            ),
            only_when=_ONLY_EXECUTE,
        ),
        dataclasses.replace(
            address("response", 7, "where the response is written"), only_when=_ONLY_EXECUTE
        ),
        dataclasses.replace(
            size("response_size", 8, "bytes of the buffer", minimum=TPM_BUFFER_SIZE),
            only_when=_ONLY_EXECUTE,
        ),
    ),
    buffers=(
        Buffer(
            address="request",
            direction=Direction.IN,
            shape=BufferShape.SIZED,
            max_size=TPM_BUFFER_SIZE,
            size="request_size",
            secret=True,
            open_size=TPM_HEADER_SIZE,
        ),
        Buffer(
            address="response",
            direction=Direction.OUT,
            shape=BufferShape.SIZED,
            max_size=U32_MAX,
            size="response_size",
            secret=True,
            open_size=TPM_HEADER_SIZE,
            fresh=True,
        ),
    ),
    outputs=(
        Output(
            name="response_size",
            register=4,
            kind=ArgKind.SIZE,
            doc="bytes of the response; EXECUTE only",
        ),
    ),
    codes=(
        CodeWhen(H.SUCCESS, "the TPM answered (its own error included), or the session is closed"),
        CodeWhen(H.FUNCTION, "the partition has no TPM"),
        CodeWhen(H.PARAMETER, "unknown operation"),
        CodeWhen(H.P2, "request buffer not in RAM"),
        CodeWhen(H.P3, f"request size not between {TPM_HEADER_SIZE} and {TPM_BUFFER_SIZE}"),
        CodeWhen(H.P4, "response buffer not in RAM"),
        CodeWhen(H.P5, f"response size below {TPM_BUFFER_SIZE}"),
        CodeWhen(H.RESOURCE, "the TPM cannot be reached; the session is closed"),
    ),
    # Linux gives an unknown TPM command this long (TPM2_DURATION_DEFAULT in tpm.h);
    # making a key can take minutes.
    deadline_ms=120_000,
    timeout_code=H.RESOURCE,
    lost_code=H.RESOURCE,
    effect_may_remain=True,
)

FAMILY = Family(
    name="tpm",
    title="TPM communication",
    source=_SPEC,
    calls=(TPM_COMM,),
    constants=(
        *((f"TPM_COMM_OP_{op.name}", op) for op in Operation),
        ("TPM_COMM_BUFFER_SIZE", TPM_BUFFER_SIZE),
    ),
)
