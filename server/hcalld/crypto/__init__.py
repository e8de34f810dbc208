# SPDX-License-Identifier: Apache-2.0
"""Pure functions over the ``cryptography`` library."""
