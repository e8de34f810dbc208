# SPDX-License-Identifier: Apache-2.0
"""What PAPR and the firmware documents define: numbers, arguments, return codes.

Knows nothing about our wire or our daemon. Start with ``spec.py`` (the vocabulary),
then ``families/`` (the data) and ``registry.py`` (all families together).
"""
