# SPDX-License-Identifier: Apache-2.0
"""Reads the stanzas that apt-cache prints.

The form is that of deb822(5): ``Field: value`` lines, continued by lines that start with a space,
stanzas separated by empty lines. Only reading, and only what apt prints.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ProvisionError

Stanza = dict[str, str]
"""Field names as apt prints them; continuation lines are joined by newlines."""


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """A file that a signed index names, with the digest it must have."""

    name: str
    version: str
    sha256: str


def parse(text: str) -> list[Stanza]:
    """Splits the output of ``apt-cache show`` or ``showsrc`` into stanzas."""
    stanzas: list[Stanza] = []
    current: Stanza = {}
    field = ""
    for line in [*text.splitlines(), ""]:
        if not line.strip():
            if current:
                stanzas.append(current)
            current, field = {}, ""
        elif line[0] in " \t":
            if not field:
                raise ProvisionError(
                    f"apt printed the line {line!r} where a field was expected; report the output "
                    "of this apt version"
                )
            current[field] += "\n" + line.strip()
        else:
            field, colon, value = line.partition(":")
            if not colon:
                raise ProvisionError(
                    f"apt printed the line {line!r}, which is neither a field nor its continuation"
                )
            current[field] = value.strip()
    return stanzas


def binary_files(text: str) -> list[IndexedFile]:
    """Gives the package files of ``apt-cache show``, in apt's order."""
    return [
        IndexedFile(stanza["Filename"].rpartition("/")[2], stanza["Version"], stanza["SHA256"])
        for stanza in parse(text)
        if "SHA256" in stanza and "Filename" in stanza
    ]


def source_tarballs(text: str, package: str) -> list[IndexedFile]:
    """Gives the upstream tarballs of ``apt-cache showsrc``, in apt's order.

    Args:
        text: What apt printed, which may hold other sources that build a binary of that name.
        package: Name of the source package.
    """
    return [
        IndexedFile(name, stanza["Version"], sha256)
        for stanza in parse(text)
        if package in (stanza.get("Package"), stanza.get("Source"))
        for sha256, _, name in (
            line.split() for line in stanza.get("Checksums-Sha256", "").splitlines() if line
        )
        if ".orig.tar." in name and not name.endswith(".asc")
    ]
