# SPDX-License-Identifier: Apache-2.0
"""How generation refuses."""


class CodegenError(Exception):
    """A file cannot be generated; the text says which and what to do."""
