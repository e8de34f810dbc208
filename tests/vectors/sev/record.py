# SPDX-License-Identifier: Apache-2.0
"""Make the files beside this one: ``python -m tests.vectors.sev.record``."""

from __future__ import annotations

from tests.sev_platform import VECTORS, chain

from hcalld.crypto.sev.roots import ROOT_SIZES, Root


def main() -> None:
    """Make a root of each size and a platform's certificates below it."""
    for bits in ROOT_SIZES:
        pem = Root.generate(bits).to_pem().reveal()
        (VECTORS / f"root-{bits}.pem").write_bytes(pem)
        (VECTORS / f"platform-{bits}.cert").write_bytes(chain(bits).export)


if __name__ == "__main__":
    main()
