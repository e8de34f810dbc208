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
from hcalld.cli.qemu_args import RECONNECT_MS, command

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
