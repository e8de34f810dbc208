# SPDX-License-Identifier: Apache-2.0
"""Linux becomes a secure VM; with one byte of its initrd changed it does not."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Final

from tests.demo.stage import Stage, must, show, terminal, title, tool
from tests.e2e.console import LINUX_FAILURES
from tests.e2e.daemon import Daemon
from tests.e2e.machine import Guest, Machine
from tests.provision import initramfs

PARTITION: Final = "lpar8"
PROFILE: Final = """\
[tpm]
backend = "swtpm"

[pef]
enabled = true
page_shift = 12
"""
SECRET: Final = "correct-horse-battery-staple"
WRITTEN: Final = "written-by-a-secure-VM"
CMDLINE: Final = "console=hvc0 svm=1 swiotlb=force"
MEMORY_MIB: Final = 512
PAGE: Final = 4096
SCRIPT: Final = f"""\
for cpu in 0 1; do
    echo "CPU $cpu: /sys/devices/system/cpu/svm is \
$(taskset -c $cpu cat /sys/devices/system/cpu/svm)"
done
esmb-get-file rootd > /secret && echo "esmb-get-file rootd: $(cat /secret)"
yes {WRITTEN} | dd of=/dev/vda bs=64k count=64 iflag=fullblock 2>/dev/null && sync && \
    echo "4 MiB written to /dev/vda"
echo READY
sleep 600
"""
"""What the guest runs; it stays until the host has looked at it."""


def prepare(stage: Stage) -> None:
    """Puts a user's files into the folder."""
    (stage.folder / "profiles").mkdir()
    (stage.folder / "profiles" / f"{PARTITION}.toml").write_text(PROFILE, "utf-8")
    (stage.folder / "vmlinux").symlink_to(tool("HCALLD_KERNEL_OWN"))
    (stage.folder / "disk.pass").write_text(SECRET + "\n", "utf-8")
    (stage.folder / "disk.img").write_bytes(bytes(8 << 20))
    program = (tool("HCALLD_STUB_DIR") / "esmb-get-file").read_bytes()
    overlay = initramfs.overlay({"/run.sh": SCRIPT.encode(), "/bin/esmb-get-file": program})
    (stage.folder / "initrd.img").write_bytes(tool("HCALLD_INITRAMFS").read_bytes() + overlay)


def make_blob(stage: Stage) -> None:
    """Makes the blob with ``hcalld esm``, as a user does."""
    title("The guest's TPM, a swtpm, gets the key that opens its blob")
    stage.run(f"hcalld esm provision-tpm --partition {PARTITION} --pubkey machine.pem")
    title("A blob says what the guest must be, and carries a file that only it may read")
    stage.run(
        "openssl genrsa -out owner.key 2048 && openssl pkey -in owner.key -pubout > owner.pem"
    )
    stage.run(
        f"hcalld esm make --kernel vmlinux --initrd initrd.img --cmdline '{CMDLINE}' "
        "--owner owner.pem --recipient machine.pem --attach rootd=disk.pass -o guest.esm"
    )
    title("The blob is put before the initrd, where the firmware looks for it")
    stage.run("hcalld esm add guest.esm initrd.img -o initrd-esm.img")


def start(stage: Stage, initrd: str, name: str, failures: Sequence[str]) -> Machine:
    """Starts QEMU, and shows how a user would."""
    own = f"-M pseries,x-vof=on -smp 2 -nographic -name {PARTITION}"
    disk = "-drive file=disk.img,if=virtio,format=raw"
    terminal.print(
        f"  $ qemu-system-ppc64 {own} -kernel vmlinux -initrd {initrd} -append '{CMDLINE}' "
        f"{disk} $(hcalld qemu-args --secure --memory-size {MEMORY_MIB}M)",
        style="cyan",
    )
    socket = shlex.quote(str(stage.folder / "daemon.sock"))
    words = stage.words(
        f"hcalld qemu-args --secure --memory-size {MEMORY_MIB}M --socket-path {socket}"
    )
    # The console is ours, and so is the memory.
    del words[words.index("-m") :]
    at = words.index("-serial")
    del words[at : at + 2]
    guest = Guest(
        qemu=tool("HCALLD_QEMU"),
        kernel=stage.folder / "vmlinux",
        initrd=stage.folder / initrd,
        append=CMDLINE,
        smp=2,
        memory_mib=MEMORY_MIB,
        name=PARTITION,
        failures=failures,
        extra=[*disk.replace("disk.img", str(stage.folder / "disk.img")).split(), *words],
    )
    return Machine(guest, stage.folder, name=name)


def last_log_line(daemon: Daemon, text: str) -> str:
    """The daemon's last line of log with a text, its time and what follows left out.

    Raises:
        DemoError: There is none.
    """
    lines = [line for line in daemon.log_text().splitlines() if text in line]
    must(lines, f"the daemon's log has no line with {text!r}")
    return " ".join(lines[-1][lines[-1].index("[") :].split())


def boot(daemon: Daemon, stage: Stage) -> None:
    """The guest becomes secure, reads its secret and writes a disk; the host looks at it."""
    title(f"Linux boots and asks for secure mode ({CMDLINE.split()[1]})")
    with start(stage, "initrd-esm.img", "secure", LINUX_FAILURES) as machine:
        machine.console.expect("READY", 120)
        lines = machine.console.text.replace("\r", "").splitlines()
        for pattern in (r"CPU 0: .* is 1$", r"CPU 1: .* is 1$", SECRET, "MiB written"):
            (line,) = [line for line in lines if re.search(pattern, line)] or [""]
            must(line, f"the guest did not print {pattern!r}")
            show(line, style="green")
        show(f"hcalld's log: {last_log_line(daemon, 'guest enters secure mode')}")
        title("The host sees what went through shared pages, and zeros where all else is")
        stage.run("head -n 1 disk.img")
        seen = look_at_memory(stage, machine)
        stage.run("hcalld ctl guests    # its pages have 64 KiB")
    calls, pages = shared_pages(daemon)
    must(0 < seen <= pages, f"{seen} pages are seen, and {pages} are shared")
    show(f"pages that are not zeros: {seen} of {(MEMORY_MIB << 20) // PAGE}")
    show(f"pages that the guest has shared: {pages}, by {calls} calls of UV_SHARE_PAGE")


def look_at_memory(stage: Stage, machine: Machine) -> int:
    """QEMU's monitor saves the guest's memory; gives how many pages of it are not zeros."""
    size = MEMORY_MIB << 20
    dump = stage.folder / "ram.bin"
    terminal.print(f"  (qemu) pmemsave 0 {size} ram.bin", style="cyan")
    machine.qmp.execute("pmemsave", seconds=60, val=0, size=size, filename=str(dump))
    stage.run(f"grep -c -a {WRITTEN} ram.bin    # the disk's data, in bounce buffers")
    stage.run(f"grep -c -a {SECRET} ram.bin    # the secret: nowhere", status=1)
    content = dump.read_bytes()
    zeros = bytes(PAGE)
    return sum(content[at : at + PAGE] != zeros for at in range(0, size, PAGE))


def shared_pages(daemon: Daemon) -> tuple[int, int]:
    """How many UV_SHARE_PAGE the trace has, and of how many pages."""
    counts = [
        int(found[1])
        for line in daemon.trace_lines()
        if (found := re.search(r" UV_SHARE_PAGE\(gfn=\w+, count=(\d+)\) = U_SUCCESS ", line))
    ]
    return len(counts), sum(counts)


def alter(stage: Stage) -> None:
    """Changes one byte of the initrd: of what it writes to the disk."""
    title("One byte of the initrd is changed, as somebody might who owns the host")
    whole = (stage.folder / "initrd-esm.img").read_bytes()
    at = whole.rindex(WRITTEN.encode()) + WRITTEN.index("secure")
    stage.run(
        "cp initrd-esm.img altered.img && "
        f"printf S | dd of=altered.img bs=1 seek={at} conv=notrunc status=none"
    )


def refuse(daemon: Daemon, stage: Stage) -> None:
    """The altered guest does not become secure."""
    title("That guest does not become secure, and gets no secret")
    with start(stage, "altered.img", "altered", ()) as machine:
        text = machine.console.expect_end(60)
    must("READY" not in text, "the altered guest runs")
    said = [line for line in machine.messages().splitlines() if "OS terminated" in line]
    must(said, "the altered guest did not end itself")
    show(f"Linux, by way of QEMU: {said[-1].partition('OS terminated: ')[2]}", style="red")
    reason = last_log_line(daemon, "guest does not become secure")
    must("initrd: " in reason, f"the log gives another reason: {reason}")
    show(f"hcalld's log: {reason}", style="red")


def act(stage: Stage) -> None:
    """Runs all steps."""
    prepare(stage)
    make_blob(stage)
    profiles = stage.folder / "profiles"
    with Daemon(stage.folder, stage.folder, ("--profile-dir", str(profiles))) as daemon:
        boot(daemon, stage)
        alter(stage)
        refuse(daemon, stage)
