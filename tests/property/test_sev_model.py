# SPDX-License-Identifier: Apache-2.0
"""SEV's commands in any order, by VMs of one platform, against a model that a child could check.

The naive model (``sev_naive.py``) has the rules as conditions. Each rule here gives a real command:
its code, the states that GUEST_STATUS and PLATFORM_STATUS tell, all of the clients' memory, and in
the end the same run again, must be what is expected.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.property import sev_naive as n
from tests.property.sev_naive import Naive, NaiveVm
from tests.sev_platform import flipped, root

from hcalld.core.records import Record
from hcalld.crypto.sev.certificates import make_owner_dh, public_point
from hcalld.crypto.sev.kdf import TransportKeys
from hcalld.crypto.sev.keys import KEY_ENTROPY_SIZE, EcPrivateKey
from hcalld.crypto.sev.measurement import measure
from hcalld.crypto.sev.packets import seal_secret
from hcalld.crypto.sev.session import wrap_session
from hcalld.domain.sev.settings import Memory, SevSettings
from hcalld.testing.sev import MEMORY, Answer, SevClient, SevHost, made_up
from hcallproto.abi.families import sev
from hcallproto.abi.spec import Hcall
from hcallproto.payloads.sev import Api, SevCertificate, Version

ASIDS = 2
BLOCKS = 12
"""Of 16 bytes, at MEMORY: what the rules play with."""
OWNER = EcPrivateKey.from_entropy(made_up("the owner", KEY_ENTROPY_SIZE))
KEYS = TransportKeys.parse(made_up("transport keys", TransportKeys.SIZE))
AREA = made_up("save area", 4096)
COUNT = 3

vms = st.integers(0, COUNT - 1)
policies = st.sampled_from([0, 0, n.ES, n.NODBG, n.NOKS, n.NOSEND, 1 << 9, 0x37010000, 0x38010000])
blocks = st.integers(0, BLOCKS - 1)
sizes = st.sampled_from([0, 1, 15, 16, 16, 32, 32, 33, 48])
offsets = st.sampled_from([0, 0, 0, 0, 1, 8])

_INITS = {"sev": sev.INIT, "es": sev.ES_INIT, "init2": sev.INIT2}


class SevMachine(RuleBasedStateMachine):
    """Three clients of one platform, and another platform for guests that go."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[tuple[Any, ...]] = []
        self.records: dict[bytes, Record] = {}
        """What the platform was when it was made."""
        self.ways = 0
        self.sessions: list[tuple[int, bytes, bytes, int]] = []
        """(policy, the source's PDH, session, which way) of guests that were sent."""
        self.packets: list[tuple[int, bytes, bytes, bytes]] = []
        """(which way, header, payload, plaintext)."""

    @initialize(memory=st.sampled_from(Memory), is_initialized=st.booleans())
    def power_on(self, memory: Memory, is_initialized: bool) -> None:
        self.settings = SevSettings(asids=ASIDS, memory=memory, init_on_probe=is_initialized)
        self.is_encrypted = memory is Memory.ENCRYPTED
        self.host, self.clients = self._hosts()
        self.naive = Naive(ASIDS, is_initialized)
        self.naive.vms = [NaiveVm() for _ in range(COUNT)]
        self.expected = [self.memory(index) for index in range(COUNT)]

    def _hosts(self) -> tuple[SevHost, list[SevClient]]:
        host = SevHost(self.settings, root=root())
        if self.records:
            # A root's signatures have random salts: keys that are made anew would differ.
            host.records = dict(self.records)
            host.restart()
        self.records = dict(host.records)
        return host, [host.connect() for _ in range(COUNT)]

    # -- what is done, so that it can be done again ---------------------------------------------

    def memory(self, index: int) -> bytes:
        return self.clients[index].memory.read(MEMORY, 16 * BLOCKS)

    def write(self, index: int, address: int, data: bytes) -> None:
        self.clients[index].memory.write(address, data)
        self.log.append(("write", index, address, data))
        if address < MEMORY + 16 * BLOCKS:
            at = address - MEMORY
            old = self.expected[index]
            self.expected[index] = old[:at] + data + old[at + len(data) :]
            for block in range(at // 16, (at + len(data) + 15) // 16):
                self.naive.vms[index].seen.pop(block, None)

    def put(self, index: int, data: bytes) -> int:
        address = self.clients[index].room(len(data))
        self.write(index, address, data)
        return address

    def give(self, index: int, hcall: Hcall, expected: int, **fields: int) -> Answer:
        answer = self.clients[index].command(hcall, **fields)
        self.log.append(("give", index, hcall, fields, answer))
        assert answer.code == expected, (
            f"{hcall.name}: {answer.code!r} {answer.why}, not {expected}"
        )
        return answer

    def recycle(self, index: int) -> None:
        """Buffers are used up: begin with them anew."""
        client = self.clients[index]
        client._next = MEMORY + (1 << 19)

    def blob(self, index: int, name: str, data: bytes) -> dict[str, int]:
        return {f"{name}uaddr": self.put(index, data), f"{name}len": len(data)}

    # -- commands of a VM -----------------------------------------------------------------------

    @rule(index=vms, kind=st.sampled_from(sorted(_INITS)))
    def init(self, index: int, kind: str) -> None:
        self.give(index, _INITS[kind], self.naive.init(self.naive.vms[index], kind))

    @rule(
        index=vms,
        policy=policies,
        shared=st.sampled_from([None, None, 0, 1, 2]),
        how=st.sampled_from(["owner", "owner", "nobody", "altered", "other policy"]),
    )
    def launch_start(self, index: int, policy: int, shared: int | None, how: str) -> None:
        self.recycle(index)
        vm = self.naive.vms[index]
        handle = 0 if shared is None else self.naive.vms[shared].handle or 99
        fields = {"policy": policy, "handle": handle}
        if how != "nobody":
            made_for = policy ^ n.NODBG if how == "other policy" else policy
            session = self.session(made_for)
            if how == "altered":
                session = flipped(session, 20)
            fields |= self.blob(index, "dh_", make_owner_dh(OWNER).build())
            fields |= self.blob(index, "session_", session)
        is_good = how in ("owner", "nobody")
        way = 0 if how == "owner" else -1
        expected = self.naive.start(vm, policy, handle, is_good=is_good, state=n.LUPDATE, way=way)
        answer = self.give(index, sev.LAUNCH_START, expected, **fields)
        assert answer.fields == ({} if expected else {"handle": vm.handle})

    def session(self, policy: int) -> bytes:
        pdh = SevCertificate.parse(self.host.platform.identity.pdh)
        return wrap_session(
            OWNER, public_point(pdh), KEYS, policy, nonce=bytes(16), iv=bytes(16)
        ).build()

    @rule(index=vms, block=blocks, offset=offsets, size=sizes, fill=st.integers(0, 255))
    def launch_update_data(self, index: int, block: int, offset: int, size: int, fill: int) -> None:
        vm = self.naive.vms[index]
        size = min(size, 16 * (BLOCKS - block) - offset)
        address = MEMORY + 16 * block + offset
        data = bytes([fill]) * size
        self.write(index, address, data)
        expected = self.naive.admit(vm) or (n.EINVAL if size <= 0 else 0)
        expected = expected or self.naive.need(vm, n.LUPDATE) or n.aligned(address, size)
        self.give(index, sev.LAUNCH_UPDATE_DATA, expected, uaddr=address, len=max(size, 0))
        if not expected:
            vm.digest += data
            self.covered(index, block, data)

    def covered(self, index: int, block: int, plain: bytes) -> None:
        """The guest has ``plain`` there now."""
        vm = self.naive.vms[index]
        for number in range(len(plain) // 16):
            part = plain[16 * number : 16 * number + 16]
            at = 16 * (block + number)
            now = self.memory(index)[at : at + 16]
            assert (now == part) is not self.is_encrypted
            vm.seen[block + number] = vm.key, part
            old = self.expected[index]
            self.expected[index] = old[:at] + now + old[at + 16 :]

    @rule(index=vms)
    def launch_update_vmsa(self, index: int) -> None:
        self.recycle(index)
        vm = self.naive.vms[index]
        expected = self.naive.need(vm, n.LUPDATE, needs_es=True)
        if not expected and not vm.policy & n.ES:
            expected = n.POLICY
        self.give(index, sev.LAUNCH_UPDATE_VMSA, expected, **self.blob(index, "", AREA))
        if not expected:
            vm.digest += AREA
            vm.areas += 1

    @rule(index=vms, size=st.sampled_from([0, 47, 48, 48, 48, 256]))
    def launch_measure(self, index: int, size: int) -> None:
        self.recycle(index)
        vm = self.naive.vms[index]
        address = self.put(index, bytes(256))
        expected = self.naive.need(vm, n.LUPDATE) or (n.LEN if size < 48 else 0)
        answer = self.give(index, sev.LAUNCH_MEASURE, expected, uaddr=address, len=size)
        if expected == n.LEN and not size:
            assert answer.fields == {"len": 48}
        if expected:
            return
        blob = self.clients[index].memory.read(address, size)
        assert blob[48:] == bytes(size - 48)
        vm.state = n.LSECRET
        if vm.way == 0:
            digest = n.launch_digest(vm)
            version = Version(1, 55, 21)
            assert blob[:32] == measure(KEYS.tik, version, vm.policy, digest, blob[32:48])

    @rule(
        index=vms,
        block=blocks,
        size=st.sampled_from([16, 16, 32, 20]),
        how=st.sampled_from(["good", "good", "altered", "unmeasured"]),
    )
    def launch_secret(self, index: int, block: int, size: int, how: str) -> None:
        self.recycle(index)
        vm = self.naive.vms[index]
        block = min(block, BLOCKS - 2)
        secret = made_up("secret", size)
        guest = self.clients[index].vm.guest
        measurement = guest.measurement if guest is not None and how != "unmeasured" else bytes(32)
        header, payload = seal_secret(
            KEYS, secret, iv=bytes(16), measurement=measurement, api=Api(1, 55)
        )
        data = flipped(header.build(), 30) if how == "altered" else header.build()
        expected = self.naive.need(vm, n.LSECRET) or n.aligned(0, size)
        if not expected and (how != "good" or vm.way != 0):
            expected = n.MEASUREMENT
        fields = self.blob(index, "hdr_", data) | self.blob(index, "trans_", payload)
        fields |= {"guest_uaddr": MEMORY + 16 * block, "guest_len": size}
        self.give(index, sev.LAUNCH_SECRET, expected, **fields)
        if not expected:
            self.covered(index, block, secret)

    @rule(index=vms)
    def launch_finish(self, index: int) -> None:
        vm = self.naive.vms[index]
        expected = self.naive.need(vm, n.LSECRET)
        self.give(index, sev.LAUNCH_FINISH, expected)
        if not expected:
            vm.state = n.RUNNING

    @rule(index=vms)
    def attestation_report(self, index: int) -> None:
        self.recycle(index)
        vm = self.naive.vms[index]
        address = self.put(index, bytes(208))
        expected = self.naive.need(vm, n.LSECRET, n.RUNNING)
        self.give(index, sev.GET_ATTESTATION_REPORT, expected, uaddr=address, len=208)
        if not expected:
            report = self.clients[index].memory.read(address, 208)
            digest = n.launch_digest(vm) if vm.way <= 0 else bytes(32)
            assert report[16:52] == digest + vm.policy.to_bytes(4, "little")

    @rule(index=vms, kind=st.sampled_from(sorted(_INITS)), policy=policies, is_sent=st.booleans())
    def advance(self, index: int, kind: str, policy: int, is_sent: bool) -> None:
        """The next step of a life without mistakes, so that all states are met often."""
        vm = self.naive.vms[index]
        if not vm.kind:
            self.init(index, kind)
        if vm.state == n.UNINIT and is_sent and self.sessions:
            self.receive_start(index, len(self.sessions) - 1, is_same=True)
        elif vm.state == n.UNINIT:
            self.launch_start(index, policy, None, "owner")
            self.launch_update_data(index, 0, 0, 48, 7)
        elif vm.state == n.LUPDATE:
            self.launch_measure(index, 48)
        elif vm.state == n.LSECRET:
            self.launch_finish(index)
        elif vm.state == n.RUNNING:
            self.send_start(index)
            self.send_update_data(index, 0, 32)
        elif vm.state == n.SUPDATE:
            self.send_end(index, sev.SEND_FINISH if is_sent else sev.SEND_CANCEL)
        elif vm.state == n.RUPDATE and self.packets:
            self.receive_update_data(index, len(self.packets) - 1, 1)
            self.receive_finish(index)

    # -- sending to where it came from, which any policy allows here ---------------------------

    @rule(index=vms)
    def send_start(self, index: int) -> None:
        self.recycle(index)
        vm, identity = self.naive.vms[index], self.host.platform.identity
        expected = self.naive.need(vm, n.RUNNING) or (n.POLICY if vm.policy & n.NOSEND else 0)
        session = self.put(index, bytes(128))
        answer = self.give(
            index,
            sev.SEND_START,
            expected,
            session_uaddr=session,
            session_len=128,
            **{
                f"{name}{end}": value
                for name, data in (
                    ("pdh_cert_", identity.pdh),
                    ("plat_certs_", identity.chain),
                    ("amd_certs_", identity.roots),
                )
                for end, value in (("uaddr", self.put(index, data)), ("len", len(data)))
            },
        )
        if expected:
            return
        assert answer.fields == {"policy": vm.policy, "session_len": 128}
        self.ways += 1
        vm.state, vm.way = n.SUPDATE, self.ways
        made = self.clients[index].memory.read(session, 128)
        self.sessions.append((vm.policy, identity.pdh, made, self.ways))

    @rule(index=vms, block=st.integers(0, BLOCKS - 2), size=st.sampled_from([16, 32, 8]))
    def send_update_data(self, index: int, block: int, size: int) -> None:
        self.recycle(index)
        vm = self.naive.vms[index]
        expected = self.naive.need(vm, n.SUPDATE) or n.aligned(0, size)
        fields = self.blob(index, "hdr_", bytes(52)) | self.blob(index, "trans_", bytes(size))
        fields |= {"guest_uaddr": MEMORY + 16 * block, "guest_len": size}
        self.give(index, sev.SEND_UPDATE_DATA, expected, **fields)
        if expected:
            return
        read = self.clients[index].memory.read
        known = [vm.plain(block + number) for number in range(size // 16)]
        plain = b"".join(part for part in known if part is not None)
        if len(plain) == size:
            header, payload = read(fields["hdr_uaddr"], 52), read(fields["trans_uaddr"], size)
            self.packets.append((vm.way, header, payload, plain))

    @rule(index=vms, hcall=st.sampled_from([sev.SEND_FINISH, sev.SEND_CANCEL]))
    def send_end(self, index: int, hcall: Hcall) -> None:
        vm = self.naive.vms[index]
        expected = self.naive.need(vm, n.SUPDATE)
        self.give(index, hcall, expected)
        if not expected:
            vm.state = n.SENT if hcall is sev.SEND_FINISH else n.RUNNING

    @precondition(lambda self: self.sessions)
    @rule(index=vms, pick=st.integers(0, 255), is_same=st.booleans())
    def receive_start(self, index: int, pick: int, is_same: bool) -> None:
        self.recycle(index)
        vm = self.naive.vms[index]
        policy, pdh, session, way = self.sessions[pick % len(self.sessions)]
        # A session is for the PDH that it was made for.
        is_good = is_same and pdh == self.host.platform.identity.pdh
        fields = self.blob(index, "pdh_", pdh) | self.blob(index, "session_", session)
        policy ^= 0 if is_same else n.NODBG
        expected = self.naive.start(vm, policy, 0, is_good=is_good, state=n.RUPDATE, way=way)
        self.give(index, sev.RECEIVE_START, expected, policy=policy, **fields)

    @precondition(lambda self: self.packets)
    @rule(index=vms, pick=st.integers(0, 255), block=st.integers(0, BLOCKS - 2))
    def receive_update_data(self, index: int, pick: int, block: int) -> None:
        self.recycle(index)
        vm = self.naive.vms[index]
        way, header, payload, plain = self.packets[pick % len(self.packets)]
        expected = self.naive.need(vm, n.RUPDATE)
        if expected == n.ENOTTY:
            expected = n.EINVAL
        expected = expected or (0 if way == vm.way else n.MEASUREMENT)
        fields = self.blob(index, "hdr_", header) | self.blob(index, "trans_", payload)
        fields |= {"guest_uaddr": MEMORY + 16 * block, "guest_len": len(payload)}
        self.give(index, sev.RECEIVE_UPDATE_DATA, expected, **fields)
        if not expected:
            self.covered(index, block, plain)

    @rule(index=vms)
    def receive_finish(self, index: int) -> None:
        vm = self.naive.vms[index]
        expected = self.naive.need(vm, n.RUPDATE)
        self.give(index, sev.RECEIVE_FINISH, expected)
        if not expected:
            vm.state = n.RUNNING

    # -- debugging ------------------------------------------------------------------------------

    @rule(index=vms, start=st.integers(0, 16 * BLOCKS - 1), size=st.integers(0, 50))
    def dbg_decrypt(self, index: int, start: int, size: int) -> None:
        self.recycle(index)
        vm = self.naive.vms[index]
        size = min(size, 16 * BLOCKS - start)
        target = self.put(index, bytes(64))
        expected = self.debugging(vm, size)
        self.give(
            index,
            sev.DBG_DECRYPT,
            expected,
            src_uaddr=MEMORY + start,
            dst_uaddr=target,
            len=size,
        )
        read = self.clients[index].memory.read(target, 64)
        if expected:
            assert read == bytes(64)
            return
        assert read[size:] == bytes(64 - size)
        for at in range(start, start + size):
            plain = vm.plain(at // 16)
            if plain is not None:
                assert read[at - start] == plain[at % 16]

    def debugging(self, vm: NaiveVm, size: int) -> int:
        expected = self.naive.admit(vm) or (0 if size else n.EINVAL)
        expected = expected or self.naive.need(vm, n.RUNNING, n.SUPDATE)
        return expected or (n.POLICY if vm.policy & n.NODBG else 0)

    @rule(index=vms, start=st.integers(0, 16 * BLOCKS - 1), size=st.integers(0, 50))
    def dbg_encrypt(self, index: int, start: int, size: int) -> None:
        self.recycle(index)
        vm = self.naive.vms[index]
        size = min(size, 16 * BLOCKS - start)
        data = made_up("debugger", size)
        first, last = start // 16, (start + max(size, 1) - 1) // 16
        blocks = [vm.plain(at) for at in range(first, last + 1)]
        before = b"".join(block for block in blocks if block is not None)
        is_known = None not in blocks
        expected = self.debugging(vm, size)
        if not expected and not is_known:
            return
        source = self.put(index, data)
        self.give(
            index,
            sev.DBG_ENCRYPT,
            expected,
            src_uaddr=source,
            dst_uaddr=MEMORY + start,
            len=size,
        )
        if not expected:
            skipped = start - 16 * first
            self.covered(index, first, before[:skipped] + data + before[skipped + size :])

    # -- the platform, and the ends of VMs ------------------------------------------------------

    @rule(hcall=st.sampled_from([sev.PEK_GEN, sev.PDH_GEN, sev.FACTORY_RESET]), index=vms)
    def new_keys(self, hcall: Hcall, index: int) -> None:
        before = self.host.platform.identity
        expected = {
            sev.PEK_GEN: self.naive.only_init,
            sev.PDH_GEN: lambda: 0,
            sev.FACTORY_RESET: self.naive.reset,
        }[hcall]()
        self.give(index, hcall, expected)
        after = self.host.platform.identity
        assert (after.pdh == before.pdh) is bool(expected)
        assert (after.pek == before.pek) is (bool(expected) or hcall is sev.PDH_GEN)
        assert after.cek == before.cek

    @rule(index=vms)
    def close(self, index: int) -> None:
        self.log.append(("close", index))
        self.clients[index].close()
        self.naive.end(self.naive.vms[index])

    # -- what must hold all the time ------------------------------------------------------------

    @invariant()
    def what_is_told_is_so(self) -> None:
        for index, vm in enumerate(self.naive.vms):
            answer = self.clients[index].command(sev.GUEST_STATUS)
            expected = self.naive.admit(vm) or (0 if vm.state else n.GUEST)
            assert answer.code == expected
            if not expected:
                told = {"handle": vm.handle, "policy": vm.policy, "state": vm.state}
                assert answer.fields == told
        status = self.clients[0].command(sev.PLATFORM_STATUS).fields
        assert (status["state"], status["guest_count"]) == (
            self.naive.state,
            len(self.naive.guests),
        )
        assert status["flags"] == 1 << 8

    @invariant()
    def memory_is_as_it_must_be(self) -> None:
        for index in range(COUNT):
            assert self.memory(index) == self.expected[index]

    def teardown(self) -> None:
        """The same again, with the same entropy, gives the same."""
        if not self.log:
            return
        ends = [client.snapshot() for client in self.clients]
        _, clients = self._hosts()
        for kind, index, *what in self.log:
            if kind == "write":
                clients[index].memory.write(*what)
            elif kind == "close":
                clients[index].close()
            else:
                hcall, fields, answer = what
                assert clients[index].command(hcall, **fields) == answer
        assert [client.snapshot() for client in clients] == ends


TestSev = SevMachine.TestCase
# Keys to agree on and certificates to sign, and all of it twice: a second for 30 steps.
TestSev.settings = settings(
    max_examples=max(10, settings().max_examples // 10), stateful_step_count=30, deadline=None
)
