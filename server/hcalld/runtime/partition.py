# SPDX-License-Identifier: Apache-2.0
"""One guest's state while the daemon runs: its attributes, its models, its store.

A partition is opened by one connection at a time. Its attributes are in its store; its
profile changes them when the machine is powered on, which is when an instance of QEMU
connects that was not the last one. Its store is open only while it is
used: after a while without calls it is closed, and the next call loads it again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hcalld.config import Profile
from hcalld.core.call import Limits, Plan, buffer_max_size
from hcalld.core.errors import StoreError
from hcalld.core.handlers import Admission, Handler, Model
from hcalld.core.records import Change, Loaded, Record, RecordedReply, Run
from hcalld.domain.attribute_orders import Carried, connect
from hcalld.domain.attribute_records import load as load_attributes
from hcalld.domain.attributes import PartitionAttributes
from hcalld.domain.pef.machine import PefMachine
from hcalld.families.registry import SERVED, Kind, Served
from hcalld.families.uv import shim_calls
from hcalld.runtime.flushing import FlushRounds
from hcalld.runtime.tpm import TpmSession
from hcalld.stores.base import Store
from hcallproto.abi.spec import BufferShape, Direction, Family, Hcall, Level
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

INLINE_LIMIT = 4096
"""With shared RAM, buffers that may be larger than this are read from there instead."""
MAX_REPLIES = s.MAX_VCPUS + len(s.ShimCall)
"""Each vCPU's last reply is kept until a reset, and no more: a peer may invent vCPUs."""


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """How one served call is carried out."""

    hcall: Hcall
    plan: Plan
    handler: Handler[Any]
    family: str
    gate: Callable[[Any], None] | None
    admission: Admission[Any] | None
    inline: Mapping[str, int]
    """Address argument to index of its buffer descriptor in the announcement."""


def _spec_of(entry: Entry, limits: Limits, deadline_ms: int | None) -> f.CallSpec:
    hcall = entry.hcall
    buffers = {buffer.address: buffer for buffer in hcall.buffers}
    specs = []
    for name in entry.inline:
        buffer = buffers[name]
        kind = {
            BufferShape.SIZED: s.BufferKind.SIZED,
            BufferShape.FIXED: s.BufferKind.FIXED,
            BufferShape.PAGE_BOUNDED: s.BufferKind.PAGE_BOUNDED,
        }[buffer.shape]
        size_register = hcall.arg(buffer.size).register if buffer.size else 0
        specs.append(
            f.BufferSpec(
                hcall.arg(name).register,
                kind,
                s.Direction.IN,
                size_register,
                buffer_max_size(buffer, limits),
            )
        )
    flags = s.CALL_FLAG_WAIT if hcall.waits_for_daemon else 0
    if hcall.from_problem_state:
        flags |= s.CALL_FLAG_PROBLEM_STATE
    if hcall.of_secure_vm:
        flags |= s.CALL_FLAG_SECURE
    return f.CallSpec(
        hcall.number,
        hcall.level,
        s.Disposition.FORWARD,
        flags,
        deadline_ms or hcall.deadline_ms,
        hcall.timeout_code,
        hcall.lost_code,
        tuple(specs),
    )


def _answer_spec(hcall: Hcall) -> f.CallSpec:
    """A call without a handler: the shim answers "no such function" by itself."""
    function = hcall.return_codes["FUNCTION"]
    return f.CallSpec(hcall.number, hcall.level, s.Disposition.ANSWER, 0, 0, function, function, ())


class Partition:
    """One guest's state.

    Args:
        profile: its configuration.
        open_store: opens its store; raises StoreError.
        rounds: flushes its store, with those of other partitions; by default alone.
        tpm: its TPM; None: it has none.
        kind: whom it is for.
    """

    def __init__(
        self,
        profile: Profile,
        open_store: Callable[[], Store],
        rounds: FlushRounds | None = None,
        tpm: TpmSession | None = None,
        kind: Kind = Kind.GUEST,
    ) -> None:
        self.kind = kind
        self.profile = profile
        self.id = profile.partition
        self.attributes: PartitionAttributes = profile.attributes
        """Those in force, once it has begun."""
        self.carried = Carried(self.attributes)
        """What became of the profile's orders when the machine connected."""
        self.replies: dict[int, RecordedReply] = {}
        self._instance: bytes | None = None
        self._open_store = open_store
        self._store: Store | None = None
        self._models: dict[str, Model] = {}
        self._rounds = rounds or FlushRounds()
        self.tpm = tpm
        self.page_shift = 0
        """QEMU's guess of the guest kernel's page size, as a power of 2; 0: none."""

    # -- what it serves -----------------------------------------------------------------

    def _served(self, *, has_pef: bool) -> list[Served[Any]]:
        """The families that are there for it."""
        return [
            served
            for served in SERVED
            if served.kind is self.kind
            and (self.tpm is not None or not served.needs_tpm)
            and (has_pef or not served.needs_pef)
        ]

    def entries(self, *, shared_ram: bool, levels: frozenset[Level]) -> dict[int, Entry]:
        """The calls it serves, by ``entry_key``."""
        limits = self.attributes.limits()
        entries = {}
        for served in self._served(has_pef=Level.SC2 in levels):
            for hcall, handler in served.handlers.by_call.items():
                if hcall.level not in levels:
                    continue
                inline = self._inline_buffers(hcall, limits, shared_ram=shared_ram)
                entries[entry_key(hcall.number, hcall.level)] = Entry(
                    hcall=hcall,
                    plan=Plan(hcall, limits),
                    handler=handler,
                    family=served.handlers.family.name,
                    gate=served.handlers.gate,
                    admission=served.handlers.admission,
                    inline={name: index for index, name in enumerate(inline)},
                )
        return entries

    def shim_entries(self) -> dict[int, Entry]:
        """QEMU's own calls, which are not announced."""
        return {
            entry_key(hcall.number, s.LEVEL_SHIM): Entry(
                hcall=hcall,
                plan=Plan(hcall, self.attributes.limits()),
                handler=handler,
                family=shim_calls.FAMILY.name,
                gate=None,
                admission=None,
                inline={},
            )
            for hcall, handler in shim_calls.HANDLERS.by_call.items()
        }

    @staticmethod
    def _inline_buffers(hcall: Hcall, limits: Limits, *, shared_ram: bool) -> list[str]:
        return [
            buffer.address
            for buffer in hcall.buffers
            if buffer.direction is Direction.IN
            and buffer.prefetch
            and not (shared_ram and buffer_max_size(buffer, limits) > INLINE_LIMIT)
        ]

    def announcement(
        self, entries: Mapping[int, Entry], *, levels: frozenset[Level]
    ) -> f.Announcement:
        """What the shim is told of the calls and the device tree."""
        limits = self.attributes.limits()
        deadline_ms = self.profile.emulation.deadline_ms
        calls = [_spec_of(entry, limits, deadline_ms) for entry in entries.values()]
        served = self._served(has_pef=Level.SC2 in levels)
        families: Sequence[Family] = [one.handlers.family for one in served]
        if self.profile.emulation.unserved == "function":
            calls += [
                _answer_spec(hcall)
                for family in families
                for hcall in family.calls
                if hcall.level in levels and entry_key(hcall.number, hcall.level) not in entries
            ]
        return f.Announcement(
            tuple(calls),
            tuple(string for family in families for string in family.hypertas),
            self.root_properties(),
        )

    def root_properties(self) -> tuple[tuple[str, bytes], ...]:
        """What the device tree of its machine has in its root."""
        return self.attributes.root_properties() if self.kind.is_machine else ()

    # -- its state ----------------------------------------------------------------------

    async def prepare(self) -> None:
        """Do what is done before the first ``begin``, and would take too long in it."""

    def begin(self, run: Run) -> None:
        """Enter a run of the machine; what lives for a run only ends with the one before.

        A machine that was not the last one is powered on: the profile's orders are
        carried out, in one transaction. Then only the run before it ends, so that a
        machine that is refused has changed nothing.

        Raises:
            ConfigError: the profile orders what is refused.
            StoreError: the store cannot be used.
        """
        if self._store is None:
            self._store = self._open_store()
        if run.instance != self._instance:
            self._connect(self._store, run.instance)
        if self._store.begin_run(run):
            self._models = {}
        if self.tpm is not None:
            self.tpm.begin_run(run)
        self._load(self._store)

    def _connect(self, store: Store, instance: bytes) -> None:
        self.carried = connect(store.load().records, self.profile.orders, instance)
        if self.carried.changes:
            store.commit(self.carried.changes, None)
        self._instance = instance

    def _load(self, store: Store) -> None:
        loaded = store.load()
        held = load_attributes(loaded.records)
        assert held is not None, "connecting puts attributes in force"
        self.attributes = held.attributes
        self._models = {}
        for served in self._served(has_pef=self.may_be_secure):
            model = self._build(served, loaded.records)
            self._models[served.handlers.family.name] = model
        self.replies = {reply.vcpu: reply for reply in loaded.replies}

    def _build(self, served: Served[Any], records: Sequence[Record]) -> Model:
        if served.shares is not None:
            return self._models[served.shares]
        model: Model = served.build(self.attributes, records)
        if isinstance(model, PefMachine):
            model.configure(self.profile.pef.settings())
            model.hint(self.page_shift)
        return model

    def stored(self) -> Loaded:
        """All that its store holds now.

        Raises:
            StoreError: it cannot be read.
        """
        assert self._store is not None
        return self._store.load()

    @property
    def may_be_secure(self) -> bool:
        """True if its guest may become a secure VM."""
        return self.profile.pef.enabled

    @property
    def pef(self) -> PefMachine | None:
        """Its secure VM's model, if it may have one and the store does not rest."""
        model = self._models.get(shim_calls.FAMILY.name)
        return model if isinstance(model, PefMachine) else None

    def model(self, family: str) -> Model:
        """A family's model; loads it again if the store rests.

        Raises:
            StoreError: the store cannot be used.
        """
        if not self._models:
            if self._store is None:
                raise StoreError("the partition's store is not open: its guest is turned away")
            self._load(self._store)
        return self._models[family]

    def holds(self, family: str, model: Model) -> bool:
        """True if this is still the family's model: what it changes will be committed."""
        return self._models.get(family) is model

    def take_changes(self) -> list[Change]:
        """What the models changed since the last time."""
        changes: list[Change] = []
        for model in self._models.values():
            changes += model.take_changes()
        return changes

    def commit(self, changes: Sequence[Change], reply: RecordedReply) -> None:
        """Make changes and the reply that tells of them durable against our own death.

        Raises:
            StoreError: nothing was changed; the models have been loaded again.
        """
        assert self._store is not None
        try:
            if reply.vcpu not in self.replies and len(self.replies) >= MAX_REPLIES:
                raise StoreError(
                    f"vCPU {reply.vcpu} calls, and replies to {MAX_REPLIES} others are kept; "
                    f"expected at most {s.MAX_VCPUS} vCPUs. Reset the guest"
                )
            self._store.commit(changes, reply)
        except StoreError:
            self.discard()
            raise
        self.replies[reply.vcpu] = reply

    def read_platform(self) -> bytes:
        """See ReadPlatform: what has no such calls has none.

        Raises:
            StoreError: the platform's store cannot be used.
        """
        raise TypeError(f"{self.kind.value} has no SEV platform")

    def change_platform(self, change: bytes) -> None:
        """See ChangePlatform.

        Raises:
            StoreError: nothing was changed.
        """
        raise TypeError(f"{self.kind.value} has no SEV platform")

    @property
    def held(self) -> str:
        """What a model has that no store holds, as a clause; "" if nothing."""
        for served in SERVED:
            model = self._models.get(served.handlers.family.name)
            if model is not None and (held := served.held(model)):
                return held
        return ""

    def discard(self) -> None:
        """Forget the models: what they hold may not be what the store holds."""
        self._models = {}

    @property
    def is_dirty(self) -> bool:
        """True if a commit is not yet on stable storage."""
        return self._store is not None and self._store.dirty

    async def flush(self) -> None:
        """Wait until all commits so far are on stable storage.

        Raises:
            StoreError: they may not be.
        """
        if self._store is not None and self._store.dirty:
            await self._rounds.flush(self._store)

    def rest(self) -> None:
        """Give up memory until the next call, if it can be had again."""
        if self.kind.is_machine and self._store is not None and not self._store.dirty:
            self._models = {}
            self._store.rest()

    async def close(self) -> None:
        """Close the store and give up its ownership, after a flush that is under way."""
        self._models = {}
        if self.tpm is not None:
            await self.tpm.aclose()
        store = self._store
        if store is not None:
            await self._rounds.until_unused(store)
            self._store = None
            store.close()


def entry_key(number: int, level: int) -> int:
    """One small integer for (number, level): a dictionary key without a tuple."""
    return number << 3 | level
