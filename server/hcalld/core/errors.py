# SPDX-License-Identifier: Apache-2.0
"""How the daemon and its handlers refuse.

Tree::

    Exception
     ├─ HcalldError                 something a user can act on
     │   ├─ ConfigError             a profile, option or file says something impossible
     │   ├─ StoreError              a partition's state cannot be read or written
     │   └─ BackendUnavailable      another program (a TPM) does not answer
     └─ HcallError(code, why)       a handler refuses a call
"""

from __future__ import annotations

from hcallproto.abi.returns import Code, code_name


class HcalldError(Exception):
    """Base of errors that tell a user what was wrong, what was expected, what to do."""


class ConfigError(HcalldError):
    """A profile, option or file says something impossible."""


class StoreError(HcalldError):
    """A partition's state cannot be read or written."""


class BackendUnavailable(HcalldError):
    """Another program that a call needs does not answer."""


class HcallError(Exception):
    """A handler refuses a call.

    ``code`` goes to the guest in r3; ``why`` goes to the log, the trace and the
    capture, never to the guest, and must hold no secret.
    """

    def __init__(self, code: Code, why: str, registers: tuple[tuple[int, int], ...] = ()) -> None:
        super().__init__(code, why)
        self.code = code
        self.why = why
        self.registers = registers
        """Output registers that are defined in spite of the refusal."""

    def __str__(self) -> str:
        return f"{code_name(self.code)}: {self.why}"
