# SPDX-License-Identifier: Apache-2.0
"""A platform that is new gets a root, and nobody waits for that but who asked for it."""

from __future__ import annotations

import os
import pathlib
import threading

import pytest
from tests.sev_platform import VECTORS, root
from tests.unit.hcalld.runtime.daemon import Daemon, FaultyStore
from tests.unit.hcalld.runtime.daemon import Faults as StoreFaults
from tests.unit.hcalld.runtime.shim import hello

import hcalld.runtime.sev
from hcalld.config import Profile
from hcalld.core.errors import ConfigError, StoreError
from hcalld.core.records import Run
from hcalld.crypto.sev.roots import Root
from hcalld.domain.sev.settings import SevSettings
from hcalld.runtime.flushing import FlushRounds
from hcalld.runtime.sev import PlatformHost
from hcalld.stores.memory import MemoryState
from hcallproto.wire import schema as s


class Makers:
    """In which threads roots were made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.threads: list[threading.Thread] = []
        monkeypatch.setattr(Root, "generate", self._generate)

    def _generate(self) -> Root:
        self.threads.append(threading.current_thread())
        return root()

    @property
    def are_others(self) -> bool:
        """No root was made where the event loop runs."""
        return threading.current_thread() not in self.threads


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


async def test_a_root_in_a_file_is_read_once_and_not_in_the_event_loop(
    makers: Makers, monkeypatch: pytest.MonkeyPatch
):
    """Looking at private keys of 4096 bits takes most of a second."""
    read = hcalld.runtime.sev._read_root

    def reading(path: pathlib.Path) -> Root:
        makers.threads.append(threading.current_thread())
        return read(path)

    monkeypatch.setattr(hcalld.runtime.sev, "_read_root", reading)
    named = host(MemoryState(), path=str(VECTORS / "root-2048.pem"))
    vms = [named.join(), named.join()]
    for number, vm in enumerate(vms):
        await vm.prepare()
        vm.begin(Run(bytes([number] * 16), 0))
    assert len(makers.threads) == 1
    assert makers.are_others
    assert named.roots[1] == root().ark.build()


async def test_a_root_that_cannot_be_read_is_said(makers: Makers, tmp_path: pathlib.Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path / "nothing", tmp_path, pipe, pathlib.Path("/dev/zero")):
        vm = host(MemoryState(), path=str(path)).join()
        with pytest.raises(ConfigError, match="root"):
            await vm.prepare()
    assert not makers.threads


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
