# SPDX-License-Identifier: Apache-2.0
"""LAUNCH_UPDATE_DATA that the client gives up: what its memory and the measurement have of it."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import AsyncIterator

import pytest
import trio
from tests.sev_platform import VECTORS
from tests.unit.hcalld.runtime.daemon import Daemon
from tests.unit.hcalld.runtime.shim import Shim, hello

from hcalld.config import Profiles
from hcalld.domain.sev.settings import PIECE_SIZE
from hcalld.domain.sev.vm import SevVm
from hcalld.guestowner.memory import SPACE_SIZE
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.abi.spec import Hcall, Level
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

DATA = 1 << 30
PIECES = 3


class Client(Shim):
    """A client's end, which answers by hand."""

    async def command(self, hcall: Hcall, *arguments: int) -> f.Call:
        call = self.call_frame(hcall, *arguments)._replace(level=int(Level.COMMAND))
        await self.send(call)
        return call

    async def must(self, hcall: Hcall, *arguments: int) -> None:
        await self.command(hcall, *arguments)
        assert (await self.expect(f.Reply)).status == SevCode.SUCCESS

    async def update(self) -> f.Call:
        return await self.command(sev.LAUNCH_UPDATE_DATA, DATA, PIECES * PIECE_SIZE)

    async def give(self, count: int) -> None:
        for _ in range(count):
            await self.answer_read(await self.expect(f.Read), bytes(PIECE_SIZE))

    async def give_up(self, call: f.Call) -> None:
        await self.send(f.Cancel(call.vcpu, 0, call.seq, s.CancelReason.DEADLINE))


@pytest.fixture
async def daemon(nursery: trio.Nursery, tmp_path: pathlib.Path) -> AsyncIterator[Daemon]:
    root = VECTORS / "root-2048.pem"
    (tmp_path / "host.toml").write_text(f'[sev]\nroot = "{root}"\nmemory = "encrypted"\n')
    daemon = Daemon(nursery, profiles=Profiles(tmp_path))
    yield daemon
    daemon.close()


@pytest.fixture
async def client(daemon: Daemon) -> Client:
    """Of a guest that is being launched."""
    client = Client((await daemon.connect()).transport)
    ram = f.Ram((f.RamRegion(0, SPACE_SIZE),), 0, 0)
    await client.negotiate(hello(name="host", features=s.Feature.COMMANDS), ram)
    await client.must(sev.INIT)
    await client.must(sev.LAUNCH_START, *[0] * len(sev.LAUNCH_START.args))
    return client


def measured(daemon: Daemon) -> bytes:
    partition = daemon.server.sessions["host-1"].partition
    assert partition is not None
    vm = partition.model(sev.FAMILY.name)
    assert isinstance(vm, SevVm)
    assert vm.guest is not None
    return vm.guest.digest.digest()


@pytest.mark.parametrize("given", [0, 1, PIECES - 1])
async def test_while_it_reads_then_nothing_is_written_or_measured(
    daemon: Daemon, client: Client, given: int
):
    call = await client.update()
    await client.give(given)
    read = await client.expect(f.Read)
    await client.give_up(call)
    await client.refuse_read(read, s.AccessStatus.NO_CALL)
    assert (await client.expect(f.Cancelled)).effect is s.Effect.NONE
    assert measured(daemon) == hashlib.sha256().digest()
    await client.close()


@pytest.mark.parametrize("taken", [0, 1, PIECES - 1])
async def test_while_it_writes_then_it_may_be_there_and_is_not_measured(
    daemon: Daemon, client: Client, taken: int
):
    """Whole pieces are there: a frame is carried out wholly or not at all."""
    call = await client.update()
    await client.give(PIECES)
    for number in range(taken):
        write = await client.expect(f.Write)
        assert [part[:2] for part in write.segments] == [(DATA + number * PIECE_SIZE, PIECE_SIZE)]
        await client.answer_write(write)
    write = await client.expect(f.Write)
    await client.give_up(call)
    await client.answer_write(write, s.AccessStatus.NO_CALL)
    assert (await client.expect(f.Cancelled)).effect is s.Effect.MAY_REMAIN
    assert measured(daemon) == hashlib.sha256().digest()
    await client.close()
