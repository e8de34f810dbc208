# SPDX-License-Identifier: Apache-2.0
"""Guests for kernel developers: boot a kernel, run its selftests, judge what they say.

``plan`` is what is to run, ``differences`` what another kernel does instead, ``kernel`` looks at
what is booted, ``boot`` and ``machine`` make the files and command lines, ``run`` runs it,
``ktap`` reads what the guest prints, ``verdict`` compares it with what is expected, and ``junit``
and ``summary`` say it to machines and people. Nothing here is part of the daemon, which is
started as a process of its own.

This package imports nothing when it is loaded: ``tests/provision`` uses its ``cpio`` before there
is a virtual environment.
"""
