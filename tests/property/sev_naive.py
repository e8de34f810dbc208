# SPDX-License-Identifier: Apache-2.0
"""SEV's rules as conditions on plain values; no code is shared with the real model.

Written from the specification's text: what the kernel refuses (below 0), then the firmware (above),
in the order handle, platform, guest, policy, lengths, alignment, contents.
"""

from __future__ import annotations

import dataclasses
import hashlib

EINVAL, ENOTTY, EBUSY = -22, -25, -16
PLATFORM_STATE, GUEST_STATE, LEN, POLICY = 1, 2, 4, 7
ADDRESS, MEASUREMENT, OWNED, GUEST, LIMIT = 9, 11, 12, 16, 23
UNINIT, LUPDATE, LSECRET, RUNNING, SUPDATE, RUPDATE, SENT = range(7)
NODBG, NOKS, ES, NOSEND = 1, 2, 4, 8
API = (1, 55)


@dataclasses.dataclass
class NaiveVm:
    """A client's VM."""

    kind: str = ""
    """ "", sev, es, or init2: what its guest's policy says."""
    state: int = UNINIT
    handle: int = 0
    policy: int = 0
    key: int = 0
    """Which VEK: the handle of the guest that was given it first."""
    digest: bytes = b""
    """All that was measured, one after the other."""
    areas: int = 0
    way: int = 0
    """Which session's keys: 0 of an owner, or a number that no other session has."""
    seen: dict[int, tuple[int, bytes]] = dataclasses.field(default_factory=dict)
    """Blocks of memory that were encrypted: by which key, and their plaintext."""

    def plain(self, block: int) -> bytes | None:
        """What the guest has there, if that is known."""
        key, plain = self.seen.get(block, (0, b""))
        return plain if plain and key == self.key else None


class Naive:
    """A platform."""

    def __init__(self, asids: int, is_initialized: bool) -> None:
        self.asids = asids
        self.is_initialized = is_initialized
        self.vms: list[NaiveVm] = []
        self.next_handle = 1

    @property
    def guests(self) -> list[NaiveVm]:
        return [vm for vm in self.vms if vm.state]

    @property
    def state(self) -> int:
        return 2 if self.guests else int(self.is_initialized)

    # -- the kernel's part -----------------------------------------------------------------

    def admit(self, vm: NaiveVm, *, needs_es: bool = False) -> int:
        if not vm.kind:
            return ENOTTY
        return ENOTTY if needs_es and vm.kind == "sev" else 0

    def init(self, vm: NaiveVm, kind: str) -> int:
        if vm.kind:
            return EINVAL
        vm.kind = kind
        self.is_initialized = True
        return 0

    # -- a guest begins ------------------------------------------------------------------------

    def start(
        self, vm: NaiveVm, policy: int, shared: int, *, is_good: bool, state: int, way: int
    ) -> int:
        if code := self.admit(vm):
            return code
        others = [guest for guest in self.guests if guest.handle == shared]
        if shared and not others:
            return GUEST
        if not self.state:
            return PLATFORM_STATE
        if vm.state:
            return OWNED
        if shared and (policy & NOKS or others[0].policy != policy):
            return POLICY
        if (policy >> 16 & 0xFF, policy >> 24) > API:
            return POLICY
        if not is_good:
            return MEASUREMENT
        if len(self.guests) >= self.asids:
            return LIMIT
        vm.handle, self.next_handle = self.next_handle, self.next_handle + 1
        vm.key = others[0].key if shared else vm.handle
        vm.state, vm.policy, vm.way = state, policy, way
        vm.digest, vm.areas = b"", 0
        if vm.kind == "init2":
            vm.kind = "es" if policy & ES else "sev"
        return 0

    def need(self, vm: NaiveVm, *states: int, needs_es: bool = False) -> int:
        """What a command gives that is for some states."""
        if code := self.admit(vm, needs_es=needs_es):
            return code
        if not vm.state:
            return GUEST
        return 0 if vm.state in states else GUEST_STATE

    def end(self, vm: NaiveVm) -> NaiveVm:
        """The connection is over; gives what takes its place."""
        fresh = NaiveVm()
        self.vms[self.vms.index(vm)] = fresh
        return fresh

    # -- platform -------------------------------------------------------------------------------

    def only_init(self) -> int:
        return PLATFORM_STATE if self.guests else 0

    def reset(self) -> int:
        if self.guests:
            return EBUSY
        self.is_initialized = False
        return 0


def aligned(address: int, size: int) -> int:
    """Whole blocks."""
    if size % 16:
        return LEN
    return ADDRESS if address % 16 else 0


def launch_digest(vm: NaiveVm) -> bytes:
    """SHA-256 of what was measured."""
    return hashlib.sha256(vm.digest).digest()
