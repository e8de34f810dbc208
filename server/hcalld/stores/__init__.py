# SPDX-License-Identifier: Apache-2.0
"""Where a partition's records are kept. ``base.py`` is the contract."""
