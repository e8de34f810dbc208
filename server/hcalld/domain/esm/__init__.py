# SPDX-License-Identifier: Apache-2.0
"""ESM blobs: what a guest must be, encrypted for the TPM of the machine that may run it.

``blob`` is the format, ``digests`` what is in its encrypted half, ``boot_tree`` what a guest
says of itself, ``locate`` finds the blob in the guest, ``unlock`` opens it, ``measure``
compares, ``authoring`` makes one, and ``flat_kernel`` gives the bytes that a kernel's digest
is of. Nothing here does I/O: memory comes through an awaitable ``read``, a TPM through an
awaitable ``transmit``.
"""
