# SPDX-License-Identifier: Apache-2.0
"""A swtpm of the daemon's own: started, ended, dead, hung, and what each leaves."""

from __future__ import annotations

import os
import pathlib
import signal
import struct
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import trio
from tests.e2e.patience import patience, wait_until
from tests.unit.hcalld.backends.peer import RANDOM

from hcalld.backends.channel import list_contexts
from hcalld.backends.swtpm import KEPT_NAME, VOLATILE_NAME, Swtpm
from hcalld.core.errors import BackendUnavailable
from hcalld.core.records import Run
from hcalld.core.secret import Secret
from hcalld.testing.logs import capture_logs
from hcallproto.payloads import tpm_contexts as tpm

KEY = Secret(bytes(range(32)))
FIRST = Run(b"one machine 0123", 0)
OTHER = Run(b"other machine 01", 0)
ZEROS = bytes(32)

Make = Callable[..., Swtpm]

READ_PCR = tpm.command(0x17E, bytes.fromhex("00000001000b03000001"))
EXTEND_PCR = bytes.fromhex(
    "8002 00000041 00000182 00000010 00000009 40000009 0000 00 0000 00000001 000b"
) + bytes(range(32))
START_SESSION = tpm.command(
    0x176, bytes.fromhex("40000007 40000007 0010") + bytes(16) + bytes.fromhex("0000 01 0010 000b")
)


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with capture_logs() as entries:
        yield entries


@pytest.fixture
async def make(
    require: Callable[[str], pathlib.Path], tmp_path: pathlib.Path, logs: list[Any]
) -> AsyncIterator[Make]:
    """Makes a swtpm over the test's folder; what is left of them is ended."""
    program = os.fspath(require("swtpm"))
    made = []

    def make(run: Run = FIRST, **options: Any) -> Swtpm:
        words = {"program": program, "key": KEY, "timeout_s": 20.0, "wait_us": 100, **options}
        backend = Swtpm(folder=tmp_path / "a long name" / "swtpm", **words)
        backend.begin_run(run)
        made.append(backend)
        return backend

    yield make
    for backend in made:
        await backend.aclose()


async def pcr(backend: Swtpm) -> bytes:
    await backend.open()
    return (await backend.transmit(READ_PCR))[-32:]


async def extend(backend: Swtpm) -> None:
    assert tpm.response_code(await backend.transmit(EXTEND_PCR)) == 0


async def start_session(backend: Swtpm) -> int:
    response = await backend.transmit(START_SESSION)
    assert tpm.response_code(response) == 0
    (handle,) = struct.unpack_from(">I", response, 10)
    return int(handle)


async def contexts(backend: Swtpm) -> frozenset[int]:
    return await list_contexts(backend._channel())


async def test_nothing_runs_before_it_is_opened(make: Make):
    backend = make()
    assert backend.process_id is None
    assert not backend.is_open
    await backend.close_session()
    await backend.aclose()
    assert backend.process_id is None
    with pytest.raises(BackendUnavailable, match="is not running"):
        await backend.transmit(RANDOM)


async def test_it_gives_random_bytes(make: Make):
    backend = make()
    await backend.open()
    process_id = backend.process_id
    seen = {await backend.transmit(RANDOM) for _ in range(5)}
    now = backend.transmit_now(RANDOM)
    seen.add(await backend.finish() if now is None else now)
    assert len(seen) == 6
    assert {len(each) for each in seen} == {20}
    await backend.open()
    assert backend.process_id == process_id


async def test_closing_a_session_frees_what_it_loaded(make: Make):
    backend = make()
    await backend.open()
    handles = {await start_session(backend), await start_session(backend)}
    assert await contexts(backend) == handles
    await backend.close_session()
    assert await contexts(backend) == frozenset()
    assert backend.is_open


async def test_the_state_is_encrypted_and_only_ours_to_read(make: Make):
    backend = make()
    await backend.open()
    await backend.aclose()
    folder = backend._folder
    assert folder.stat().st_mode & 0o777 == 0o700
    state = folder / "tpm2-00.permall"
    assert state.stat().st_mode & 0o777 == 0o600
    # swtpm's header has a flag for "encrypted" and no plain blob of libtpms after it.
    with pytest.raises(BackendUnavailable):
        await make(key=Secret(bytes(32))).open()
    assert await pcr(make()) == ZEROS


# -- power -------------------------------------------------------------------------------------


async def test_the_same_machine_finds_its_pcrs_and_contexts_again(make: Make):
    backend = make()
    await backend.open()
    await extend(backend)
    handle = await start_session(backend)
    extended = await pcr(backend)
    assert extended != ZEROS
    await backend.aclose()
    assert (backend._folder / VOLATILE_NAME).exists()
    again = make()
    assert await pcr(again) == extended
    assert await contexts(again) == {handle}
    assert not (again._folder / VOLATILE_NAME).exists()
    assert not (again._folder / KEPT_NAME).exists()


async def test_a_machine_that_was_reset_meanwhile_has_no_contexts(make: Make):
    backend = make()
    await backend.open()
    await extend(backend)
    await start_session(backend)
    await backend.aclose()
    again = make(Run(FIRST.instance, 1))
    assert await pcr(again) != ZEROS
    assert await contexts(again) == frozenset()


async def test_closing_a_session_of_an_earlier_daemon_frees_it(make: Make):
    backend = make()
    await backend.open()
    await start_session(backend)
    await backend.aclose()
    again = make()
    await again.close_session()
    assert await contexts(again) == frozenset()


async def test_another_machine_is_powered_on(make: Make):
    backend = make()
    await backend.open()
    await extend(backend)
    await backend.aclose()
    assert await pcr(make(OTHER)) == ZEROS


@pytest.mark.parametrize("kept", [None, b"", b"\xff", b"zz 0", b"00", b"00 x", b"00" * 16 + b" 0"])
async def test_state_of_which_nobody_knows_whose_it_is_is_not_used(make: Make, kept: bytes | None):
    backend = make()
    await backend.open()
    await extend(backend)
    await backend.aclose()
    if kept is None:
        (backend._folder / KEPT_NAME).unlink()
    else:
        (backend._folder / KEPT_NAME).write_bytes(kept)
    assert await pcr(make()) == ZEROS


async def test_after_a_crash_the_state_before_is_not_used_twice(make: Make):
    backend = make()
    await backend.open()
    await extend(backend)
    await backend.aclose()
    again = make()
    await again.open()
    assert again.process_id is not None
    os.kill(again.process_id, signal.SIGKILL)
    await again._ended.wait()
    assert await pcr(again) == ZEROS


# -- death ---------------------------------------------------------------------------------------


async def test_a_death_between_two_commands_is_told_and_logged(make: Make, logs: list[Any]):
    backend = make()
    await backend.open()
    assert backend.process_id is not None
    os.kill(backend.process_id, signal.SIGKILL)
    with trio.fail_after(patience(10)):
        await backend._ended.wait()
    assert not backend.is_open
    with pytest.raises(BackendUnavailable, match="has ended with status -9"):
        backend.transmit_now(RANDOM)
    assert [e["status"] for e in logs if e["event"] == "swtpm has ended"] == [-9]
    await backend.open()
    assert len(await backend.transmit(RANDOM)) == 20


async def test_a_death_in_the_middle_is_told(make: Make, nursery: trio.Nursery):
    backend = make()
    await backend.open()
    process_id = backend.process_id
    assert process_id is not None
    os.kill(process_id, signal.SIGSTOP)

    async def kill_soon() -> None:
        await trio.sleep(0.05)
        os.kill(process_id, signal.SIGKILL)

    nursery.start_soon(kill_soon)
    assert backend.transmit_now(RANDOM) is None
    with pytest.raises(BackendUnavailable, match="has ended with status -9"):
        await backend.finish()
    await backend.open()
    assert len(await backend.transmit(RANDOM)) == 20


async def test_a_slow_command_does_not_cost_the_tpm_its_state(make: Make):
    backend = make(timeout_s=0.3)
    await backend.open()
    await extend(backend)
    process_id = backend.process_id
    assert process_id is not None
    os.kill(process_id, signal.SIGSTOP)
    with pytest.raises(BackendUnavailable, match=r"no whole response within 0\.3 s"):
        await backend.transmit(RANDOM)
    os.kill(process_id, signal.SIGCONT)
    assert await pcr(backend) != ZEROS
    assert backend.process_id == process_id


async def test_one_that_hangs_is_restarted(make: Make, logs: list[Any]):
    backend = make(timeout_s=0.3)
    await backend.open()
    process_id = backend.process_id
    assert process_id is not None
    os.kill(process_id, signal.SIGSTOP)
    with pytest.raises(BackendUnavailable):
        await backend.transmit(RANDOM)
    await backend.open()
    assert backend.process_id not in (None, process_id)
    assert len(await backend.transmit(RANDOM)) == 20
    assert "swtpm does not answer and is restarted" in {entry["event"] for entry in logs}


async def test_ending_one_that_hangs_takes_little_time(make: Make):
    backend = make()
    await backend.open()
    process_id = backend.process_id
    assert process_id is not None
    os.kill(process_id, signal.SIGSTOP)
    with trio.fail_after(patience(10)):
        await backend.aclose()
    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)


async def test_a_start_that_is_given_up_leaves_no_process(make: Make):
    for wait_s in (0, 0.001, 0.002, 0.005):
        backend = make()
        with trio.move_on_after(wait_s):
            await backend.open()
        process_id = backend.process_id
        if not backend.is_open:
            assert process_id is None
        await backend.aclose()
        assert backend.process_id is None


# -- what cannot be started ------------------------------------------------------------------------


async def test_a_program_that_is_not_there(make: Make, tmp_path: pathlib.Path):
    with pytest.raises(BackendUnavailable, match="No such file"):
        await make(program=os.fspath(tmp_path / "swtpm")).open()


async def test_a_program_that_ends_at_once(make: Make, tmp_path: pathlib.Path):
    program = tmp_path / "swtpm"
    program.write_text("#!/bin/sh\necho 'no \x1b[1m libtpms' >&2\nexit 3\n")
    program.chmod(0o700)
    with pytest.raises(BackendUnavailable, match=r"ended with status 3: no \[1m libtpms"):
        await make(program=os.fspath(program)).open()


async def test_a_folder_that_cannot_be_made(make: Make, tmp_path: pathlib.Path):
    (tmp_path / "a long name").write_text("")
    with pytest.raises(BackendUnavailable, match="cannot be started"):
        await make().open()


async def test_two_over_one_folder(make: Make):
    await make().open()
    with pytest.raises(BackendUnavailable):
        await make().open()


# -- orphans ---------------------------------------------------------------------------------------


def is_running(process_id: int) -> bool:
    """Nobody may wait for an orphan: what is left of it is no process any more."""
    try:
        stat = pathlib.Path(f"/proc/{process_id}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


_DIES = """
    import os, pathlib, signal, sys, trio
    from hcalld.backends.swtpm import Swtpm
    from hcalld.core.records import Run
    from hcalld.core.secret import Secret

    async def main():
        backend = Swtpm(sys.argv[1], pathlib.Path(sys.argv[2]), Secret(bytes(32)), timeout_s=20)
        backend.begin_run(Run(b"", 0))
        await backend.open()
        print(backend.process_id, flush=True)
        if sys.argv[3] == "busy":
            os.kill(backend.process_id, signal.SIGSTOP)
            backend.transmit_now(bytes.fromhex("80010000000c0000017b0008"))
        os.kill(os.getpid(), signal.SIGKILL)

    trio.run(main)
"""


@pytest.mark.parametrize("what", ["idle", "busy"])
def test_it_does_not_outlive_a_daemon_that_is_killed(
    what: str, require: Callable[[str], pathlib.Path], tmp_path: pathlib.Path
):
    words = [sys.executable, "-c", textwrap.dedent(_DIES), os.fspath(require("swtpm"))]
    done = subprocess.run([*words, os.fspath(tmp_path / "swtpm"), what], stdout=subprocess.PIPE)
    assert done.returncode == -signal.SIGKILL
    process_id = int(done.stdout.split()[-1])
    wait_until(lambda: not is_running(process_id), "swtpm's end")
