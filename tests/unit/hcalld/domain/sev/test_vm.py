# SPDX-License-Identifier: Apache-2.0
"""A VM without its platform: what it is, and its regions."""

from __future__ import annotations

import pytest

from hcalld.core.errors import HcallError
from hcalld.domain.attributes import PartitionAttributes
from hcalld.domain.sev.settings import MAX_REGIONS
from hcalld.domain.sev.states import VmKind
from hcalld.domain.sev.vm import SevVm
from hcallproto.abi.families import sev
from hcallproto.payloads.sev import GuestState


def test_a_vm_begins_as_nothing_and_is_stored_nowhere():
    vm = SevVm.build(PartitionAttributes(), [])
    assert (vm.kind, vm.state, vm.regions) == (VmKind.NONE, GuestState.UNINIT, {})
    assert vm.take_changes() == []
    assert SevVm.build(PartitionAttributes(), []) is not vm


@pytest.mark.parametrize("kind", [VmKind.SEV, VmKind.SEV_ES, VmKind.BY_POLICY])
def test_what_kind_a_vm_must_be(kind: VmKind):
    vm = SevVm(kind)
    vm.check_kind(sev.LAUNCH_START)
    with pytest.raises(HcallError, match=r"EINVAL: the VM is .* already"):
        vm.check_kind(sev.INIT)
    if kind is VmKind.SEV:
        with pytest.raises(HcallError, match="ENOTTY"):
            vm.check_kind(sev.LAUNCH_UPDATE_VMSA)
    else:
        vm.check_kind(sev.LAUNCH_UPDATE_VMSA)


def test_a_vm_that_is_busy():
    vm = SevVm()
    vm.enter()
    with pytest.raises(HcallError, match="EINVAL: another command"):
        vm.enter()


def test_regions_are_counted():
    vm = SevVm()
    for _ in range(2):
        vm.register(0x1000, 0x1000)
    vm.register((1 << 64) - 2, 1)
    vm.unregister(0x1000, 0x1000)
    assert vm.regions == {(0x1000, 0x1000): 1, ((1 << 64) - 2, 1): 1}
    vm.unregister(0x1000, 0x1000)
    with pytest.raises(HcallError, match="not registered"):
        vm.unregister(0x1000, 0x1000)


@pytest.mark.parametrize(
    ("address", "size"), [(0, 0), (1, (1 << 64) - 1), ((1 << 64) - 1, 1), ((1 << 64) - 1, 2)]
)
def test_a_region_that_is_none(address: int, size: int):
    with pytest.raises(HcallError, match="EINVAL"):
        SevVm().register(address, size)


def test_there_is_an_end_to_regions():
    vm = SevVm()
    for at in range(MAX_REGIONS):
        vm.register(at % 2, 1)
    with pytest.raises(HcallError, match="regions already"):
        vm.register(0, 1)
