# SPDX-License-Identifier: Apache-2.0
"""Captures with secrets: how they are sealed, and what is read from them."""
