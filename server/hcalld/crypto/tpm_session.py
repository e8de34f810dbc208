# SPDX-License-Identifier: Apache-2.0
"""A TPM 2.0 policy session: its digests, its HMAC, its encryption of responses.

Source: TPM 2.0 Library Specification, Part 1, chapters 19 (sessions), 21 (parameter
encryption) and 11.4.10 (KDFa), and Part 3, chapter 23 (policies), revision 1.59. The
session has neither salt nor binding, so its only secret is the object's password.

All is sans I/O: a coroutine is given ``transmit``, which carries one command to the TPM and
its response back, and awaits nothing else. A handler passes an effect, a program on the
host a socket (``run``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES128

from hcalld.core.errors import BackendUnavailable
from hcalld.core.secret import Secret
from hcallproto.payloads.tpm import (
    POLICY_SESSION,
    RC_RETRY,
    Alg,
    Authorization,
    Cc,
    Reader,
    Response,
    Rh,
    SessionFlag,
    TpmError,
    TpmFormatError,
    TpmRefusedError,
    command,
    parse_response,
    sized,
    u16,
    u32,
)

T = TypeVar("T")

Transmit = Callable[[bytes], Awaitable[bytes]]
"""Carries a command to the TPM and gives its response; may raise what it likes."""

Entropy = Callable[[int], Awaitable[bytes]]
"""Gives so many random bytes."""

NONCE_SIZE: Final = 32
MIN_NONCE_SIZE: Final = 16
DIGEST_SIZE: Final = 32
MAX_ATTEMPTS: Final = 5
"""How often a command is sent that the TPM asks to have again."""

_POLICY_HANDLES: Final = 0x03


class TpmAuthenticationError(TpmError):
    """A response was not made by the TPM that knows the password."""


def run(steps: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine whose ``transmit`` does not suspend, as one over a blocking socket."""
    try:
        steps.send(None)
    except StopIteration as done:
        value: T = done.value
        return value
    steps.close()
    raise RuntimeError("the coroutine waits for something; give it a transmit that does not")


async def execute(
    transmit: Transmit,
    code: Cc,
    handles: bytes = b"",
    parameters: bytes = b"",
    auth: Authorization | None = None,
) -> Response:
    """Have a command executed.

    Raises:
        TpmRefusedError: the TPM refuses it.
        TpmFormatError: what it answers is no response.
    """
    message = command(code, handles, parameters, auth)
    attempts = MAX_ATTEMPTS
    while True:
        response = await transmit(message)
        try:
            return parse_response(response, code, has_session=auth is not None)
        except TpmRefusedError as error:
            attempts -= 1
            if error.rc != RC_RETRY or not attempts:
                raise


# -- policies -------------------------------------------------------------------------------


def extend_policy(policy: bytes, code: Cc, *terms: bytes) -> bytes:
    """What becomes of a policy digest by one more term (Part 3, 23.2)."""
    return hashlib.sha256(policy + u32(code) + b"".join(terms)).digest()


def policy_of(*terms: tuple[Cc, bytes]) -> bytes:
    """The digest of a policy of these terms."""
    policy = bytes(DIGEST_SIZE)
    for code, argument in terms:
        policy = extend_policy(policy, code, argument)
    return policy


def policy_or(branches: Sequence[bytes]) -> bytes:
    """The digest of a policy that is one of several."""
    return extend_policy(bytes(DIGEST_SIZE), Cc.POLICY_OR, *branches)


def pcr_selection(pcr: int) -> bytes:
    """TPML_PCR_SELECTION of one register of the SHA-256 bank, in three bytes of bits."""
    return u32(1) + u16(Alg.SHA256) + b"\x03" + (1 << pcr).to_bytes(3, "little")


# -- keys -----------------------------------------------------------------------------------


def kdfa(key: bytes, label: bytes, newer: bytes, older: bytes) -> bytes:
    """KDFa for 256 bits with SHA-256, which is one round (Part 1, 11.4.10.2)."""
    message = u32(1) + label + b"\0" + newer + older + u32(256)
    return hmac.digest(key, message, "sha256")


def decrypt_parameter(auth: Secret, newer: bytes, older: bytes, data: bytes) -> bytes:
    """Decrypt a response's first parameter (Part 1, 21.3)."""
    derived = kdfa(auth.reveal(), b"CFB", newer, older)
    decryptor = Cipher(AES128(derived[:16]), CFB(derived[16:])).decryptor()
    return decryptor.update(data) + decryptor.finalize()


# -- the session ----------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class PolicySession:
    """One session, until it is flushed."""

    transmit: Transmit
    handle: int
    nonce_tpm: bytes

    async def command_code(self, code: Cc) -> None:
        """Confine the session to one command (TPM2_PolicyCommandCode)."""
        await self._term(Cc.POLICY_COMMAND_CODE, u32(code))

    async def auth_value(self) -> None:
        """Demand the object's password, by HMAC (TPM2_PolicyAuthValue)."""
        await self._term(Cc.POLICY_AUTH_VALUE)

    async def pcr(self, pcr: int) -> None:
        """Demand that a register is as it is now (TPM2_PolicyPCR)."""
        await self._term(Cc.POLICY_PCR, sized(b"") + pcr_selection(pcr))

    async def either(self, branches: Sequence[bytes]) -> None:
        """One of these policies is fulfilled (TPM2_PolicyOR)."""
        parameters = u32(len(branches)) + b"".join(map(sized, branches))
        await self._term(Cc.POLICY_OR, parameters)

    async def _term(self, code: Cc, parameters: bytes = b"") -> None:
        await execute(self.transmit, code, u32(self.handle), parameters)

    async def decrypted(
        self,
        code: Cc,
        object_handle: int,
        name: bytes,
        parameters: bytes,
        auth: Secret,
        nonce: bytes,
    ) -> bytes:
        """Execute a command on an object with an HMAC; gives its first output, decrypted.

        Args:
            code: the command.
            object_handle: the object, which is authorized.
            name: what the TPM calls it.
            parameters: of the command.
            auth: its password.
            nonce: fresh random bytes.

        Raises:
            TpmError: the TPM refuses it, or the response is not this TPM's.
        """
        flags = SessionFlag.CONTINUE | SessionFlag.ENCRYPT
        cp_hash = hashlib.sha256(u32(code) + name + parameters).digest()
        # Part 1, 19.6.5: the nonces, newer first, then the attributes.
        mac = hmac.digest(
            auth.reveal(), cp_hash + nonce + self.nonce_tpm + bytes([flags]), "sha256"
        )
        response = await execute(
            self.transmit,
            code,
            u32(object_handle),
            parameters,
            Authorization(self.handle, nonce, flags, mac),
        )
        session = response.session
        assert session is not None
        rp_hash = hashlib.sha256(u32(0) + u32(code) + response.parameters).digest()
        expected = hmac.digest(
            auth.reveal(), rp_hash + session.nonce + nonce + bytes([session.flags]), "sha256"
        )
        if not hmac.compare_digest(expected, session.hmac):
            raise TpmAuthenticationError(
                f"the response to {code.name} has a wrong HMAC; something stands between, or the "
                "password is another"
            )
        if not session.flags & SessionFlag.ENCRYPT:
            raise TpmAuthenticationError(f"the response to {code.name} is not encrypted")
        reader = Reader(response.parameters, code.name)
        data = reader.sized()
        reader.end()
        self.nonce_tpm = session.nonce
        return decrypt_parameter(auth, session.nonce, nonce, data)

    async def flush(self) -> None:
        """End the session (TPM2_FlushContext)."""
        await flush(self.transmit, self.handle)


async def flush(transmit: Transmit, handle: int) -> None:
    """Have the TPM forget a session or a loaded object."""
    await execute(transmit, Cc.FLUSH_CONTEXT, parameters=u32(handle))


async def start_policy_session(transmit: Transmit, nonce: bytes) -> PolicySession:
    """Begin a policy session with AES-128-CFB and SHA-256 (TPM2_StartAuthSession)."""
    parameters = (
        sized(nonce)
        + sized(b"")
        + bytes([POLICY_SESSION])
        + u16(Alg.AES)
        + u16(128)
        + u16(Alg.CFB)
        + u16(Alg.SHA256)
    )
    code = Cc.START_AUTH_SESSION
    response = await execute(transmit, code, u32(Rh.NULL) + u32(Rh.NULL), parameters)
    if response.handle >> 24 != _POLICY_HANDLES:
        raise TpmFormatError(f"the TPM gives 0x{response.handle:08x} as a policy session")
    session = PolicySession(transmit, response.handle, b"")
    reader = Reader(response.parameters, code.name)
    try:
        session.nonce_tpm = reader.sized()
        reader.end()
        if len(session.nonce_tpm) < MIN_NONCE_SIZE:
            raise TpmFormatError(f"the TPM gives a nonce of {len(session.nonce_tpm)} bytes")
    except TpmError:
        with contextlib.suppress(Exception):
            await session.flush()
        raise
    return session


async def with_flush(transmit: Transmit, handle: int, work: Awaitable[T]) -> T:
    """Await ``work``, and have the TPM forget ``handle`` whatever comes of it.

    Not so when the TPM cannot be reached any more, which would only be waited for twice, nor
    when the coroutine is given up (cancelled), and nothing may be awaited: who carries the
    commands then closes the session with the TPM, and what was in it goes too.
    """
    try:
        result = await work
    except BackendUnavailable:
        raise
    except Exception:
        with contextlib.suppress(Exception):
            await flush(transmit, handle)
        raise
    await flush(transmit, handle)
    return result
