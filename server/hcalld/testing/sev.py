# SPDX-License-Identifier: Apache-2.0
"""A host with SEV in one object: its platform, and clients that give commands.

What the runtime does over sockets, done by hand: the checks of the table, the handler with its
effects, the commit of what outlives the daemon, the writes. Entropy is made up and repeats; the
keys that come of it, and all that is computed with them, are as real as anywhere.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, NamedTuple

from hcalld.core.call import Call, Plan
from hcalld.core.effects import (
    ChangePlatform,
    Effect,
    Entropy,
    Flush,
    GuestMemoryError,
    ReadBuffer,
    ReadGuest,
    ReadPlatform,
    WriteGuest,
)
from hcalld.core.errors import HcallError, StoreError
from hcalld.core.guestmem import RamMap
from hcalld.core.outcome import Outcome, refusal
from hcalld.core.records import Put, Record
from hcalld.crypto.sev.certificates import make_owner_dh, public_point
from hcalld.crypto.sev.kdf import TransportKeys
from hcalld.crypto.sev.keys import KEY_ENTROPY_SIZE, EcPrivateKey
from hcalld.crypto.sev.roots import Root
from hcalld.crypto.sev.session import wrap_session
from hcalld.domain.sev.platform import Platform
from hcalld.domain.sev.settings import SevSettings
from hcalld.domain.sev.view import GuestEntry
from hcalld.domain.sev.vm import SevVm
from hcalld.families.sev.handlers import HANDLERS
from hcalld.testing.driver import run_pure
from hcalld.testing.guest import FakeGuest
from hcalld.testing.machine import UndeclaredError
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.abi.spec import Hcall
from hcallproto.payloads.sev import CERTIFICATE_SIZE, CHAIN_SIZE, NONCE_SIZE, SevCertificate

MEMORY: Final = 0x10000
"""Where a client's memory begins: 0 is no pointer."""
MEMORY_SIZE: Final = 1 << 20
ADDRESSES: Final = RamMap([(0, 1 << 47)])
"""What a client's library calls memory; what is mapped of it, reading tells."""


def made_up(name: str, size: int) -> bytes:
    """Bytes that are others under each name, and the same every time."""
    return hashlib.shake_256(name.encode()).digest(size)


class Answer(NamedTuple):
    """What a client is told."""

    code: SevCode
    fields: dict[str, int]
    """Of the command's structure, as they were written back."""
    why: str


class SevHost:
    """A platform, and what a store keeps of it.

    Args:
        settings: what it is like.
        root: of its certificates; by default one of its own, which takes a second to make.
        name: other platforms have other keys.
    """

    def __init__(
        self,
        settings: SevSettings | None = None,
        *,
        root: Root | None = None,
        name: str = "platform",
    ) -> None:
        self.settings = settings or SevSettings()
        self.name = name
        self.records: dict[bytes, Record] = {}
        self.is_broken = False
        """The store takes nothing."""
        self._root = root
        self._client_count = 0
        self.restart()

    def restart(self) -> None:
        """The daemon's: what is not stored is gone."""
        self.platform = Platform.build(
            self.records.values(),
            self.settings,
            lambda size: made_up(f"{self.name}, keys", size),
            self._root,
        )
        self._commit()

    def _commit(self) -> None:
        changes = self.platform.take_changes()
        if changes and self.is_broken:
            raise StoreError("the disk is full")
        for change in changes:
            assert isinstance(change, Put)
            self.records[change.record.key] = change.record

    def change(self, change: bytes, owner: object) -> None:
        """See ChangePlatform."""
        self.platform.apply(change, owner)
        try:
            self._commit()
        except StoreError:
            self.platform.undo()
            raise
        self.platform.settle()

    def connect(self, guest: FakeGuest | None = None) -> SevClient:
        """One more client."""
        self._client_count += 1
        return SevClient(self, f"{self.name}, client {self._client_count}", guest)


class SevClient:
    """A program with a VM, or with ``/dev/sev`` open.

    Args:
        host: where it runs.
        name: other clients are given other entropy.
        guest: its memory; 1 MiB at MEMORY by default.
    """

    def __init__(self, host: SevHost, name: str, guest: FakeGuest | None = None) -> None:
        self.host = host
        self.memory = guest or FakeGuest([(MEMORY, MEMORY_SIZE)])
        self.vm = SevVm()
        self.trail: list[Effect[Any]] = []
        """The effects of the last command."""
        self.owner = EcPrivateKey.from_entropy(made_up(f"{name}'s owner", KEY_ENTROPY_SIZE))
        """The guest owner's Diffie-Hellman key."""
        self.keys = TransportKeys.parse(made_up(f"{name}'s owner", TransportKeys.SIZE))
        """What the owner puts in sessions."""
        self._name = name
        self._entropy_count = 0
        self._next = 0
        self.free()

    # -- commands ---------------------------------------------------------------------------

    def command(self, hcall: Hcall, **given: int) -> Answer:
        """Give a command; fields that are not given are 0.

        Raises:
            UndeclaredError: its code, or a field that came back, is not in the table.
        """
        assert given.keys() <= {arg.name for arg in hcall.args}, "no field of the structure"
        registers = {arg.register: given.get(arg.name, 0) for arg in hcall.args}
        plan = Plan(hcall, {})
        self.trail = []
        try:
            assert HANDLERS.admission is not None
            HANDLERS.admission(hcall, 0, self.vm)
            call = Call(hcall, plan.arguments(registers, ADDRESSES), 0, ADDRESSES)
            outcome = run_pure(
                HANDLERS.by_call[hcall](call, self.vm),
                lambda effect: self._perform(plan, call, effect),
                trail=self.trail,
            )
        except HcallError as error:
            outcome = refusal(hcall, error)
        return self._answer(hcall, plan, outcome)

    def _answer(self, hcall: Hcall, plan: Plan, outcome: Outcome) -> Answer:
        code = outcome.code
        if code not in plan.codes or not isinstance(code, SevCode):
            raise UndeclaredError(f"{hcall.name} gave {code!r}, which it does not declare")
        if code and not outcome.why:
            raise UndeclaredError(f"{hcall.name} gave {code!r} without a reason")
        outputs = {output.register: output.name for output in hcall.outputs}
        if not outputs.keys() >= {register for register, _ in outcome.registers}:
            raise UndeclaredError(f"{hcall.name} gave {outcome.registers}, not outputs of it")
        for gpa, data in outcome.writes:
            self.memory.write(gpa, data)
        fields = {outputs[register]: value for register, value in outcome.registers}
        return Answer(code, fields, outcome.why)

    def _perform(self, plan: Plan, call: Call, effect: Effect[Any]) -> Any:
        match effect:
            case ReadBuffer(name):
                try:
                    return self.memory.read(*plan.range_of(name, call))
                except GuestMemoryError as error:
                    raise call.refuse(name, str(error)) from None
            case ReadGuest(gpa, size):
                return self.memory.read(gpa, size)
            case WriteGuest(gpa, data):
                return self.memory.write(gpa, data)
            case Entropy(size):
                self._entropy_count += 1
                return made_up(f"{self._name}, {self._entropy_count}", size)
            case ReadPlatform():
                return self.host.platform.pack()
            case ChangePlatform(change):
                return self.host.change(change, self)
            case Flush():
                # What is kept here outlives a restart as it is.
                return None
            case _:
                raise TypeError(f"no way to perform {effect!r}")

    def close(self) -> None:
        """End the connection."""
        self.host.platform.release(self)
        self.vm = SevVm()

    # -- its memory -------------------------------------------------------------------------

    def room(self, size: int) -> int:
        """Address of unused memory, at a multiple of 16, and all of it in one page if it fits."""
        if self._next % 4096 + size > 4096:
            self._next = -(-self._next // 4096) * 4096
        address = self._next
        self._next += -(-max(size, 1) // 16) * 16
        assert self._next <= MEMORY + MEMORY_SIZE, "the client's memory is used up"
        return address

    def free(self) -> None:
        """What ``room`` and ``put`` gave is unused again."""
        self._next = MEMORY + MEMORY_SIZE // 2

    def put(self, data: bytes) -> int:
        """Put something into memory, and give its address."""
        address = self.room(len(data))
        self.memory.write(address, data)
        return address

    # -- the guest's owner ------------------------------------------------------------------

    def certificate(self) -> bytes:
        """The owner's certificate."""
        return make_owner_dh(self.owner).build()

    def session(self, policy: int, *, name: str = "session") -> bytes:
        """The owner's session for this platform."""
        pdh = SevCertificate.parse(self.host.platform.identity.pdh)
        return wrap_session(
            self.owner,
            public_point(pdh),
            self.keys,
            policy,
            nonce=made_up(f"{name}'s nonce", NONCE_SIZE),
            iv=made_up(f"{name}'s iv", NONCE_SIZE),
        ).build()

    # -- what a program does ----------------------------------------------------------------

    def launch_start(self, policy: int = 0, *, handle: int = 0, session: bytes = b"") -> Answer:
        """LAUNCH_START with the owner's session."""
        certificate = self.certificate()
        session = session or self.session(policy)
        return self.command(
            sev.LAUNCH_START,
            handle=handle,
            policy=policy,
            dh_uaddr=self.put(certificate),
            dh_len=len(certificate),
            session_uaddr=self.put(session),
            session_len=len(session),
        )

    def launch_update(self, data: bytes, address: int = MEMORY) -> Answer:
        """LAUNCH_UPDATE_DATA of bytes that are put into memory before."""
        self.memory.write(address, data)
        return self.command(sev.LAUNCH_UPDATE_DATA, uaddr=address, len=len(data))

    def launch_measure(self) -> bytes:
        """LAUNCH_MEASURE: measurement and nonce."""
        address = self.room(48)
        answer = self.command(sev.LAUNCH_MEASURE, uaddr=address, len=48)
        assert answer.code is SevCode.SUCCESS, answer.why
        return self.memory.read(address, 48)

    def run(self, policy: int = 0, data: bytes = b"", *, init: Hcall = sev.INIT) -> None:
        """Launch a guest until it runs."""
        for hcall, fields in (
            (init, {}),
            (None, {"policy": policy}),
            (sev.LAUNCH_UPDATE_DATA, {"uaddr": MEMORY, "len": len(data)}),
            (sev.LAUNCH_MEASURE, {"uaddr": self.room(48), "len": 48}),
            (sev.LAUNCH_FINISH, {}),
        ):
            if hcall is sev.LAUNCH_UPDATE_DATA:
                if not data:
                    continue
                self.memory.write(MEMORY, data)
            answer = self.command(hcall, **fields) if hcall else self.launch_start(policy)
            assert answer.code is SevCode.SUCCESS, answer.why

    def send_start(self, target: SevHost, **changed: int) -> tuple[Answer, bytes]:
        """SEND_START to another host: the answer, and the session."""
        identity = target.platform.identity
        session = self.room(128)
        fields = {
            "pdh_cert_uaddr": self.put(identity.pdh),
            "pdh_cert_len": CERTIFICATE_SIZE,
            "plat_certs_uaddr": self.put(identity.chain),
            "plat_certs_len": CHAIN_SIZE,
            "amd_certs_uaddr": self.put(identity.roots),
            "amd_certs_len": len(identity.roots),
            "session_uaddr": session,
            "session_len": 128,
        }
        answer = self.command(sev.SEND_START, **(fields | changed))
        return answer, self.memory.read(session, 128)

    def receive_start(self, source: SevHost, policy: int, session: bytes) -> Answer:
        """RECEIVE_START of a guest from another host."""
        return self.command(
            sev.RECEIVE_START,
            policy=policy,
            pdh_uaddr=self.put(source.platform.identity.pdh),
            pdh_len=CERTIFICATE_SIZE,
            session_uaddr=self.put(session),
            session_len=len(session),
        )

    def send_update(self, address: int, size: int) -> tuple[bytes, bytes]:
        """SEND_UPDATE_DATA: header and payload."""
        header, payload = self.room(52), self.room(size)
        answer = self.command(
            sev.SEND_UPDATE_DATA,
            hdr_uaddr=header,
            hdr_len=52,
            guest_uaddr=address,
            guest_len=size,
            trans_uaddr=payload,
            trans_len=size,
        )
        assert answer.code is SevCode.SUCCESS, answer.why
        return self.memory.read(header, 52), self.memory.read(payload, size)

    def take_packet(
        self, hcall: Hcall, header: bytes, payload: bytes, address: int, **changed: int
    ) -> Answer:
        """LAUNCH_SECRET or RECEIVE_UPDATE_DATA of a packet."""
        fields = {
            "hdr_uaddr": self.put(header),
            "hdr_len": len(header),
            "guest_uaddr": address,
            "guest_len": len(payload),
            "trans_uaddr": self.put(payload),
            "trans_len": len(payload),
        }
        return self.command(hcall, **(fields | changed))

    @property
    def entry(self) -> GuestEntry:
        """What the platform knows of its guest."""
        assert self.vm.guest is not None, "the client has begun a guest"
        handle = self.vm.guest.handle
        (entry,) = (one for one in self.host.platform.guests if one.handle == handle)
        return entry

    def snapshot(self) -> tuple[Any, ...]:
        """All that a refused command must leave as it was."""
        vm, guest = self.vm, self.vm.guest
        held: tuple[Any, ...] = ()
        if guest is not None:
            held = (
                guest.handle,
                guest.policy,
                guest.state,
                self.entry.vek,
                guest.keys and guest.keys.build(),
                guest.digest.digest(),
                guest.launch_digest,
                guest.measurement,
                dict(guest.vmsas),
            )
        return (
            vm.kind,
            vm.is_strict,
            vm.is_busy,
            dict(vm.regions),
            held,
            self.host.platform.pack(),
            dict(self.host.records),
            self.memory.snapshot(),
        )
