# SPDX-License-Identifier: Apache-2.0
"""Files that are derived from the table of calls and from the wire's schema.

``python -m hcallproto.codegen`` writes them, with ``--check`` it only says which are
stale. ``outputs.py`` lists them; each of the other modules makes one kind.
"""
