# SPDX-License-Identifier: Apache-2.0
"""Whose fault it is.

Tree::

    Exception
     ├─ ProtocolError
     │   ├─ LocalProtocolError    our caller broke the rules of docs/wire.rst
     │   └─ RemoteProtocolError   the peer did: end the connection, log ``reason``
     └─ CaptureError              a capture cannot be read: no capture, or another version
         ├─ CaptureVersion        of a newer version
         └─ CaptureDamage         from here on; what was read before is good
"""

from __future__ import annotations

import enum


class Breach(enum.Enum):
    """Kinds of breach, for counters; the error's text says the rest."""

    MAGIC = "magic"
    VERSION = "version"
    TYPE = "type"
    SIZE = "size"
    STATE = "state"
    FEATURE = "feature"
    LAYOUT = "layout"
    BOUNDS = "bounds"
    CALL = "call"
    TRUNCATED = "truncated"


class ProtocolError(Exception):
    """Base; raise one of the two below."""

    def __init__(self, message: str) -> None:
        if type(self) is ProtocolError:
            raise TypeError("raise LocalProtocolError or RemoteProtocolError")
        super().__init__(message)


class LocalProtocolError(ProtocolError):
    """The program that uses this library tried to send what the protocol forbids."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what the protocol forbids; the connection is over."""

    def __init__(self, breach: Breach, message: str) -> None:
        super().__init__(message)
        self.breach = breach


class CaptureError(Exception):
    """A capture cannot be read; the text says where and why."""


class CaptureVersion(CaptureError):
    """A capture is of a version that we do not read; a newer hcalld may."""


class CaptureDamage(CaptureError):
    """A capture is damaged or cut off; what was read before is good."""
