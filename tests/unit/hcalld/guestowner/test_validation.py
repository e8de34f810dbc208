# SPDX-License-Identifier: Apache-2.0
"""Measurements that fit, and what explains those that do not."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
from tests.sev_platform import KEYS, VERSION
from tests.unit.hcalld.guestowner.images import firmware

from hcalld.guestowner.cputypes import named
from hcalld.guestowner.launch import Kernel, Launch, ResetProcessors, footer_of
from hcalld.guestowner.validation import Claim, diagnose
from hcalld.guestowner.vmsa import InitStyle
from hcallproto.payloads.sev.blobs import MeasurementBlob
from hcallproto.payloads.sev.constants import Version

MNONCE = bytes(range(16))
FIRMWARE = firmware()
KERNEL = Kernel(kernel=hashlib.sha256(b"k").digest(), cmdline=b"quiet")
PROCESSORS = ResetProcessors(
    count=2,
    signature=named("EPYC").signature,
    style=InitStyle.ES_INIT,
    reset_address=footer_of(FIRMWARE).reset_address,
)
LAUNCH = Launch(FIRMWARE, KERNEL, PROCESSORS)
POLICY = 5
CLAIM = Claim(version=VERSION, policy=POLICY, digest=LAUNCH.digest)


def blob_of(claim: Claim, tik: bytes = KEYS.tik.reveal()) -> MeasurementBlob:
    key = dataclasses.replace(KEYS, tik=type(KEYS.tik)(tik)).tik
    return MeasurementBlob(measurement=claim.measurement(key, MNONCE), mnonce=MNONCE)


def explained(blob: MeasurementBlob, claim: Claim = CLAIM, launch: Launch | None = LAUNCH) -> str:
    assert not claim.fits(KEYS.tik, blob)
    return diagnose(claim, blob, tik=KEYS.tik, tek=KEYS.tek, launch=launch) or "nothing"


def test_fits_when_all_is_as_claimed_then_it_does():
    assert CLAIM.fits(KEYS.tik, blob_of(CLAIM))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"version": VERSION._replace(build=9)}, "the platform's build id is 9, not 21"),
        ({"version": VERSION._replace(api_minor=54)}, "the platform's API is 1.54, not 1.55"),
        ({"version": Version(0, 55, 21)}, "the platform's API is 0.55, not 1.55"),
        ({"version": Version(0, 10, 3)}, "the platform's API is older than 0.17, not 1.55"),
        (
            {"policy": 4},
            "the guest's policy is 0x4 (es), not 0x5 (nodbg, es)",
        ),
        ({"digest": Launch(FIRMWARE, None, PROCESSORS).digest}, "the kernel was not measured"),
        (
            {
                "digest": Launch(FIRMWARE, KERNEL, None).digest,
                "policy": 1,
            },
            "no processor's state was measured (a guest of SEV, not SEV-ES), and the guest's "
            "policy is 0x1 (nodbg), not 0x5 (nodbg, es)",
        ),
        (
            {
                "digest": Launch(
                    FIRMWARE,
                    None,
                    dataclasses.replace(
                        PROCESSORS, style=InitStyle.INIT2, signature=named("EPYC-Milan").signature
                    ),
                ).digest
            },
            "the kernel was not measured (kernel-hashes=on is missing from sev-guest), and the VM "
            "was made by KVM_SEV_INIT2, not KVM_SEV_ES_INIT, and the processors are EPYC-Milan",
        ),
        ({"digest": bytes(32)}, "nothing"),
    ],
)
def test_diagnose_when_a_usual_thing_was_wrong_then_it_is_named(
    changes: dict[str, object], what: str
):
    found = dataclasses.replace(CLAIM, **changes)  # type: ignore[arg-type]
    assert explained(blob_of(found)).startswith(what)


def test_diagnose_when_the_keys_are_exchanged_then_it_says_so():
    blob = blob_of(CLAIM, KEYS.tek.reveal())
    assert explained(blob) == "TEK and TIK are exchanged"
    assert diagnose(CLAIM, blob, tik=KEYS.tik, tek=None, launch=None) is None


def test_diagnose_when_only_a_digest_is_known_then_what_is_beside_it_is_still_found():
    found = dataclasses.replace(CLAIM, policy=1)
    assert explained(blob_of(found), launch=None).startswith("the guest's policy is 0x1")


def test_diagnose_when_the_policy_asks_for_a_version_then_one_without_is_suspected():
    claim = dataclasses.replace(CLAIM, policy=POLICY | 0x33010000)
    said = explained(blob_of(CLAIM), claim)
    assert said == "the guest's policy asks for no API version"
