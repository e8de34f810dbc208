# SPDX-License-Identifier: Apache-2.0
"""Makes ready what the tests and the demonstration run on: QEMU, kernels, an initramfs.

Standard library only, because it runs before any virtual environment exists:
``python3 tests/provision VERB``. Progress goes to standard error; the resulting path, alone, to
standard output. Nothing here is part of the daemon.

Where to read next: :mod:`.cli` for the verbs, :mod:`.pins` for what is fetched, :mod:`.cache`
for where it is kept.
"""
