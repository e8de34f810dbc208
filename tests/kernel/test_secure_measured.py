# SPDX-License-Identifier: Apache-2.0
"""One bit that differs, in each part of a blob and in RTAS: the guest stays a normal VM."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from tests.e2e.machine import FIRMWARE_DIR
from tests.e2e.patience import wait_until
from tests.e2e.secure import SecureLab

if TYPE_CHECKING:
    from tests.e2e.lab import Lab

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

CMDLINE = "console=hvc0 svm=1 swiotlb=force"
RTAS: Final = bytes.fromhex("7c641b78 3c600000 6063f000 44000022 4e800020")
"""What SLOF has for RTAS; the first instruction is ``mr r4,r3``, and its last bit makes ``mr.``."""

_BEGIN, _END, _PROPERTY, _LAST = 1, 2, 3, 9


def properties(tree: bytes) -> Iterator[tuple[str, int]]:
    """The properties of a flattened tree: path, and the place of the value's first byte."""
    at, names = struct.unpack_from(">II", tree, 8)
    path: list[str] = []
    while (token := struct.unpack_from(">I", tree, at)[0]) != _LAST:
        at += 4
        if token == _BEGIN:
            end = tree.index(b"\0", at)
            path.append(tree[at:end].decode())
            at = (end + 4) & ~3
        elif token == _END:
            path.pop()
        elif token == _PROPERTY:
            size, name = struct.unpack_from(">II", tree, at)
            end = tree.index(b"\0", names + name)
            yield "/".join([*path[1:], tree[names + name : end].decode()]), at + 8
            at = (at + 8 + size + 3) & ~3


BLOB: Final = {
    "compatible": "expected",
    "lockboxes/lockbox-1/encrypted-symkey": "key unavailable",
    "lockboxes/lockbox-1/pubkey-fingerprint/algorithm": "expected",
    # Names say which lockbox to try first, and comments say nothing; an empty one stays empty.
    "lockboxes/lockbox-1/pubkey-fingerprint/hash": None,
    "lockboxes/lockbox-1/untrusted-comment": None,
    "digest/digests-fdt/algorithm": "expected",
    "digest/digests-fdt/ciphertext": "digests",
    "digest/digests-fdt/iv": "digests",
    "digest/digests-fdt/mac": "digests",
    "digest/digests-fdt/untrusted-comment": "not one string",
}
"""What the log says of a bit that differs there; None: the guest becomes secure."""


def test_a_changed_bit_in_each_part_of_a_blob(lab: Lab) -> None:
    secure = SecureLab(lab)
    vmlinux = lab.require("kernel-own")
    whole = secure.blob(vmlinux, secure.initrd("true", files={}, userland="initramfs"), CMDLINE)
    good = whole.read_bytes()
    blob = (secure.folder / "blob").read_bytes()
    start = good.index(blob)
    places = dict(properties(blob))
    # The owner's lockbox is none of this machine's.
    assert {name for name in places if "origin" not in name} == set(BLOB)
    for number, (name, expected) in enumerate(BLOB.items()):
        changed = bytearray(good)
        changed[start + places[name]] ^= 1
        whole.write_bytes(changed)
        machine = secure.start(vmlinux, whole, CMDLINE, smp=1)
        verdict = wait_for_verdict(secure, number)
        machine.close()
        if expected is None:
            assert "guest enters secure mode" in verdict, name
        else:
            assert "guest does not become secure" in verdict, name
            assert expected in verdict, name


def verdicts(secure: SecureLab) -> list[str]:
    """What the daemon says of each entry."""
    signs = ("guest enters secure mode", "guest does not become secure")
    return [
        line
        for line in secure.daemon.log_text().splitlines()
        if any(sign in line for sign in signs)
    ]


def wait_for_verdict(secure: SecureLab, number: int) -> str:
    """Waits for what the daemon says of the entry of a number."""
    wait_until(lambda: len(verdicts(secure)) > number, f"entry {number}", 60)
    return verdicts(secure)[number]


def test_a_changed_bit_in_rtas(lab: Lab) -> None:
    firmware = (Path(FIRMWARE_DIR) / "slof.bin").read_bytes()
    assert firmware.count(RTAS) == 1
    slof = lab.artifacts / "slof.bin"
    slof.write_bytes(firmware.replace(RTAS, RTAS[:3] + bytes([RTAS[3] ^ 1]) + RTAS[4:]))
    secure = SecureLab(lab)
    machine = secure.linux("true", smp=1, firmware="slof", failures=(), extra=["-bios", str(slof)])
    text = machine.console.expect_end(120)
    assert "Returned -4 from switching to secure mode." in text
    # Linux ends itself with RTAS, which works as before.
    assert "OS terminated: Switch to secure mode failed." in machine.messages()
    (verdict,) = verdicts(secure)
    assert "rtas: " in verdict
    for other in ("kernel: ", "initrd: ", "bootargs: "):
        assert other not in verdict
