# SPDX-License-Identifier: Apache-2.0
"""Save areas of several vCPUs, from one host to another and on; and the greatest copy."""

from __future__ import annotations

import pytest
from tests.unit.hcalld.families.sev.stages import ES, OK, host, launched, refused, running, succeed

from hcalld.domain.sev.settings import MAX_DEBUG
from hcalld.testing.sev import SevClient, made_up
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.abi.spec import Hcall

AREAS = [made_up(f"save area {number}", 4096) for number in range(3)]


def test_each_vcpu_has_its_own_save_area_wherever_it_goes():
    first, second, third = (host(name=name) for name in ("first", "second", "third"))
    source, between = first.connect(), second.connect()
    launched(source)
    succeed(source, sev.LAUNCH_UPDATE_VMSA, uaddr=source.put(b"".join(AREAS)), len=3 * 4096)
    source.launch_measure()
    succeed(source, sev.LAUNCH_FINISH)
    answer, session = source.send_start(second)
    assert answer.code is OK, answer.why
    succeed(between, sev.ES_INIT)
    assert between.receive_start(first, ES, session).code is OK
    # One of ``launched`` comes before the three; they come in any order.
    for vcpu in (3, 1, 2, 0):
        header, payload = send(source, vcpu)
        answer = between.command(
            sev.RECEIVE_UPDATE_VMSA,
            vcpu_id=vcpu,
            hdr_uaddr=between.put(header),
            hdr_len=52,
            trans_uaddr=between.put(payload),
            trans_len=4096,
        )
        assert answer.code is OK, answer.why
    succeed(between, sev.RECEIVE_FINISH)
    assert between.send_start(third)[0].code is OK
    assert between.vm.guest is not None
    for vcpu, area in enumerate(AREAS, 1):
        assert between.vm.guest.vmsas[vcpu] == area
        send(between, vcpu)


def send(client: SevClient, vcpu: int) -> tuple[bytes, bytes]:
    header, payload = client.room(52), client.room(4096)
    succeed(
        client,
        sev.SEND_UPDATE_VMSA,
        vcpu_id=vcpu,
        hdr_uaddr=header,
        hdr_len=52,
        trans_uaddr=payload,
        trans_len=4096,
    )
    return client.memory.read(header, 52), client.memory.read(payload, 4096)


@pytest.mark.parametrize("hcall", [sev.DBG_DECRYPT, sev.DBG_ENCRYPT], ids=str)
def test_the_greatest_copy(hcall: Hcall):
    client = running(host().connect())
    refused(client, hcall, SevCode.EFAULT, len=MAX_DEBUG)
    refused(client, hcall, SevCode.EINVAL, len=MAX_DEBUG + 1)
