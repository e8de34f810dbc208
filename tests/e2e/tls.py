# SPDX-License-Identifier: Apache-2.0
"""Certificates for TLS on loopback, as files where the daemon and QEMU look for them."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import trustme


@dataclasses.dataclass(frozen=True, slots=True)
class Certificates:
    """One authority's certificates.

    Attributes:
        directory: As QEMU's tls-creds-x509 wants it for a client: ca-cert.pem,
            client-cert.pem, client-key.pem.
    """

    directory: Path

    @property
    def daemon_options(self) -> list[str]:
        """Options of ``hcalld serve``."""
        return [
            "--tls-cert",
            str(self.directory / "daemon-cert.pem"),
            "--tls-key",
            str(self.directory / "daemon-key.pem"),
            "--tls-ca",
            str(self.directory / "ca-cert.pem"),
        ]

    @property
    def qemu_options(self) -> list[str]:
        """QEMU's object with the client's credentials, id ``tls``."""
        text = f"tls-creds-x509,id=tls,dir={self.directory},endpoint=client,verify-peer=on"
        return ["-object", text]


def make(directory: Path) -> Certificates:
    """Makes an authority, a certificate for 127.0.0.1 and one for a client."""
    directory.mkdir()
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca-cert.pem")
    for name, identity in (("daemon", "127.0.0.1"), ("client", "qemu.example")):
        issued = authority.issue_cert(identity)
        issued.private_key_pem.write_to_path(directory / f"{name}-key.pem")
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        (directory / f"{name}-cert.pem").write_bytes(chain)
    return Certificates(directory)


def free_port() -> int:
    """Gives a TCP port of 127.0.0.1 that nobody listens on.

    It stays ours until this process ends: the kernel gives it to nobody who asks for any, and
    who names it, and says SO_REUSEADDR as servers do, may still listen on it.
    """
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    port: int = sock.getsockname()[1]
    sock.detach()
    return port


def chardev(port: int) -> str:
    """The chardev for a daemon that listens with TLS."""
    return f"socket,id=hc,host=127.0.0.1,port={port},reconnect-ms=50,tls-creds=tls"
