# SPDX-License-Identifier: Apache-2.0
"""The control socket's commands, over a daemon with guests that are secure, or not."""

from __future__ import annotations

import base64
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from click.testing import CliRunner, Result
from tests.unit.hcalld.control.conftest import Client, Control, Logs
from tests.unit.hcalld.control.qemu import Qemu
from tests.unit.hcalld.runtime.daemon import Daemon
from tests.unit.hcalld.runtime.shim import RAM as SMALL_RAM
from tests.unit.hcalld.runtime.shim import hello
from tests.unit.hcalld.runtime.test_secure import KERNEL, PAGE, RAM_SIZE, Guest, boot
from tests.unit.test_documents import NEEDS_GUEST

from hcalld.cli import cli
from hcalld.config import Profiles
from hcalld.control import paging
from hcalld.control.client import ControlFailure
from hcalld.control.commands import Parts, bound_to
from hcalld.control.statistics import Statistics
from hcalld.core.errors import ConfigError
from hcalld.crypto.sev.chains import verify_amd
from hcalld.observe.capturing import Capturing
from hcalld.observe.figures import Figures
from hcalld.runtime.server import Server
from hcallproto.abi.families import uv
from hcallproto.payloads.sev import AmdCertificate, Usage
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

__all__ = ["boot"]

PAGES = RAM_SIZE // PAGE


def parts_of(server: Server, nursery: trio.Nursery) -> Parts:
    """What commands are about, for a server of the tests'."""
    capturing = Capturing(server, nursery, "hcalld of a test")
    figures = server.tallies = Figures(server.sessions.__contains__)
    return Parts(server, capturing, Statistics(server, capturing, figures))


Start = Callable[..., Awaitable[Qemu]]


@pytest.fixture
async def secure(boot: Any, control: Control, nursery: trio.Nursery) -> Start:
    """Starts a daemon with a control socket, and a secure guest ``lpar7``."""

    async def start(profile: str = "page_shift = 12") -> Qemu:
        guest: Guest = await boot(profile)
        control.start(bound_to(parts_of(guest.daemon.server, nursery)))
        await guest.enter()
        return Qemu(guest, nursery)

    return start


@pytest.fixture
async def plain(control: Control, nursery: trio.Nursery, logs: Logs) -> AsyncIterator[Daemon]:
    """A daemon with a control socket, and no guest."""
    daemon = Daemon(nursery, Profiles(None))
    control.start(bound_to(parts_of(daemon.server, nursery)))
    yield daemon
    daemon.close()


async def page_out(client: Client, **more: object) -> dict[str, Any]:
    reply = await client.ask(command="page-out", partition="lpar7", **more)
    assert reply["reply"] == "paged-out", reply
    return reply


async def refused(client: Client, partition: str = "lpar7") -> tuple[str, str]:
    reply = await client.ask(command="page-out", partition=partition)
    assert reply["reply"] == "failure", reply
    return reply["kind"], reply["message"]


# -- guests -----------------------------------------------------------------------------------


async def test_guests_when_there_is_none_then_the_list_is_empty(plain: Daemon, control: Control):
    assert await (await control.client()).ask(command="guests") == {"reply": "guests", "guests": []}


async def test_guests_when_two_are_connected_then_both_are_told_of(plain: Daemon, control: Control):
    other = await plain.guest(hello("b"))
    shim = await plain.guest(hello("a", instance=bytes(16)))
    for _ in range(3):
        await shim.call(0x1234)
    client = await control.client()
    reply = await client.ask(command="guests")
    one, two = reply["guests"]
    assert (one["partition"], two["partition"]) == ("a", "b")
    assert (one["calls"], two["calls"]) == (3, 0)
    assert one == {
        "partition": "a",
        "peer": "memory",
        "vcpus": 4,
        "calls": 3,
        "waiting": 0,
        "tpm": "none",
        "pef": {
            "state": "none",
            **dict.fromkeys(("secure", "shared", "out", "shared_4k", "paged_out"), 0),
            "limit": None,
        },
        "problem": "",
    }
    for kind, count in ((s.EventKind.VCPU_ADDED, 5), (s.EventKind.VCPU_REMOVED, 4)):
        await shim.send(f.Event(kind, 4, 0, 0))
        await trio.testing.wait_all_tasks_blocked()
        assert (await client.ask(command="guests"))["guests"][0]["vcpus"] == count
    session = plain.server.sessions["b"]
    await other.close()
    await session.ended.wait()
    assert [g["partition"] for g in (await client.ask(command="guests"))["guests"]] == ["a"]


async def test_guests_when_one_is_secure_then_its_pages_are_counted(
    secure: Start, control: Control
):
    qemu = await secure("page_shift = 12\nsecure_memory_mib = 64")
    client = await control.client()

    async def pef() -> dict[str, Any]:
        (guest,) = (await client.ask(command="guests"))["guests"]
        assert guest["problem"] == ""
        found: dict[str, Any] = guest["pef"]
        return found

    empty = {"shared": 0, "out": 0, "shared_4k": 0, "paged_out": 0, "limit": 1024}
    assert await pef() == {"state": "secure", "secure": PAGES, **empty}
    await qemu.call(uv.SHARE_PAGE, KERNEL >> 12, 17)
    shared = {**empty, "shared": 2, "shared_4k": 17}
    assert await pef() == {"state": "secure", "secure": PAGES - 2, **shared}
    await page_out(client, pages=3)
    out = {**shared, "out": 3, "paged_out": 3}
    assert await pef() == {"state": "secure", "secure": PAGES - 5, **out}
    await trio.testing.wait_all_tasks_blocked()
    await qemu.touch(qemu.out[0], 1)
    assert await pef() == {"state": "secure", "secure": PAGES - 4, **out, "out": 2}
    await qemu.guest.shim.send(qemu.guest.shim.reset_event())
    await trio.testing.wait_all_tasks_blocked()
    assert (await pef())["state"] == "normal"


async def test_guests_when_a_store_rests_then_it_is_told_of_and_not_loaded(
    secure: Start, control: Control
):
    qemu = await secure()
    client = await control.client()
    await page_out(client, pages=2)
    before = (await client.ask(command="guests"))["guests"]
    session = qemu.guest.daemon.server.sessions["lpar7"]
    for _ in range(2):
        await session.rest_if_idle()
    partition = session.partition
    assert partition is not None
    assert partition.pef is None
    assert (await client.ask(command="guests"))["guests"] == before
    assert partition.pef is None
    # What was kept is not told when something may have changed since.
    await qemu.touch(qemu.out[0], 0)
    partition.discard()
    (after,) = (await client.ask(command="guests"))["guests"]
    assert after["pef"]["out"] == 1


async def test_guests_when_a_store_cannot_be_read_then_that_is_its_problem(
    secure: Start, control: Control
):
    qemu = await secure()
    session = qemu.guest.daemon.server.sessions["lpar7"]
    assert session.partition is not None
    session.partition.discard()
    qemu.guest.daemon.faults.load = "the store is damaged"
    client = await control.client()
    (guest,) = (await client.ask(command="guests"))["guests"]
    assert guest["problem"] == "the store is damaged"
    assert await refused(client) == ("failed", "the store is damaged")


# -- page-out ---------------------------------------------------------------------------------


async def test_page_out_when_all_is_wanted_then_all_goes_and_comes_back_as_it_was(
    secure: Start, control: Control
):
    qemu = await secure()
    before = qemu.fill()
    reply = await page_out(await control.client())
    assert (reply["wanted"], reply["went"], reply["why"]) == (PAGES, PAGES, "")
    assert reply["pef"]["out"] == PAGES
    assert reply["pef"]["secure"] == 0
    await trio.testing.wait_all_tasks_blocked()
    assert len(qemu.out) == PAGES
    assert not any(qemu.guest.memory)
    for gpa in qemu.own():
        await qemu.touch(gpa, gpa // PAGE % 4)
    assert qemu.guest.memory == before


async def test_page_out_when_some_are_wanted_then_the_next_ones_go_each_time(
    secure: Start, control: Control
):
    qemu = await secure()
    client = await control.client()
    for count in (1, 9, 16):
        reply = await page_out(client, pages=count)
        assert (reply["wanted"], reply["went"]) == (count, count)
    await trio.testing.wait_all_tasks_blocked()
    assert qemu.out == list(range(0, 26 * PAGE, PAGE))
    # Around its end, over what is out already.
    await page_out(client, pages=PAGES - 26 - 1)
    await qemu.touch(0, 0)
    reply = await page_out(client, pages=1 << 40)
    assert (reply["wanted"], reply["went"], reply["pef"]["secure"]) == (2, 2, 0)
    reply = await page_out(client)
    assert (reply["wanted"], reply["went"], reply["why"]) == (0, 0, "")


async def test_page_out_when_pages_are_shared_then_they_stay(secure: Start, control: Control):
    qemu = await secure()
    await qemu.call(uv.SHARE_PAGE, KERNEL >> 12, 16)
    await qemu.call(uv.SHARE_PAGE, (KERNEL + 2 * PAGE >> 12) + 1, 1)
    reply = await page_out(await control.client())
    assert (reply["wanted"], reply["went"], reply["pef"]["shared"]) == (PAGES - 2, PAGES - 2, 2)
    await trio.testing.wait_all_tasks_blocked()
    assert not {KERNEL, KERNEL + 2 * PAGE} & set(qemu.out)


async def test_page_out_when_pages_become_shared_meanwhile_then_the_others_go(
    secure: Start, control: Control, nursery: trio.Nursery
):
    qemu = await secure()
    shared: set[int] = set()
    one_call = trio.Lock()

    async def call(gpa: int) -> None:
        # A vCPU makes one call at a time.
        async with one_call:
            await qemu.call(uv.SHARE_PAGE, gpa >> 12, 16)

    async def share(gpa: int) -> None:
        if len(shared) < 5:
            shared.add(gpa)
            nursery.start_soon(call, gpa)

    qemu.at_read = share
    reply = await page_out(await control.client())
    assert len(shared) == 5
    assert reply["pef"]["shared"] == 5
    assert reply["pef"]["secure"] == 0
    assert reply["went"] <= PAGES
    await trio.testing.wait_all_tasks_blocked()
    assert set(qemu.out) == set(qemu.own()) - shared


async def test_page_out_when_four_cpus_touch_each_page_then_no_content_is_lost(
    secure: Start, control: Control
):
    qemu = await secure()
    before = qemu.fill()
    wrong: list[int] = []
    is_over = trio.Event()

    async def run(vcpu: int) -> None:
        while not is_over.is_set():
            for gpa in qemu.own():
                if await qemu.touch(gpa + 8 * vcpu, vcpu) != before[gpa : gpa + PAGE]:
                    wrong.append(gpa)
                await trio.sleep(0.002)

    client = await control.client()
    async with trio.open_nursery() as nursery:
        for vcpu in range(4):
            nursery.start_soon(run, vcpu)
        went = 0
        for _ in range(3):
            went += (await page_out(client))["went"]
        is_over.set()
    assert not wrong
    assert went > PAGES
    assert qemu.page_ins > PAGES
    (guest,) = (await client.ask(command="guests"))["guests"]
    assert guest["pef"]["paged_out"] == went
    assert guest["pef"]["out"] == len(qemu.out)


async def test_page_out_when_a_page_is_wanted_back_each_time_then_it_stays_and_that_is_said(
    secure: Start, control: Control
):
    qemu = await secure()
    before = qemu.fill()

    async def want(gpa: int) -> None:
        if gpa == KERNEL:
            frame = qemu.guest.frame(s.ShimCall.PAGE_IN, gpa, level=3, vcpu=1)
            await qemu.guest.shim.send(frame)

    qemu.at_read = want
    reply = await page_out(await control.client())
    assert (reply["wanted"], reply["pef"]["secure"]) == (PAGES, 1)
    assert reply["went"] == PAGES - 1
    assert "wanted back each time" in reply["why"]
    assert bytes(qemu.guest.memory[KERNEL : KERNEL + PAGE]) == before[KERNEL : KERNEL + PAGE]


async def test_page_out_when_a_page_that_was_wanted_back_is_gone_then_the_others_are_tried_on(
    secure: Start, control: Control, nursery: trio.Nursery
):
    qemu = await secure()
    wanted = [0, PAGE, 2 * PAGE]
    is_shared = False

    async def want(gpa: int) -> None:
        nonlocal is_shared
        if gpa not in wanted or is_shared:
            return
        # All three stay at first; the first of them is shared before they are tried again.
        frame = qemu.guest.frame(s.ShimCall.PAGE_IN, gpa, level=3, vcpu=gpa // PAGE + 1)
        await qemu.guest.shim.send(frame)

    async def watch(gpa: int) -> None:
        nonlocal is_shared
        if gpa > 8 * PAGE and not is_shared:
            is_shared = True
            nursery.start_soon(qemu.call, uv.SHARE_PAGE, 0, 16)
        await want(gpa)

    qemu.at_read = watch
    reply = await page_out(await control.client())
    assert (reply["pef"]["shared"], reply["pef"]["secure"]) == (1, 0)
    assert reply["went"] == PAGES - 1


async def test_page_out_when_the_hypervisor_has_no_room_then_that_is_said(
    secure: Start, control: Control, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(paging, "MAX_PAGES", 10)
    await secure()
    client = await control.client()
    reply = await page_out(client)
    assert (reply["wanted"], reply["went"]) == (PAGES, 10)
    assert reply["why"].startswith("no room")
    reply = await page_out(client)
    assert (reply["wanted"], reply["went"]) == (PAGES - 10, 0)


async def test_page_out_when_there_is_a_limit_then_only_what_was_ordered_is_counted(
    secure: Start, control: Control
):
    qemu = await secure("page_shift = 12\nsecure_memory_mib = 2")
    while len(qemu.out) < PAGES // 2:
        await trio.testing.wait_all_tasks_blocked()
    reply = await page_out(await control.client(), pages=4)
    assert (reply["went"], reply["pef"]["out"]) == (4, PAGES // 2 + 4)
    assert reply["pef"]["paged_out"] == PAGES // 2 + 4


# -- page-out, refused and interrupted ----------------------------------------------------------


async def test_page_out_when_there_is_no_such_guest_then_those_that_are_are_named(
    plain: Daemon, control: Control
):
    client = await control.client()
    kind, message = await refused(client, "lpar8")
    assert (kind, message.partition(";")[2]) == ("no-guest", " connected are: none")
    await plain.guest(hello("lpar7"))
    kind, message = await refused(client, "lpar8")
    assert message == ("no guest is connected as partition 'lpar8'; connected are: 'lpar7'")


async def test_page_out_when_the_profile_has_no_secure_mode_then_that_is_said(
    plain: Daemon, control: Control
):
    await plain.guest()
    kind, message = await refused(await control.client())
    assert kind == "not-secure"
    assert "its profile has no [pef] enabled = true" in message


async def test_page_out_when_the_guest_is_not_secure_then_that_is_said(
    boot: Any, control: Control, nursery: trio.Nursery
):
    guest: Guest = await boot()
    control.start(bound_to(parts_of(guest.daemon.server, nursery)))
    client = await control.client()
    kind, message = await refused(client)
    assert (kind, "is a normal VM;" in message) == ("not-secure", True)
    # While it becomes secure, too.
    await guest.shim.send(guest.frame(uv.ESM, KERNEL, 0x10_0000, msr=0))
    await guest.shim.expect(f.Pages)
    kind, message = await refused(client)
    assert kind == "not-secure"
    assert "becoming secure" in message or "normal VM" in message


async def test_page_out_when_the_guest_was_taken_down_then_that_is_said(
    secure: Start, control: Control
):
    qemu = await secure()
    client = await control.client()
    await page_out(client, pages=1)
    machine = qemu.guest.machine
    (lra,) = machine.hypervisor.out.values()
    machine.memory.store(lra, bytes(PAGE))
    await qemu.call(s.ShimCall.PAGE_IN, qemu.out[0], level=3)
    kind, message = await refused(client)
    assert kind == "not-secure"
    assert "was taken down" in message


async def test_page_out_when_one_is_under_way_then_another_is_refused(
    secure: Start, control: Control
):
    qemu = await secure()
    qemu.may_attend = False
    first, second = await control.client(), await control.client()
    await first.send(b'{"command":"page-out","partition":"lpar7"}\n')
    await qemu.was_asked.wait()
    assert (await refused(second))[0] == "in-progress"
    qemu.may_attend = True
    await qemu.attend()
    reply = await first.line()
    assert reply is not None
    assert reply["went"] == PAGES
    assert (await page_out(second))["wanted"] == 0


async def test_page_out_when_its_client_is_gone_then_it_stops(secure: Start, control: Control):
    qemu = await secure()
    qemu.may_attend = False
    client = await control.client()
    await client.send(b'{"command":"page-out","partition":"lpar7"}\n')
    await qemu.was_asked.wait()
    assert qemu.guest.machine.wanted_out
    await client.close()
    await control.until(0)
    assert not qemu.guest.machine.wanted_out
    qemu.may_attend = True
    assert (await page_out(await control.client()))["went"] == PAGES


async def test_page_out_when_qemu_does_not_attend_then_it_gives_up(
    secure: Start, control: Control, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(paging, "ANSWER_SECONDS", 0.05)
    qemu = await secure()
    qemu.may_attend = False
    client = await control.client()
    kind, message = await refused(client)
    assert kind == "no-answer"
    assert "it hangs" in message
    assert not qemu.guest.machine.wanted_out


async def after_some(qemu: Qemu, control: Control, happen: Callable[[], Awaitable[None]]) -> str:
    """What a command ends with if something happens in its midst."""
    reads = 0

    async def count(gpa: int) -> None:
        nonlocal reads
        reads += 1
        if reads == 20:
            await happen()

    qemu.at_read = count
    client = await control.client()
    reply = await client.ask(command="page-out", partition="lpar7")
    assert reply["reply"] == "failure", reply
    message: str = reply["message"]
    return message


async def test_page_out_when_the_guest_resets_meanwhile_then_it_ends(
    secure: Start, control: Control
):
    qemu = await secure()

    async def reset() -> None:
        await qemu.guest.shim.send(qemu.guest.shim.reset_event())

    message = await after_some(qemu, control, reset)
    assert "is a normal VM (16 pages had gone out)" in message


async def test_page_out_when_the_guest_goes_meanwhile_then_it_ends(secure: Start, control: Control):
    qemu = await secure()

    async def go() -> None:
        qemu.guest.set_states = lambda ranges: None  # type: ignore[method-assign]
        await qemu.guest.shim.close()
        await trio.sleep_forever()

    message = await after_some(qemu, control, go)
    assert "has gone, or is not ready (16 pages had gone out)" in message


async def test_page_out_when_the_store_fails_meanwhile_then_nothing_is_lost(
    secure: Start, control: Control
):
    qemu = await secure()
    before = qemu.fill()
    faults = qemu.guest.daemon.faults
    reads = 0

    async def fail(gpa: int) -> None:
        nonlocal reads
        reads += 1
        faults.commit = "disk full" if 16 < reads <= 32 else ""

    qemu.at_read = fail
    client = await control.client()
    reply = await client.ask(command="page-out", partition="lpar7")
    faults.commit = ""
    assert reply["reply"] == "paged-out"
    for gpa in qemu.own():
        await qemu.touch(gpa, 0)
    assert qemu.guest.memory == before


# -- hcalld ctl ---------------------------------------------------------------------------------


async def ctl(control: Control, *words: str) -> Result:
    """A command as a user types it, in a thread, for it waits for its reply."""
    command = ["ctl", words[0], "--control", str(control.path), *words[1:]]
    return await trio.to_thread.run_sync(lambda: CliRunner().invoke(cli, command))


async def good(control: Control, *words: str) -> str:
    done = await ctl(control, *words)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


async def test_ctl_guests_when_there_are_some_then_a_table_is_printed(
    secure: Start, control: Control
):
    qemu = await secure()
    await qemu.guest.daemon.guest(hello("lpar\x1b[31m8", instance=bytes(16)), SMALL_RAM)
    text = await good(control, "guests")
    head, first, second = text.splitlines()
    assert head.split() == [
        *("partition", "peer", "vCPUs", "calls", "waiting", "TPM"),
        *("state", "secure", "shared", "out"),
    ]
    assert "\x1b" not in text
    assert second.split() == ["lpar7", "memory", "4", "1", "0", "none", "secure", "64", "0", "0"]
    assert first.split()[-4:] == ["normal", "-", "-", "-"]


async def test_ctl_guests_when_nobody_is_there_then_it_says_so(plain: Daemon, control: Control):
    assert await good(control, "guests") == "no guest is connected\n"
    assert await good(control, "guests", "--json") == '{\n  "guests": []\n}\n'


async def test_ctl_guests_when_there_is_a_limit_then_it_is_beside_the_pages(
    secure: Start, control: Control
):
    await secure("page_shift = 12\nsecure_memory_mib = 64")
    assert "  64/1024  " in await good(control, "guests")


async def test_ctl_guests_when_a_store_cannot_be_read_then_the_others_are_shown(
    secure: Start, control: Control
):
    qemu = await secure()
    session = qemu.guest.daemon.server.sessions["lpar7"]
    assert session.partition is not None
    session.partition.discard()
    qemu.guest.daemon.faults.load = "the store is damaged"
    done = await ctl(control, "guests")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[1].split()[6] == "?"
    assert done.stderr == "hcalld: partition 'lpar7': the store is damaged\n"


@pytest.mark.parametrize(
    ("words", "went"),
    [((), 64), (("--all",), 64), (("--pages", "3"), 3), (("--mib", "2"), 32), (("--mib", "9"), 64)],
)
async def test_ctl_page_out_when_it_is_done_then_it_says_what_went_and_what_is_left(
    secure: Start, control: Control, words: tuple[str, ...], went: int
):
    await secure()
    assert await good(control, "page-out", "lpar7", *words) == (
        f"{went} of {went} pages went out\n"
        f"now: {64 - went} in secure memory, {went} out, 0 shared\n"
    )


async def test_ctl_page_out_when_fewer_went_then_it_says_why(
    secure: Start, control: Control, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(paging, "MAX_PAGES", 10)
    await secure()
    lines = (await good(control, "page-out", "lpar7")).splitlines()
    assert lines[0] == "10 of 64 pages went out"
    assert lines[1].startswith("no room: ")


async def test_ctl_page_out_when_it_is_refused_then_one_line_says_why(
    plain: Daemon, control: Control
):
    done = await ctl(control, "page-out", "lpar7")
    assert isinstance(done.exception, ControlFailure)
    assert "connected are: none" in str(done.exception)


@pytest.mark.parametrize("words", [("--pages", "1", "--all"), ("--mib", "1", "--pages", "1")])
async def test_ctl_page_out_when_two_amounts_are_given_then_it_is_a_wrong_use(
    control: Control, words: tuple[str, ...]
):
    done = await ctl(control, "page-out", "lpar7", *words)
    assert done.exit_code == 2
    assert "exclude each other" in done.stderr


@pytest.mark.parametrize("words", [("guests",), ("page-out", "lpar7")])
async def test_ctl_when_no_daemon_runs_then_one_line_says_so(
    control: Control, words: tuple[str, ...]
):
    done = await ctl(control, *words)
    assert isinstance(done.exception, ConfigError)
    assert f"no daemon answers at {control.path}" in str(done.exception)


@pytest.mark.parametrize("command", NEEDS_GUEST, ids=str)
async def test_documents_when_a_command_needs_a_guest_then_it_succeeds(
    secure: Start, control: Control, command: Any, monkeypatch: pytest.MonkeyPatch
):
    await secure()
    monkeypatch.setenv("HCALLD_STATE_DIR", str(control.path.parent))
    done = await trio.to_thread.run_sync(lambda: CliRunner().invoke(cli, list(command.words[1:])))
    assert done.exit_code == 0, f"{shlex.join(command.words)}: {done.output} {done.exception}"


# -- sev-root -------------------------------------------------------------------------------


async def test_sev_root_when_nobody_is_connected_then_the_platform_is_opened_for_it(
    plain: Daemon, control: Control
):
    client = await control.client()
    reply = await client.ask(command="sev-root")
    assert (reply["reply"], reply["platform"]) == ("sev-root", "sev")
    ask, ark = (AmdCertificate.parse(base64.b64decode(reply[name])) for name in ("ask", "ark"))
    assert (ask.usage, ark.usage) == (Usage.ASK, Usage.ARK)
    verify_amd(ark, ark)
    verify_amd(ask, ark)
    # It is closed again, and is the same one the next time.
    assert plain.faults.closes == 1
    assert await client.ask(command="sev-root") == reply
    assert (await client.ask(command="sev-root", platform="other"))["ark"] != reply["ark"]


async def test_sev_root_when_a_client_is_connected_then_the_platform_stays_open(
    plain: Daemon, control: Control
):
    await plain.guest(hello("", features=s.Feature.COMMANDS))
    client = await control.client()
    assert (await client.ask(command="sev-root"))["platform"] == "sev"
    assert plain.faults.closes == 0


async def test_sev_root_when_the_platform_is_a_guest_then_it_is_refused(
    plain: Daemon, control: Control
):
    await plain.guest(hello("lpar7"))
    reply = await (await control.client()).ask(command="sev-root", platform="lpar7")
    assert (reply["reply"], reply["kind"]) == ("failure", "failed")
    assert "no SEV platform" in reply["message"]
