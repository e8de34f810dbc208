# SPDX-License-Identifier: Apache-2.0
"""Harnesses that take any bytes; each runs under pytest for a moment and on standard input."""
