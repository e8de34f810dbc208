# SPDX-License-Identifier: Apache-2.0
"""libvirt's ``virt-qemu-sev-validate`` against measurements, hashes tables, secret packets."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from tests.conftest import Require
from tests.sev_platform import KEYS, VERSION, flipped

from hcalld.crypto.sev.errors import MacError
from hcalld.crypto.sev.measurement import measure
from hcalld.crypto.sev.packets import Packet, open_secret
from hcalld.guestowner.launch import Kernel
from hcalld.testing.sev import made_up
from hcallproto.payloads.sev import (
    MeasurementBlob,
    PacketHeader,
    SecretEntry,
    Version,
    build_secrets,
    parse_footer,
    parse_secrets,
)
from hcallproto.payloads.sev.footer import FOOTER_GUID, HASHES_AREA_GUID, RESET_BLOCK_GUID
from hcallproto.payloads.sev.tables import LUKS_KEY_GUID

GOOD, MISMATCH = 0, 1
POLICY = 0x3
FIRMWARE = made_up("firmware", 65536)
KERNEL = made_up("kernel", 5000)
INITRD = made_up("initrd", 300)
CMDLINE = "console=ttyS0 quiet"
GUID = UUID("e6f5a162-d67f-4750-a67c-5d065f2a9910")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """What a platform measured."""

    launched: bytes = FIRMWARE
    version: Version = VERSION
    policy: int = POLICY
    mnonce: bytes = bytes(range(16))

    def measurement(self) -> MeasurementBlob:
        digest = hashlib.sha256(self.launched).digest()
        measurement = measure(KEYS.tik, self.version, self.policy, digest, self.mnonce)
        return MeasurementBlob(measurement=measurement, mnonce=self.mnonce)


Validate = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def validate(require: Require, tmp_path: Path) -> Validate:
    """Run the program as a guest's owner who expects what ``expected`` says."""
    program = require("virt-qemu-sev-validate")
    for name, data in (
        *(("firmware", FIRMWARE), ("kernel", KERNEL), ("initrd", INITRD)),
        ("tk", KEYS.build()),
    ):
        (tmp_path / name).write_bytes(data)

    def run(
        blob: bytes, *words: str, expected: Launch | None = None
    ) -> subprocess.CompletedProcess[str]:
        told = expected or Launch()
        options = {
            "measurement": base64.b64encode(blob).decode(),
            "api-major": told.version.api_major,
            "api-minor": told.version.api_minor,
            "build-id": told.version.build,
            "policy": told.policy,
            "firmware": "firmware",
            "tk": "tk",
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        # The system's Python: its libraries are not those of a virtual environment.
        command = ["/usr/bin/python3", str(program), *arguments, *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


BOOT = ("--kernel=kernel", "--initrd=initrd", f"--cmdline={CMDLINE}")


@pytest.mark.parametrize("version", [VERSION, Version(0, 17, 0), Version(255, 255, 255)])
def test_measurement_when_the_program_computes_it_then_the_same(
    validate: Validate, version: Version
):
    launch = Launch(version=version)
    done = validate(launch.measurement().build(), expected=launch)
    assert (done.returncode, done.stdout) == (GOOD, "OK: Looks good to me\n"), done.stderr


@pytest.mark.parametrize(
    "launch",
    [
        Launch(launched=flipped(FIRMWARE, 40000)),
        Launch(version=Version(1, 55, 22)),
        Launch(version=Version(1, 54, 21)),
        Launch(version=Version(0, 55, 21)),
        Launch(version=Version(0, 16, 21)),
        Launch(policy=POLICY | 1 << 31),
    ],
)
def test_measurement_when_something_else_was_launched_then_the_program_refuses(
    validate: Validate, launch: Launch
):
    assert validate(launch.measurement().build()).returncode == MISMATCH


def test_measurement_when_its_nonce_is_altered_then_the_program_refuses(validate: Validate):
    blob = Launch().measurement().build()
    assert validate(flipped(blob, 47)).returncode == MISMATCH


def digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def test_hashes_table_when_the_program_makes_its_own_then_the_same(validate: Validate):
    kernel = Kernel(kernel=digest(KERNEL), initrd=digest(INITRD), cmdline=CMDLINE.encode())
    blob = Launch(launched=FIRMWARE + kernel.table).measurement().build()
    assert validate(blob, *BOOT).returncode == GOOD
    assert validate(blob, *BOOT[:2], f"{BOOT[2]}r").returncode == MISMATCH
    assert validate(blob, *BOOT[::2]).returncode == MISMATCH


def test_hashes_table_when_there_is_only_a_kernel_then_the_same(validate: Validate):
    kernel = Kernel(kernel=digest(KERNEL))
    blob = Launch(launched=FIRMWARE + kernel.table).measurement().build()
    assert validate(blob, "--kernel=kernel").returncode == GOOD


@pytest.mark.parametrize("size", [1, 24, 44, 1000])
def test_secrets_when_the_program_seals_them_then_we_open_them(
    validate: Validate, tmp_path: Path, size: int
):
    entries = (
        SecretEntry(LUKS_KEY_GUID, made_up("luks", size)),
        SecretEntry(GUID, made_up("another", 7)),
    )
    words = ["--secret-header=header", "--secret-payload=payload"]
    for name, entry in zip(("luks-key", str(GUID)), entries, strict=True):
        (tmp_path / name).write_bytes(entry.value)
        words.append(f"--inject-secret={name}:{name}")
    launch = Launch()
    done = validate(launch.measurement().build(), *words)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (GOOD, "OK: Injected 2 secrets")
    header, payload = (
        base64.b64decode((tmp_path / name).read_text()) for name in ("header", "payload")
    )
    packet = Packet(PacketHeader.parse(header), payload)
    measurement = launch.measurement().measurement

    def opened(measurement: bytes) -> bytes:
        return open_secret(
            KEYS,
            packet,
            guest_size=len(payload),
            measurement=measurement,
            api=launch.version.api,
        )

    table = opened(measurement)
    assert parse_secrets(table) == entries
    ours = build_secrets(entries)
    # What has whole blocks already, the program gives one more.
    assert table in (ours, ours + bytes(16))
    with pytest.raises(MacError):
        opened(flipped(measurement, 0))


def firmware_with_footer(entries: dict[UUID, bytes]) -> bytes:
    table = b"".join(
        data + (len(data) + 18).to_bytes(2, "little") + guid.bytes_le
        for guid, data in entries.items()
    )
    total = (len(table) + 18).to_bytes(2, "little")
    return made_up("image", 4096) + table + total + FOOTER_GUID.bytes_le + bytes(32)


def test_footer_when_the_program_reads_it_then_it_finds_the_same(require: Require):
    image = firmware_with_footer(
        {
            RESET_BLOCK_GUID: bytes.fromhex("04b08000"),
            GUID: b"what no one knows",
            HASHES_AREA_GUID: bytes.fromhex("00108000 00040000"),
        }
    )
    program = (
        "import runpy, sys; ovmf = runpy.run_path(sys.argv[1])['OVMF']();"
        "ovmf.load(sys.stdin.buffer.read());"
        "print({guid: data.hex() for guid, data in ovmf.entries.items()}, ovmf.reset_addr())"
    )
    command = ["/usr/bin/python3", "-c", program, str(require("virt-qemu-sev-validate"))]
    done = subprocess.run(command, input=image, capture_output=True, check=True)
    footer = parse_footer(image)
    assert footer is not None
    ours = {str(guid): data.hex() for guid, data in footer.entries.items()}
    assert done.stdout.decode() == f"{ours} {footer.reset_address}\n"
    assert footer.reset_address == 0x0080B004
