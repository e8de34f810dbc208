# SPDX-License-Identifier: Apache-2.0
"""Linux as a secure VM: a blob, a TPM, and the daemon's ultravisor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.e2e.secure import SecureLab

if TYPE_CHECKING:
    from tests.e2e.lab import Lab

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

SVM = "/sys/devices/system/cpu/svm"


def svm_of_each(cpus: int) -> str:
    return f"""\
for cpu in $(seq 0 {cpus - 1}); do
    echo "svm $cpu $(taskset -c $cpu cat {SVM})"
done
"""


@pytest.mark.parametrize("memory", ["shared", "private"])
@pytest.mark.parametrize("firmware", ["vof", "slof"])
def test_linux_enters_secure_mode(firmware: str, memory: str, lab: Lab) -> None:
    secure = SecureLab(lab)
    machine = secure.linux(svm_of_each(2), smp=2, firmware=firmware, memory=memory)
    text = machine.console.expect_end(180)
    assert "svm 0 1" in text
    assert "svm 1 1" in text
    assert "EXIT: STATUS=0" in text
    assert "guest enters secure mode" in secure.daemon.log_text()


def flip(path: Path, position: int) -> Path:
    """A copy of a file with one bit that differs."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    changed = path.with_name(f"{path.name}.changed")
    changed.write_bytes(data)
    return changed


def refused(secure: SecureLab, vmlinux: Path, initrd: Path, cmdline: str) -> str:
    """Boots a guest that does not become secure; gives the reason in log and trace."""
    # Under VOF what prom_init says is not seen.
    machine = secure.start(vmlinux, initrd, cmdline, failures=(), firmware="slof")
    text = machine.console.expect_end(120)
    assert "Returned -4 from switching to secure mode." in text
    (line,) = [line for line in secure.daemon.trace_lines() if " UV_ESM(" in line]
    assert " = U_PARAMETER " in line
    (said,) = [
        line for line in secure.daemon.log_text().splitlines() if "does not become secure" in line
    ]
    reason = line.partition(" -- ")[2]
    assert reason.partition(";")[0] in said
    return reason


@pytest.mark.parametrize("what", ["kernel", "initrd", "bootargs"])
def test_one_changed_bit_is_refused(what: str, lab: Lab) -> None:
    secure = SecureLab(lab)
    cmdline = "console=hvc0 svm=1 swiotlb=force"
    vmlinux = lab.require("kernel-own")
    plain = secure.initrd("true", files={}, userland="initramfs")
    initrd = secure.blob(vmlinux, plain, cmdline)
    if what == "kernel":
        kernel = lab.artifacts / "vmlinux"
        kernel.write_bytes(vmlinux.read_bytes())
        at = kernel.read_bytes().index(b"Linux version")
        vmlinux = flip(kernel, at)
    elif what == "initrd":
        initrd = flip(initrd, -1)
    else:
        cmdline += " "
    reason = refused(secure, vmlinux, initrd, cmdline)
    assert f"{what}: " in reason
    for other in {"rtas", "kernel", "initrd", "bootargs"} - {what}:
        assert f"{other}: " not in reason


def test_another_machine_cannot_open_the_blob(lab: Lab) -> None:
    secure = SecureLab(lab)
    other = lab.artifacts / "other.pem"
    secure.provision(lab.artifacts / "other.state", other)
    cmdline = "console=hvc0 svm=1 swiotlb=force"
    vmlinux = lab.require("kernel-own")
    plain = secure.initrd("true", files={}, userland="initramfs")
    initrd = secure.blob(vmlinux, plain, cmdline, recipient=other)
    assert "key unavailable" in refused(secure, vmlinux, initrd, cmdline)


def test_without_a_key_in_the_tpm(lab: Lab, require: Callable[[str], Path]) -> None:
    require("swtpm")
    secure = SecureLab(lab, is_started=False)
    fresh = lab.daemon(*secure.daemon.options[:2], name="fresh")
    secure.daemon = fresh
    cmdline = "console=hvc0 svm=1 swiotlb=force"
    vmlinux = lab.require("kernel-own")
    plain = secure.initrd("true", files={}, userland="initramfs")
    initrd = secure.blob(vmlinux, plain, cmdline)
    assert "has no wrapping key" in refused(secure, vmlinux, initrd, cmdline)


def test_a_reset_ends_secure_mode_and_it_is_entered_again(lab: Lab) -> None:
    secure = SecureLab(lab)
    script = f"cat {SVM}; echo 'READY'; sleep 600"
    machine = secure.linux(script, smp=2, can_reboot=True)
    for _ in range(2):
        machine.console.expect("READY", 180)
        machine.qmp.execute("system_reset")
    machine.console.expect("READY", 180)
    assert secure.daemon.log_text().count("guest enters secure mode") == 3
