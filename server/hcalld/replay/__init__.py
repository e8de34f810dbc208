# SPDX-License-Identifier: Apache-2.0
"""Captures run again: in process, as a guest, or as the daemon; and what came out differently."""
