# SPDX-License-Identifier: Apache-2.0
"""The harness of the end-to-end tests: a daemon, a QEMU with a guest, and what stands in for each.

Everything here blocks and has a deadline; a deadline only finds what hangs, it never decides a
test. What a test starts is ended with it, and what was written meanwhile (``daemon.log``,
``trace.log``, ``qemu.log``, ``console.log``) lies in the test's own folder.
"""
