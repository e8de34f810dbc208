# SPDX-License-Identifier: Apache-2.0
"""Captures of real guests, and how they are made."""
