# SPDX-License-Identifier: Apache-2.0
"""Numbers of virtee/sev's unit tests (``src/session``), which AMD's parts agree with."""

from __future__ import annotations

import hashlib

from hcalld.core.secret import Secret
from hcalld.crypto.sev.kdf import TransportKeys, WrappingKeys, kdf
from hcalld.crypto.sev.measurement import measure
from hcalld.crypto.sev.session import wrap_with
from hcallproto.payloads.sev import Version

MASTER = bytes.fromhex("ab4d269fcc62bedb4511d56c386ce706")


def test_kdf_when_all_is_zero_then_the_master_secret_of_virtee():
    assert kdf(bytes(16), "sev-master-secret", bytes(16), 16) == MASTER


def test_session_when_its_keys_are_zero_then_that_of_virtee():
    keys = TransportKeys.parse(bytes(32))
    session = wrap_with(WrappingKeys.of(Secret(MASTER)), keys, 0, nonce=bytes(16), iv=bytes(16))
    assert session.wrap_tk.hex() == (
        "2137bc7f9bb8bd7c3e55a576a15d3454b3856b8ba27afadf46dcfee9f02c02c4"
    )
    assert session.wrap_mac.hex() == (
        "3176c0752738bd9d5e86689534020f528c088f16238826b000b327dee6aeed7d"
    )
    assert session.policy_mac.hex() == (
        "aa7855e13839dd767cd5da7c1ff5036540c9264b7a803029315e55375287b4af"
    )


def test_measurement_when_nothing_was_launched_then_that_of_virtee():
    measurement = measure(
        Secret(bytes.fromhex("66320db73158a35a255d051758e95ed4")),
        Version(0, 18, 15),
        0,
        hashlib.sha256().digest(),
        bytes.fromhex("4fbe0bedbad6c86ae8f68971d103e554"),
    )
    assert measurement.hex() == "6faab2daae389bcd3405a05d6cafe33c0414f7bedd0bae19ba5f38b7fd1664ea"
