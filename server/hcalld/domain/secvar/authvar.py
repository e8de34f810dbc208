# SPDX-License-Identifier: Apache-2.0
"""Authenticated variables: what a signed update does, or why it is refused.

The rules of IBM libstb-secvar ``src/pseries.c`` and ``update.c``, and where that library
does something else than its documents say, those documents' rules:

* PK whose content is wrong is refused, also with a good signature.
* PK cannot be emptied; only the wipe message, under the latch, does away with it.
* An append that cannot be merged is refused, and changes nothing.
* An append with two lists of one type loses neither (``content.merge``).
* Every variable's content is looked at, not only that of PK, KEK and trustedcadb.

An update is judged in this order: name, append, structure (head and PKCS#7), signature,
timestamp, content. Pure: no registers, no store, no clock; times come with the updates.
What is signed is explained at ``signed_hash``.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable
from typing import Final

from hcalld.crypto.certificates import Certificate, CertificateError, load_certificate
from hcalld.crypto.cms import CmsError, SignedData, parse_signed_data
from hcalld.domain.secvar.answers import (
    Accepted,
    Authority,
    Change,
    Reason,
    Remove,
    Store,
    UpdateRefused,
    Wipe,
)
from hcalld.domain.secvar.content import ContentError, check_content, merge
from hcalld.domain.secvar.variables import KEK, OTHER, PK, Append, Signer, Variable, variable_of
from hcallproto.payloads.efi import (
    CERT_X509,
    SIGNATURE_LIST_SIZE,
    EfiError,
    EfiSizeError,
    EfiTime,
    SignedUpdate,
    StoredVariable,
    each_signature_list,
    guid_text,
    parse_stored,
    parse_update,
    type_name,
)

MAX_UPDATE_SIZE: Final = 0xFFFF
"""Linux keeps the size in 16 bits (plpks.h ``struct plpks_var`` ``datalen``)."""

ATTRIBUTES: Final = 0x27
"""NON_VOLATILE, BOOTSERVICE_ACCESS, RUNTIME_ACCESS, TIME_BASED_AUTHENTICATED_WRITE_ACCESS."""
ATTRIBUTE_APPEND: Final = 0x40
"""APPEND_WRITE."""

WIPE_TEXT: Final = (
    b"Yes, I want to delete all secure variables and reset secure boot to static keys.\n"
)
_WIPE_HEAD_SIZE: Final = SIGNATURE_LIST_SIZE + 16
"""The text stands where a list's first signature would; nothing before it is looked at."""

_PK_NAME: Final = PK.label_name
_KEK_NAME: Final = KEK.label_name

MAX_TRIES: Final = 256
"""Ours: verifications with KEK's keys, more than one signer needs for all that fit in. A guest
chooses keys and signers, and others wait meanwhile: 69 keys and 16 signers took a second."""

_MAX_CACHED: Final = 32
"""Stored PKs and KEKs whose certificates are kept ready, for all partitions together."""

Lookup = Callable[[bytes], bytes | None]
"""A variable's name, as its label has it, to its stored object."""


def evaluate(
    name: bytes,
    message: bytes,
    *,
    is_append: bool,
    lookup: Lookup,
    without_verification: bool,
) -> Accepted:
    """Judge a signed update.

    Args:
        name: the variable's name in UTF-16LE: its label without the attributes.
        message: what r9 points at: time, certificate head, PKCS#7, data.
        is_append: the flag of that name.
        lookup: gives the stored object of a variable: 8 bytes of head, then lists.
        without_verification: the latch; PK, and only PK, needs no signature and no later
            time. Any PK update that is accepted uses it up.

    Raises:
        UpdateRefused: nothing is to be changed.
    """
    variable = variable_of(name)
    if variable is OTHER:
        _check_name(name)
    if is_append and variable.append is Append.REFUSED:
        raise UpdateRefused(Reason.FLAGS, f"{variable.name} cannot be appended to, only replaced")
    update, signed = _parse(message)
    if variable is PK and without_verification:
        authority = Authority.LATCH
        current = None
    else:
        authority = _verify(name, variable, update, signed, is_append, lookup)
        current = _current(name, lookup)
        _check_time(update, current, is_append)
    change = _change(variable, update, current, is_append, authority)
    return Accepted(change, authority)


# -- structure --------------------------------------------------------------------------------


def _check_name(name: bytes) -> None:
    if not name or len(name) % 2:
        raise UpdateRefused(
            Reason.NAME_SIZE, f"the name has {len(name)} bytes, expected UTF-16: 2, 4 or so"
        )
    if any(name[i : i + 2] == b"\0\0" for i in range(0, len(name), 2)):
        raise UpdateRefused(Reason.NAME, "the name has a NUL character, expected no terminator")


def _parse(message: bytes) -> tuple[SignedUpdate, SignedData]:
    if len(message) > MAX_UPDATE_SIZE:
        raise UpdateRefused(
            Reason.SIZE, f"the update has {len(message)} bytes, expected at most {MAX_UPDATE_SIZE}"
        )
    try:
        update = parse_update(message)
        return update, parse_signed_data(update.pkcs7)
    except EfiSizeError as error:
        raise UpdateRefused(Reason.SIZE, str(error)) from None
    except (EfiError, CmsError) as error:
        raise UpdateRefused(Reason.CONTENT, str(error)) from None


# -- signature --------------------------------------------------------------------------------


def attributes(*, is_append: bool) -> int:
    """The variable's UEFI attributes: signed, but not transported."""
    return ATTRIBUTES | ATTRIBUTE_APPEND if is_append else ATTRIBUTES


def signed_bytes(name: bytes, update_time: EfiTime, data: bytes, *, is_append: bool) -> bytes:
    """What a signature covers (UEFI 2.10, 8.2.2): name, vendor, attributes, time, data."""
    vendor = variable_of(name).vendor
    flags = attributes(is_append=is_append).to_bytes(4, "little")
    return b"".join((name, vendor, flags, update_time.build(), data))


def signed_hash(name: bytes, update_time: EfiTime, data: bytes, *, is_append: bool) -> bytes:
    """SHA-256 of ``signed_bytes``: an update for one name, flag and time is for no other."""
    covered = signed_bytes(name, update_time, data, is_append=is_append)
    return hashlib.sha256(covered).digest()


def _verify(
    name: bytes,
    variable: Variable,
    update: SignedUpdate,
    signed: SignedData,
    is_append: bool,
    lookup: Lookup,
) -> Authority:
    """Whose signature the update has: PK is tried first, then each KEK in order."""
    digest = signed_hash(name, update.time, update.data, is_append=is_append)
    if _has_signed(_pk(lookup), signed, digest):
        return Authority.PK
    if Signer.KEK in variable.signers:
        # One that is no good ends the search, as in libstb-secvar.
        stored = lookup(_KEK_NAME)
        keks = usable_certificates(stored).certificates if stored is not None else ()
        tries = itertools.islice(itertools.product(keks, signed.signatures), MAX_TRIES)
        if any(kek.has_signed(signature, digest) for kek, signature in tries):
            return Authority.KEK
    signers = " or ".join(signer.value for signer in variable.signers)
    hint = "; signed attributes are not used: sign without them" * signed.has_signed_attributes
    vendor = guid_text(variable.vendor)
    raise UpdateRefused(
        Reason.AUTHORITY,
        f"no signature by {signers} over this name, vendor {vendor}, attributes "
        f"0x{attributes(is_append=is_append):x}, time {update.time} and data{hint}",
    )


@dataclasses.dataclass(frozen=True, slots=True)
class UsableCertificates:
    """What a stored PK or KEK is worth."""

    certificates: tuple[Certificate, ...]
    flaw: str = "it has no certificate"
    """Why there are no more."""


@functools.lru_cache(maxsize=_MAX_CACHED)
def usable_certificates(stored: bytes) -> UsableCertificates:
    """The certificates in a stored PK or KEK, in order, up to the first that is no good."""
    certificates: list[Certificate] = []
    try:
        for each in each_signature_list(parse_stored(stored).data):
            if each.type != CERT_X509:
                raise EfiError(f"a list of type {type_name(each.type)}, expected certificates")
            for signature in each.signatures:
                certificates.append(load_certificate(signature.data))  # noqa: PERF401
    except (EfiError, CertificateError) as error:
        return UsableCertificates(tuple(certificates), str(error))
    return UsableCertificates(tuple(certificates))


def _pk(lookup: Lookup) -> Certificate:
    """The first certificate of the stored PK; those after it do not count."""
    stored = lookup(_PK_NAME)
    if stored is None:
        raise UpdateRefused(
            Reason.AUTHORITY,
            "there is no PK, so nothing can be verified; write one under "
            "keystore_signed_updates_without_verification",
        )
    usable = usable_certificates(stored)
    if not usable.certificates:
        raise UpdateRefused(
            Reason.AUTHORITY,
            f"the stored PK cannot be used ({usable.flaw}); replace it under "
            "keystore_signed_updates_without_verification",
        )
    return usable.certificates[0]


def _has_signed(certificate: Certificate, signed: SignedData, digest: bytes) -> bool:
    for signature in signed.signatures:  # noqa: SIM110 - any() costs what a hash does
        if certificate.has_signed(signature, digest):
            return True
    return False


# -- timestamp --------------------------------------------------------------------------------


def _current(name: bytes, lookup: Lookup) -> StoredVariable | None:
    stored = lookup(name)
    if stored is None:
        return None
    try:
        return parse_stored(stored)
    except EfiError as error:
        raise UpdateRefused(
            Reason.AUTHORITY, f"whether the update is newer cannot be said: {error}"
        ) from None


def _check_time(update: SignedUpdate, current: StoredVariable | None, is_append: bool) -> None:
    """A replacement must be later than what it replaces; an append may be of any time."""
    if current is not None and not is_append and update.time <= current.time:
        raise UpdateRefused(
            Reason.AUTHORITY,
            f"the update is of {update.time}, expected a time after that of the stored variable, "
            f"{current.time}",
        )


# -- outcome ----------------------------------------------------------------------------------


def is_wipe_message(data: bytes) -> bool:
    """Whether data are the message that deletes every secure variable."""
    return data[_WIPE_HEAD_SIZE:] == WIPE_TEXT


def _change(
    variable: Variable,
    update: SignedUpdate,
    current: StoredVariable | None,
    is_append: bool,
    authority: Authority,
) -> Change:
    try:
        if variable is PK:
            return _change_of_pk(update, authority)
        if update.data:
            check_content(variable, update.data)
        if is_append:
            return _appended(variable, update, current)
    except ContentError as error:
        raise UpdateRefused(Reason.CONTENT, str(error)) from None
    if update.data or authority is Authority.KEK:
        # Emptied by a KEK, the variable keeps its time: older updates stay refused.
        return Store(StoredVariable(update.time, update.data).build())
    return Remove()


def _change_of_pk(update: SignedUpdate, authority: Authority) -> Change:
    if is_wipe_message(update.data):
        if authority is Authority.LATCH:
            return Wipe()
        raise ContentError(
            "the message that deletes all variables counts only under "
            "keystore_signed_updates_without_verification"
        )
    if not update.data:
        raise ContentError("PK cannot be emptied, expected one list with one certificate")
    check_content(PK, update.data)
    return Store(StoredVariable(update.time, update.data).build())


def _appended(variable: Variable, update: SignedUpdate, current: StoredVariable | None) -> Store:
    if current is None or not current.data:
        return Store(StoredVariable(update.time, update.data).build())
    if variable.append is Append.MERGED:
        data = merge(current.data, update.data)
    else:
        data = current.data + update.data
    return Store(StoredVariable(max(update.time, current.time), data).build())
