# SPDX-License-Identifier: Apache-2.0
"""What QEMU is told about SEV, and how the processor is asked."""

from __future__ import annotations

import mmap
import platform
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hcalld.guest import sevhost
from hcalld.guest.sevhost import SevHostError

IS_X86 = platform.machine() == "x86_64"


def cpuid_by_compiler(leaf: int, folder: Path) -> int:
    """EBX as a program of GCC's reads it."""
    source, program = folder / "cpuid.c", folder / "cpuid"
    source.write_text(
        "#include <cpuid.h>\n#include <stdio.h>\n#include <stdlib.h>\n"
        "int main(int argc, char **argv)\n{\n\tunsigned a, b, c, d;\n"
        "\t__cpuid_count(strtoul(argv[argc - 1], 0, 0), 0, a, b, c, d);\n"
        '\tprintf("%u\\n", b);\n}\n'
    )
    subprocess.run(["gcc", "-o", program, source], check=True)
    return int(subprocess.run([program, hex(leaf)], capture_output=True, check=True).stdout)


if IS_X86:
    # Leaf 0 has a fixed name in EBX; 0x80000002 part of the processor's; the last is ours.
    @pytest.mark.parametrize("leaf", [0, 7, 0x80000002, sevhost.SEV_LEAF])
    def test_cpuid_ebx_when_a_leaf_is_read_then_it_is_what_gcc_reads(leaf: int, tmp_path: Path):
        assert sevhost.cpuid_ebx(leaf) == cpuid_by_compiler(leaf, tmp_path)

    def test_cbitpos_when_asked_then_it_is_six_bits_of_the_leaf():
        assert sevhost.cbitpos() == sevhost.cpuid_ebx(sevhost.SEV_LEAF) & 0x3F


def test_cbitpos_when_the_machine_is_no_x86_then_it_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(platform, "machine", lambda: "ppc64le")
    with pytest.raises(SevHostError, match="ppc64le; a guest with SEV needs KVM on x86_64"):
        sevhost.cbitpos()


def test_cbitpos_when_no_memory_may_be_run_then_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
):
    def refuse(*_words: object, **_named: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(SevHostError, match="give cbitpos by hand"):
        sevhost.cbitpos()


def test_sev_arguments_when_all_is_given_then_commas_are_doubled():
    words = sevhost.sev_arguments(
        policy=5,
        dh_cert=Path("/x/a,b"),
        session=Path("/x/s"),
        kernel_hashes=True,
        c_bit=51,
    )
    assert words == [
        "-object",
        "sev-guest,id=sev0,cbitpos=51,reduced-phys-bits=1,policy=0x5,dh-cert-file=/x/a,,b,"
        "session-file=/x/s,kernel-hashes=on",
        "-machine",
        "confidential-guest-support=sev0",
        "-global",
        "x86_64-cpu.xlevel=0x8000001e",
    ]


def test_sev_arguments_when_nothing_is_given_then_policy_is_qemus_default():
    words = sevhost.sev_arguments(c_bit=0)
    assert words[1] == "sev-guest,id=sev0,cbitpos=0,reduced-phys-bits=1,policy=0x1"


def test_sev_environment_when_the_platform_is_unnamed_then_no_variable_names_it():
    library, socket_path = Path("/l.so"), Path("/s")
    assert sevhost.sev_environment(library, socket_path) == {
        "LD_PRELOAD": "/l.so",
        "HCALLD_SEV_SOCKET": "/s",
    }
    named = sevhost.sev_environment(library, socket_path, platform_name="")
    assert named["HCALLD_SEV_PLATFORM"] == ""


# -- libvirt's emulator ---------------------------------------------------------------------------

PROBE = ("-S", "-machine", "none,accel=kvm:tcg", "-daemonize")
LAUNCH = ("-accel", "kvm", "-object", '{"qom-type":"sev-guest","id":"lsec0"}')


class Emulator:
    """One that starts, for QEMU, a program that says how it was started."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "a socket"
        qemu = folder / "the qemu"
        variables = '"$LD_PRELOAD" "$HCALLD_SEV_SOCKET" "$HCALLD_SEV_PLATFORM"'
        qemu.write_text(f'#!/bin/sh\nprintf "%s\\n" {variables} "$@"\n')
        qemu.chmod(0o755)
        environ = sevhost.sev_environment(Path("/no-lib.so"), self.socket, platform_name="it's")
        self.path = folder / "emulator"
        self.path.write_text(sevhost.emulator_script(qemu, environ))
        self.path.chmod(0o755)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([self.path, *words], capture_output=True, text=True, check=False)

    def words(self, *words: str) -> list[str]:
        """The command line that its QEMU gets, after the variables."""
        said = self.run(*words).stdout.splitlines()
        assert said[:3] == ["/no-lib.so", str(self.socket), "it's"]
        return said[3:]


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[Emulator]:
    made = Emulator(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(made.socket))
        yield made


def test_emulator_when_it_is_asked_what_it_can_do_then_qemu_answers(emulator: Emulator):
    assert emulator.words(*PROBE) == [*PROBE]


def test_emulator_when_the_daemon_is_not_there_then_no_answer_is_one_without_sev(
    emulator: Emulator,
):
    emulator.socket.unlink()
    done = emulator.run(*PROBE)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"hcalld: no socket {emulator.socket}; start hcalld serve\n"
    # Other guests are none of its business.
    assert emulator.words("-m", "64") == ["-m", "64"]


def test_emulator_when_the_guest_has_sev_then_it_does_not_see_the_leaf(emulator: Emulator):
    assert emulator.words(*LAUNCH) == [*LAUNCH, *sevhost.HIDDEN_LEAF]
    assert emulator.words("-name", "guest=a b", "") == ["-name", "guest=a b", ""]
