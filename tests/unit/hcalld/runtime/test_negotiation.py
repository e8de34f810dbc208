# SPDX-License-Identifier: Apache-2.0
"""What a HELLO is answered, by what it offers and by what the partition may be."""

from __future__ import annotations

import pytest
from tests.unit.hcalld.runtime.shim import hello

from hcalld.config import PefChoice, Profile
from hcalld.core.log import Log
from hcalld.families.registry import Kind
from hcalld.runtime.negotiation import (
    SECURE_FEATURES,
    Negotiated,
    VersionMismatch,
    check_version,
    negotiate,
)
from hcalld.runtime.partition import Partition
from hcalld.stores.memory import MemoryStore
from hcalld.testing.logs import capture_logs
from hcallproto.abi.spec import Level
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

ALL = s.Feature.SHARED_RAM | SECURE_FEATURES


def answered(
    offer: f.Hello,
    *,
    may_be_secure: bool = False,
    kind: Kind = Kind.GUEST,
    passes_descriptors: bool = True,
) -> Negotiated:
    profile = Profile(partition="p", source="test", pef=PefChoice(enabled=may_be_secure))
    partition = Partition(profile, MemoryStore, kind=kind)
    log = Log()
    return negotiate(offer, partition, log, passes_descriptors=passes_descriptors)


def levels(found: Negotiated) -> set[int]:
    return {spec.level for spec in found.welcome.announcement.calls}


@pytest.mark.parametrize(
    ("least", "most", "is_ours"),
    [(1, 1, True), (0, 9, True), (2, 3, False), (0, 0, False)],
)
def test_check_version_when_ours_is_not_among_the_shims_then_both_are_told(
    least: int, most: int, *, is_ours: bool
):
    offer = hello()._replace(version_min=least, version_max=most)
    if is_ours:
        check_version(offer)
        return
    with pytest.raises(VersionMismatch, match=f"version 1, the shim {least} to {most}"):
        check_version(offer)


@pytest.mark.parametrize("passes_descriptors", [True, False])
def test_negotiate_when_ram_is_shared_then_the_transport_must_pass_it(*, passes_descriptors: bool):
    found = answered(hello(features=ALL), passes_descriptors=passes_descriptors)
    assert found.has_shared_ram is passes_descriptors


@pytest.mark.parametrize("may_be_secure", [True, False])
def test_negotiate_when_qemu_can_have_a_secure_vm_then_the_profile_decides(*, may_be_secure: bool):
    with capture_logs() as logs:
        found = answered(hello(features=ALL), may_be_secure=may_be_secure)
    assert found.is_pef is may_be_secure
    assert levels(found) == ({Level.SC1, Level.SC2} if may_be_secure else {Level.SC1})
    served = {entry.hcall.level for entry in found.entries.values()}
    assert (s.LEVEL_SHIM in {key & 7 for key in found.entries}) is may_be_secure
    assert served >= levels(found)
    assert logs == []


def test_negotiate_when_qemu_has_half_of_what_a_secure_vm_needs_then_it_gets_none_and_is_told():
    with capture_logs() as logs:
        found = answered(hello(features=s.Feature.SC2), may_be_secure=True)
    assert not found.is_pef
    assert not found.welcome.features
    assert [one["event"] for one in logs] == ["no secure mode"]


def test_negotiate_when_it_is_a_client_then_it_has_commands_and_nothing_else():
    found = answered(hello(features=ALL | s.Feature.COMMANDS), kind=Kind.CLIENT)
    assert found.welcome.features == s.Feature.COMMANDS
    assert levels(found) == {Level.COMMAND}
    assert not found.is_pef


def test_negotiate_when_the_shim_takes_less_then_frames_are_no_larger():
    assert answered(hello()._replace(max_frame_size=70_000)).welcome.max_frame_size == 70_000
    offer = hello()._replace(max_frame_size=s.DEFAULT_MAX_FRAME + 1)
    assert answered(offer).welcome.max_frame_size == s.DEFAULT_MAX_FRAME
