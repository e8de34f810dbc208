# SPDX-License-Identifier: Apache-2.0
"""``python -m hcalld`` and the ``hcalld`` command."""

from __future__ import annotations

from hcalld.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
