# SPDX-License-Identifier: Apache-2.0
"""SEV platforms, and the VMs of clients that use them.

A platform is what several connections share: the secure processor of one host. Each connection is a
partition of its own, a VM, and has no store: a guest ends with its connection, as with its VM.
What a VM's commands ask of the platform goes through ``runtime.world``.
"""

from __future__ import annotations

import itertools
import os
import pathlib
import stat
from collections.abc import Callable, Container
from typing import TypeVar, TypeVarTuple

import trio

from hcalld.config import Profile
from hcalld.core.errors import ConfigError, StoreError
from hcalld.core.records import Run
from hcalld.crypto.sev.errors import KeyFormatError
from hcalld.crypto.sev.roots import MAX_PEM_SIZE, Root
from hcalld.domain.sev.platform import Platform
from hcalld.families.registry import Kind
from hcalld.runtime.flushing import FlushRounds
from hcalld.runtime.partition import Partition
from hcalld.stores.base import Store
from hcalld.stores.memory import MemoryStore
from hcallproto.payloads.sev import CertificateError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class PlatformHost:
    """One platform, as long as anybody is connected to it.

    Args:
        profile: its configuration.
        open_store: opens the store of its keys; raises StoreError.
        rounds: flushes its store, with those of partitions.
    """

    def __init__(
        self, profile: Profile, open_store: Callable[[], Store], rounds: FlushRounds
    ) -> None:
        self.profile = profile
        self.id = profile.partition
        self.vms: dict[int, SevPartition] = {}
        """By number, from 1 on."""
        self._open_store = open_store
        self._rounds = rounds
        self._store: Store | None = None
        self._platform: Platform | None = None
        self._preparing = trio.Lock()
        self._was_initialized = profile.sev.init_on_probe
        """When the last one left: that is the driver's to know, whoever has it open."""

    def join(self, taken: Container[str] = ()) -> SevPartition:
        """A partition for one more connection; ``leave`` ends it.

        Args:
            taken: partitions that there are.
        """
        number = next(
            n
            for n in itertools.count(1)
            if n not in self.vms and self.profile.of_vm(n).partition not in taken
        )
        vm = self.vms[number] = SevPartition(self, number)
        return vm

    async def leave(self, vm: SevPartition) -> None:
        """The connection is over: its guest is decommissioned."""
        self.release(vm)
        del self.vms[vm.number]
        if self.vms or self._store is None:
            return
        store = self._store
        await self._rounds.until_unused(store)
        if not self.vms and self._store is store:
            if self._platform is not None:
                self._was_initialized = self._platform.is_initialized
            self._store = self._platform = None
            store.close()

    @property
    def is_idle(self) -> bool:
        """True if nobody is connected, and another one would be as this is."""
        is_as_new = self._was_initialized == self.profile.sev.init_on_probe
        return not self.vms and self._store is None and is_as_new

    async def prepare(self) -> None:
        """Load the platform, or make it, unless it is there; whoever has joined does this first.

        It stays then until the last one leaves. What takes long is not done in the event loop,
        where all guests would wait: a root of 4096 bits is looked at for most of a second, and the
        keys of a new one of 2048 take a tenth.

        Raises:
            StoreError: its store cannot be used, or holds no platform.
            ConfigError: its settings or its root are wrong.
        """
        async with self._preparing:
            if self._platform is not None:
                return
            settings, root = self.profile.sev, None
            if settings.root:
                root = await _elsewhere(_read_root, pathlib.Path(settings.root))
            records = self._opened().load().records
            platform = await _elsewhere(Platform.build, records, settings, os.urandom, root)
            self._commit(platform)
            platform.is_initialized = self._was_initialized
            self._platform = platform

    def release(self, vm: SevPartition) -> None:
        """Decommission the VM's guest, if it has one."""
        if self._platform is not None:
            self._platform.release(vm.number)

    # -- what handlers ask (core.effects) -----------------------------------------------------

    def read(self) -> bytes:
        """See ReadPlatform."""
        return self._prepared.pack()

    def change(self, change: bytes, vm: SevPartition) -> None:
        """See ChangePlatform.

        Raises:
            StoreError: nothing was changed.
        """
        platform = self._prepared
        platform.apply(change, vm.number)
        try:
            self._commit(platform)
        except StoreError:
            platform.undo()
            raise
        platform.settle()

    @property
    def roots(self) -> tuple[bytes, bytes]:
        """The certificates of its ASK and ARK."""
        identity = self._prepared.identity
        return identity.ask, identity.ark

    @property
    def _prepared(self) -> Platform:
        assert self._platform is not None, "a platform is asked after prepare()"
        return self._platform

    def _opened(self) -> Store:
        if self._store is None:
            self._store = self._open_store()
        return self._store

    def _commit(self, platform: Platform) -> None:
        changes = platform.take_changes()
        if changes:
            assert self._store is not None
            self._store.commit(changes, None)

    @property
    def is_dirty(self) -> bool:
        """See Partition."""
        return self._store is not None and self._store.dirty

    async def flush(self) -> None:
        """See Partition."""
        if self._store is not None and self._store.dirty:
            await self._rounds.flush(self._store)


async def _elsewhere(work: Callable[[*Ts], T], *args: *Ts) -> T:
    """Do something in a thread; who is cancelled does not wait for its end."""
    return await trio.to_thread.run_sync(work, *args, abandon_on_cancel=True)


class SevPartition(Partition):
    """One connection of a client."""

    def __init__(self, host: PlatformHost, number: int) -> None:
        profile = host.profile.of_vm(number)
        super().__init__(
            profile, lambda: MemoryStore(partition=profile.partition), kind=Kind.CLIENT
        )
        self.platform = host
        self.number = number

    async def prepare(self) -> None:
        """See Partition."""
        await self.platform.prepare()

    def begin(self, run: Run) -> None:
        """See Partition; a VM that begins anew has no guest."""
        self.platform.release(self)
        super().begin(run)

    def read_platform(self) -> bytes:
        """See ReadPlatform."""
        return self.platform.read()

    def change_platform(self, change: bytes) -> None:
        """See ChangePlatform."""
        self.platform.change(change, self)

    def discard(self) -> None:
        """See Partition: what is forgotten of a VM is its guest."""
        self.platform.release(self)
        super().discard()

    @property
    def is_dirty(self) -> bool:
        """True if a change of the platform is not yet on stable storage."""
        return self.platform.is_dirty

    async def flush(self) -> None:
        """Wait until all changes of the platform are on stable storage."""
        await self.platform.flush()

    async def close(self) -> None:
        """Give up the VM."""
        await super().close()
        await self.platform.leave(self)


def _read_root(path: pathlib.Path) -> Root:
    """The root that a profile names.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            # A pipe would be waited for.
            raise ConfigError(f"{path}: not a file, expected a root of `hcalld sev root`")
        with path.open("rb") as file:
            return Root.from_pem(file.read(MAX_PEM_SIZE + 1))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot read the SEV platform's root: {error.strerror}; make one with "
            "`hcalld sev root`"
        ) from None
    except (KeyFormatError, CertificateError) as error:
        raise ConfigError(f"{path}: {error}; expected a root of `hcalld sev root`") from None
