# SPDX-License-Identifier: Apache-2.0
"""Frames as bytes and as values.

``schema.py`` is the truth, ``frames.py`` the values, ``decode.py`` and ``encode.py`` the
way between them.
"""
