# SPDX-License-Identifier: Apache-2.0
"""What the library keeps of a descriptor ends with it, whatever was done with it before."""

from __future__ import annotations

import errno

from tests.e2e.sevprogram import KVM_CREATE_VCPU, KVM_MEMORY_ENCRYPT_OP
from tests.integration.ioctl_shim.conftest import SevShim
from tests.integration.ioctl_shim.liar import begin, meet

from hcallproto.abi.families import sev
from hcallproto.wire import frames as f


def test_vm_when_a_vcpu_was_taken_for_one_then_it_ends_all_the_same(shim: SevShim):
    fake = shim.lab.fake_daemon()
    program = shim.program(fake.path)
    vm = program.create_vm(0)
    pending = begin(program, vm, sev.INIT)
    peer = meet(fake)
    peer.reply(peer.call())
    assert pending.result().status == 0
    vcpu = program.do("ioctl", vm, KVM_CREATE_VCPU, 0)

    program.send("ioctl", vcpu, KVM_MEMORY_ENCRYPT_OP, 0)
    assert program.answer() == (-1, errno.ENOTTY)

    program.do("close", vm)
    program.send("close", vcpu)
    peer.expect(f.ShimGoodbye)
    peer.close()
    assert program.answer() == (0, 0)
