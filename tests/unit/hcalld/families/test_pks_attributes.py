# SPDX-License-Identifier: Apache-2.0
"""Calls that change the partition's attributes, and how long that holds."""

from __future__ import annotations

import msgspec
import pytest

from hcalld.core.errors import ConfigError
from hcalld.domain.attributes import PartitionAttributes
from hcalld.domain.keystore import SB_VERSION
from hcalld.domain.labels import os_label
from hcalld.domain.secvar.authoring import wipe
from hcalld.domain.secvar.variables import encode_name
from hcalld.testing.pks import DATA_GPA, OUT_GPA, PksMachine
from hcalld.testing.secvars import LATER, identity
from hcallproto.abi.families import pks
from hcallproto.abi.returns import H
from hcallproto.abi.spec import Hcall
from hcallproto.payloads.efi import EfiTime
from hcallproto.payloads.pks import Consumer, Policy

OPEN = PartitionAttributes(
    linux_dynamic_key_secure_boot=1, keystore_signed_updates_without_verification=1
)
MUCH_LATER = EfiTime(2027, 1, 1, 0, 0, 0)


@pytest.fixture
def machine() -> PksMachine:
    """A guest with dynamic keys, whose first PK needs no signature."""
    machine = PksMachine(OPEN)
    machine.gen_password()
    return machine


def update(machine: PksMachine, name: str, message: bytes) -> H:
    """A signed update, as Linux makes it."""
    machine.guest.write(DATA_GPA, message)
    auth = machine.put_auth()
    label, size = machine.put_label(os_label(b"", encode_name(name)))
    code = machine.hcall(
        *(pks.SIGNED_UPDATE, auth, label, size, int(Policy.SIGNEDUPDATE), 0),
        *(DATA_GPA, len(message), 0),
    ).code
    return H(code)


def has_dynamic_keys(machine: PksMachine) -> bool:
    """What the kernel finds at boot."""
    return machine.read(b"SB_VERSION", consumer=Consumer.FIRMWARE).code is H.SUCCESS


def boot(machine: PksMachine) -> None:
    """A system reset, and the kernel's first call after it."""
    machine.reset()
    machine.gen_password()


def test_latch_when_pk_was_taken_then_it_is_used_up(machine: PksMachine):
    stranger, owner = identity("stranger"), identity("owner")
    assert update(machine, "PK", stranger.update("db", owner.lists)) is H.SUCCESS
    assert update(machine, "PK", stranger.update("PK", stranger.lists)) is H.AUTHORITY

    machine.reload()
    assert machine.attributes == msgspec.structs.replace(
        OPEN, keystore_signed_updates_without_verification=0
    )
    assert update(machine, "PK", stranger.update("PK", stranger.lists)) is H.AUTHORITY


@pytest.mark.parametrize("again", ["reset", "restart", "power-on"])
def test_latch_when_used_up_then_an_unchanged_profile_does_not_arm_it(
    machine: PksMachine, again: str
):
    stranger, owner = identity("stranger"), identity("owner")
    assert update(machine, "PK", stranger.update("PK", owner.lists)) is H.SUCCESS
    if again == "reset":
        boot(machine)
    elif again == "restart":
        machine.reload()
    else:
        machine.power_on()
        machine.gen_password()

    assert update(machine, "PK", stranger.update("PK", stranger.lists)) is H.AUTHORITY


def test_latch_when_the_update_was_refused_then_it_stays_armed(machine: PksMachine):
    stranger = identity("stranger")
    assert update(machine, "PK", stranger.update("PK", b"no list")) is not H.SUCCESS

    machine.reload()
    assert machine.attributes == OPEN
    assert update(machine, "PK", stranger.update("PK", stranger.lists)) is H.SUCCESS


def test_latch_when_the_profile_takes_it_away_and_brings_it_back_then_it_is_armed(
    machine: PksMachine,
):
    stranger = identity("stranger")
    assert update(machine, "PK", stranger.update("PK", stranger.lists)) is H.SUCCESS
    machine.power_on(msgspec.structs.replace(OPEN, keystore_signed_updates_without_verification=0))
    machine.power_on(OPEN)
    machine.gen_password()

    other = identity("other")
    assert update(machine, "PK", other.update("PK", other.lists, LATER)) is H.SUCCESS


def test_wipe_when_done_then_dynamic_keys_end_with_the_reset(machine: PksMachine):
    stranger = identity("stranger")
    draft = wipe(MUCH_LATER)
    message = draft.sign(stranger.certificate, stranger.key).message
    assert update(machine, "PK", message) is H.SUCCESS

    assert has_dynamic_keys(machine)
    machine.reload()
    assert has_dynamic_keys(machine)
    assert machine.attributes == PartitionAttributes()
    boot(machine)
    assert not has_dynamic_keys(machine)
    machine.power_on()
    assert not has_dynamic_keys(machine)
    assert machine.attributes == PartitionAttributes()


def test_dynamic_keys_when_switched_on_again_after_a_wipe_then_they_stay(machine: PksMachine):
    stranger = identity("stranger")
    message = wipe(MUCH_LATER).sign(stranger.certificate, stranger.key).message
    assert update(machine, "PK", message) is H.SUCCESS
    machine.power_on(PartitionAttributes())
    assert not has_dynamic_keys(machine)

    machine.power_on(PartitionAttributes(linux_dynamic_key_secure_boot=1))
    for _ in range(2):
        assert has_dynamic_keys(machine)
        machine.reset()


def test_power_on_when_the_profile_is_refused_then_the_machine_can_still_be_started_as_it_was(
    machine: PksMachine,
):
    machine.power_on(msgspec.structs.replace(OPEN, secure_boot=2))
    with pytest.raises(ConfigError, match="set secure_boot to 0 first"):
        machine.power_on(
            msgspec.structs.replace(OPEN, secure_boot=2, linux_dynamic_key_secure_boot=0)
        )

    machine.power_on(msgspec.structs.replace(OPEN, secure_boot=2))

    assert has_dynamic_keys(machine)
    assert machine.attributes.secure_boot == 2


def test_signed_updates_when_switched_off_then_they_are_refused(machine: PksMachine):
    machine.power_on(PartitionAttributes(keystore_signed_updates=0))
    machine.gen_password()
    owner = identity("owner")

    assert update(machine, "PK", owner.update("PK", owner.lists)) is H.AUTHORITY


@pytest.mark.parametrize("hcall", [pks.WRITE_OBJECT, pks.GEN_KEY], ids=lambda hcall: hcall.name)
def test_sb_version_when_a_guest_would_make_it_then_refused(hcall: Hcall):
    """QEMU's firmware sets no password that would keep an OS from it."""
    machine = PksMachine()
    place = machine.put_label(SB_VERSION)
    for consumer, code in ((Consumer.FIRMWARE, H.AUTHORITY), (Consumer.BOOTLOADER, H.SUCCESS)):
        auth = machine.put_auth(consumer)
        assert machine.hcall(hcall, auth, *place, 0, OUT_GPA, 1).code is code


@pytest.mark.parametrize("policy", [0, Policy.IMMUTABLE | Policy.WORLDREADABLE])
def test_dynamic_keys_when_another_sb_version_is_there_then_it_is_replaced(policy: int):
    machine = PksMachine()
    machine.keystore.create(Consumer.FIRMWARE, SB_VERSION, policy, b"\xff")
    machine.store.commit(machine.changes(), None)

    machine.power_on(PartitionAttributes(linux_dynamic_key_secure_boot=1))

    assert machine.read(SB_VERSION, consumer=Consumer.FIRMWARE).code is H.SUCCESS
    assert machine.guest.read(OUT_GPA, 1) == b"\1"
    (mode,) = (item for item in machine.keystore.objects() if item.label == SB_VERSION)
    assert mode.stored.policy == Policy.WORLDREADABLE | Policy.HVPROVISIONED
