# SPDX-License-Identifier: Apache-2.0
"""``hcalld qemu-args``: what QEMU needs, for a shell and for libvirt."""

from __future__ import annotations

import os
import pathlib
import shlex
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from hcalld.cli import paths
from hcalld.cli.qemu_args import RECONNECT_MS, VIRTIO_PCI, command

QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"


def run(*words: str) -> Result:
    return CliRunner().invoke(command, list(words))


def arguments(*words: str) -> list[str]:
    done = run(*words)
    assert done.exit_code == 0, done.output
    assert done.stdout.count("\n") == 1
    return shlex.split(done.stdout)


def options(argument: str) -> dict[str, str]:
    """A QEMU option's values; a doubled comma is one comma of a value."""
    pairs = argument.replace(",,", "\0").split(",")
    split = [pair.replace("\0", ",").partition("=") for pair in pairs]
    return {name: value for name, _, value in split}


def test_arguments_when_a_socket_is_named_then_chardev_and_device_name_each_other():
    chardev_option, chardev, device_option, device = arguments("--socket-path", "/run/hc.sock")
    assert (chardev_option, device_option) == ("-chardev", "-device")
    assert options(chardev) == {
        "socket": "",
        "id": "hc",
        "path": "/run/hc.sock",
        "reconnect-ms": str(RECONNECT_MS),
    }
    assert options(device) == {"spapr-hcall-proxy": "", "chardev": "hc"}


def test_arguments_when_no_socket_is_named_then_it_is_where_serve_listens():
    _, chardev, _, _ = arguments()
    assert options(chardev)["path"] == str(paths.socket_path())


def test_arguments_when_the_path_is_relative_then_it_holds_from_everywhere():
    _, chardev, _, _ = arguments("--socket-path", "hc.sock")
    assert options(chardev)["path"] == os.fspath(pathlib.Path.cwd() / "hc.sock")


@pytest.mark.parametrize("name", ["a,b", "with space", "quo'te", "dollar$x", "a,,b,server=on"])
def test_arguments_when_the_path_is_odd_then_neither_shell_nor_qemu_splits_it(name: str):
    _, chardev, _, _ = arguments("--socket-path", f"/run/{name}")
    assert options(chardev)["path"] == f"/run/{name}"


def test_arguments_when_optional_then_the_device_may_start_alone():
    assert options(arguments("--optional")[3])["optional"] == "on"


def test_arguments_when_memory_is_shared_then_the_machine_has_it_as_its_ram():
    words = arguments("--memory-size", "1G")[4:]
    assert words[:2] == ["-m", "1G"]
    backend = options(words[words.index("-object") + 1])
    assert backend == {
        "memory-backend-memfd": "",
        "id": "ram",
        "size": "1G",
        "share": "on",
    }
    assert options(words[words.index("-machine") + 1]) == {"memory-backend": "ram"}


def globals_of(words: list[str]) -> dict[str, str]:
    pairs = [words[at + 1] for at, word in enumerate(words) if word == "-global"]
    return dict(pair.split("=") for pair in pairs)


def test_arguments_when_secure_then_virtio_is_mapped_and_the_console_is_all_else():
    words = arguments("--secure", "--memory-size", "1G")[4:]
    assert words[:3] == ["-nodefaults", "-serial", "mon:stdio"]
    assert words[words.index("-m") + 1] == "1G"
    properties = globals_of(words)
    assert properties.pop("virtio-device.iommu_platform") == "on"
    windows = {name for name in properties if name.startswith("spapr-pci-host-bridge.")}
    assert {name: properties.pop(name) for name in windows} == {
        "spapr-pci-host-bridge.dma64_win_addr": "0x40000000",
        "spapr-pci-host-bridge.dma_win_size": "0x40000000",
    }
    assert properties == {f"{device}.disable-legacy": "on" for device in VIRTIO_PCI}


@pytest.mark.parametrize(
    ("size", "window", "first"),
    [
        ("256", 256 << 20, 256 << 20),
        ("768m", 1 << 30, 1 << 30),
        ("4G", 4 << 30, 1 << 30),
        ("4097M", 8 << 30, 1 << 30),
        ("1TB", 1 << 40, 1 << 30),
    ],
)
def test_arguments_when_secure_then_its_windows_go_by_its_memory(
    size: str, window: int, first: int
):
    properties = globals_of(arguments("--secure", "--memory-size", size))
    assert properties["spapr-pci-host-bridge.dma64_win_addr"] == hex(window)
    assert properties["spapr-pci-host-bridge.dma_win_size"] == hex(first)


@pytest.mark.parametrize("size", ["", "much", "-1", "1.5G", "1K", "9999T"])
def test_arguments_when_secure_and_the_size_is_none_then_it_is_refused(size: str):
    done = run("--secure", "--memory-size", size)
    assert done.exit_code == 2
    assert "expected a size such as 512M" in done.stderr


def test_arguments_when_secure_without_a_size_then_it_is_asked_for():
    done = run("--secure")
    assert done.exit_code == 2
    assert "--secure needs --memory-size" in done.stderr


def test_libvirt_when_secure_then_devices_are_left_to_libvirt():
    done = run("--libvirt", "--secure", "--memory-size", "1G")
    domain = ElementTree.fromstring(done.stdout)
    values = [arg.get("value", "") for arg in domain.findall(f"{QEMU}commandline/{QEMU}arg")]
    assert globals_of(values) == globals_of(arguments("--secure", "--memory-size", "1G"))
    assert "-m" not in values
    assert "-nodefaults" not in values
    assert "-serial" not in values


def test_libvirt_when_asked_then_it_is_xml_with_the_same_options():
    done = run("--libvirt", "--socket-path", "/run/<&>.sock", "--optional")
    assert done.exit_code == 0
    domain = ElementTree.fromstring(done.stdout)
    assert domain.tag == "domain"
    values = [arg.get("value") for arg in domain.findall(f"{QEMU}commandline/{QEMU}arg")]
    assert values == arguments("--socket-path", "/run/<&>.sock", "--optional")
    source = domain.find("memoryBacking/source")
    access = domain.find("memoryBacking/access")
    assert source is not None
    assert access is not None
    assert (source.get("type"), access.get("mode")) == ("memfd", "shared")


def test_libvirt_when_a_memory_size_is_given_then_it_is_refused():
    done = run("--libvirt", "--memory-size", "1G")
    assert done.exit_code == 2
    assert "--memory-size" in done.stderr
