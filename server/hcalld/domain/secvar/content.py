# SPDX-License-Identifier: Apache-2.0
"""What a secure variable may hold, and how an append merges with what is there.

The public library (IBM libstb-secvar) looks at the content of PK, KEK and trustedcadb
only, and stores malformed lists elsewhere; its documents, and those of secvarctl, say
what each variable is for. Here every variable of the table is held to that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from hcalld.crypto.certificates import CertificateError, load_certificate
from hcalld.domain.secvar.variables import (
    CERTIFICATE_DIGEST_SIZES,
    CONTENT_TYPES,
    DIGEST_SIZES,
    Content,
    Variable,
)
from hcallproto.payloads.efi import (
    CERT_X509,
    EFI_TIME_SIZE,
    SBAT,
    EfiError,
    Signature,
    SignatureList,
    parse_signature_lists,
    type_name,
)

_SBAT_LINE: Final = re.compile(rb"[!-+\--~]+,[0-9]+(,[ -~]*)?")
"""Component, generation, and what else its maker wants to say (shim's SBAT.md)."""


_SIZES: Final[dict[bytes, tuple[int, ...]]] = {
    **{kind: (size,) for kind, size in DIGEST_SIZES.items()},
    **{kind: (size, size + EFI_TIME_SIZE) for kind, size in CERTIFICATE_DIGEST_SIZES.items()},
}


class ContentError(ValueError):
    """Not what the variable may hold; the text says why."""


def check_content(variable: Variable, data: bytes) -> None:
    """Hold an update's data, which are not empty, to what the variable may hold.

    Raises:
        ContentError: they are not that.
    """
    if variable.content is Content.OPAQUE:
        return
    lists = parse_lists(data)
    if variable.content is Content.ONE_CERTIFICATE:
        count = sum(len(each.signatures) for each in lists)
        if len(lists) != 1 or count != 1:
            raise ContentError(
                f"{variable.name} has {len(lists)} lists with {count} certificates, expected one "
                "list with one"
            )
    for each in lists:
        _check_list(variable, each)


def parse_lists(data: bytes) -> tuple[SignatureList, ...]:
    """Parse signature lists.

    Raises:
        ContentError: malformed.
    """
    try:
        return parse_signature_lists(data)
    except EfiError as error:
        raise ContentError(str(error)) from None


def _check_list(variable: Variable, each: SignatureList) -> None:
    types = CONTENT_TYPES[variable.content]
    if each.type not in types:
        raise ContentError(
            f"{variable.name} has a list of type {type_name(each.type)}, expected "
            f"{' or '.join(sorted(map(type_name, types)))}"
        )
    if not each.signatures:
        raise ContentError(f"{variable.name} has a list without signatures")
    size = each.signature_size - len(each.signatures[0].owner)
    sizes = _SIZES.get(each.type)
    if sizes is not None and size not in sizes:
        raise ContentError(
            f"{variable.name} has a {type_name(each.type)} of {size} bytes, expected {sizes[0]}"
        )
    for signature in each.signatures:
        if each.type == CERT_X509:
            _check_certificate(variable, signature)
        elif each.type == SBAT:
            _check_sbat(signature)


def _check_certificate(variable: Variable, signature: Signature) -> None:
    try:
        certificate = load_certificate(signature.data)
    except CertificateError as error:
        raise ContentError(f"{variable.name}: {error}") from None
    if variable.content is Content.CA_CERTIFICATES and not certificate.is_ca():
        raise ContentError(
            f"{variable.name} has a certificate that is not a CA's, expected basic constraints "
            "with CA:TRUE"
        )


def _check_sbat(signature: Signature) -> None:
    lines = signature.data.removesuffix(b"\n").split(b"\n")
    for number, line in enumerate(lines, 1):
        if not _SBAT_LINE.fullmatch(line):
            raise ContentError(f"sbat line {number} is not of the form name,generation")


def merge(current: bytes, added: bytes) -> bytes:
    """What a variable holds after an append: what is there, and what is new.

    A list of certificates is new unless the same list is there. Of other lists, those
    signatures are new that no list of the same type, header and size has; they join the
    first such list. So an update that repeats what is there changes nothing, and what is
    there keeps its order. Takes time in proportion to both sides: a guest chooses them, and
    other guests wait meanwhile.

    Raises:
        ContentError: either side is malformed.
    """
    merged = list(parse_lists(current))
    certificates = {each for each in merged if each.type == CERT_X509}
    places: dict[_Kind, tuple[int, set[Signature]]] = {}
    """Where the first list of a kind is, and what all lists of that kind have."""
    for index, each in enumerate(merged):
        places.setdefault(_kind(each), (index, set()))[1].update(each.signatures)
    joining: dict[int, list[Signature]] = {}
    for each in parse_lists(added):
        place = places.get(_kind(each))
        if each.type == CERT_X509:
            if each in certificates:
                continue
            certificates.add(each)
        elif place is not None:
            index, there = place
            joining.setdefault(index, []).extend(_new(each.signatures, there))
            continue
        else:
            places[_kind(each)] = len(merged), set(each.signatures)
        merged.append(each)
    for index, fresh in joining.items():
        first = merged[index]
        merged[index] = first._replace(signatures=(*first.signatures, *fresh))
    return b"".join(each.build() for each in merged)


_Kind = tuple[bytes, int, bytes]


def _kind(each: SignatureList) -> _Kind:
    """What two lists have in common whose signatures can be in one: type, size, header."""
    return each.type, each.signature_size, each.header


def _new(signatures: Iterable[Signature], there: set[Signature]) -> Iterable[Signature]:
    for signature in signatures:
        if signature not in there:
            there.add(signature)
            yield signature
