# SPDX-License-Identifier: Apache-2.0
"""``hcalld esm``: make, show, authorize and verify ESM blobs, and make a TPM ready for them.

The blobs are those of svm-tool (open-power/svm-tools), in both directions.
"""

from __future__ import annotations

from typing import Final

from hcalld.cli.lazy import LazyGroup

_COMMANDS: Final = {
    "make": "hcalld.cli.esm.make",
    "add": "hcalld.cli.esm.add",
    "show": "hcalld.cli.esm.show",
    "authorize": "hcalld.cli.esm.authorize",
    "verify": "hcalld.cli.esm.verify",
    "extract": "hcalld.cli.esm.extract",
    "provision-tpm": "hcalld.cli.esm.provision_tpm",
    "pubkey": "hcalld.cli.esm.pubkey",
}

command = LazyGroup(
    name="esm",
    short_help="Make and verify ESM blobs of secure guests.",
    help="Make, show and verify ESM blobs (what a secure guest must be), and prepare TPMs.",
    modules=_COMMANDS,
)
