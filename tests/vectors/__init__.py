# SPDX-License-Identifier: Apache-2.0
"""Bytes in files, kept for ever, and the tests that read them."""
