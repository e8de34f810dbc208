# SPDX-License-Identifier: Apache-2.0
"""``hcalld secvar``: make, sign, show, verify and enroll secure variables.

Works on files, and on partitions' stores while their guests are off. The formats are those
of secvarctl and of Linux's ``/sys/firmware/secvar``.
"""

from __future__ import annotations

from typing import Final

from hcalld.cli.lazy import LazyGroup

_COMMANDS: Final = {
    "esl": "hcalld.cli.secvar.esl",
    "sign": "hcalld.cli.secvar.sign",
    "show": "hcalld.cli.secvar.show",
    "list": "hcalld.cli.secvar.listing",
    "verify": "hcalld.cli.secvar.verify",
    "enroll": "hcalld.cli.secvar.enroll",
    "defaults": "hcalld.cli.secvar.defaults",
}

command = LazyGroup(
    name="secvar",
    short_help="Make, sign, verify and enroll secure variables.",
    help="Make, sign, show, verify and enroll secure variables (secure boot's keys).",
    modules=_COMMANDS,
)
