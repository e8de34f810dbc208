# SPDX-License-Identifier: Apache-2.0
"""The control socket: what an operator asks of a running daemon.

A command is a struct in ``messages.py`` and a function in ``commands.py``; everything else
is the same for all of them.
"""
