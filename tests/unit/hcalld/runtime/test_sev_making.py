# SPDX-License-Identifier: Apache-2.0
"""A platform that is new gets a root, and nobody waits for that but who asked for it."""

from __future__ import annotations

import os
import pathlib
import threading
from typing import Any

import pytest
import trio
import trio.testing
from tests.sev_platform import VECTORS, root
from tests.unit.hcalld.runtime import ledger
from tests.unit.hcalld.runtime.daemon import Daemon, FaultyStore
from tests.unit.hcalld.runtime.daemon import Faults as StoreFaults
from tests.unit.hcalld.runtime.shim import hello

import hcalld.runtime.sev
from hcalld.config import Profile
from hcalld.core.errors import ConfigError, StoreError
from hcalld.core.records import Run
from hcalld.crypto.sev.roots import ROOT_SIZES, Root
from hcalld.domain.sev.platform import Platform
from hcalld.domain.sev.settings import SevSettings
from hcalld.runtime.flushing import FlushRounds
from hcalld.runtime.sev import PlatformHost
from hcalld.stores.memory import MemoryState
from hcallproto.abi.returns import H
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s


class Makers:
    """In which threads roots were made, read, and made platforms of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.threads: list[threading.Thread] = []
        """Of roots."""
        self.builders: list[threading.Thread] = []
        """Of platforms."""
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self._read = hcalld.runtime.sev._read_root
        self._build = Platform.build
        monkeypatch.setattr(Root, "generate", self._generate)
        monkeypatch.setattr(hcalld.runtime.sev, "_read_root", self._reading)
        monkeypatch.setattr(Platform, "build", self._building)

    def _begin(self) -> None:
        self.threads.append(threading.current_thread())
        assert self.may_go_on.wait(20), "what makes the root is waited for"

    def _generate(self) -> Root:
        self._begin()
        return root()

    def _reading(self, path: pathlib.Path) -> Root:
        self._begin()
        return self._read(path)

    def _building(self, *args: Any) -> Platform:
        self.builders.append(threading.current_thread())
        return self._build(*args)

    @property
    def are_others(self) -> bool:
        """Nothing was done where the event loop runs."""
        return threading.current_thread() not in (*self.threads, *self.builders)


@pytest.fixture
def makers(monkeypatch: pytest.MonkeyPatch) -> Makers:
    return Makers(monkeypatch)


def host(state: MemoryState, faults: StoreFaults | None = None, path: str = "") -> PlatformHost:
    settings = SevSettings(root=path)
    profile = Profile(partition="sev", source="test", sev=settings, is_platform=True)
    return PlatformHost(profile, lambda: FaultyStore(state, faults or StoreFaults()), FlushRounds())


async def test_a_root_is_made_once_and_not_in_the_event_loop(makers: Makers):
    state = MemoryState()
    new = host(state)
    vms = [new.join(), new.join()]
    for number, vm in enumerate(vms):
        await vm.prepare()
        vm.begin(Run(bytes([number] * 16), 0))
        await vm.prepare()
    assert len(makers.threads) == 1
    assert makers.are_others
    assert new.roots[1] == root().ark.build()
    for vm in vms:
        await vm.close()
    later = host(state).join()
    await later.prepare()
    later.begin(Run(bytes(16), 1))
    assert len(makers.threads) == 1


@pytest.mark.parametrize("bits", ROOT_SIZES)
async def test_a_root_in_a_file_is_read_once_and_not_in_the_event_loop(makers: Makers, bits: int):
    """Looking at private keys of 4096 bits takes most of a second."""
    faults = StoreFaults()
    named = host(MemoryState(), faults, path=str(VECTORS / f"root-{bits}.pem"))
    vms = [named.join(), named.join()]
    async with trio.open_nursery() as nursery:
        for vm in vms:
            nursery.start_soon(vm.prepare)
    for number, vm in enumerate(vms):
        vm.begin(Run(bytes([number] * 16), 0))
    assert len(makers.threads) == len(makers.builders) == faults.loads == 1
    assert makers.are_others
    assert named.roots[1] == root(bits).ark.build()


async def test_a_platform_that_nobody_had_for_a_while_is_not_loaded_in_the_event_loop_either(
    makers: Makers,
):
    faults = StoreFaults()
    named = host(MemoryState(), faults, path=str(VECTORS / "root-2048.pem"))
    for number in (1, 2, 3):
        vm = named.join()
        await vm.prepare()
        vm.begin(Run(bytes(16), 0))
        vm.read_platform()
        vm.begin(Run(bytes(16), 1))
        assert len(makers.threads) == len(makers.builders) == faults.loads == number
        await vm.close()
        assert named.is_idle
    assert makers.are_others


async def test_a_root_that_did_not_fit_is_read_again(makers: Makers, tmp_path: pathlib.Path):
    state, path = MemoryState(), tmp_path / "root.pem"
    vm = host(state, path=str(VECTORS / "root-2048.pem")).join()
    await vm.prepare()
    await vm.close()
    path.write_bytes((VECTORS / "root-4096.pem").read_bytes())
    vm = host(state, path=str(path)).join()
    with pytest.raises(ConfigError, match="another root"):
        await vm.prepare()
    path.write_bytes((VECTORS / "root-2048.pem").read_bytes())
    await vm.prepare()
    assert vm.platform.roots[1] == root().ark.build()


async def test_who_is_cancelled_does_not_wait_for_the_root(makers: Makers):
    vm = host(MemoryState()).join()
    makers.may_go_on.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(vm.prepare)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    makers.may_go_on.set()
    await vm.prepare()
    assert len(makers.threads) == 2
    assert vm.platform.roots[1] == root().ark.build()


async def test_another_guest_is_answered_while_a_root_is_made(daemon: Daemon, makers: Makers):
    makers.may_go_on.clear()
    welcomed: list[f.Welcome] = []
    async with trio.open_nursery() as nursery:
        shim = await daemon.connect()

        @nursery.start_soon
        async def greet() -> None:
            welcomed.append(await shim.greet(hello(name="host", features=s.Feature.COMMANDS)))

        await trio.testing.wait_all_tasks_blocked()
        guest = await daemon.guest()
        assert (await guest.call(ledger.PUT, 1, 2)).status == H.SUCCESS
        assert not welcomed
        makers.may_go_on.set()
    assert welcomed
    assert makers.are_others
    await guest.close()
    await shim.close()


async def test_a_root_that_cannot_be_read_is_said(makers: Makers, tmp_path: pathlib.Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path / "nothing", tmp_path, pipe, pathlib.Path("/dev/zero")):
        vm = host(MemoryState(), path=str(path)).join()
        with pytest.raises(ConfigError, match="root"):
            await vm.prepare()
    assert not makers.builders


async def test_a_store_that_cannot_be_read_is_said(makers: Makers):
    faults = StoreFaults(load="damaged")
    vm = host(MemoryState(), faults).join()
    with pytest.raises(StoreError, match="damaged"):
        await vm.prepare()
    await vm.close()
    assert vm.platform.is_idle
    assert not makers.threads


async def test_a_client_waits_for_it_and_the_loop_does_not(daemon: Daemon, makers: Makers):
    shim = await daemon.connect()
    await shim.greet(hello(name="host", features=s.Feature.COMMANDS))
    assert len(makers.threads) == 1
    assert makers.are_others
    await shim.close()


async def test_who_asks_for_the_root_waits_as_well(daemon: Daemon, makers: Makers):
    _, (_, ark) = await daemon.server.platform_roots("another")
    assert ark == root().ark.build()
    assert makers.are_others
