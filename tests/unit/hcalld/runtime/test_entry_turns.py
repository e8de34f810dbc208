# SPDX-License-Identifier: Apache-2.0
"""UV_ESM of one guest, and what other guests have of the daemon meanwhile."""

from __future__ import annotations

import os
import pathlib
import socket
from typing import Any

import pytest
import trio
from tests.unit.hcalld.runtime.daemon import Daemon
from tests.unit.hcalld.runtime.shim import OTHER_INSTANCE, Shim, hello

from hcalld.config import Profiles
from hcalld.domain.pef.machine import PefMachine
from hcalld.domain.pef.verify import Verified
from hcalld.runtime.transport import SocketTransport
from hcallproto.abi.families import pks, uv
from hcallproto.abi.returns import H
from hcallproto.payloads import fdt
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

RAM_SIZE = 4 << 20
KERNEL, TREE = 0x20_0000, 0x10_0000
PAGE = 1 << 16
FEATURES = s.Feature.SC2 | s.Feature.PAGE_STATES | s.Feature.SHARED_RAM
MAX_READS = 200_000
"""So many without another guest's answer are taken for ever; they take some seconds."""


async def secure_guest(daemon: Daemon, ram: int) -> Shim:
    """A guest in shared RAM: nothing has to be asked of its QEMU that is to be read."""
    shim = await daemon.connect_socket()
    await shim.greet(hello(features=FEATURES))
    await shim.send(f.Accept((), True, 0, 0))
    data = shim.connection.send(f.Ram((f.RamRegion(0, RAM_SIZE, 0, 0),), 1, 0))
    assert isinstance(shim.transport, SocketTransport)
    socket.send_fds(shim.transport._sock, [data], [ram])
    return shim


@pytest.fixture
def ram() -> Any:
    """RAM of a guest with a device tree in it."""
    fd = os.memfd_create("guest")
    os.ftruncate(fd, RAM_SIZE)
    os.pwrite(fd, fdt.Fdt().build(), TREE)
    yield fd
    os.close(fd)


async def test_entry_when_a_guest_is_measured_then_another_ones_call_is_answered(
    nursery: trio.Nursery, tmp_path: pathlib.Path, ram: int
):
    (tmp_path / "lpar7.toml").write_text("[pef]\nenabled = true\n", "utf-8")
    (tmp_path / "lpar8.toml").write_text("", "utf-8")
    daemon = Daemon(nursery, Profiles(tmp_path))
    guest = await secure_guest(daemon, ram)
    other = await daemon.guest(hello("lpar8", instance=OTHER_INSTANCE))
    await daemon.settle()
    is_measured, is_answered = trio.Event(), trio.Event()

    async def verify(read: Any, tree: bytes, kernel: int, key: Any) -> Verified:
        is_measured.set()
        for _ in range(MAX_READS):
            if is_answered.is_set():
                break
            await read(kernel, PAGE)
        return Verified(failures={} if is_answered.is_set() else {"kernel": "nobody was served"})

    session = daemon.server.sessions["lpar7"]
    assert session.partition is not None
    machine = session.partition.model("uv")
    assert isinstance(machine, PefMachine)
    machine.verify = verify
    call = guest.call_frame(uv.ESM, KERNEL, TREE)._replace(level=2)
    await guest.send(call)
    pages = await guest.expect(f.Pages)
    name = (pages.vcpu, pages.reset, pages.seq, pages.request)
    await guest.send(f.PagesReply(*name, s.AccessStatus.OK, 0))
    await is_measured.wait()
    reply = await other.call(pks.GET_CONFIG, 0x1000, 512)
    assert reply.status == H.SUCCESS
    is_answered.set()
    while isinstance(frame := await guest.receive(), f.Write):
        await guest.answer_write(frame)
    assert isinstance(frame, f.Reply)
    assert frame.context, "UV_ESM was refused: nobody was served while it measured"
    daemon.close()
