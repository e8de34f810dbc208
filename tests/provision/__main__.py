# SPDX-License-Identifier: Apache-2.0
"""Entry point of ``python3 tests/provision``, run as a folder and not as a package."""

import importlib
import sys
from pathlib import Path

# Run as a folder, Python puts the folder itself on the path, where its modules would be top-level
# names and could not import each other relatively. The folder above makes it the package that it
# is. Not the root of the tree: a package named `tests` in Debian's site-packages would come first.
sys.path[0] = str(Path(__file__).resolve().parents[1])
# For hcalld.guest.cpio, which needs nothing that is not in the standard library.
sys.path.append(str(Path(__file__).resolve().parents[2] / "server"))

sys.exit(importlib.import_module("provision.cli").main())
