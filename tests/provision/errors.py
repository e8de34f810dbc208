# SPDX-License-Identifier: Apache-2.0
"""The one exception of this package: something that a person has to act on."""


class ProvisionError(Exception):
    """Says what was wrong, what was expected and what to do, in that order."""
