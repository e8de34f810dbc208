# SPDX-License-Identifier: Apache-2.0
"""What an operator may set, and what the guest is told of it."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import msgspec
import pytest

from hcalld.domain import attributes as module
from hcalld.domain.attributes import PartitionAttributes, PksAttributes, PolicyName
from hcallproto.abi.families import pks
from hcallproto.abi.spec import Limit
from hcallproto.payloads.pks import ALL_POLICIES, CONFIG_FLAG_WRAP, Policy


def convert(**values: Any) -> PartitionAttributes:
    return msgspec.convert(values, PartitionAttributes)


def test_defaults_are_what_linux_accepts():
    config = PartitionAttributes().keystore_config(0)

    assert config.version == 3
    assert config.maxpwsize >= 32
    assert 255 <= config.maxobjlabelsize <= 32767
    assert config.totalsize == 64 * 1024
    assert (config.maxobjsize, config.maxlargeobjectsize) == (0xFFFF, 65536)
    assert config.usedspace == 0


@pytest.mark.parametrize("kbytes", [0, 4, 64, 128])
def test_keystore_kbytes_takes_0_and_4_to_128(kbytes: int):
    assert convert(keystore_kbytes=kbytes).total_size == kbytes * 1024


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("keystore_kbytes", -1),
        ("keystore_kbytes", 1),
        ("keystore_kbytes", 3),
        ("keystore_kbytes", 129),
        ("keystore_kbytes", "64"),
        ("keystore_kbytes", 64.5),
        ("secure_boot", -1),
        ("secure_boot", 3),
        ("secure_boot", True),
        ("keystore_signed_updates", 2),
        ("keystore_size", 64),
    ],
)
def test_a_wrong_attribute_is_refused_by_name(name: str, value: object):
    with pytest.raises(msgspec.ValidationError, match=name):
        convert(**{name: value})


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("object_overhead", 0, 1024),
        ("max_password_size", 32, 4080),
        ("max_label_size", 255, 512),
        ("max_object_size", 1024, 65536),
        ("busy_answers", 0, 1000),
    ],
)
def test_pks_numbers_hold_their_bounds(name: str, low: int, high: int):
    for value in (low, high):
        assert getattr(convert(pks={name: value}).pks, name) == value
    for value in (low - 1, high + 1):
        with pytest.raises(msgspec.ValidationError, match=name):
            convert(pks={name: value})


def test_an_unknown_pks_key_is_refused_by_name():
    with pytest.raises(msgspec.ValidationError, match="max_size"):
        convert(pks={"max_size": 1})


@pytest.mark.parametrize(
    ("size", "told"), [(1024, (1024, 0)), (65535, (65535, 0)), (65536, (65535, 65536))]
)
def test_object_sizes_follow_linuxs_rule(size: int, told: tuple[int, int]):
    config = PartitionAttributes(pks=PksAttributes(max_object_size=size)).keystore_config(0)

    assert (config.maxobjsize, config.maxlargeobjectsize) == told


def test_policy_names_are_those_of_the_protocol():
    assert set(get_args(PolicyName)) == {policy.name for policy in Policy}


def test_supported_policies_are_a_mask():
    attributes = convert(pks={"supported_policies": ["WORLDREADABLE", "PWSET"]})

    assert attributes.pks.policies == Policy.WORLDREADABLE | Policy.PWSET
    assert attributes.keystore_config(0).supportedpolicies == attributes.pks.policies
    assert attributes.limits()[Limit.SUPPORTED_POLICIES] == attributes.pks.policies


def test_no_policy_at_all_may_be_supported():
    assert convert(pks={"supported_policies": []}).pks.policies == 0


def test_an_unknown_policy_is_refused():
    with pytest.raises(msgspec.ValidationError, match="supported_policies"):
        convert(pks={"supported_policies": ["WORLDWRITABLE"]})


def test_limits_are_those_of_the_partition():
    limits = PartitionAttributes(
        pks=PksAttributes(max_password_size=100, max_label_size=300, max_object_size=2000)
    ).limits()

    assert set(limits) == set(Limit)
    assert limits[Limit.MAX_PASSWORD_SIZE] == 100
    assert limits[Limit.MAX_LABEL_SIZE] == 300
    assert limits[Limit.MAX_OBJECT_SIZE] == 2000


@pytest.mark.parametrize("state", [0, 1, 2])
def test_root_properties_tell_the_secure_boot_state(state: int):
    properties = convert(secure_boot=state).root_properties()

    assert properties == (("ibm,secure-boot", bytes((0, 0, 0, state))),)


# -- nothing is promised that is not served ------------------------------------------------


class Table:
    """The table with some calls served and the others not."""

    def __init__(self, *served: str) -> None:
        for name in ("GEN_KEY", "SIGNED_UPDATE", "WRAP_OBJECT", "UNWRAP_OBJECT"):
            call = dataclasses.replace(getattr(pks, name), decode_only=name not in served)
            setattr(self, name, call)


def serve(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(module, "pks", Table(*names))


def test_without_signed_update_nothing_of_it_is_told(monkeypatch: pytest.MonkeyPatch):
    serve(monkeypatch)
    config = PartitionAttributes().keystore_config(0)

    assert config.signedupdatealgorithms == 0
    assert not config.supportedpolicies & Policy.SIGNEDUPDATE
    with pytest.raises(msgspec.ValidationError, match="does not serve H_PKS_SIGNED_UPDATE"):
        convert(keystore_signed_updates_without_verification=1)
    with pytest.raises(msgspec.ValidationError, match="linux_dynamic_key_secure_boot"):
        convert(linux_dynamic_key_secure_boot=1)
    with pytest.raises(msgspec.ValidationError, match="SIGNEDUPDATE"):
        convert(pks={"supported_policies": ["SIGNEDUPDATE"]})


def test_with_signed_update_its_algorithms_follow_the_attribute(monkeypatch: pytest.MonkeyPatch):
    serve(monkeypatch, "SIGNED_UPDATE")

    assert convert(keystore_signed_updates=0).keystore_config(0).signedupdatealgorithms == 0
    config = PartitionAttributes().keystore_config(0)
    assert config.signedupdatealgorithms == 0xC000_0000_0000_0000
    assert config.supportedpolicies & Policy.SIGNEDUPDATE


@pytest.mark.parametrize("missing", ["GEN_KEY", "WRAP_OBJECT", "UNWRAP_OBJECT"])
def test_wrapping_is_told_only_if_all_of_it_is_served(
    monkeypatch: pytest.MonkeyPatch, missing: str
):
    names = {"GEN_KEY", "WRAP_OBJECT", "UNWRAP_OBJECT"}
    serve(monkeypatch, *names)
    whole = PartitionAttributes().keystore_config(0)
    serve(monkeypatch, *(names - {missing}))
    config = PartitionAttributes().keystore_config(0)

    assert (whole.flags, whole.wrappingfeatures) == (CONFIG_FLAG_WRAP, 1 << 63)
    assert (config.flags, config.wrappingfeatures) == (0, 0)
    assert bool(config.supportedpolicies & Policy.WRAPPINGKEY) is (missing != "GEN_KEY")


def test_with_everything_served_all_policies_are_told(monkeypatch: pytest.MonkeyPatch):
    serve(monkeypatch, "GEN_KEY", "SIGNED_UPDATE", "WRAP_OBJECT", "UNWRAP_OBJECT")

    assert PartitionAttributes().pks.policies == ALL_POLICIES == 0x7F80_0008
