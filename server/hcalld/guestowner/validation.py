# SPDX-License-Identifier: Apache-2.0
"""Is a measurement that of the launch that its owner wants? And if not, what was different?

A measurement tells nothing but whether it fits. A diagnosis therefore tries what usually is wrong:
it computes what each mistake would have given. That helps whoever has the TIK alone, who could
compute it anyway, and it vouches for nothing: a measurement that fits a mistake is still refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Final

from hcalld.core.secret import Secret
from hcalld.crypto.sev.kdf import same
from hcalld.crypto.sev.measurement import BOUND_SINCE, measure
from hcalld.guestowner.launch import Launch
from hcalld.guestowner.policies import describe
from hcallproto.payloads.sev.blobs import MeasurementBlob
from hcallproto.payloads.sev.constants import ANY_API, Policy, Version

_BYTE: Final = range(0x100)
_API_MAJORS: Final = range(2)
_ALL_FLAGS: Final = range(1 << 6)
_OLD: Final = Version(0, 16, 0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What goes into a measurement beside its nonce.

    Attributes:
        version: of the platform's firmware.
        policy: the guest's.
        digest: what was launched.
    """

    version: Version
    policy: int
    digest: bytes

    def measurement(self, tik: Secret, mnonce: bytes) -> bytes:
        """What the platform computes."""
        return measure(tik, self.version, self.policy, self.digest, mnonce)

    def fits(self, tik: Secret, blob: MeasurementBlob) -> bool:
        """Whether a measurement is this one, in a time that does not depend on the answer."""
        return same(self.measurement(tik, blob.mnonce), blob.measurement)


def diagnose(
    claim: Claim, blob: MeasurementBlob, *, tik: Secret, tek: Secret | None, launch: Launch | None
) -> str | None:
    """The mistake that would explain a measurement that does not fit; None: no usual one would.

    Args:
        claim: what was expected.
        blob: what came.
        tik: transport integrity key.
        tek: the other one, if it is known.
        launch: what the claim's digest is of, if it was computed from files.
    """
    if tek is not None and claim.fits(tek, blob):
        return "TEK and TIK are exchanged"
    # Simple explanations first: one thing is wrong before two are.
    for what, suspect in _claims(claim):
        if suspect.fits(tik, blob):
            return what
    single = [] if launch is None else list(launch.suspects())
    double = [] if launch is None else list(launch.double_suspects())
    for what, digest in (*single, *double):
        if dataclasses.replace(claim, digest=digest).fits(tik, blob):
            return what
    for what, digest in single:
        for also, suspect in _claims(dataclasses.replace(claim, digest=digest)):
            if suspect.fits(tik, blob):
                return f"{what}, and {also}"
    return None


def _claims(claim: Claim) -> Iterator[tuple[str, Claim]]:
    """Claims with another version or policy."""
    version, policy = claim.version, Policy(claim.policy)
    for build in _BYTE:
        if build != version.build:
            other = version._replace(build=build)
            what = f"the platform's build id is {build}, not {version.build}"
            yield what, dataclasses.replace(claim, version=other)
    for flags in _ALL_FLAGS:
        if flags != policy.flags:
            number = int(Policy.of(flags, policy.api))
            what = f"the guest's policy is {describe(number)}, not {describe(claim.policy)}"
            yield what, dataclasses.replace(claim, policy=number)
    if policy.api != ANY_API:
        what = "the guest's policy asks for no API version"
        yield what, dataclasses.replace(claim, policy=int(policy.flags))
    for major in _API_MAJORS:
        for minor in _BYTE:
            other = version._replace(api_major=major, api_minor=minor)
            # Those before do not say their version: one stands for all of them.
            if other.api != version.api and other.api >= BOUND_SINCE:
                what = f"the platform's API is {other.api}, not {version.api}"
                yield what, dataclasses.replace(claim, version=other)
    if version.api >= BOUND_SINCE:
        what = f"the platform's API is older than {BOUND_SINCE}, not {version.api}"
        yield what, dataclasses.replace(claim, version=_OLD)


__all__ = ["Claim", "diagnose"]
