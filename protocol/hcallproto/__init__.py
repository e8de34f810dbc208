# SPDX-License-Identifier: Apache-2.0
"""The hypercall protocol without I/O: the table of calls, the wire, the connection.

Start with ``abi/spec.py`` for the table, ``wire/schema.py`` for the bytes and
``conn/connection.py`` for the state machine.
"""
