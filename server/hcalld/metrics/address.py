# SPDX-License-Identifier: Apache-2.0
"""Where metrics are to be had: what an operator may say of it, and the socket for it.

Apart from ``endpoint.py``: a daemon without metrics need not load what answers requests.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import pathlib
import socket
from typing import Final

from hcalld.core.errors import ConfigError
from hcalld.runtime.server import listen_tcp, listen_unix

SOCKET_MODE: Final = 0o600


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MetricsOptions:
    """Where metrics are to be had.

    Attributes:
        path: of a unix socket; or
        host: the address to listen on, and
        port: on it.
    """

    path: pathlib.Path | None = None
    host: str = ""
    port: int = 0


def parse_address(text: str, *, is_open: bool = False) -> MetricsOptions:
    """Where ``--metrics`` says.

    Args:
        text: ``HOST:PORT``, or a path with a slash in it.
        is_open: others than this machine may come.

    Raises:
        ConfigError: it says nothing that makes sense, or lets others in.
    """
    if "/" in text:
        return MetricsOptions(path=pathlib.Path(text))
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(
            f"--metrics {text}: expected HOST:PORT such as 127.0.0.1:9477, or the path of a unix "
            "socket with a slash in it"
        )
    if not is_open and not _is_loopback(host):
        raise ConfigError(
            f"--metrics {text}: {host} is no loopback address, and metrics are served without "
            "encryption to whoever asks; expected 127.0.0.1, ::1 or localhost, or "
            "--allow-remote-metrics beside it"
        )
    return MetricsOptions(host=host, port=int(port))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(options: MetricsOptions) -> socket.socket:
    """The listening socket.

    Raises:
        ConfigError: it cannot be had.
    """
    if options.path is not None:
        return listen_unix(options.path, SOCKET_MODE)
    return listen_tcp(options.host, options.port)
