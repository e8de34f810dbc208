# SPDX-License-Identifier: Apache-2.0
"""The protocol's state machine without I/O: ``states.py`` holds the tables."""
