# SPDX-License-Identifier: Apache-2.0
"""The daemon. ``app.py`` wires all parts together; start reading there."""

__version__ = "0.1.0"
