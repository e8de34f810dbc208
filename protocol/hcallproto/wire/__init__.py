# SPDX-License-Identifier: Apache-2.0
"""Frames: ``schema.py`` is the truth, ``frames.py`` the values, ``codec.py`` the way between."""
