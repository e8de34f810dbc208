# SPDX-License-Identifier: Apache-2.0
"""``hcalld qemu-args``: the options that QEMU needs for this daemon."""

from __future__ import annotations

import pathlib
import re
import shlex
from xml.etree import ElementTree

import click

from hcalld.cli import paths

_QEMU_NS = "http://libvirt.org/schemas/domain/qemu/1.0"
RECONNECT_MS = 100
DEFAULT_WINDOW_SIZE = 1 << 30
"""QEMU's, of the DMA window that a guest has from the start."""

VIRTIO_PCI = ("virtio-blk-pci", "virtio-net-pci", "virtio-rng-pci", "virtio-scsi-pci")
"""What a secure VM usually has. A pseries machine's own devices do DMA to pages that are not
shared, which is refused, and their drivers wait for ever."""


def device_arguments(socket_path: pathlib.Path, *, optional: bool) -> list[str]:
    """The chardev and the device."""
    chardev = f"socket,id=hc,path={_escape(str(socket_path))},reconnect-ms={RECONNECT_MS}"
    device = "spapr-hcall-proxy,chardev=hc" + (",optional=on" if optional else "")
    return ["-chardev", chardev, "-device", device]


def memory_arguments(size: str) -> list[str]:
    """RAM that the daemon can read without asking: a shared memfd."""
    return [
        "-object",
        f"memory-backend-memfd,id=ram,size={size},share=on",
        "-machine",
        "memory-backend=ram",
    ]


def virtio_arguments() -> list[str]:
    """Virtio devices whose DMA goes where the guest maps it, which is its bounce buffers.

    QEMU has iommu_platform only with the modern interface alone.
    """
    words = ["-global", "virtio-device.iommu_platform=on"]
    for device in VIRTIO_PCI:
        words += ["-global", f"{device}.disable-legacy=on"]
    return words


def window_arguments(memory_bytes: int) -> list[str]:
    """DMA windows through which Linux 7.2 bounces as it should (docs/pef.md).

    The 64-bit window begins at the guest's memory size, rounded up to a power of two; the one
    that a guest has from the start begins at 0, and must not reach it.
    """
    size = 1 << (memory_bytes - 1).bit_length()
    options = {"dma64_win_addr": size, "dma_win_size": min(size, DEFAULT_WINDOW_SIZE)}
    return [
        word
        for name, value in options.items()
        for word in ("-global", f"spapr-pci-host-bridge.{name}=0x{value:x}")
    ]


def secure_arguments() -> list[str]:
    """What else a secure VM needs: not QEMU's default devices, of which it keeps the console."""
    return ["-nodefaults", "-serial", "mon:stdio"]


def memory_bytes(size: str) -> int:
    """A memory size as ``-m`` takes it, MiB without a suffix.

    Raises:
        click.BadParameter: it is none.
    """
    found = re.fullmatch(r"(\d+)([KMGT]?)B?", size, re.IGNORECASE)
    shift = {"": 20, "K": 10, "M": 20, "G": 30, "T": 40}
    number = int(found[1]) << shift[found[2].upper()] if found else 0
    if not 1 << 20 <= number <= 1 << 50:
        raise click.BadParameter(f"--memory-size {size}: expected a size such as 512M or 4G")
    return number


def _escape(value: str) -> str:
    """A comma in a QEMU option value is doubled."""
    return value.replace(",", ",,")


def libvirt_xml(arguments: list[str]) -> str:
    """What to put into a libvirt domain: the options, and shared memory by libvirt itself."""
    ElementTree.register_namespace("qemu", _QEMU_NS)
    domain = ElementTree.Element("domain", type="qemu")
    backing = ElementTree.SubElement(domain, "memoryBacking")
    ElementTree.SubElement(backing, "source", type="memfd")
    ElementTree.SubElement(backing, "access", mode="shared")
    commandline = ElementTree.SubElement(domain, f"{{{_QEMU_NS}}}commandline")
    for argument in arguments:
        ElementTree.SubElement(commandline, f"{{{_QEMU_NS}}}arg", value=argument)
    ElementTree.indent(domain)
    return ElementTree.tostring(domain, encoding="unicode")


@click.command(name="qemu-args", short_help="Print the options that QEMU needs.")
@click.option(
    "--socket-path",
    type=click.Path(path_type=pathlib.Path),
    help="The daemon's socket (default: where 'hcalld serve' listens).",
)
@click.option("--memory-size", metavar="SIZE", help="Add shared RAM of this size, as for -m.")
@click.option("--optional", is_flag=True, help="Let QEMU start without a daemon.")
@click.option(
    "--secure",
    is_flag=True,
    help="For a secure VM: no default devices but the console, virtio through shared pages.",
)
@click.option("--libvirt", is_flag=True, help="As libvirt domain XML.")
def command(
    *,
    socket_path: pathlib.Path | None,
    memory_size: str | None,
    optional: bool,
    secure: bool,
    libvirt: bool,
) -> None:
    """Print the QEMU options that attach a guest to the daemon, ready for a shell."""
    if secure and memory_size is None:
        raise click.UsageError("--secure needs --memory-size: its DMA windows depend on it")
    if libvirt and memory_size is not None and not secure:
        raise click.UsageError("--memory-size is not for --libvirt: the domain has its own size")
    path = (socket_path or paths.socket_path()).absolute()
    arguments = device_arguments(path, optional=optional)
    devices: list[str] = []
    if secure and memory_size is not None:
        devices = virtio_arguments() + window_arguments(memory_bytes(memory_size))
    if libvirt:
        # libvirt adds no default devices, and makes the console.
        click.echo(libvirt_xml(arguments + devices))
        return
    if secure:
        arguments += secure_arguments() + devices
    if memory_size is not None:
        arguments += ["-m", memory_size, *memory_arguments(memory_size)]
    click.echo(shlex.join(arguments))
