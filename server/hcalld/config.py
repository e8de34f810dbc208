# SPDX-License-Identifier: Apache-2.0
"""Profiles: what a partition's attributes shall be, from a TOML file.

The partition owns its attributes; a key of its profile is an order to set one, carried
out when the guest is powered on (``domain/attribute_orders.py``).

A profile directory holds one ``<name>.toml`` a partition. The top-level keys are the
attributes an HMC has, under the HMC's names (``domain/attributes.py``); the table
``[hcalld]`` holds what only an emulator needs, the table ``[tpm]`` which TPM of this host
the guest has, the table ``[pef]`` whether it may become a secure VM. A file with a table
``[sev]`` is a SEV platform's instead, and has nothing else. A guest is matched
by QEMU's ``-uuid``, then by its ``-name``; what matches nothing gets ``default.toml``, or
the built-in defaults, or is refused, as configured.
"""

from __future__ import annotations

import pathlib
import tomllib
import uuid as uuidlib
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from hcalld.core.errors import ConfigError
from hcalld.domain.attribute_records import Value, flatten, with_orders
from hcalld.domain.attributes import PartitionAttributes
from hcalld.domain.hypervisor.half import HypervisorSettings
from hcalld.domain.pef.machine import PefSettings
from hcalld.domain.sev.settings import SevSettings
from hcalld.domain.ultravisor.abi import PAGE_SIZE

StructT = TypeVar("StructT", bound=msgspec.Struct)

DEFAULT_PROFILE = "default"
UNNAMED_PARTITION = "default"
"""The partition of a guest started without ``-name`` and ``-uuid``."""
UNNAMED_PLATFORM = "sev"
"""The SEV platform of a client that names none."""


class Emulation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A profile's table ``[hcalld]``: what no HMC has."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None
    """QEMU's ``-name`` of the guest; the file's own name if absent."""
    uuid: str | None = None
    """QEMU's ``-uuid`` of the guest."""
    unserved: Literal["function", "qemu"] = "function"
    """Calls of a served family without a handler: answered H_FUNCTION, or left to QEMU."""
    deadline_ms: Annotated[int, msgspec.Meta(ge=100, le=600_000)] | None = None
    """Replaces the deadline of every call."""


TpmKind = Literal["none", "swtpm", "socket", "device"]


class TpmChoice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A profile's table ``[tpm]``: which TPM of this host H_TPM_COMM reaches.

    It is no attribute of the partition and is not stored: paths and programs are the
    host's, and a partition that is moved to another host finds others there.
    """

    backend: TpmKind = "none"
    path: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    """Of the socket or device."""
    program: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    """swtpm, by name or path."""
    timeout_ms: Annotated[int, msgspec.Meta(ge=100, le=600_000)] = 90_000
    """For one command: less than the call's deadline, which is QEMU's."""

    def __post_init__(self) -> None:
        needs_path = self.backend in ("socket", "device")
        if needs_path and self.path is None:
            raise ValueError(f'backend is "{self.backend}", which needs a path')
        if self.path is not None:
            if not needs_path:
                raise ValueError(f'path is for backend "socket" or "device", not "{self.backend}"')
            if not self.path.startswith("/"):
                raise ValueError(f"path {self.path!r} is not absolute, expected one that is")
        if self.program is not None and self.backend != "swtpm":
            raise ValueError(f'program is for backend "swtpm", not "{self.backend}"')


class PefChoice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A profile's table ``[pef]``: whether the guest may become a secure VM.

    It is no attribute of the partition: who may be secure, and on how much memory, is the
    host's to say.
    """

    enabled: bool = False
    """UV_* and H_SVM_* are served; the guest can reach its TPM through them too."""
    page_shift: Literal[12, 16] | None = None
    """log2 of the guest kernel's page: 4 KiB or 64 KiB. QEMU's guess, 64 KiB, if absent."""
    secure_memory_mib: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)] | None = None
    """Secure memory that it may have at a time; the rest is paged out. No limit if absent."""

    def settings(self) -> PefSettings:
        """The same, for both halves."""
        limit = self.secure_memory_mib
        pages = None if limit is None else (limit << 20) // PAGE_SIZE
        return PefSettings(self.page_shift, HypervisorSettings(resident_pages=pages))


BUILT_IN = "built-in"
"""Source of the profile of a guest that has none."""


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One partition's configuration and where it came from."""

    partition: str
    source: str
    orders: dict[str, Value] = {}
    """The attributes that it names, by dotted name."""
    emulation: Emulation = Emulation()
    tpm: TpmChoice = TpmChoice()
    pef: PefChoice = PefChoice()
    sev: SevSettings = SevSettings()
    """Of a SEV platform."""
    is_platform: bool = False
    """It has a table ``[sev]``: no guest is matched by it."""

    def of_vm(self, number: int) -> Profile:
        """What a connection to the platform has."""
        return msgspec.structs.replace(self, partition=f"{self.partition}-{number}", orders={})

    @property
    def attributes(self) -> PartitionAttributes:
        """What it makes of a new partition."""
        return with_orders(PartitionAttributes(), self.orders)


def parse_profile(text: str, partition: str, source: str) -> Profile:
    """A profile from TOML.

    Raises:
        ConfigError: not TOML, an unknown key, or a value out of range; the text says
            which and what was expected.
    """
    try:
        raw: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from None
    if "sev" in raw:
        return _parse_platform(raw, partition, source)
    emulation = _take_table(raw, "hcalld", Emulation, source)
    if emulation.uuid is not None and not any(_uuid_bytes(emulation.uuid)):
        raise ConfigError(
            f"{source}: [hcalld]: uuid {emulation.uuid!r} is not a UUID of one guest, expected "
            "the value of QEMU's -uuid"
        )
    tpm = _take_table(raw, "tpm", TpmChoice, source)
    pef = _take_table(raw, "pef", PefChoice, source)
    try:
        attributes = msgspec.convert(raw, PartitionAttributes)
    except (msgspec.ValidationError, ValueError) as error:
        known = ", ".join(PartitionAttributes.__struct_fields__)
        raise ConfigError(
            f"{source}: {error}; keys are: {known}, and tables [hcalld], [tpm], [pef] and [sev]"
        ) from None
    given = {name for name in raw if name != "pks"} | {f"pks.{name}" for name in raw.get("pks", {})}
    orders = {name: value for name, value in flatten(attributes).items() if name in given}
    return Profile(
        partition=partition,
        source=source,
        orders=orders,
        emulation=emulation,
        tpm=tpm,
        pef=pef,
    )


def _parse_platform(raw: dict[str, Any], partition: str, source: str) -> Profile:
    """The profile of a SEV platform: nothing else that a profile may have means anything there.

    Raises:
        ConfigError: as ``parse_profile``; something is beside ``[sev]``.
    """
    sev = _take_table(raw, "sev", SevSettings, source)
    problems = sev.problems()
    if problems:
        raise ConfigError(f"{source}: [sev]: {'; '.join(problems)}")
    if raw:
        found = ", ".join(
            f"[{name}]" if isinstance(value, dict) else name for name, value in raw.items()
        )
        raise ConfigError(
            f"{source}: {found}: for guests alone; a file with a table [sev] is a SEV platform's, "
            "expected that table and nothing else: put the rest into a file of the guest's own"
        )
    return Profile(partition=partition, source=source, sev=sev, is_platform=True)


def _take_table(raw: dict[str, Any], name: str, kind: type[StructT], source: str) -> StructT:
    """One of a profile's tables, which is taken out; its defaults if there is none.

    Raises:
        ConfigError: an unknown key, or a value out of range.
    """
    try:
        return msgspec.convert(raw.pop(name, {}), kind)
    except (msgspec.ValidationError, ValueError) as error:
        known = ", ".join(kind.__struct_fields__)
        raise ConfigError(f"{source}: [{name}]: {error}; keys are: {known}") from None


class Profiles:
    """All profiles, and which one a guest gets."""

    def __init__(self, directory: pathlib.Path | None, *, refuse_unknown: bool = False) -> None:
        """Load every ``*.toml`` in ``directory``.

        Raises:
            ConfigError: a file cannot be read or is wrong, or two claim the same guest.
        """
        self._refuse_unknown = refuse_unknown
        self._directory = directory
        self._by_name: dict[str, Profile] = {}
        self._by_uuid: dict[bytes, Profile] = {}
        self._guests: dict[str, str] = {}
        """Partition to the name of its guest."""
        self._default: Profile | None = None
        if directory is None:
            return
        for path, text in _read_files(directory):
            self._add(path, text)

    def _add(self, path: pathlib.Path, text: str) -> None:
        profile = parse_profile(text, path.stem, str(path))
        if path.stem == DEFAULT_PROFILE:
            if profile.is_platform:
                raise ConfigError(
                    f"{path}: [sev]: a SEV platform is not for this file, which is for guests "
                    "without a profile; give the platform a file with its own name"
                )
            if profile.emulation.name is not None or profile.emulation.uuid is not None:
                raise ConfigError(
                    f"{path}: [hcalld]: name and uuid are not for this file, which is for guests "
                    "without a profile; put them into a profile of the guest's own"
                )
            self._default = profile
            return
        name = profile.emulation.name or path.stem
        if name in self._by_name:
            raise ConfigError(
                f"{path}: guest name {name!r} is claimed by {self._by_name[name].source} too"
            )
        self._by_name[name] = profile
        self._guests[profile.partition] = name
        if profile.emulation.uuid is not None:
            key = _uuid_bytes(profile.emulation.uuid)
            if key in self._by_uuid:
                raise ConfigError(
                    f"{path}: uuid {profile.emulation.uuid} is claimed by "
                    f"{self._by_uuid[key].source} too"
                )
            self._by_uuid[key] = profile

    def find(self, name: str, uuid: bytes) -> Profile:
        """The profile of the guest with QEMU's ``-name`` and ``-uuid``.

        Raises:
            ConfigError: there is none and unknown guests are refused, or the guest has the
                name of another's partition.
        """
        profile = self._by_uuid.get(uuid) or self._by_name.get(name)
        if profile is not None:
            return _guests_own(profile)
        has_uuid = any(uuid)
        if self._refuse_unknown:
            who = repr(name) if name else str(uuidlib.UUID(bytes=uuid)) if has_uuid else "unnamed"
            raise ConfigError(
                f"no profile for guest {who}; put one into {self._directory}, or start "
                "without --refuse-unknown"
            )
        partition = name or (str(uuidlib.UUID(bytes=uuid)) if has_uuid else UNNAMED_PARTITION)
        if partition in self._guests:
            raise ConfigError(
                f"partition {partition!r} is that of guest {self._guests[partition]!r} "
                f"({self._directory}/{partition}.toml); give this guest another -name"
            )
        return self._of_unknown(partition)

    def find_platform(self, name: str) -> Profile:
        """The profile of the SEV platform with a name; "" is the one that is called "sev".

        Raises:
            ConfigError: there is none and unknown ones are refused, or it is a guest's.
        """
        name = name or UNNAMED_PLATFORM
        profile = self._by_name.get(name)
        if profile is not None and profile.is_platform:
            return profile
        if profile is not None or name in self._guests:
            raise ConfigError(
                f"{self._directory}: {name!r} is a guest, and no SEV platform: its profile has no "
                "table [sev]; name another one by HCALLD_SEV_PLATFORM"
            )
        if self._refuse_unknown:
            raise ConfigError(
                f"no profile for SEV platform {name!r}; put one with a table [sev] into "
                f"{self._directory}, or start without --refuse-unknown"
            )
        return Profile(partition=name, source=BUILT_IN, is_platform=True)

    def _of_unknown(self, partition: str) -> Profile:
        if self._default is not None:
            return msgspec.structs.replace(self._default, partition=partition)
        return Profile(partition=partition, source=BUILT_IN)

    def of_partition(self, partition: str) -> Profile:
        """The profile of a partition, by its own name.

        Raises:
            ConfigError: it is a SEV platform's.
        """
        guest = self._guests.get(partition)
        return self._of_unknown(partition) if guest is None else _guests_own(self._by_name[guest])


def _guests_own(profile: Profile) -> Profile:
    """The profile, which must be that of a guest."""
    if profile.is_platform:
        raise ConfigError(
            f"{profile.source} is a SEV platform's, and no guest's; give the guest another -name"
        )
    return profile


def _read_files(directory: pathlib.Path) -> list[tuple[pathlib.Path, str]]:
    path = directory
    texts = []
    try:
        # Not glob, which finds nothing in a directory that it may not read.
        for path in sorted(directory.iterdir()):
            if path.suffix == ".toml":
                texts.append((path, path.read_text("utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{path}: not a directory; expected one with *.toml profiles") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot read profiles: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot read profiles: {error}; expected UTF-8") from None
    return texts


def _uuid_bytes(text: str) -> bytes:
    """The 16 bytes of a UUID; b"" if it is none."""
    try:
        return uuidlib.UUID(text).bytes
    except ValueError:
        return b""
