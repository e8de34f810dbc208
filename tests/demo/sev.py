# SPDX-License-Identifier: Apache-2.0
"""A SEV guest gets a secret of its owner; with one byte of its firmware changed it does not.

No AMD processor is needed, and no ``/dev/kvm``: the guest has memory and no processor. Where a QEMU
can run guests under KVM, one more is launched by that, and says itself what it was given.
"""

from __future__ import annotations

import dataclasses
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.demo.stage import Stage, must, show, terminal, title, tool
from tests.e2e.daemon import Daemon
from tests.e2e.machine import Machine
from tests.e2e.sevqemu import inject, secret_lines
from tests.provision import kvm

SECRET: Final = "correct-horse-battery-staple"
POLICY: Final = "nodbg,nosend"
WANTED: Final = (
    f"--firmware firmware.bin --policy {POLICY} "
    "--api-major 1 --api-minor 55 --build-id 21 --tk vm_tk.bin"
)
"""What the owner wants to be launched, and on which platform."""

SESSION: Final = "--dh-cert vm_godh.b64 --session vm_session.b64"
ALTERED_AT: Final = 100
QEMU: Final = "qemu-system-x86_64"


@dataclasses.dataclass(frozen=True, slots=True)
class Printed:
    """A guest that somebody has printed the command line of."""

    qemu: Path
    words: Sequence[str]
    smp: int = 1
    failures: Sequence[str] = ()

    def arguments(self) -> list[str]:
        """Its command line, the monitor and the console left out."""
        return [*self.words, "-display", "none", "-S"]


def prepare(stage: Stage) -> None:
    """The owner learns whom he deals with, and makes a session for one launch."""
    shutil.copy(tool("HCALLD_SEV_FIRMWARE"), stage.folder / "firmware.bin")
    (stage.folder / "passphrase").write_text(SECRET, "utf-8")
    title(
        "A platform, as AMD's secure processor is one, and the root that its guests' owners trust"
    )
    stage.run("hcalld sev root fetch root.cert && hcalld sev export platform.sev")
    stage.run("hcalld sev verify --sev platform.sev --root root.cert")
    title("A guest's owner makes a session that this platform alone can open")
    stage.run(f"hcalld sev session --root root.cert platform.sev {POLICY}")


def launch(daemon: Daemon, stage: Stage) -> None:
    """A guest without a processor is launched; its owner is convinced, and gives a secret."""
    title("The guest is launched with the commands that QEMU gives, and waits")
    command = (
        f"hcalld sev vm launch --firmware firmware.bin --policy {POLICY} {SESSION} "
        "--measurement-out measurement.b64 --wait-secret header.b64 payload.b64 "
        "--memory-out memory.bin"
    )
    with stage.beside(command, waits_for="measurement.b64"):
        title("Its owner compares what was measured with what he wants to be launched")
        stage.run(f'hcalld sev validate {WANTED} "$(cat measurement.b64)"')
        title("He packs a secret that nobody but this guest gets")
        pack(stage, "measurement.b64")
        title("What the guest's host has printed meanwhile")
    title("The secret is in the guest's memory")
    stage.run(f"grep -a -o {SECRET} memory.bin")
    title("Every command of that launch, as hcalld answered it")
    show("\n".join(line for line in daemon.trace_lines() if " KVM_" in line))


def pack(stage: Stage, measurement: str, *, status: int = 0) -> None:
    """The owner packs his secret, if the launch is what he wants."""
    stage.run(
        f'hcalld sev secret --force {WANTED} "$(cat {measurement})" luks-key:passphrase '
        "--header header.b64 --payload payload.b64 > inject.json",
        status=status,
    )


def refuse(stage: Stage) -> None:
    """Another firmware is launched; its measurement shows it."""
    title("The host launches a firmware with one byte changed, and says that it did not")
    old = (stage.folder / "firmware.bin").read_bytes()[ALTERED_AT]
    new = "x" if old != ord("x") else "y"
    stage.run(
        "cp firmware.bin altered.bin && "
        f"printf {new} | dd of=altered.bin bs=1 seek={ALTERED_AT} conv=notrunc status=none"
    )
    stage.run(
        f"hcalld sev vm launch --firmware altered.bin --policy {POLICY} {SESSION} "
        "--measurement-out altered.b64"
    )
    title("That guest gets no secret")
    pack(stage, "altered.b64", status=1)


def launch_in_qemu(stage: Stage) -> None:
    """An unmodified QEMU launches the guest under KVM, and its firmware prints the secret."""
    why_not = kvm.why_not()
    qemu = shutil.which(QEMU)
    if why_not is None and qemu is None:
        why_not = f"{QEMU} is not installed"
    if why_not is not None or qemu is None:
        title(f"With {QEMU} the same goes for guests that run; not shown: {why_not}")
        return
    title("An unmodified QEMU, whose SEV commands a library takes to hcalld, and a guest that runs")
    command = (
        f"hcalld sev qemu-args --policy {POLICY} --firmware firmware.bin "
        "--dh-cert-file vm_godh.b64 --session-file vm_session.b64"
    )
    terminal.print(f'  $ eval "$({command}) -S ..."', style="cyan")
    words = stage.words(command)
    at = next(at for at, word in enumerate(words) if Path(word).name == QEMU)
    environ = dict(word.split("=", 1) for word in words[:at] if "=" in word)
    guest = Printed(Path(qemu), words[at + 1 :])
    with Machine(guest, stage.folder, name="sev", environ=environ) as machine:
        terminal.print('  (qemu) {"execute": "query-sev-launch-measure"}', style="cyan")
        measured = machine.qmp.execute("query-sev-launch-measure")["data"]
        show(measured)
        (stage.folder / "qemu.b64").write_text(measured)
        pack(stage, "qemu.b64")
        header, payload = (
            (stage.folder / name).read_text().strip() for name in ("header.b64", "payload.b64")
        )
        terminal.print('  (qemu) {"execute": "sev-inject-launch-secret", ...}', style="cyan")
        inject(machine, header, payload)
        terminal.print('  (qemu) {"execute": "cont"}', style="cyan")
        machine.qmp.execute("cont")
        machine.console.expect("firmware: done", 30)
        lines = [line for line in secret_lines(machine) if SECRET in line]
    must(lines, "the guest did not print the secret")
    show(f"the guest's serial port: secret: {lines[0]}", style="green")


def act(stage: Stage) -> None:
    """Runs all steps."""
    if platform.machine() != "x86_64":
        title(f"Guests with SEV are x86-64's; not shown on {platform.machine()}")
        return
    socket = ("--socket-path", str(stage.socket))
    with Daemon(stage.folder, stage.folder, socket, socket_path=False) as daemon:
        prepare(stage)
        launch(daemon, stage)
        refuse(stage)
        launch_in_qemu(stage)
