# SPDX-License-Identifier: Apache-2.0
"""Captures: what passed between a guest and the daemon, kept in a pcapng file.

``pcapng`` is the container, ``records`` what we put into it.
"""
