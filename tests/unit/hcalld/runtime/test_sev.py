# SPDX-License-Identifier: Apache-2.0
"""Platforms that connections share, and the partitions that these are."""

from __future__ import annotations

import pathlib

import pytest
import trio
from tests.unit.hcalld.runtime.daemon import Daemon, Faults, FaultyStore
from tests.unit.hcalld.runtime.shim import hello

from hcalld.config import Profile
from hcalld.core.errors import ConfigError, StoreError
from hcalld.core.records import Run
from hcalld.crypto.sev.keys import KEY_ENTROPY_SIZE
from hcalld.crypto.sev.roots import Root
from hcalld.domain.sev.changes import (
    Change,
    FactoryReset,
    GuestOpened,
    IdentityChanged,
    Initialized,
    pack_change,
)
from hcalld.domain.sev.identity import OWN_ENTROPY, pack_identity
from hcalld.domain.sev.settings import SevSettings
from hcalld.domain.sev.view import PlatformView, unpack_view
from hcalld.runtime.flushing import FlushRounds
from hcalld.runtime.sev import PlatformHost, SevPartition
from hcalld.stores.memory import MemoryState
from hcallproto.abi.families import sev
from hcallproto.payloads.sev import PlatformState
from hcallproto.wire import schema as s

VEK = bytes(range(16))


class Host:
    """A platform over a store that fails when told to."""

    def __init__(
        self, settings: SevSettings | None = None, state: MemoryState | None = None
    ) -> None:
        self.faults = Faults()
        self.state = state or MemoryState()
        profile = Profile(
            partition="sev", source="test", sev=settings or SevSettings(), is_platform=True
        )
        self.host = PlatformHost(
            profile, lambda: FaultyStore(self.state, self.faults), FlushRounds()
        )

    async def connect(self) -> SevPartition:
        vm = self.host.join()
        await vm.prepare()
        vm.begin(Run(bytes(15) + bytes([vm.number]), 0))
        return vm


def view(vm: SevPartition) -> PlatformView:
    return unpack_view(vm.read_platform())


def change(vm: SevPartition, what: Change) -> None:
    vm.change_platform(pack_change(what))


def open_guest(vm: SevPartition, handle: int) -> None:
    change(vm, GuestOpened(handle, 0, handle, VEK))


def new_pdh(vm: SevPartition) -> IdentityChanged:
    before = view(vm)
    after = before.identity.with_new_pdh(bytes(KEY_ENTROPY_SIZE), before.version.api)
    return IdentityChanged(pack_identity(after))


# -- who is connected -----------------------------------------------------------------------------


async def test_join_gives_the_lowest_number_that_nobody_has():
    host = Host()
    first, second = await host.connect(), await host.connect()
    assert [first.id, second.id] == ["sev-1", "sev-2"]
    await first.close()
    assert (await host.connect()).id == "sev-1"


async def test_a_guest_is_seen_by_all_and_ends_with_its_connection():
    host = Host()
    first, second = await host.connect(), await host.connect()
    open_guest(first, 7)
    assert view(second).state is PlatformState.WORKING
    assert [guest.handle for guest in view(second).guests] == [7]
    await first.close()
    assert view(second).state is PlatformState.INIT
    assert view(second).guests == ()


async def test_a_reset_of_the_vm_ends_its_guest():
    host = Host()
    vm = await host.connect()
    open_guest(vm, 7)
    vm.begin(Run(bytes(16), 1))
    assert view(vm).guests == ()


async def test_a_vm_that_is_forgotten_after_a_bug_has_no_guest():
    host = Host()
    vm = await host.connect()
    model = vm.model(sev.FAMILY.name)
    open_guest(vm, 7)
    vm.discard()
    assert view(vm).guests == ()
    assert vm.model(sev.FAMILY.name) is not model


async def test_a_vm_does_not_rest():
    vm = await Host().connect()
    model = vm.model(sev.FAMILY.name)
    vm.rest()
    assert vm.holds(sev.FAMILY.name, model)


# -- its keys --------------------------------------------------------------------------------------


async def test_keys_outlive_connections_and_guests_do_not():
    host = Host()
    first = await host.connect()
    pdh = view(first).identity.pdh
    open_guest(first, 1)
    await first.close()
    assert host.host.is_idle
    assert not host.state.is_open
    later = await Host(state=host.state).connect()
    assert view(later).identity.pdh == pdh
    assert view(later).guests == ()


async def test_a_platform_stays_shut_down_when_nobody_is_connected():
    host = Host()
    first = await host.connect()
    before = view(first)
    reset = before.identity.reset(bytes(OWN_ENTROPY), before.version.api)
    change(first, FactoryReset(pack_identity(reset)))
    await first.flush()
    await first.close()
    assert not host.state.is_open
    assert not host.host.is_idle, "it would be forgotten"
    later = await host.connect()
    assert view(later).state is PlatformState.UNINIT
    change(later, Initialized())
    await later.close()
    assert host.host.is_idle


async def test_the_store_stays_open_while_anybody_is_connected():
    host = Host()
    first, second = await host.connect(), await host.connect()
    await first.close()
    assert host.state.is_open
    assert not host.host.is_idle
    await second.close()
    assert not host.state.is_open


async def test_a_change_that_cannot_be_kept_has_not_been_made():
    host = Host()
    vm = await host.connect()
    before = view(vm)
    host.faults.commit = "disk full"
    with pytest.raises(StoreError, match="disk full"):
        change(vm, new_pdh(vm))
    assert view(vm) == before
    host.faults.commit = ""
    change(vm, new_pdh(vm))
    assert view(vm).identity.pdh != before.identity.pdh
    assert vm.is_dirty
    await vm.flush()
    assert not vm.is_dirty


async def test_a_platform_whose_store_cannot_be_read_takes_nobody():
    host = Host()
    host.faults.load = "damaged"
    vm = host.host.join()
    with pytest.raises(StoreError, match="damaged"):
        await vm.prepare()
    await vm.close()
    assert host.host.is_idle


# -- its root --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("root") / "root.pem"
    path.write_bytes(Root.generate().to_pem().reveal())
    return path


async def test_platforms_with_one_root_file_trust_one_root(root_file: pathlib.Path):
    settings = SevSettings(root=str(root_file))
    first, second = await Host(settings).connect(), await Host(settings).connect()
    assert view(first).identity.ark == view(second).identity.ark
    assert view(first).identity.cek != view(second).identity.cek


async def test_a_platform_is_not_given_another_root(root_file: pathlib.Path):
    own = Host()
    await own.connect()
    own.state.is_open = False
    with pytest.raises(ConfigError, match="another root"):
        await Host(SevSettings(root=str(root_file)), own.state).connect()


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "cannot read the SEV platform's root"), (b"no root", "expected a root of")],
)
async def test_a_root_file_that_is_none_is_said(
    tmp_path: pathlib.Path, content: bytes | None, why: str
):
    path = tmp_path / "root.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=why):
        await Host(SevSettings(root=str(path))).connect()


# -- over the wire ---------------------------------------------------------------------------------


async def test_who_offers_commands_gets_commands_and_nothing_else(lenient_daemon: Daemon):
    shim = await lenient_daemon.connect()
    offered = s.Feature.COMMANDS | s.Feature.SHARED_RAM | s.Feature.SC2
    welcome = await shim.greet(hello(name="", features=offered))
    assert welcome.features == s.Feature.COMMANDS
    assert {spec.level for spec in welcome.announcement.calls} <= {s.LEVEL_COMMAND}
    assert not welcome.announcement.properties
    assert not welcome.announcement.strings
    assert list(lenient_daemon.server.sessions) == ["sev-1"]
    await shim.close()


async def test_a_second_client_is_one_more_and_both_leave(daemon: Daemon):
    shims = [await daemon.connect() for _ in range(2)]
    for shim in shims:
        await shim.greet(hello(name="host", features=s.Feature.COMMANDS))
    assert sorted(daemon.server.sessions) == ["host-1", "host-2"]
    sessions = list(daemon.server.sessions.values())
    for shim in shims:
        await shim.close()
    for session in sessions:
        # New keys are being flushed, in a thread.
        with trio.fail_after(5):
            await session.ended.wait()
    assert not daemon.server.sessions
    assert not daemon.server._platforms
