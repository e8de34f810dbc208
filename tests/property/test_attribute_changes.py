# SPDX-License-Identifier: Apache-2.0
"""Changes of a partition's attributes against an HMC that takes one at a time.

The naive model changes one attribute after the other, each by a rule of its own, and
takes a change of several if some order of them goes through. It shares no code with the
table of rules, which judges a change at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hcalld.core.errors import ConfigError
from hcalld.core.records import Delete, Put, Record
from hcalld.domain.attribute_orders import Carried, connect, order
from hcalld.domain.attribute_records import Orders, flatten, load, put_in_force
from hcalld.domain.attributes import PartitionAttributes
from hcalld.domain.hmc import SB_VERSION_KEY
from hcalld.domain.keystore_records import NAMESPACE, encode_object, object_key

KBYTES = "keystore_kbytes"
UPDATES = "keystore_signed_updates"
LATCH = "keystore_signed_updates_without_verification"
DYNAMIC = "linux_dynamic_key_secure_boot"
SECURE = "secure_boot"
OVERHEAD = "pks.object_overhead"
LABEL = "pks.max_label_size"
OBJECT = "pks.max_object_size"

VALUES = {
    KBYTES: [0, 4, 5, 8],
    UPDATES: [0, 1],
    LATCH: [0, 1],
    DYNAMIC: [0, 1],
    SECURE: [0, 1, 2],
    OVERHEAD: [0, 32, 1024],
    LABEL: [255, 300],
    OBJECT: [1024, 2000],
}
ORDERS = st.lists(st.sampled_from(list(VALUES)), max_size=4, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: st.sampled_from(VALUES[name]) for name in names})
)


@dataclasses.dataclass
class Hmc:
    """What one sees on an HMC."""

    values: dict[str, int]
    objects: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    """Name to the sizes of label and data."""

    def used(self) -> int:
        return sum(self.values[OVERHEAD] + label + data for label, data in self.objects.values())

    def may_be_so(self) -> bool:
        v = self.values
        if not v[KBYTES]:
            return not self.objects and not v[DYNAMIC] and not v[LATCH]
        return (
            self.used() <= v[KBYTES] * 1024
            and all(
                label <= v[LABEL] and data <= v[OBJECT] for label, data in self.objects.values()
            )
            and not (v[LATCH] and not v[UPDATES])
        )

    def step(self, name: str, value: int) -> Hmc | None:
        """One attribute is set; None if the HMC says no."""
        old = self.values[name]
        if name == KBYTES and 0 < value < old:
            return None
        if name == DYNAMIC and old and not value and self.values[SECURE]:
            return None
        after = Hmc(self.values | {name: value}, dict(self.objects))
        if name == DYNAMIC and value:
            after.objects["SB_VERSION"] = (10, 1)
        if name == DYNAMIC and old and not value:
            after.objects.pop("SB_VERSION", None)
        return after if after.may_be_so() else None

    def change(self, orders: dict[str, int]) -> Hmc | None:
        """All are set, in whichever order is possible; None if there is none."""
        for permutation in itertools.permutations(orders.items()):
            state: Hmc | None = self
            for name, value in permutation:
                state = None if state is None else state.step(name, value)
            if state is not None:
                return state
        return None


class AttributeChanges(RuleBasedStateMachine):
    """A partition is set by hand, powered on with profiles, and used by its guest."""

    def __init__(self) -> None:
        super().__init__()
        self.records: dict[tuple[str, bytes], Record] = {}
        self.hmc = Hmc({})
        self.profile: dict[str, int] = {}
        """As last carried out."""
        self.instances = itertools.count()
        self.instance = 0

    def commit(self, carried: Carried) -> None:
        for change in carried.changes:
            if isinstance(change, Put):
                self.records[change.record.namespace, change.record.key] = change.record
            else:
                assert isinstance(change, Delete)
                del self.records[change.namespace, change.key]

    def all_records(self) -> list[Record]:
        return list(self.records.values())

    def in_force(self) -> PartitionAttributes:
        held = load(self.all_records())
        assert held is not None
        return held.attributes

    @initialize()
    def create(self) -> None:
        self.commit(order([], {OBJECT: 2000, KBYTES: 4}))
        self.hmc = Hmc(
            {name: value for name, value in flatten(self.in_force()).items() if name in VALUES}  # type: ignore[misc]  # all of these are numbers
        )

    def try_orders(self, orders: dict[str, int], act: Callable[[], Carried]) -> bool:
        before = dict(self.records)
        wanted = self.hmc.change(orders)
        carried: Carried | None = None
        with contextlib.suppress(ConfigError):
            carried = act()
        assert (carried is None) == (wanted is None), (self.hmc, orders)
        if carried is None or wanted is None:
            assert self.records == before
            return False
        self.commit(carried)
        self.hmc = wanted
        return True

    @rule(orders=ORDERS)
    def ctl_set(self, orders: dict[str, int]) -> None:
        self.try_orders(orders, lambda: order(self.all_records(), orders))

    @rule(profile=ORDERS)
    def power_on(self, profile: dict[str, int]) -> None:
        new = {name: value for name, value in profile.items() if self.profile.get(name) != value}
        number = next(self.instances)
        if self.try_orders(new, lambda: self.connect(profile, number)):
            self.profile, self.instance = profile, number

    @rule(profile=ORDERS)
    def daemon_restarts(self, profile: Orders) -> None:
        held = load(self.all_records())
        if held is None or held.instance is None:
            return
        carried = self.connect(profile, self.instance)
        assert not carried.changes
        assert not carried.done

    def connect(self, profile: Orders, number: int) -> Carried:
        return connect(self.all_records(), profile, number.to_bytes(16, "big"))

    @rule()
    def guest_uses_the_latch(self) -> None:
        change = put_in_force(
            msgspec.structs.replace(self.in_force(), keystore_signed_updates_without_verification=0)
        )
        assert isinstance(change, Put)
        self.records[change.record.namespace, change.record.key] = change.record
        self.hmc.values[LATCH] = 0

    @rule(
        name=st.sampled_from("abc"),
        label=st.sampled_from([20, 255, 300]),
        data=st.sampled_from([1, 1024, 2000]),
    )
    def guest_writes(self, name: str, label: int, data: int) -> None:
        after = Hmc(self.hmc.values, self.hmc.objects | {name: (label, data)})
        if not after.may_be_so() or not after.values[KBYTES]:
            return
        self.guest_removes(name)
        key = object_key(3, name.encode() * label)
        self.records[NAMESPACE, key] = Record(NAMESPACE, key, encode_object(0, bytes(data)))
        self.hmc.objects[name] = (label, data)

    @rule(name=st.sampled_from("abc"))
    def guest_removes(self, name: str) -> None:
        sizes = self.hmc.objects.pop(name, None)
        if sizes is not None:
            del self.records[NAMESPACE, object_key(3, name.encode() * sizes[0])]

    @invariant()
    def agree(self) -> None:
        if not self.hmc.values:
            return
        flat = flatten(self.in_force())
        assert {name: flat[name] for name in VALUES} == self.hmc.values
        has_version = (NAMESPACE, SB_VERSION_KEY) in self.records
        assert has_version == ("SB_VERSION" in self.hmc.objects) == bool(self.hmc.values[DYNAMIC])


TestAttributeChanges = AttributeChanges.TestCase
