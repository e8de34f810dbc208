# SPDX-License-Identifier: Apache-2.0
"""One half alone: memory, and a hypervisor that does as it is told, good or bad."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from hcalld.core.records import Lifetime, Put, Record
from hcalld.domain.ultravisor.abi import (
    ENTROPY_SIZE,
    PAGE_SHIFT,
    PAGE_SIZE,
    PageContent,
    Returned,
    Turn,
)
from hcalld.domain.ultravisor.ultravisor import UltravisorModel
from hcalld.domain.ultravisor.vm import SecureVm
from hcallproto.abi.families import svm, uv
from hcallproto.abi.returns import H, U

LPID = 5
ALIAS = 1 << 40
"""Real address of the VM's page 0."""
OWN = 1 << 30
"""Real address of the hypervisor's first page."""
SIZE = 64 * PAGE_SIZE
PLAIN = b"plaintext of the guest ".ljust(64) * (PAGE_SIZE // 64)
ENTROPY = bytes(range(ENTROPY_SIZE))


class Memory:
    """Normal memory: the VM's pages, and some of the hypervisor's."""

    def __init__(self, count: int = 8) -> None:
        self.pages = {OWN + n * PAGE_SIZE: bytes(PAGE_SIZE) for n in range(count)}

    def guest_page(self, lra: int) -> tuple[int, int] | None:
        return (LPID, lra - ALIAS) if ALIAS <= lra < ALIAS + (1 << 40) else None

    def load(self, lra: int) -> bytes | None:
        return self.pages.get(lra)

    def store(self, lra: int, data: bytes) -> bool:
        if lra not in self.pages:
            return False
        self.pages[lra] = data
        return True


Answer = Callable[[Turn, int, Sequence[int]], H]


class Hypervisor:
    """Answers hypercalls by a function that a test gives; counts them."""

    def __init__(self, answer: Answer | None = None) -> None:
        self.answer = answer or obey
        self.calls: list[tuple[int, tuple[int, ...]]] = []

    def hypercall(self, turn: Turn, number: int, args: Sequence[int]) -> Returned:
        self.calls.append((number, tuple(args)))
        return Returned(self.answer(turn, number, args))


def obey(turn: Turn, number: int, args: Sequence[int]) -> H:
    """What KVM does for H_SVM_PAGE_IN."""
    assert number == svm.PAGE_IN.number
    gpa = args[0]
    status = turn.ultracall(uv.PAGE_IN.number, LPID, ALIAS + gpa, gpa, 0, PAGE_SHIFT).status
    return H.SUCCESS if status is U.SUCCESS else H.PARAMETER


class Half:
    """The ultravisor's half with one VM of 64 pages, secure unless told otherwise."""

    def __init__(
        self,
        answer: Answer | None = None,
        *,
        is_secure: bool = True,
        records: Iterable[Record] = (),
    ) -> None:
        self.memory = Memory()
        self.hypervisor = Hypervisor(answer)
        self.model = UltravisorModel(self.memory, records)
        if records:
            return
        self.model.begin(LPID, b"i" * 16)
        self.must(uv.REGISTER_MEM_SLOT.number, LPID, 0, SIZE, 0, 0)
        if is_secure:
            self.model.commit(self.turn(), self.vm, {})

    @property
    def vm(self) -> SecureVm:
        return self.model.vms[LPID]

    def turn(self) -> Turn:
        """A turn in which all pages can go out."""
        return Turn(
            LPID,
            self.model,
            self.hypervisor,
            {gpa: PageContent(PLAIN, ENTROPY) for gpa in range(0, 2 * SIZE, PAGE_SIZE)},
        )

    def ask(self, number: int, *args: int, turn: Turn | None = None) -> U:
        status = (turn or self.turn()).ultracall(number, *args).status
        assert isinstance(status, U)
        return status

    def must(self, number: int, *args: int) -> None:
        assert self.ask(number, *args) is U.SUCCESS

    def page_in(self, source: int, gpa: int, order: int = PAGE_SHIFT, lpid: int = LPID) -> U:
        return self.ask(uv.PAGE_IN.number, lpid, source, gpa, 0, order)

    def page_out(self, destination: int, gpa: int, order: int = PAGE_SHIFT, lpid: int = LPID) -> U:
        return self.ask(uv.PAGE_OUT.number, lpid, destination, gpa, 0, order)

    def inval(self, gpa: int, order: int = PAGE_SHIFT, lpid: int = LPID) -> U:
        return self.ask(uv.PAGE_INVAL.number, lpid, gpa, order)

    def snapshot(self) -> object:
        """All that a refused call must not change."""
        return (
            {
                lpid: (
                    vm.state,
                    list(vm.slots),
                    list(vm.pages.all_runs()),
                    dict(vm.out),
                    vm.next_version,
                    dict(vm.files.readers),
                )
                for lpid, vm in self.model.vms.items()
            },
            dict(self.model.pates),
            dict(self.model.sprs),
            dict(self.memory.pages),
        )


class Store:
    """Keeps records as a store does."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, bytes], Record] = {}

    def commit(self, changes: Iterable[object]) -> None:
        for change in changes:
            if isinstance(change, Put):
                assert change.record.lifetime is Lifetime.RUN
                self.records[change.record.namespace, change.record.key] = change.record
            else:
                key = (change.namespace, change.key)  # type: ignore[attr-defined]
                del self.records[key]
