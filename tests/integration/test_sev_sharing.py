# SPDX-License-Identifier: Apache-2.0
"""Keys of guests' memory: shared on demand, otherwise one each; and what a platform signs."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
from pathlib import Path

import pytest
from tests.conftest import Require
from tests.e2e import sevopened
from tests.e2e.patience import wait_until
from tests.e2e.sevhosts import Pair, refused, start
from tests.sev_platform import flipped

from hcalld.sevvm.machine import MIB, Machine
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.payloads.sev import GuestState, Policy
from hcallproto.payloads.sev.constants import PAGE_SIZE

CONTENT = os.urandom(MIB)


# -- shared keys --------------------------------------------------------------------------------


def share(machine: Machine, handle: int, policy: int = 0) -> None:
    """Launch a guest that shares the key of another."""
    machine.init(sev.INIT)
    machine.launch_start(policy, handle=handle)
    machine.launch_measure()
    machine.launch_finish()


def test_a_guest_with_the_same_key_reads_the_others_memory(pair: Pair) -> None:
    """What lies in the one's memory means the same in the other's, and nothing in a third's."""
    host = pair.source()
    with host.machine() as first, host.machine() as second, host.machine() as third:
        start(first, 0, CONTENT)
        share(second, first.status().handle)
        start(third, 0)
        lies = first.read(0, MIB)
        assert lies != CONTENT
        for machine in (second, third):
            # Both have their memory at one address of their processes: the first that is given.
            assert machine.address(0, MIB) == first.address(0, MIB)
            machine.write(0, lies)
        assert second.read_decrypted(0, MIB) == CONTENT
        other = third.read_decrypted(0, MIB)
        blocks = range(0, MIB, 16)
        assert [at for at in blocks if other[at : at + 16] == CONTENT[at : at + 16]] == []
        # And back: what the second writes, the first reads.
        second.write_encrypted(PAGE_SIZE, b"from the second guest")
        first.write(0, second.read(0, MIB))
        assert first.read_decrypted(PAGE_SIZE, 21) == b"from the second guest"
        handles = [machine.status().handle for machine in (first, second, third)]
        assert len(set(handles)) == 3
        # It lives on when the first is gone, and can be shared itself.
        first.client.close()
        assert second.read_decrypted(PAGE_SIZE, 21) == b"from the second guest"
        with host.machine() as fourth:
            share(fourth, handles[1])
            fourth.write(0, lies)
            assert fourth.read_decrypted(0, MIB) == CONTENT


def test_who_may_share_a_key(pair: Pair) -> None:
    host = pair.source()
    with host.machine() as alone, host.machine() as open_one, host.machine() as machine:
        start(alone, Policy.NOKS)
        start(open_one, Policy.NODBG)
        machine.init(sev.INIT)
        of_alone, of_open = alone.status().handle, open_one.status().handle
        for policy in (Policy.NOKS, 0):
            with refused(SevCode.POLICY_FAILURE):
                machine.launch_start(policy, handle=of_alone)
        for policy in (0, Policy.NODBG | Policy.SEV, Policy.NODBG | Policy.NOKS, 1 << 24 | 1):
            with refused(SevCode.POLICY_FAILURE):
                machine.launch_start(policy, handle=of_open)
        for handle in (max(of_alone, of_open) + 1000, 0xFFFF_FFFF):
            with refused(SevCode.INVALID_GUEST):
                machine.launch_start(Policy.NODBG, handle=handle)
        with refused(SevCode.INVALID_GUEST):
            machine.status()
        assert machine.launch_start(Policy.NODBG, handle=of_open) not in (of_alone, of_open)


def test_a_handle_is_worth_nothing_once_its_guest_is_gone(pair: Pair) -> None:
    host = pair.hosts.fresh(pair.left)
    with host.machine() as staying, host.machine() as machine:
        start(staying, 0)
        with host.machine() as leaving:
            start(leaving, 0)
            handle = leaving.status().handle
        machine.init(sev.INIT)
        wait_until(lambda: host.status().guest_count == 1, "the end of the guest")
        with refused(SevCode.INVALID_GUEST):
            machine.launch_start(0, handle=handle)


def test_a_received_guest_shares_a_key(pair: Pair) -> None:
    """RECEIVE_START with a handle: what comes lies there under the key of the other guest."""
    source, target = pair.source(), pair.target()
    with source.machine() as here, target.machine() as host_guest, target.machine() as there:
        start(here, 0, CONTENT)
        start(host_guest, 0, CONTENT)
        with source.platform() as platform:
            pdh = platform.export().pdh
        policy, session = here.send_start(target.target())
        there.init(sev.INIT)
        there.receive_start(policy, pdh, session, handle=host_guest.status().handle)
        there.receive_update_data(0, here.send_update_data(0, PAGE_SIZE))
        assert there.read(0, PAGE_SIZE) == host_guest.read(0, PAGE_SIZE)
        assert there.read(0, PAGE_SIZE) != here.read(0, PAGE_SIZE)


def test_a_page_differs_between_guests_and_addresses(pair: Pair) -> None:
    page = CONTENT[:PAGE_SIZE]
    host = pair.source()
    with host.machine() as one, host.machine() as other:
        start(one, 0, page * 4)
        start(other, 0, page)
        pages = [one.read(at, PAGE_SIZE) for at in range(0, 4 * PAGE_SIZE, PAGE_SIZE)]
        pages += [other.read(0, PAGE_SIZE), page]
        for left, right in itertools.combinations(pages, 2):
            blocks = range(0, PAGE_SIZE, 16)
            assert [at for at in blocks if left[at : at + 16] == right[at : at + 16]] == []


# -- reports ------------------------------------------------------------------------------------


def is_verified(program: Path, folder: Path, report: bytes, pek: bytes) -> bool:
    """Whether openssl finds the PEK's signature good."""
    r, s = (report[at : at + 72][::-1].lstrip(b"\0") for at in (64, 136))
    numbers = b"".join(
        b"\x02" + bytes((len(number),)) + number
        for number in ((b"\0" + one if one[0] & 0x80 else one) for one in (r, s))
    )
    (folder / "signature").write_bytes(b"\x30" + bytes((len(numbers),)) + numbers)
    (folder / "pek").write_bytes(sevopened.public_der(pek))
    words = ("-verify", str(folder / "pek"), "-keyform", "DER")
    ended = subprocess.run(
        [program, "dgst", "-sha256", *words, "-signature", str(folder / "signature")],
        input=report[:52],
        capture_output=True,
        check=False,
    )
    return ended.returncode == 0


def test_a_report_is_signed_by_the_pek(pair: Pair, require: Require, tmp_path: Path) -> None:
    program = require("openssl")
    host = pair.hosts.fresh(pair.left)
    nonce, policy = os.urandom(16), Policy.NODBG | Policy.NOKS
    with host.machine() as machine, host.platform() as platform:
        pek = platform.export().chain[:2084]
        machine.init(sev.INIT)
        machine.launch_start(policy)
        machine.launch_update_data(0, CONTENT)
        with refused(SevCode.INVALID_GUEST_STATE):
            machine.report(nonce)
        machine.launch_measure()
        reports = [machine.report(nonce)]
        machine.launch_finish()
        reports.append(machine.report(nonce))
        reports.append(machine.report(os.urandom(16)))
    with host.platform() as platform:
        wait_until(lambda: not platform.status().guest_count, "the end of the guest")
        platform.make_pek()
        new_pek = platform.export().chain[:2084]
    for report in reports:
        assert len(report) == 208
        assert report[16:48] == hashlib.sha256(CONTENT).digest()
        assert report[48:64] == b"".join(
            number.to_bytes(4, "little") for number in (policy, 0x1002, 2, 0)
        )
        assert is_verified(program, tmp_path, report, pek)
        assert not is_verified(program, tmp_path, report, new_pek)
        for at in range(52):
            assert not is_verified(program, tmp_path, flipped(report, at), pek)
    assert [report[:16] == nonce for report in reports] == [True, True, False]


def test_a_report_of_a_received_guest_tells_of_no_launch(pair: Pair) -> None:
    """The digest does not travel: who wants proof of a launch asks for it before."""
    source, target = pair.source(), pair.target()
    with source.machine() as here, target.machine() as there:
        start(here, 0, CONTENT)
        with source.platform() as platform:
            pdh = platform.export().pdh
        policy, session = here.send_start(target.target())
        there.init(sev.INIT)
        there.receive_start(policy, pdh, session)
        with refused(SevCode.INVALID_GUEST_STATE):
            there.report(bytes(16))
        there.receive_finish()
        assert there.report(bytes(16))[16:48] == bytes(32)
        assert there.status().state is GuestState.RUNNING


@pytest.mark.parametrize("memory", ["plain", "encrypted"])
def test_debugging_is_for_whom_the_policy_lets(memory: str, pair: Pair) -> None:
    """What DBG_ENCRYPT writes the guest has, whatever lies there; NODBG forbids both."""
    host = pair.source(memory)
    with host.machine() as machine, host.machine() as closed:
        start(machine, 0, CONTENT)
        start(closed, Policy.NODBG, CONTENT)
        for offset, size in itertools.product((0, 1, 15, 4090), (1, 8, 16, 17, 33, 4097)):
            data = os.urandom(size)
            machine.write_encrypted(offset, data)
            assert machine.read_decrypted(offset, size) == data
        wanted = machine.read_decrypted(0, MIB)
        assert wanted[8192:] == CONTENT[8192:]
        assert (machine.read(0, MIB) == wanted) == (memory == "plain")
        before = closed.read(0, MIB)
        with refused(SevCode.POLICY_FAILURE):
            closed.read_decrypted(0, 16)
        with refused(SevCode.POLICY_FAILURE):
            closed.write_encrypted(0, bytes(16))
        assert closed.read(0, MIB) == before
