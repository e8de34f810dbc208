# SPDX-License-Identifier: Apache-2.0
"""What a guest that runs a suite boots: its archive, its script, and whether it fits its memory."""

from __future__ import annotations

import gzip
import lzma
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from hcalld.core.errors import ConfigError
from hcalld.guest.cpio import File, Node, archive, tree
from hcalld.guest.kernel import Kernel, program_of
from hcalld.guest.plan import Suite

PLACE: Final = "/kselftest"
"""Where the archive has the kernel's selftests, as ``make install`` of theirs lays them out."""

_SUITES: Final = f"{PLACE}/suites"
"""What is expected is not for the guest."""

SCRIPT: Final = "/run.sh"
"""What the archive's first process runs."""

USER: Final = "script"
"""The collection that a user's script is in."""

READY: Final = "hcalld: the guest is up"
"""The guest's first words from user space."""

NO_TESTS: Final = 125
"""The exit status of a script that finds no selftests."""

KERNEL_LOG: Final = "--- the kernel's log"
"""What comes before it, when all tests have ended."""

EXIT: Final = r"^EXIT: STATUS=(\d+)$"

MIB: Final = 1 << 20

FIRMWARE_BYTES: Final = 40 * MIB
"""What QEMU keeps clear below the kernel's memory for the firmware (hw/ppc/spapr.c FW_OVERHEAD)."""

LOAD_LIMIT: Final = 2048 * MIB
"""QEMU loads kernel and initramfs below this (hw/ppc/spapr.c RTAS_MAX_ADDR)."""

WORKING_BYTES: Final = 96 * MIB
"""What a kernel and its processes need besides."""

_MAX_UNPACKED: Final = 8192 * MIB


def script(suite: Suite) -> bytes:
    """What the guest runs for a suite: kselftest's own runner, over a list that is given."""
    return f"""\
#!/bin/sh
echo {shlex.quote(READY)}
# Lines of the kernel's must not come into the middle of a result; its whole log follows.
dmesg -n 3
finish() {{ status=$?; echo; echo {shlex.quote(KERNEL_LOG)}; dmesg; exit $status; }}
trap finish EXIT
# What udev would make: kselftest's runner writes to /dev/stdout.
for link in fd:fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
    [ -e /dev/${{link%%:*}} ] || ln -s /proc/self/${{link#*:}} /dev/${{link%%:*}}
done
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts 2> /dev/null
mount -t tmpfs tmpfs /dev/shm 2> /dev/null
# Once each: tests look for the place in /proc/mounts.
for kind in debugfs:/sys/kernel/debug tracefs:/sys/kernel/tracing; do
    [ ! -d ${{kind#*:}} ] || grep -q " ${{kind#*:}} " /proc/mounts ||
        mount -t ${{kind%%:*}} none ${{kind#*:}}
done
[ ! -e /boot/vmlinux ] || ln -s vmlinux /boot/vmlinuz-$(uname -r)
# kselftest's runner has each line of a test go through sed, which holds one back: the last one
# before a crash. This one does not.
mkdir -p /run/bin
cat > /run/bin/sed << 'END'
#!/bin/sh
[ "$*" = "-e s/^/# /" ] || exec /bin/busybox sed "$@"
exec /bin/busybox awk '{{ print "# " $0; fflush() }}'
END
chmod 755 /run/bin/sed
export PATH=/run/bin:$PATH LC_ALL=C PYTHONDONTWRITEBYTECODE=1
cd {PLACE} || exit {NO_TESTS}
./run_kselftest.sh -f -o {suite.test_timeout_s}
""".encode()


def user_script(content: bytes, timeout_s: int) -> dict[str, bytes | Node]:
    """What the guest runs for a script of the user's, as a test of its own.

    A script that prints KTAP has its results counted as parts of that test.
    """
    return {
        f"{PLACE}/{USER}/run": File(content),
        f"{PLACE}/{USER}/settings": File(f"timeout={timeout_s}\n".encode(), 0o644),
    }


def additions(
    suite: Suite, tests: Path | None, kernel: Path, more: Mapping[str, bytes | Node]
) -> bytes:
    """The archive that goes behind the common one.

    Args:
        suite: Says what is run.
        tests: A directory with collections beside those of the kernel's source; None: none.
        kernel: What is booted.
        more: Other files of the guest.
    """
    nodes: dict[str, bytes | Node] = {}
    if tests is not None:
        listed = tree(tests, PLACE)
        nodes |= {name: node for name, node in listed.items() if not name.startswith(_SUITES)}
    names = "".join(f"{test.name}\n" for test in suite.test)
    nodes[f"{PLACE}/kselftest-list.txt"] = File(names.encode(), 0o644)
    nodes[SCRIPT] = script(suite)
    if suite.boot_image:
        nodes["/boot/vmlinux"] = File(program_of(kernel))
    nodes |= more
    return archive(nodes)


def must_fit(kernel: Kernel, initrd: Path, memory_mib: int) -> None:
    """Checks that a guest has room for what it boots, before it dies of it in silence.

    The kernel unpacks the archive while it is still there; the file system that it unpacks to
    takes half of the memory at most.

    Raises:
        ConfigError: It has not.
    """
    packed = initrd.stat().st_size
    loaded = kernel.memory_bytes + packed + FIRMWARE_BYTES
    memory = memory_mib * MIB
    if loaded > min(memory, LOAD_LIMIT):
        raise ConfigError(
            f"{initrd} ({_mib(packed)} MiB) and the kernel ({_mib(kernel.memory_bytes)} MiB) are "
            f"loaded below {_mib(min(memory, LOAD_LIMIT))} MiB, of which the firmware takes "
            f"{_mib(FIRMWARE_BYTES)}; give the guest more memory by --memory-mib, or make the "
            "initramfs smaller"
        )
    unpacked = unpacked_size(initrd)
    needed = max(kernel.memory_bytes + packed + unpacked + WORKING_BYTES, 2 * unpacked)
    if needed > memory:
        raise ConfigError(
            f"{initrd} has {_mib(packed)} MiB, {_mib(unpacked)} when it is unpacked, which takes "
            f"about {_mib(needed)} MiB of memory with the kernel; the guest has {memory_mib}. Give "
            "it more by --memory-mib, or make the initramfs smaller"
        )


def unpacked_size(initrd: Path) -> int:
    """How large an archive is without its compression, as far as this program knows it.

    Of other compressions three times the size is assumed.
    """
    with initrd.open("rb") as file:
        magic = file.read(6)
    openers: dict[bytes, Callable[[Path], gzip.GzipFile | lzma.LZMAFile]] = {
        b"\x1f\x8b": gzip.GzipFile,
        b"\xfd7zXZ\0": lzma.LZMAFile,
    }
    for sign, opener in openers.items():
        if magic.startswith(sign):
            size = 0
            try:
                with opener(initrd) as unpacking:
                    while size < _MAX_UNPACKED and (chunk := unpacking.read(MIB)):
                        size += len(chunk)
            except (OSError, EOFError, lzma.LZMAError) as error:
                raise ConfigError(f"{initrd} cannot be unpacked: {error}") from None
            return size
    size = initrd.stat().st_size
    return size if magic.startswith((b"07070", b"\0")) else 3 * size


def _mib(size: int) -> int:
    return -(-size // MIB)
