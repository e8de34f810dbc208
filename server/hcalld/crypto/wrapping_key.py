# SPDX-License-Identifier: Apache-2.0
"""The TPM's wrapping key: made as skiboot makes it, used as the ultravisor uses it.

Source: skiboot's ultravisor branch, ``libstb/tss2/opalcreate.c``, for the template, the
handles and the policies; open-power/ultravisor, ``uv/tssuv.c``, for the use. The key never
leaves the TPM. Whoever wants it used must know its password, which proves itself by HMAC
under branch A of its policy; branch B lets the password be changed while PCR 16 is still
zero, as it is when a machine starts.

Sans I/O, see ``tpm_session``.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Final

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers

from hcalld.core.secret import Secret
from hcalld.crypto.tpm_session import (
    DIGEST_SIZE,
    NONCE_SIZE,
    Entropy,
    PolicySession,
    Transmit,
    execute,
    pcr_selection,
    policy_of,
    policy_or,
    start_policy_session,
    with_flush,
)
from hcallproto.payloads.tpm import (
    EMPTY_PASSWORD,
    RC_HANDLE,
    Alg,
    Attribute,
    Authorization,
    Cc,
    Reader,
    Rh,
    RsaPublic,
    RsaTemplate,
    TpmError,
    TpmFormatError,
    TpmRefusedError,
    parse_public,
    sized,
    u16,
    u32,
)

PARENT_HANDLE: Final = 0x81800000
HANDLE: Final = 0x81800001
PASSWORD_SIZE: Final = 16
NAME_SIZE: Final = 34

CHANGE_PCR: Final = 16
"""While it is zero, the password may be changed."""

POLICY_USE: Final = policy_of(
    (Cc.POLICY_COMMAND_CODE, u32(Cc.RSA_DECRYPT)), (Cc.POLICY_AUTH_VALUE, b"")
)
"""Branch A."""
POLICY_CHANGE: Final = policy_of(
    (Cc.POLICY_COMMAND_CODE, u32(Cc.OBJECT_CHANGE_AUTH)),
    (Cc.POLICY_PCR, pcr_selection(CHANGE_PCR) + hashlib.sha256(bytes(DIGEST_SIZE)).digest()),
)
"""Branch B."""
BRANCHES: Final = (POLICY_USE, POLICY_CHANGE)
POLICY: Final = policy_or(BRANCHES)

PARENT_TEMPLATE: Final = RsaTemplate(
    Attribute.FIXED_TPM
    | Attribute.FIXED_PARENT
    | Attribute.SENSITIVE_DATA_ORIGIN
    | Attribute.USER_WITH_AUTH
    | Attribute.NO_DA
    | Attribute.RESTRICTED
    | Attribute.DECRYPT,
    is_parent=True,
)
TEMPLATE: Final = RsaTemplate(
    Attribute.SENSITIVE_DATA_ORIGIN
    | Attribute.NO_DA
    | Attribute.ENCRYPTED_DUPLICATION
    | Attribute.DECRYPT,
    policy=POLICY,
)


class WrappingKeyError(TpmError):
    """The TPM has no such wrapping key."""


@dataclasses.dataclass(frozen=True, slots=True)
class WrappingKey:
    """What must be known to use the key."""

    password: Secret
    name: bytes
    """What the TPM calls the key; a digest of its public area."""
    handle: int = HANDLE


# -- use ------------------------------------------------------------------------------------


async def read_public(transmit: Transmit, key: WrappingKey) -> RSAPublicKey:
    """The key's public half, once it is known to be the right key.

    Raises:
        WrappingKeyError: there is another key.
        TpmError: there is none, or the TPM does not answer as one.
    """
    public, _ = await _read_public(transmit, key.handle)
    if public.name != key.name:
        raise WrappingKeyError(
            f"the key at 0x{key.handle:x} is another than the one known; was the TPM replaced, "
            "or cleared?"
        )
    return _rsa(public)


async def decrypt(transmit: Transmit, key: WrappingKey, sealed: bytes, entropy: Entropy) -> bytes:
    """Decrypt with the key, whose name was seen to be right by ``read_public``.

    The session is flushed, also on failure.

    Raises:
        TpmRefusedError: wrong password, or the lockbox is another's, or altered.
        TpmError: the TPM does not answer as one.
    """
    nonces = await entropy(2 * NONCE_SIZE)
    session = await start_policy_session(transmit, nonces[:NONCE_SIZE])
    return await with_flush(
        transmit, session.handle, _use(session, key, sealed, nonces[NONCE_SIZE:])
    )


async def _use(session: PolicySession, key: WrappingKey, sealed: bytes, nonce: bytes) -> bytes:
    await session.command_code(Cc.RSA_DECRYPT)
    await session.auth_value()
    await session.either(BRANCHES)
    parameters = sized(sealed) + u16(Alg.NULL) + sized(b"")
    return await session.decrypted(
        Cc.RSA_DECRYPT, key.handle, key.name, parameters, key.password, nonce
    )


async def _read_public(transmit: Transmit, handle: int) -> tuple[RsaPublic, bytes]:
    """A key's public area, read and as bytes."""
    response = await execute(transmit, Cc.READ_PUBLIC, u32(handle))
    reader = Reader(response.parameters, Cc.READ_PUBLIC.name)
    area, name, _qualified = reader.sized(), reader.sized(), reader.sized()
    reader.end()
    public = parse_public(area)
    if name != public.name:
        raise TpmFormatError("the TPM gives a name that is not the key's")
    return public, area


def _rsa(public: RsaPublic) -> RSAPublicKey:
    try:
        return RSAPublicNumbers(public.exponent, public.modulus).public_key()
    except ValueError as error:
        raise TpmFormatError(f"the TPM gives no RSA key ({error})") from None


# -- provisioning ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Provisioned:
    """What came of it."""

    key: WrappingKey
    public: RSAPublicKey
    is_new: bool
    """If not, the key was there, and what was sealed for it still opens."""


async def provision(transmit: Transmit, entropy: Entropy) -> Provisioned:
    """Make the wrapping key, or give the one that is there a new password.

    For a TPM that has just started, whose platform hierarchy has no password yet.

    Raises:
        WrappingKeyError: at its handle is a key of another kind.
        TpmError: the TPM refuses something, or does not answer as one.
    """
    password = Secret(bytes(1 + value % 255 for value in await entropy(PASSWORD_SIZE)))
    found = await _find(transmit)
    if found is None:
        await _make_parent(transmit)
        parameters = _creation(password, TEMPLATE)
        response = await execute(
            transmit, Cc.CREATE, u32(PARENT_HANDLE), parameters, EMPTY_PASSWORD
        )
        reader = Reader(response.parameters, Cc.CREATE.name)
        private, area = reader.sized(), reader.sized()
        await _install(transmit, private, area, replaces=False)
    else:
        session = await start_policy_session(transmit, await entropy(NONCE_SIZE))
        private = await with_flush(transmit, session.handle, _change(session, password))
        await _install(transmit, private, found, replaces=True)
    public, _ = await _read_public(transmit, HANDLE)
    return Provisioned(WrappingKey(password, public.name), _rsa(public), found is None)


async def _find(transmit: Transmit) -> bytes | None:
    """The public area of the wrapping key, if there is one."""
    try:
        public, area = await _read_public(transmit, HANDLE)
    except TpmRefusedError as error:
        if error.rc == RC_HANDLE:
            return None
        raise
    if public.attributes != TEMPLATE.attributes or public.policy != POLICY:
        raise WrappingKeyError(
            f"at 0x{HANDLE:x} is a key that is no wrapping key; remove it with tpm2_evictcontrol "
            "or use another TPM"
        )
    return area


async def _make_parent(transmit: Transmit) -> None:
    try:
        await execute(transmit, Cc.READ_PUBLIC, u32(PARENT_HANDLE))
        return
    except TpmRefusedError as error:
        if error.rc != RC_HANDLE:
            raise
    parameters = _creation(Secret(b""), PARENT_TEMPLATE)
    made = await execute(transmit, Cc.CREATE_PRIMARY, u32(Rh.PLATFORM), parameters, EMPTY_PASSWORD)
    await with_flush(transmit, made.handle, _evict(transmit, made.handle, PARENT_HANDLE))


def _creation(password: Secret, template: RsaTemplate) -> bytes:
    """The parameters of TPM2_Create and TPM2_CreatePrimary."""
    sensitive = sized(password.reveal()) + sized(b"")
    return sized(sensitive) + sized(template.build()) + sized(b"") + u32(0)


async def _change(session: PolicySession, password: Secret) -> bytes:
    """The key's private half under a new password, still outside the TPM."""
    await session.command_code(Cc.OBJECT_CHANGE_AUTH)
    await session.pcr(CHANGE_PCR)
    await session.either(BRANCHES)
    # No password is demanded and the session has no key, so there is no HMAC.
    response = await execute(
        session.transmit,
        Cc.OBJECT_CHANGE_AUTH,
        u32(HANDLE) + u32(PARENT_HANDLE),
        sized(password.reveal()),
        Authorization(session.handle),
    )
    reader = Reader(response.parameters, Cc.OBJECT_CHANGE_AUTH.name)
    private = reader.sized()
    reader.end()
    return private


async def _install(transmit: Transmit, private: bytes, area: bytes, *, replaces: bool) -> None:
    """Load a key and keep it at its handle, in place of the one that is there."""
    loaded = await execute(
        transmit, Cc.LOAD, u32(PARENT_HANDLE), sized(private) + sized(area), EMPTY_PASSWORD
    )
    # Not before the new one is loaded: what goes wrong after this loses the key.
    work = _replace(transmit, loaded.handle, replaces=replaces)
    await with_flush(transmit, loaded.handle, work)


async def _replace(transmit: Transmit, loaded: int, *, replaces: bool) -> None:
    if replaces:
        await _evict(transmit, HANDLE, HANDLE)
    await _evict(transmit, loaded, HANDLE)


async def _evict(transmit: Transmit, handle: int, persistent: int) -> None:
    """Keep a loaded object at a handle, or remove the one that is there."""
    handles = u32(Rh.PLATFORM) + u32(handle)
    await execute(transmit, Cc.EVICT_CONTROL, handles, u32(persistent), EMPTY_PASSWORD)
