# SPDX-License-Identifier: Apache-2.0
"""A QEMU, its guest, and a hypervisor that makes ultracalls itself, in one test program.

As QEMU it carries out what the daemon says of memory and pages; as the guest it has
something to hide; as the hypervisor it sets MSR[HV], which no pseries guest has, and lies.
What comes from the daemon is kept, to be searched for what the hypervisor must not see.
"""

from __future__ import annotations

from typing import Final, Self

from tests.e2e.fakeshim import FakeShim, connect, hello
from tests.e2e.secure import SecureLab
from tests.esm import CMDLINE, INITRD, INITRD_BASE, KERNEL_BASE, RTAS_BASE, boot_tree, kernel_elf

from hcalld.domain.esm.digests import RTAS_TEXT
from hcalld.domain.esm.flat_kernel import flat_kernel
from hcallproto.abi.families import svm, uv
from hcallproto.abi.registers import MSR_HV, MSR_S
from hcallproto.abi.returns import U
from hcallproto.abi.spec import Hcall, Level
from hcallproto.conn.connection import Connection
from hcallproto.conn.states import Role
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

RAM_SIZE: Final = 4 << 20
PAGE: Final = 1 << 16
UNIT: Final = 4096
TREE: Final = 0x1E0000
OUT: Final = s.PageState.UNSHARED | s.PageState.PAGED_OUT
MARKER: Final = b"<only the guest may read this>"
HOST: Final = MSR_HV
HIDDEN: Final = 0x2F0000
"""From here to the end of RAM the guest has what it hides."""


class HypervisorPeer(FakeShim):
    """A guest of a secure lab.

    Attributes:
        states: What QEMU was told of each 4 KiB.
        controls: What the daemon asked of QEMU.
        received: All bytes from the daemon.
        plain: How often the marker came to where it belongs: a page that comes in.
    """

    def __init__(self, lab: SecureLab) -> None:
        super().__init__(connect(lab.daemon.socket), RAM_SIZE)
        self.states: dict[int, s.PageState] = {}
        self.controls: list[f.Control] = []
        self.received = bytearray()
        self.plain = 0
        self.msr = 0
        self._connections = 0
        self._greet()
        self._put_guest(lab)

    def _greet(self, reset: int = 0) -> None:
        take = self.connection.receive_data

        def keep(data: bytes | bytearray | memoryview) -> None:
            self.received += data
            take(data)

        self.connection.receive_data = keep  # type: ignore[method-assign]
        features = s.Feature.SC2 | s.Feature.PAGE_STATES
        self.negotiate(hello(features=features, reset=reset, connection=self._connections))

    def reconnect(self, lab: SecureLab) -> None:
        """The same QEMU connects again, to a daemon that has forgotten its connections."""
        reset = self.connection.reset
        self.sock.close()
        self.sock = connect(lab.daemon.socket)
        self.sock.setblocking(False)
        self.connection = Connection(Role.SHIM)
        self._connections += 1
        self.controls.clear()
        self._greet(reset)

    def __enter__(self) -> Self:
        return self

    def _put_guest(self, lab: SecureLab) -> None:
        """What a boot loader would: kernel, RTAS, initrd with a blob, device tree."""
        kernel, initrd = lab.folder / "kernel.elf", lab.folder / "initrd"
        kernel.write_bytes(kernel_elf())
        initrd.write_bytes(INITRD)
        whole = lab.blob(kernel, initrd, CMDLINE, attached={"rootd": MARKER}).read_bytes()
        tree = boot_tree(len(whole)).build()
        for gpa, data in (
            (KERNEL_BASE, flat_kernel(kernel_elf())),
            (RTAS_BASE, RTAS_TEXT),
            (INITRD_BASE, whole),
            (TREE, tree),
        ):
            self.ram[gpa : gpa + len(data)] = data

    # -- calls ------------------------------------------------------------------------------

    def make(
        self, hcall: Hcall, *arguments: int, msr: int | None = None, vcpu: int = 0, pidr: int = 0
    ) -> f.Reply:
        """Makes a call, by the guest unless ``msr`` says otherwise; gives the reply."""
        frame = self.frame(hcall.number, *arguments, vcpu=vcpu)
        level = 2 if hcall.level is Level.SC2 else 1
        value = self.msr if msr is None else msr
        return self.send_call(frame._replace(level=level, msr=value, pidr=pidr))

    def ask(self, hcall: Hcall, *arguments: int, msr: int = HOST) -> int:
        """A hypervisor makes a call; gives its code."""
        return self.make(hcall, *arguments, msr=msr).status

    def by_qemu(self, number: s.ShimCall, *arguments: int) -> f.Reply:
        """QEMU makes a call of its own."""
        is_attend = number is s.ShimCall.ATTEND
        vcpu = s.MACHINE_VCPU if is_attend else 1
        frame = self.frame(number, *arguments, vcpu=vcpu)
        return self.send_call(frame._replace(level=s.LEVEL_SHIM))

    def send_call(self, call: f.Call) -> f.Reply:
        """Sends a call, and serves the daemon until it has answered."""
        self.send(call)
        reply = self.finish()
        self._set_states(reply.pages)
        if reply.context & s.CONTEXT_MSR:
            self.msr = (self.msr & ~reply.msr_mask) | reply.msr
        return reply

    def finish(self) -> f.Reply:
        """See FakeShim."""
        while True:
            frame = self.receive()
            match frame:
                case f.Reply():
                    self._carry_out(frame.writes)
                    return frame
                case f.Pages():
                    self._set_states(frame.ranges)
                    name = (frame.vcpu, frame.reset, frame.seq, frame.request)
                    self.send(f.PagesReply(*name, s.AccessStatus.OK, 0))
                case f.Control():
                    self.controls.append(frame)
                case f.Read():
                    parts = tuple(
                        (s.AccessStatus.OK, bytes(self.ram[gpa : gpa + size]))
                        for gpa, size in frame.segments
                    )
                    name = (frame.vcpu, frame.reset, frame.seq, frame.request)
                    self.send(f.ReadReply(*name, parts))
                case f.Write():
                    self._carry_out(frame.segments)
                    name = (frame.vcpu, frame.reset, frame.seq, frame.request)
                    self.send(f.WriteReply(*name, s.AccessStatus.OK, 0))
                case _:
                    raise AssertionError(f"received {frame!r}, expected a reply")

    def _carry_out(self, writes: tuple[f.WriteSegment, ...]) -> None:
        for gpa, size, data in writes:
            assert gpa + size <= len(self.ram)
            if data is not None:
                # Content comes for pages that are out, and for no others.
                assert all(self.states[at] == OUT for at in range(gpa, gpa + size, UNIT)), hex(gpa)
                self.plain += data.count(MARKER)
            self.ram[gpa : gpa + size] = bytes(size) if data is None else data

    def _set_states(self, ranges: tuple[f.PageRange, ...]) -> None:
        for gpa, size, state in ranges:
            assert gpa + size <= len(self.ram)
            for unit in range(gpa, gpa + size, UNIT):
                self.states[unit] = state

    # -- the guest's life -------------------------------------------------------------------

    def enter(self) -> None:
        """UV_ESM; then the guest fills a part of its memory with what it hides."""
        reply = self.make(uv.ESM, KERNEL_BASE, TREE)
        assert reply.status == TREE, reply.status
        assert self.msr & MSR_S
        for gpa in range(HIDDEN, RAM_SIZE, PAGE):
            self.ram[gpa : gpa + PAGE] = self.secret(gpa)

    @staticmethod
    def secret(gpa: int) -> bytes:
        """What the guest has in a page."""
        return (MARKER + gpa.to_bytes(2 + 8, "big")).ljust(64, b".") * (PAGE // 64)

    def attend(self) -> None:
        """QEMU's ATTEND until there is no more to do."""
        while self.by_qemu(s.ShimCall.ATTEND).status == U.BUSY:
            pass

    def touch(self, gpa: int) -> int:
        """A vCPU comes upon a page that is out; gives the code."""
        return self.by_qemu(s.ShimCall.PAGE_IN, gpa).status

    def page_out(self, *gpas: int) -> None:
        """The guest's ultravisor has the hypervisor take pages; in effect, the guest does."""
        for gpa in gpas:
            assert self.make(svm.PAGE_OUT, gpa, 0, 16).status == 0
            assert self.is_out(gpa)
            assert not any(self.ram[gpa : gpa + PAGE])

    def is_out(self, gpa: int) -> bool:
        """Whether QEMU believes so."""
        return self.states.get(gpa) == OUT

    def out_pages(self) -> list[int]:
        """All that are out, of those with something to hide."""
        return [gpa for gpa in range(HIDDEN, RAM_SIZE, PAGE) if self.is_out(gpa)]

    def must_have_seen_no_secret(self) -> None:
        """The marker came with pages that came in, and nowhere else.

        Raises:
            AssertionError: It did.
        """
        assert self.received.count(MARKER) == self.plain
