# SPDX-License-Identifier: Apache-2.0
"""Names that guests, platforms and the VMs of platforms have in common."""

from __future__ import annotations

import pytest
from tests.unit.hcalld.runtime.daemon import Daemon
from tests.unit.hcalld.runtime.shim import Shim, hello

from hcalld.core.errors import ConfigError
from hcallproto.wire import schema as s


async def connect_client(daemon: Daemon, platform: str = "") -> Shim:
    shim = await daemon.connect()
    await shim.greet(hello(name=platform, features=s.Feature.COMMANDS))
    return shim


async def connect_guest(daemon: Daemon, name: str) -> Shim:
    shim = await daemon.connect()
    await shim.greet(hello(name=name))
    return shim


async def test_a_vm_takes_no_name_of_a_guest(daemon: Daemon):
    guest = await connect_guest(daemon, "sev-1")
    (session,) = daemon.server.sessions.values()
    client = await connect_client(daemon)
    assert sorted(daemon.server.sessions) == ["sev-1", "sev-2"]
    assert daemon.server.sessions["sev-1"] is session
    await client.close()
    await guest.close()


async def test_a_platform_may_have_the_name_of_anothers_vm(daemon: Daemon):
    clients = [await connect_client(daemon, name) for name in ("a", "a-1")]
    assert sorted(daemon.server.sessions) == ["a-1", "a-1-1"]
    for client in clients:
        await client.close()


async def test_a_guest_does_not_take_the_partition_of_a_platform(lenient_daemon: Daemon):
    client = await connect_client(lenient_daemon)
    guest = await lenient_daemon.connect()
    await guest.send(hello(name="sev"))
    text = await guest.expect_goodbye(s.GoodbyeReason.REFUSED)
    assert text == (
        "partition 'sev' is a SEV platform that is in use, and no guest; give the guest "
        "another -name"
    )
    await client.close()


async def test_a_platform_does_not_take_the_partition_of_a_guest(lenient_daemon: Daemon):
    guest = await connect_guest(lenient_daemon, "sev")
    client = await lenient_daemon.connect()
    await client.send(hello(name="", features=s.Feature.COMMANDS))
    assert "in use by a guest" in await client.expect_goodbye(s.GoodbyeReason.REFUSED)
    with pytest.raises(ConfigError, match="in use by a guest"):
        await lenient_daemon.server.platform_roots("")
    await guest.close()


async def test_who_leaves_last_leaves_the_platform_of_the_next(daemon: Daemon):
    server = daemon.server
    early = server._host("")
    server._forget_idle()
    late = server._host("")
    assert late is not early
    vm = late.join()
    server._forget_idle()
    assert server._platforms == {"sev": late}
    await late.leave(vm)
    server._forget_idle()
    assert not server._platforms
