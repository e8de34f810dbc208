# SPDX-License-Identifier: Apache-2.0
"""Where the master key of a state directory comes from.

Everything in the directory is encrypted under it (``hcalld.crypto.seal``); who loses it
loses the guests' keystores, so it is never made anew while there is something that only
the old one opens.
"""

from hcalld.stores.keys.file import KEY_FILE_NAME, FileKeySource
from hcalld.stores.keys.keyring import Keyring
from hcalld.stores.keys.source import Kept, KeySource

__all__ = ["KEY_FILE_NAME", "FileKeySource", "Kept", "KeySource", "Keyring"]
