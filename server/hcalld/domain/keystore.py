# SPDX-License-Identifier: Apache-2.0
"""The Platform KeyStore of one partition: objects, passwords, space.

What a consumer may do, in the order in which a call is judged (docs/pks.md "Order of
checks"): password, then whether the object exists, then the object's policy, then room.
A method either raises ``HcallError`` and has changed nothing, or has changed the model
and recorded it for the store. Registers and guest memory are the handlers' business;
how records look is ``keystore_records.py``.

Passwords, continue tokens and TRANSIENT objects live until the machine's next reset
(their records have lifetime RUN, so they outlive the daemon); everything else is
persistent.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable, Iterator
from typing import assert_never

import msgspec

from hcalld.core.errors import ConfigError, HcallError, StoreError
from hcalld.core.records import Change, Delete, Lifetime, Put, Record
from hcalld.core.secret import Secret
from hcalld.domain.attribute_records import put_in_force
from hcalld.domain.attributes import PartitionAttributes
from hcalld.domain.continuations import TOKEN_TAG, Continuations
from hcalld.domain.keystore_records import (
    NAMESPACE,
    OBJECT_TAG,
    PASSWORD_TAG,
    decode_object,
    decode_password,
    encode_object,
    encode_password,
    object_key,
    password_key,
    split_object_key,
    split_password_key,
)
from hcalld.domain.labels import os_label
from hcalld.domain.secvar.answers import Accepted, Remove, Store, Wipe
from hcallproto.abi.returns import H
from hcallproto.payloads.pks import Consumer, Policy, WrapFlag

SB_VERSION = b"SB_VERSION"
"""The firmware's object that says: secure boot takes its keys from the keystore."""

MAX_VARIABLE_SIZE = 0xFFFF
"""Linux reads a variable with a buffer of ``maxobjsize``, which has 16 bits (plpks-secvar.c);
one that an append made larger could not be read any more."""

SECURE_BOOT_AUDIT = 1
SECURE_BOOT_ENFORCE = 2

_USED_SPACE = slice(16, 20)
"""Where ``usedspace`` is in the configuration structure."""
_USED_SPACE_FIELD = struct.Struct(">I")

# Plain numbers: each operation on an IntFlag makes an object, and every call pays for it.
_WORLDREADABLE = int(Policy.WORLDREADABLE)
_GATED = int(Policy.OSSECBOOTAUDIT | Policy.OSSECBOOTENFORCE | Policy.PWSET)
_TRANSIENT = int(Policy.TRANSIENT)
_IMMUTABLE = int(Policy.IMMUTABLE)
_SIGNEDUPDATE = int(Policy.SIGNEDUPDATE)
_WRAPPINGKEY = int(Policy.WRAPPINGKEY)


@dataclasses.dataclass(frozen=True, slots=True)
class StoredObject:
    """One object."""

    policy: int
    data: bytes = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class NamedObject:
    """One object and what it is called."""

    consumer: Consumer
    label: bytes
    stored: StoredObject


class Keystore:
    """The model behind H_PKS_*."""

    def __init__(self, attributes: PartitionAttributes, records: Iterable[Record] = ()) -> None:
        """Build the model from a store's records; those of other namespaces are ignored.

        Raises:
            StoreError: a record is malformed or of a newer version.
            ConfigError: what is stored does not fit the attributes.
        """
        self.attributes = attributes
        self._overhead = attributes.pks.object_overhead
        self._objects: dict[bytes, StoredObject] = {}
        self._passwords: dict[int, Secret] = {}
        self._changes: list[Change] = []
        self._run_objects: set[bytes] = set()
        """Objects that end with the run."""
        self.continuations = Continuations(NAMESPACE, self._change)
        self._used_space = 0
        self._config = attributes.keystore_config(0).build()
        for record in records:
            if record.namespace == NAMESPACE:
                self._load(record)
        self._check_fit()

    def _load(self, record: Record) -> None:
        tag = record.key[:1]
        if tag == OBJECT_TAG:
            _, label = split_object_key(record.key)
            stored = StoredObject(*decode_object(record))
            self._objects[record.key] = stored
            if record.lifetime is Lifetime.RUN:
                self._run_objects.add(record.key)
            self._charge(self._cost(label, stored.data))
        elif tag == PASSWORD_TAG:
            consumer = split_password_key(record.key)
            if record.lifetime is not Lifetime.RUN:
                # It would be the password of every run, known to whoever made it.
                raise StoreError(
                    f"the record of consumer {consumer}'s password is malformed (it outlives the "
                    "run): restore the partition's store from a backup, or report a bug"
                )
            self._passwords[consumer] = Secret(decode_password(record))
        elif tag == TOKEN_TAG:
            self.continuations.load(record)
        else:
            raise StoreError(
                f"keystore record of unknown kind {tag!r}: it was written by a newer hcalld, "
                "use that one"
            )

    def _check_fit(self) -> None:
        """What ends with the run does not count: it was there when the guest was on."""
        kept = [key for key in self._objects if key not in self._run_objects]
        used = sum(self._cost(key[2:], self._objects[key].data) for key in kept)
        total = self.attributes.total_size
        if not kept or used <= total:
            return
        if not total:
            raise ConfigError(
                f"keystore_kbytes is 0, but the keystore holds {len(kept)} objects; remove them "
                "(hcalld state remove) or set keystore_kbytes"
            )
        raise ConfigError(
            f"keystore_kbytes is {self.attributes.keystore_kbytes}, but {used} bytes are in use; "
            f"set it to at least {-(-used // 1024)}"
        )

    # -- session --------------------------------------------------------------------------

    def take_changes(self) -> list[Change]:
        """The changes since the last time, to be committed together."""
        changes = self._changes
        if changes:
            self._changes = []
        return changes

    # -- configuration and space ----------------------------------------------------------

    @property
    def is_enabled(self) -> bool:
        """False if the partition has no keystore."""
        return self.attributes.keystore_kbytes > 0

    @property
    def used_space(self) -> int:
        """Bytes charged for all objects."""
        return self._used_space

    @property
    def object_count(self) -> int:
        """How many objects there are."""
        return len(self._objects)

    def config(self) -> bytes:
        """The configuration structure, kept ready: Linux asks again and again."""
        return self._config

    def _cost(self, label: bytes, data: bytes) -> int:
        return self._overhead + len(label) + len(data)

    def _charge(self, size: int) -> None:
        self._used_space += size
        config = bytearray(self._config)
        config[_USED_SPACE] = _USED_SPACE_FIELD.pack(self._used_space)
        self._config = bytes(config)

    # -- passwords ------------------------------------------------------------------------

    def has_password(self, consumer: int) -> bool:
        """True once the consumer's password is set, until the next reset."""
        return consumer in self._passwords

    def set_password(self, consumer: int, password: bytes) -> None:
        """Set a consumer's password for this run.

        Raises:
            HcallError: H_IN_USE, it has one.
        """
        if self.has_password(consumer):
            raise HcallError(
                H.IN_USE, f"consumer {consumer} has a password already, until the next reset"
            )
        self._passwords[consumer] = Secret(password)
        value = encode_password(password)
        self._change(Put(Record(NAMESPACE, password_key(consumer), value, Lifetime.RUN)))

    def authorize(self, consumer: int, password: bytes) -> None:
        """Check a consumer's password; before one is set, the empty password is right.

        Raises:
            HcallError: H_AUTHORITY.
        """
        expected = self._passwords.get(consumer)
        if expected is None:
            if password:
                raise HcallError(
                    H.AUTHORITY, f"consumer {consumer} has no password yet, but one was given"
                )
        elif not expected.matches(password):
            raise HcallError(H.AUTHORITY, f"wrong password for consumer {consumer}")

    # -- objects --------------------------------------------------------------------------

    def exists(self, consumer: int, label: bytes) -> bool:
        """True if the consumer has an object with this label."""
        return object_key(consumer, label) in self._objects

    def check_name(self, consumer: int, label: bytes) -> None:
        """Whether a guest may have an object of this name.

        PowerVM's firmware has a password of its own, which keeps an OS from choosing the
        mode of the next boot; QEMU's firmware sets none.

        Raises:
            HcallError: H_AUTHORITY, it is the hypervisor's.
        """
        if consumer == Consumer.FIRMWARE and label == SB_VERSION:
            raise HcallError(H.AUTHORITY, "SB_VERSION is the hypervisor's to make")

    def create(self, consumer: int, label: bytes, policy: int, data: bytes) -> None:
        """Create an object.

        Raises:
            HcallError: H_RESOURCE, the label exists; H_NO_MEM, it does not fit.
        """
        key = object_key(consumer, label)
        if key in self._objects:
            raise HcallError(H.RESOURCE, "an object with this label exists; remove it first")
        self._store(key, policy, data)

    def _store(self, key: bytes, policy: int, data: bytes) -> None:
        """Create or replace an object, if the difference fits."""
        size = self._cost(key[2:], data)
        old = self._objects.get(key)
        growth = size if old is None else size - self._cost(key[2:], old.data)
        room = self.attributes.total_size - self._used_space
        if growth > room:
            raise HcallError(H.NO_MEM, f"object needs {growth} more bytes, {room} are free")
        self._objects[key] = StoredObject(policy, data)
        self._charge(growth)
        lifetime = Lifetime.PERSISTENT
        if policy & _TRANSIENT:
            lifetime = Lifetime.RUN
            self._run_objects.add(key)
        self._change(Put(Record(NAMESPACE, key, encode_object(policy, data), lifetime)))

    def read(self, consumer: int, label: bytes, password: bytes) -> StoredObject:
        """An object that the caller may see; a wrapping key's bytes are still not for it.

        Anyone may read a WORLDREADABLE object: its password is not looked at.

        Raises:
            HcallError: H_AUTHORITY or H_NOT_FOUND.
        """
        stored = self._objects.get(object_key(consumer, label))
        if stored is None:
            self.authorize(consumer, password)
            raise self._absent()
        if not stored.policy & _WORLDREADABLE:
            self.authorize(consumer, password)
        self._check_gates(consumer, stored.policy)
        return stored

    def remove(self, consumer: int, label: bytes) -> None:
        """Remove an object; the caller is authorized.

        Raises:
            HcallError: H_NOT_FOUND or H_AUTHORITY.
        """
        key = object_key(consumer, label)
        stored = self._objects.get(key)
        if stored is None:
            raise self._absent()
        self._check_gates(consumer, stored.policy)
        if stored.policy & _IMMUTABLE:
            raise HcallError(H.AUTHORITY, "the object is IMMUTABLE")
        if stored.policy & _SIGNEDUPDATE:
            raise HcallError(H.AUTHORITY, "the object is removed by H_PKS_SIGNED_UPDATE only")
        if stored.policy & Policy.HVPROVISIONED:
            raise HcallError(H.AUTHORITY, "the object is the hypervisor's own")
        self._delete(key, stored)

    def _check_gates(self, consumer: int, policy: int) -> None:
        """Policy bits that close an object altogether while the partition is as it is."""
        if not policy & _GATED:
            return
        if policy & Policy.PWSET and not self.has_password(consumer):
            raise HcallError(
                H.AUTHORITY, f"the object is closed until consumer {consumer} has a password"
            )
        self._check_secure_boot(
            audit=bool(policy & Policy.OSSECBOOTAUDIT),
            enforce=bool(policy & Policy.OSSECBOOTENFORCE),
        )

    def _check_secure_boot(self, *, audit: bool, enforce: bool) -> None:
        secure_boot = self.attributes.secure_boot
        if audit and secure_boot < SECURE_BOOT_AUDIT:
            raise HcallError(
                H.AUTHORITY, f"the object needs secure boot audit or enforce; it is {secure_boot}"
            )
        if enforce and secure_boot < SECURE_BOOT_ENFORCE:
            raise HcallError(
                H.AUTHORITY, f"the object needs secure boot enforce; it is {secure_boot}"
            )

    # -- signed variables -------------------------------------------------------------------

    def variable(self, name: bytes) -> bytes | None:
        """A signed variable as it is stored, by its name in UTF-16LE; None if absent."""
        stored = self._objects.get(object_key(Consumer.OS, os_label(b"", name)))
        if stored is None or not stored.policy & _SIGNEDUPDATE:
            return None
        return stored.data

    def check_signed_update(self, consumer: int, label: bytes, policy: int) -> None:
        """Whether the object's policy lets it be changed by a signed update.

        Raises:
            HcallError: H_P4, the policy is not that of the object; H_AUTHORITY.
        """
        if not self.attributes.keystore_signed_updates:
            raise HcallError(H.AUTHORITY, "signed updates are off (keystore_signed_updates is 0)")
        stored = self._objects.get(object_key(consumer, label))
        if stored is None:
            return
        if stored.policy != policy:
            raise HcallError(
                H.P4, f"policy 0x{policy:08x}, but the object has 0x{stored.policy:08x}"
            )
        self._check_gates(consumer, stored.policy)
        if stored.policy & _IMMUTABLE:
            raise HcallError(H.AUTHORITY, "the object is IMMUTABLE")

    @property
    def has_latch(self) -> bool:
        """True if the next update of PK needs no signature."""
        return bool(self.attributes.keystore_signed_updates_without_verification)

    def update(self, consumer: int, label: bytes, policy: int, accepted: Accepted) -> None:
        """Carry out a signed update.

        Raises:
            HcallError: H_NO_MEM, it does not fit.
        """
        key = object_key(consumer, label)
        change = accepted.change
        match change:
            case Store():
                greatest = min(self.attributes.pks.max_object_size, MAX_VARIABLE_SIZE)
                if change.size > greatest:
                    raise HcallError(
                        H.NO_MEM,
                        f"the variable would have {change.size} bytes, at most {greatest}",
                    )
                self._store(key, policy, change.data)
            case Remove():
                stored = self._objects.get(key)
                if stored is not None:
                    self._delete(key, stored)
            case Wipe():
                self._wipe()
            case _:
                assert_never(change)
        if accepted.used_latch:
            self._set_attributes(keystore_signed_updates_without_verification=0)

    def _wipe(self) -> None:
        """Remove all signed variables, and go back to static keys with the next reset."""
        for key, stored in list(self._objects.items()):
            if stored.policy & _SIGNEDUPDATE:
                self._delete(key, stored)
        key = object_key(Consumer.FIRMWARE, SB_VERSION)
        mode = self._objects.get(key)
        if mode is not None:
            # The running kernel has found dynamic keys; the next one finds none.
            self._run_objects.add(key)
            value = encode_object(mode.policy, mode.data)
            self._change(Put(Record(NAMESPACE, key, value, Lifetime.RUN)))
        self._set_attributes(linux_dynamic_key_secure_boot=0)

    def _set_attributes(self, **values: int) -> None:
        self.attributes = msgspec.structs.replace(self.attributes, **values)
        self._change(put_in_force(self.attributes))

    # -- wrapping ---------------------------------------------------------------------------

    def wrapping_key(self, consumer: int, label: bytes) -> Secret:
        """A key for wrapping and unwrapping; the caller is authorized.

        Raises:
            HcallError: H_NOT_FOUND or H_AUTHORITY.
        """
        stored = self._objects.get(object_key(consumer, label))
        if stored is None:
            raise HcallError(H.NOT_FOUND, "no wrapping key has this label")
        if not stored.policy & _WRAPPINGKEY:
            raise HcallError(H.AUTHORITY, "the object is no wrapping key")
        self._check_gates(consumer, stored.policy)
        return Secret(stored.data)

    def check_unwrap(self, consumer: int, flags: int) -> None:
        """Whether the conditions that a wrapped object carries are met.

        Raises:
            HcallError: H_AUTHORITY.
        """
        if flags & WrapFlag.PASSWORD and not self.has_password(consumer):
            raise HcallError(
                H.AUTHORITY, f"the object opens once consumer {consumer} has a password"
            )
        self._check_secure_boot(
            audit=bool(flags & WrapFlag.OSSECBOOTAUDIT),
            enforce=bool(flags & WrapFlag.OSSECBOOTENFORCE),
        )

    # -- the hypervisor's own side ----------------------------------------------------------

    def objects(self) -> Iterator[NamedObject]:
        """All objects, by consumer and label."""
        for key in sorted(self._objects):
            consumer, label = split_object_key(key)
            yield NamedObject(consumer, label, self._objects[key])

    def discard(self, consumer: int, label: bytes) -> None:
        """Remove an object whatever its policy says.

        Raises:
            HcallError: H_NOT_FOUND.
        """
        key = object_key(consumer, label)
        stored = self._objects.get(key)
        if stored is None:
            raise self._absent()
        self._delete(key, stored)

    # -- changes --------------------------------------------------------------------------

    @staticmethod
    def _absent() -> HcallError:
        return HcallError(H.NOT_FOUND, "no object has this label")

    def _delete(self, key: bytes, stored: StoredObject) -> None:
        del self._objects[key]
        self._run_objects.discard(key)
        self._charge(-self._cost(key[2:], stored.data))
        self._change(Delete(NAMESPACE, key))

    def _change(self, change: Change) -> None:
        self._changes.append(change)
