# SPDX-License-Identifier: Apache-2.0
"""What a platform keeps: changes that fit and that do not, and what ends with its owner."""

from __future__ import annotations

import weakref
import zlib

import msgspec
import pytest
from tests.sev_platform import root

from hcalld.core.errors import ConfigError, HcallError, StoreError
from hcalld.core.records import Put, Record
from hcalld.domain.sev.changes import (
    FactoryReset,
    GuestOpened,
    IdentityChanged,
    Initialized,
    pack_change,
    unpack_change,
)
from hcalld.domain.sev.identity import OWN_ENTROPY, Identity, pack_identity, unpack_identity
from hcalld.domain.sev.platform import IDENTITY_KEY, NAMESPACE, Platform
from hcalld.domain.sev.settings import MAX_ASIDS, Memory, SevSettings
from hcalld.domain.sev.view import unpack_view
from hcalld.testing.sev import made_up
from hcallproto.payloads.sev import PlatformState

VEK = bytes(range(16))
OPENED = GuestOpened(7, 4, 1, VEK)


def made(settings: SevSettings | None = None, name: str = "platform") -> Platform:
    return Platform.build([], settings or SevSettings(), lambda size: made_up(name, size), root())


def record_of(platform: Platform) -> Record:
    (change,) = platform.take_changes()
    assert isinstance(change, Put)
    return change.record


# -- records ----------------------------------------------------------------------------


def test_a_new_platform_is_stored_and_built_again():
    first = made()
    record = record_of(first)
    assert (record.namespace, record.key) == (NAMESPACE, IDENTITY_KEY)
    assert first.take_changes() == []
    other = Record("pks", b"o", b"somebody's")
    second = Platform.build([other, record], SevSettings(), lambda size: b"", root())
    assert second.identity == first.identity
    assert second.take_changes() == []


def test_a_platform_without_a_root_makes_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hcalld.domain.sev.platform.Root.generate", lambda: root(4096))
    platform = Platform.build([], SevSettings(), lambda size: made_up("mine", size))
    assert platform.identity.ark == root(4096).ark.build()


def test_a_platform_of_another_root_is_refused():
    record = record_of(made())
    with pytest.raises(ConfigError, match="another root"):
        Platform.build([record], SevSettings(), lambda size: b"", root(4096))
    Platform.build([record], SevSettings(), lambda size: b"")


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (Record(NAMESPACE, b"x", b"\1"), "malformed"),
        (Record(NAMESPACE, IDENTITY_KEY, b""), "malformed"),
        (Record(NAMESPACE, IDENTITY_KEY, b"\0"), "malformed"),
        (Record(NAMESPACE, IDENTITY_KEY, b"\2rest"), "newer hcalld"),
        (Record(NAMESPACE, IDENTITY_KEY, b"\1rest"), "cannot be read"),
        (Record(NAMESPACE, IDENTITY_KEY, b"\1" + zlib.compress(b"\x90")), "cannot be read"),
    ],
)
def test_a_record_that_is_none(record: Record, why: str):
    with pytest.raises(StoreError, match=why):
        Platform.build([record], SevSettings(), lambda size: b"")


def test_a_packed_identity_that_is_none():
    identity = made().identity
    assert unpack_identity(pack_identity(identity)) == identity
    for field, value in (("pek", b""), ("ark", bytes(831)), ("cek", bytes(2085))):
        with pytest.raises(StoreError, match="wrong sizes"):
            unpack_identity(pack_identity(msgspec.structs.replace(identity, **{field: value})))
    with pytest.raises(StoreError, match="cannot be read"):
        unpack_identity(zlib.compress(bytes(1 << 24)))


def test_entropy_of_the_wrong_size_is_a_bug():
    identity = made().identity
    for make in (identity.reset, identity.with_new_pek, identity.with_new_pdh):
        with pytest.raises(ValueError, match="bytes of entropy"):
            make(bytes(55), SevSettings().version.api)
    with pytest.raises(ValueError, match="bytes of entropy"):
        Identity.create(b"", root(), SevSettings().version.api)


# -- settings ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        SevSettings(api_major=256),
        SevSettings(api_minor=-1),
        SevSettings(build=256),
        SevSettings(asids=0),
        SevSettings(asids=MAX_ASIDS + 1),
    ],
)
def test_settings_that_are_impossible(settings: SevSettings):
    with pytest.raises(ConfigError, match=r"expected (0 to 255|1 to)"):
        made(settings)


def test_what_commands_see():
    settings = SevSettings(
        api_minor=54, es=False, asids=3, memory=Memory.ENCRYPTED, strict_mainline=True
    )
    platform = made(settings)
    view = unpack_view(platform.pack())
    assert (view.version, view.es, view.asids) == (settings.version, False, 3)
    assert (view.encrypted, view.strict_mainline, view.guests) == (True, True, ())
    assert view.identity == platform.identity
    assert view.state is PlatformState.INIT
    assert platform.pack() is platform.pack()


def test_what_commands_see_is_small():
    assert len(made().pack()) < 4096


# -- changes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [Initialized(), OPENED, IdentityChanged(b"i"), FactoryReset(b"i")], ids=repr
)
def test_a_change_is_packed_and_shows_no_key(change: Initialized):
    assert unpack_change(pack_change(change)) == change
    assert repr(VEK)[2:-1] not in repr(change)


def test_a_guest_comes_and_goes_with_its_owner():
    platform = made()
    platform.apply(pack_change(OPENED), "vm 1")
    platform.apply(pack_change(GuestOpened(8, 0, 2, VEK)), "vm 2")
    view = unpack_view(platform.pack())
    assert [(g.handle, g.policy, g.asid, g.vek) for g in view.guests] == [
        (7, 4, 1, VEK),
        (8, 0, 2, VEK),
    ]
    assert (view.next_handle, view.state) == (9, PlatformState.WORKING)
    assert view.free_asid() == 3
    assert view.guest(7).asid == 1
    with pytest.raises(HcallError, match="INVALID_GUEST"):
        view.guest(9)
    platform.release("vm 3")
    assert unpack_view(platform.pack()) == view
    platform.release("vm 1")
    view = unpack_view(platform.pack())
    assert [guest.handle for guest in view.guests] == [8]
    assert view.next_handle == 9
    platform.release("vm 2")
    assert unpack_view(platform.pack()).state is PlatformState.INIT


def test_asids_of_a_platform_that_has_none_left():
    platform = made(SevSettings(asids=1))
    platform.apply(pack_change(OPENED), "vm")
    with pytest.raises(HcallError, match="RESOURCE_LIMIT"):
        unpack_view(platform.pack()).free_asid()


@pytest.mark.parametrize(
    ("change", "owner"),
    [
        (OPENED, "another"),
        (GuestOpened(8, 0, 1, VEK), "another"),
        (GuestOpened(8, 0, 2, VEK), "vm"),
        (GuestOpened(0, 0, 2, VEK), "another"),
        (GuestOpened(1 << 32, 0, 2, VEK), "another"),
        (FactoryReset(b""), "vm"),
    ],
)
def test_a_change_that_does_not_fit_is_a_bug(change: GuestOpened, owner: str):
    platform = made()
    platform.apply(pack_change(OPENED), "vm")
    before = platform.pack()
    with pytest.raises(ValueError, match=r"handle|ASID|second guest|guests exist"):
        platform.apply(pack_change(change), owner)
    assert platform.pack() == before


def test_no_guest_before_the_platform_is_initialized():
    platform = made(SevSettings(init_on_probe=False))
    assert platform.state is PlatformState.UNINIT
    with pytest.raises(ValueError, match="not initialized"):
        platform.apply(pack_change(OPENED), "vm")
    platform.apply(pack_change(Initialized()), "vm")
    platform.apply(pack_change(OPENED), "vm")


def test_a_change_is_undone():
    platform = made()
    platform.take_changes()
    before = platform.pack()
    reset = FactoryReset(pack_identity(made(name="other").identity))
    for change in (OPENED, IdentityChanged(reset.packed_identity), reset):
        platform.apply(pack_change(change), "vm")
        assert platform.pack() != before
        platform.undo()
        assert platform.pack() == before
        assert platform.take_changes() == []
    platform.apply(pack_change(reset), "vm")
    assert platform.state is PlatformState.UNINIT
    assert platform.identity == unpack_identity(reset.packed_identity)
    assert record_of(platform).value[1:] == reset.packed_identity


def test_an_identity_that_cannot_be_read_is_not_kept():
    platform = made()
    platform.take_changes()
    before = platform.pack()
    with pytest.raises(StoreError):
        platform.apply(pack_change(IdentityChanged(b"junk")), "vm")
    assert platform.pack() == before
    assert platform.take_changes() == []


def test_what_is_shown_holds_no_key():
    platform = made()
    platform.apply(pack_change(OPENED), "vm")
    view = unpack_view(platform.pack())
    shown = repr(view) + repr(platform.identity) + repr(platform.guests)
    assert repr(VEK)[2:-1] not in shown
    assert repr(platform.identity.pek_scalar)[2:12] not in shown


def test_what_a_reset_replaces_is_in_memory_no_more():
    """Its keys would open sessions that were made for the owner before."""
    platform = made()
    packed = unpack_view(platform.pack()).packed_identity
    old = weakref.ref(platform.identity)
    assert unpack_view(platform.pack()).identity is old()
    assert unpack_identity(bytes(bytearray(packed))).pdh_key is platform.identity.pdh_key
    reset = platform.identity.reset(made_up("reset", OWN_ENTROPY), SevSettings().version.api)
    platform.apply(pack_change(FactoryReset(pack_identity(reset))), "operator")
    platform.settle()
    platform.take_changes()
    assert old() is None
    assert unpack_view(platform.pack()).identity is platform.identity
