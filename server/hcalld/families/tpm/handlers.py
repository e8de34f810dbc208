# SPDX-License-Identifier: Apache-2.0
"""H_TPM_COMM: a command of the guest to its partition's TPM, as it is.

Source: QEMU 10.0 ``docs/specs/ppc-spapr-uv-hcalls.rst``. What an error of the TPM says is
between the guest and its TPM: H_SUCCESS, with the response that holds it.
"""

from __future__ import annotations

from typing import Final

from hcalld.core.call import Call
from hcalld.core.effects import ReadBuffer, TpmClose, TpmTransmit
from hcalld.core.errors import BackendUnavailable, HcallError
from hcalld.core.handlers import HandlerSet
from hcalld.core.outcome import Outcome
from hcalld.domain.tpm import TpmModel
from hcallproto.abi.families import tpm
from hcallproto.abi.returns import H

_READ_REQUEST: Final = ReadBuffer("request")
_CLOSE: Final = TpmClose()
_CLOSED: Final = Outcome(H.SUCCESS)

HANDLERS: HandlerSet[TpmModel] = HandlerSet(tpm.FAMILY)


@HANDLERS.handles(tpm.TPM_COMM)
async def h_tpm_comm(call: Call, model: TpmModel) -> Outcome:
    """Pass a command on and its response back, or close the session.

    A command is sent once: if the connection broke while the TPM may have had it, the
    guest is told H_RESOURCE, and the session is closed.
    """
    try:
        if call["operation"] == tpm.Operation.CLOSE_SESSION:
            await _CLOSE
            return _CLOSED
        if call.is_resent:
            await _CLOSE
            raise HcallError(
                H.RESOURCE, "sent again: the TPM may have had the command, the session is closed"
            )
        response = await TpmTransmit(await _READ_REQUEST)
    except BackendUnavailable as error:
        raise HcallError(H.RESOURCE, str(error)) from None
    return Outcome(H.SUCCESS, ((4, len(response)),), ((call["response"], response),))
