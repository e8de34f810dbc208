# SPDX-License-Identifier: Apache-2.0
"""Commands of SEV that go wrong on purpose."""

from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator, Callable

import pytest
import trio
import trio.testing
from tests.e2e.sevlaunch import launch
from tests.unit.hcalld.replay.sevclients import clients
from tests.unit.hcalld.replay.test_code import Recorded
from tests.unit.hcalld.runtime.conftest import Logs
from tests.unit.hcalld.runtime.shim import Shim, hello
from tests.unit.hcalld.runtime.test_calls import events

from hcalld.core.errors import ConfigError
from hcalld.faults.rules import Close, Corrupt, Gone, Rule, parse
from hcalld.guestowner.client import CommandRefused, ConnectionFailed, SevClient
from hcalld.guestowner.platform import Platform
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.abi.spec import Level
from hcallproto.payloads.sev import PlatformStatus
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s


@pytest.fixture
async def daemon(nursery: trio.Nursery, logs: object) -> AsyncIterator[Recorded]:
    daemon = Recorded(nursery)
    yield daemon
    # Whatever went wrong goes wrong in the same way again.
    played = daemon.play()
    assert played.told == []
    assert played.score.calls == played.score.equal + sum(played.score.left_out.values())
    daemon.close()


def status_of(do: Callable[[], object]) -> int:
    with pytest.raises(CommandRefused) as caught:
        do()
    return caught.value.status


# -- a code ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returns", "status"),
    [
        ("SEV_RET_HWERROR_PLATFORM", SevCode.HWERROR_PLATFORM),
        ("EBUSY", SevCode.EBUSY),
        (0x19, 0x19),
        (-5, -5),
    ],
)
async def test_a_code_is_given_instead(daemon: Recorded, returns: str | int, status: int):
    daemon.server.faults.add(Rule(call="SEV_PDH_GEN", returns=returns, times=1))

    def story(path: pathlib.Path) -> None:
        with SevClient(path) as client:
            platform = Platform(client)
            before = platform.export()
            assert status_of(platform.make_pdh) == status
            assert platform.export() == before
            platform.make_pdh()
            assert platform.export() != before

    await clients(daemon, story)


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (
            'call = "KVM_SEV_INIT"\nreturn = "H_BUSY"',
            "KVM_SEV_INIT does not return H_BUSY; expected a status SEV_RET_..., an errno",
        ),
        ('call = "KVM_SEV_INIT"\nreturn = "EWHAT"', "expected one such as SEV_RET_HWERROR"),
        (
            'call = "H_PKS_GET_CONFIG"\nreturn = "EBUSY"',
            "H_PKS_GET_CONFIG does not return EBUSY; expected a code H_",
        ),
        ('call = "UV_ESM"\nreturn = "SEV_RET_SUCCESS"', "expected a code U_"),
        ('call = "sev"\ngone = "tpm"', "sev does not need the tpm"),
        (
            'call = "sev"\ndrop_reply = true\narguments = { label = 1 }',
            "no argument 'label' in sev",
        ),
    ],
)
def test_a_rule_that_no_command_can_meet_is_refused(rule: str, why: str):
    with pytest.raises(ConfigError, match=why):
        parse(f"[[fault]]\n{rule}\n", "file")


# -- the others -----------------------------------------------------------------------------------


async def test_a_launch_with_one_command_in_its_way_fails_there(daemon: Recorded):
    daemon.server.faults.add(
        Rule(call="sev", arguments={"policy": 4}, returns="SEV_RET_RESOURCE_LIMIT", guest="sev-1")
    )

    def story(path: pathlib.Path) -> None:
        with pytest.raises(CommandRefused, match="LAUNCH_START: the platform refuses"):
            launch(path)

    await clients(daemon, story)


async def test_what_cannot_be_kept_has_not_happened(daemon: Recorded, logs: Logs):
    daemon.server.faults.add(Rule(call="sev", gone=Gone.SPACE))

    def story(path: pathlib.Path) -> None:
        with SevClient(path) as client:
            platform = Platform(client)
            before = platform.export()
            for change in (platform.make_pdh, platform.make_pek):
                assert status_of(change) == SevCode.HWERROR_PLATFORM
            assert platform.export() == before
        # Of a guest nothing is kept.
        launch(path)

    await clients(daemon, story)
    # The operator is told of a disk that is full, and not the client alone.
    failed = events(logs, "store failed")
    assert [entry["call"] for entry in failed] == ["SEV_PDH_GEN", "SEV_PEK_GEN"]
    assert all("No space left on device" in str(entry["reason"]) for entry in failed)


async def test_what_is_not_on_the_disk_is_not_told_of(daemon: Recorded, logs: Logs):
    daemon.server.faults.add(Rule(call="sev", gone=Gone.DISK))

    def story(path: pathlib.Path) -> None:
        with SevClient(path) as client:
            platform = Platform(client)
            for change in (platform.make_pdh, platform.make_pek, platform.factory_reset):
                assert status_of(change) == SevCode.HWERROR_PLATFORM
        # Of a guest nothing is kept.
        launch(path)

    await clients(daemon, story)
    failed = [entry["call"] for entry in events(logs, "store failed")]
    assert failed == ["SEV_PDH_GEN", "SEV_PEK_GEN", "SEV_FACTORY_RESET"]


async def test_a_result_is_damaged(daemon: Recorded):
    daemon.server.faults.add(
        Rule(call="SEV_PLATFORM_STATUS", corrupt=Corrupt(name="flags", bits=0x100), times=1)
    )
    daemon.server.faults.add(
        Rule(
            call="SEV_PDH_CERT_EXPORT",
            corrupt=Corrupt(name="pdh_cert_address", offset=3, bits=0x80),
            arguments={"pdh_cert_len": 2084},
            times=1,
        )
    )

    def story(path: pathlib.Path) -> None:
        with SevClient(path) as client:
            platform = Platform(client)
            assert platform.status().flags ^ platform.status().flags == 0x100
            first, second = platform.export(), platform.export()
            assert first.pdh[3] ^ second.pdh[3] == 0x80
            assert first.pdh[4:] == second.pdh[4:]

    await clients(daemon, story)


@pytest.mark.parametrize("close", Close)
async def test_a_connection_that_ends_takes_its_guest_with_it(daemon: Recorded, close: Close):
    daemon.server.faults.add(Rule(call="KVM_SEV_LAUNCH_MEASURE", close=close))

    def loses(path: pathlib.Path) -> PlatformStatus:
        with SevClient(path) as client:
            client.command(sev.INIT)
            client.command(sev.LAUNCH_START)
            status = Platform(client).status()
            with pytest.raises(ConnectionFailed):
                client.command(sev.LAUNCH_MEASURE, uaddr=4096, len=48)
            return status

    def looks(path: pathlib.Path) -> PlatformStatus:
        with SevClient(path) as client:
            return Platform(client).status()

    assert (await clients(daemon, loses)).guest_count == 1
    assert (await clients(daemon, looks)).guest_count == 0


def frame_of(shim: Shim, number: int, *arguments: int) -> f.Call:
    return shim.call_frame(number, *arguments)._replace(level=Level.COMMAND)


async def client_of(daemon: Recorded) -> Shim:
    return await daemon.guest(hello(name="", features=s.Feature.COMMANDS))


async def test_a_reply_that_is_dropped_is_cancelled_with_its_effect(daemon: Recorded):
    daemon.server.faults.add(Rule(call="sev", drop_reply=True))
    shim = await client_of(daemon)
    for number, effect in (
        (sev.PDH_GEN.number, s.Effect.MAY_REMAIN),
        (sev.PLATFORM_STATUS.number, s.Effect.NONE),
    ):
        call = frame_of(shim, number)
        await shim.send(call, f.Cancel(0, 0, call.seq, s.CancelReason.DEADLINE))
        assert (await shim.expect(f.Cancelled)).effect is effect
    await shim.close()
    await daemon.gone()


async def test_a_command_is_late(daemon: Recorded, mock_clock: trio.testing.MockClock):
    daemon.server.faults.add(Rule(call="SEV_GET_ID2", delay_ms=60_000))
    shim = await client_of(daemon)
    await shim.send(frame_of(shim, sev.GET_ID2.number))
    for _ in range(2):
        await trio.testing.wait_all_tasks_blocked()
        assert not daemon.answered
        mock_clock.jump(30)
    assert (await shim.expect(f.Reply)).status == SevCode.INVALID_LEN
    await shim.close()
    await daemon.gone()
