# SPDX-License-Identifier: Apache-2.0
"""The guest kernels: Debian's own, and one built here with what Debian's leaves out.

Debian's show that an unmodified kernel is served. They have neither PPC_SECURE_BOOT, nor PPC_SVM,
nor trusted keys, so one is built from Debian's kernel source with ``guest-kernel.config``, a
fragment that ``allnoconfig`` grows from, and one with pages of 64 KiB that has less of it, but can
load modules. All are little-endian. Debian's for x86-64 is for guests with SEV.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from . import pins
from .cache import Cache, digest_of, sha256_of
from .errors import ProvisionError
from .fetch import Fetched, fetch
from .machine import processors
from .progress import Word, duration, kbuild_steps, output, run, say

FRAGMENT = Path(__file__).with_name("guest-kernel.config")

CROSS_COMPILE = "powerpc64le-linux-gnu-"

BUILD_STEPS = {"kernel-own": 1900, "kernel-own-64k": 1400}
"""Steps that the builds of our own kernels name, for the progress only."""

BUILD_CORE_S = {"kernel-own": 700, "kernel-own-64k": 450}
"""Processor seconds that the builds take, for the estimate only."""

RECIPE = "1"
"""Counts up when the steps below change what they make from the same inputs."""

MODULES = Path(__file__).parents[2] / "guest_stub" / "linux"
"""Kernel modules of ours, and what kbuild makes of them."""

MODULE_FILES = ("Kbuild", "hcall-tpm.c")

TPM_MODULE = "hcall-tpm.ko"
"""A TPM driver, which lies beside our kernel with pages of 64 KiB."""

WRAPPER = "boot"
"""Beside it too: the wrapper that makes a zImage of the kernel, and what it links in."""

WRAPPER_FILES = {
    **{name: f"usr/sbin/{name}" for name in ("wrapper", "addnote")},
    **{
        name: f"usr/lib/kernel-wrapper/{name}"
        for name in ("zImage.lds", "wrapper.a", "pseries-head.o", "of.o", "epapr.o", "empty.o")
    },
}
"""What is in it, and where the kernel's own installation has each. It needs a script too:"""

WRAPPER_SCRIPT = "scripts/file-size.sh"

LEFT_OUT_64K = (
    # Networks.
    *("NET", "UNIX", "INET", "PACKET", "NETDEVICES", "NET_CORE", "VIRTIO_NET"),
    *("ETHERNET", "NET_VENDOR_IBM", "IBMVETH"),
    # Other disks than virtio's, and file systems.
    *("SCSI", "SCSI_LOWLEVEL", "SCSI_IBMVSCSI", "BLK_DEV_SD", "EXT4_FS"),
    # Keyrings and keys, which do not ask for the size of a page.
    *("TRUSTED_KEYS", "TRUSTED_KEYS_PKWM", "ENCRYPTED_KEYS", "INTEGRITY_TRUSTED_KEYRING"),
    *("INTEGRITY_PLATFORM_KEYRING", "LOAD_PPC_KEYS", "SYSTEM_TRUSTED_KEYRING"),
    *("SECONDARY_TRUSTED_KEYRING", "SYSTEM_BLACKLIST_KEYRING", "INTEGRITY_MACHINE_KEYRING"),
    *("INTEGRITY_CA_MACHINE_KEYRING", "SYSTEM_REVOCATION_LIST"),
    # The rest.
    *("TCG_IBMVTPM", "IBMVIO", "HW_RANDOM", "HW_RANDOM_PSERIES", "RD_XZ"),
    *("IKCONFIG", "IKCONFIG_PROC", "DEBUG_FS", "DYNAMIC_DEBUG", "DTL", "MEMORY_HOTPLUG"),
    *("MEMORY_HOTREMOVE", "CRASH_DUMP", "PROC_VMCORE"),
    *("INOTIFY_USER", "EPOLL", "SIGNALFD", "EVENTFD"),
    # What the kernel's selftests want, which run on the other.
    *("SYSVIPC", "PERF_EVENTS", "PPC_MEM_KEYS"),
    *("IMA_READ_POLICY", "IMA_APPRAISE_MODSIG"),
)
"""Options of the fragment that the kernel with pages of 64 KiB goes without, to be built sooner."""


PLACES: Final = ("boot/vmlinux-*", "usr/lib/modules/*/vmlinuz")
"""Where Debian's package has the kernel, an ELF file in both: that of Linux 7 has it below /usr."""


def debian(cache: Cache, environ: Mapping[str, str] = os.environ) -> Path:
    """Gives the stock kernel of Debian 13.

    Returns:
        Path of its vmlinux.
    """
    return stock(cache, "kernel-debian", pins.KERNEL_DEBIAN, environ)


def debian_sid(cache: Cache, environ: Mapping[str, str] = os.environ) -> Path:
    """Gives the newest stock kernel of Debian's.

    Returns:
        Path of its vmlinux.
    """
    return stock(cache, "kernel-debian-sid", pins.KERNEL_DEBIAN_SID, environ)


def debian_64k(cache: Cache, environ: Mapping[str, str] = os.environ) -> Path:
    """Gives the newest stock kernel of Debian's with pages of 64 KiB.

    Returns:
        Path of its vmlinux.
    """
    return stock(cache, "kernel-debian-64k", pins.KERNEL_DEBIAN_64K, environ)


def stock(cache: Cache, kind: str, pin: pins.Pin, environ: Mapping[str, str]) -> Path:
    """Gives a kernel as Debian ships it."""
    package = fetch(cache, pin, environ=environ)

    def make(directory: Path) -> None:
        with cache.scratch() as unpacked:
            unpack(package.path, unpacked)
            kernels = [path for place in PLACES for path in sorted(unpacked.glob(place))]
            if len(kernels) != 1:
                raise ProvisionError(
                    f"{package.path.name} holds {len(kernels)} files {' or '.join(PLACES)}; "
                    "expected one"
                )
            kernels[0].rename(directory / "vmlinux")
            for config in (unpacked / "boot").glob("config-*"):
                config.rename(directory / "config")

    inputs = {"package": package.sha256, "recipe": RECIPE}
    return cache.entry(kind, inputs, make) / "vmlinux"


def x86(cache: Cache, environ: Mapping[str, str] = os.environ) -> Path:
    """Gives the stock kernel of Debian 13 for virtual machines on x86-64, as an ELF file.

    QEMU starts that by its PVH entry, as it is. It would have to patch a bzImage, and does not for
    a guest with SEV, whose firmware should.

    Returns:
        Path of its vmlinux.
    """
    package = fetch(cache, pins.KERNEL_X86, environ=environ)

    def make(directory: Path) -> None:
        with cache.scratch() as unpacked:
            unpack(package.path, unpacked)
            images = sorted((unpacked / "boot").glob("vmlinuz-*"))
            if len(images) != 1:
                raise ProvisionError(
                    f"{package.path.name} holds {len(images)} files boot/vmlinuz-*; expected one"
                )
            (directory / "vmlinux").write_bytes(decompress(images[0].read_bytes()))

    inputs = {"package": package.sha256, "recipe": RECIPE}
    return cache.entry("kernel-x86", inputs, make) / "vmlinux"


ZSTD: Final = bytes.fromhex("28b52ffd")
"""What data begins with that zstd has compressed (RFC 8878)."""


def decompress(image: bytes) -> bytes:
    """Gives the ELF file in a bzImage (Linux Documentation/arch/x86/boot.rst).

    Raises:
        ProvisionError: There is none, or it is not compressed as Debian compresses this one.
    """
    if image[0x202:0x206] != b"HdrS":
        raise ProvisionError("the kernel is no bzImage: it has no HdrS at 0x202")
    offset, size = struct.unpack_from("<II", image, 0x248)
    start = (image[0x1F1] + 1) * 512 + offset
    # Behind it is how large it becomes.
    payload = image[start : start + size - 4]
    if not payload.startswith(ZSTD):
        raise ProvisionError(
            f"the kernel's payload begins with {payload[:4].hex()}; expected {ZSTD.hex()}, as zstd "
            "compresses it"
        )
    done = subprocess.run(["zstd", "-d", "-c"], input=payload, capture_output=True, check=False)
    if done.returncode or not done.stdout.startswith(b"\x7fELF"):
        raise ProvisionError(f"zstd did not give an ELF file: {done.stderr.decode().strip()}")
    return done.stdout


CHANGED_64K = {
    "CONFIG_PPC_4K_PAGES=y": ("CONFIG_PPC_64K_PAGES=y",),
    # Linux 7.2 counts whole pages of dispatch trace logs, 4 KiB for each CPU, and writes behind its
    # array of them when a secure VM has less than one (arch/powerpc/platforms/pseries/svm.c).
    "CONFIG_NR_CPUS=8": ("CONFIG_NR_CPUS=64",),
    "CONFIG_MODULES=n": ("CONFIG_MODULES=y", "CONFIG_MODULE_UNLOAD=y"),
}
"""Lines of the fragment that it has others for."""


def fragment_64k(fragment: str) -> str:
    """Gives the fragment of the kernel with pages of 64 KiB, from that with pages of 4 KiB."""
    left_out = {f"CONFIG_{name}" for name in LEFT_OUT_64K}
    lines = [line for line in fragment.splitlines() if line.partition("=")[0] not in left_out]
    changed = [other for line in lines for other in CHANGED_64K.get(line, (line,))]
    return "\n".join(changed) + "\n"


def own(cache: Cache, environ: Mapping[str, str] = os.environ) -> Path:
    """Gives our own kernel, building it when it is not there.

    Returns:
        Path of its vmlinux.
    """
    source = fetch(cache, pins.KERNEL_SOURCE, environ=environ)
    fragment = FRAGMENT.read_text(encoding="utf-8")
    inputs = {"source": source.sha256, "fragment": sha256_of(FRAGMENT), "recipe": RECIPE}

    def make(directory: Path) -> None:
        build(cache, source, fragment, "kernel-own", directory, extras=False)

    return cache.entry("kernel-own", inputs, make) / "vmlinux"


def own_64k(cache: Cache, environ: Mapping[str, str] = os.environ) -> Path:
    """Gives our own kernel with pages of 64 KiB, building it when it is not there.

    Returns:
        Path of its vmlinux; :data:`TPM_MODULE` and :data:`WRAPPER` lie beside it.
    """
    source = fetch(cache, pins.KERNEL_SOURCE, environ=environ)
    fragment = fragment_64k(FRAGMENT.read_text(encoding="utf-8"))
    inputs = {"source": source.sha256, "fragment": digest_of({"text": fragment}), "recipe": RECIPE}
    inputs |= {name: sha256_of(MODULES / name) for name in MODULE_FILES}

    def make(directory: Path) -> None:
        build(cache, source, fragment, "kernel-own-64k", directory, extras=True)

    return cache.entry("kernel-own-64k", inputs, make) / "vmlinux"


def build(
    cache: Cache, source: Fetched, fragment: str, kind: str, directory: Path, *, extras: bool
) -> None:
    """Unpacks the source, configures it from the fragment, builds vmlinux.

    Args:
        cache: Where to work.
        source: Debian's package of the source.
        fragment: Text of the configuration's fragment.
        kind: What is made.
        directory: Where it is made.
        extras: The modules and the wrapper too.
    """
    jobs = processors()
    say(
        f"building {kind} from {source.package} {source.version}: about "
        f"{duration(BUILD_CORE_S[kind] / jobs)} with {jobs} processors"
    )
    with cache.scratch() as scratch:
        log = cache.root / "logs" / f"{kind}-{source.version}.log"
        log.unlink(missing_ok=True)
        tree = scratch / "linux"
        tree.mkdir()
        with source_tarball(source, scratch) as tarball:
            say("unpacking the kernel's source")
            run(
                "unpacking the kernel's source",
                ["tar", "-xJf", tarball, "-C", tree, "--strip-components=1"],
                log=log,
            )
        make: list[Word] = ["make", "-C", tree, "ARCH=powerpc", f"CROSS_COMPILE={CROSS_COMPILE}"]
        config = scratch / "fragment.config"
        config.write_text(fragment, encoding="utf-8")
        # The same input is to give the same kernel, whoever builds it and when.
        env = {
            "KCONFIG_ALLCONFIG": str(config),
            "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 1970",
            "KBUILD_BUILD_USER": "hcalld",
            "KBUILD_BUILD_HOST": "provision",
        }
        run("configuring the kernel", [*make, "allnoconfig"], log=log, env=env)
        missing = lost_options(fragment, (tree / ".config").read_text(encoding="utf-8"))
        if missing:
            raise ProvisionError(
                f"the configuration of {source.package} {source.version} lost "
                f"{', '.join(missing)} of {FRAGMENT.name}; expected all to survive. A dependency "
                "changed: look each up in the kernel's Kconfig files and add what it needs"
            )
        run(
            kind,
            [*make, f"-j{jobs}", "vmlinux"],
            log=log,
            env=env,
            condense=kbuild_steps(BUILD_STEPS[kind]),
        )
        strip: list[Word] = [
            f"{CROSS_COMPILE}strip",
            "-g",
            "-o",
            directory / "vmlinux",
            tree / "vmlinux",
        ]
        run("stripping the kernel", strip, log=log)
        shutil.copy(tree / ".config", directory / "config")
        shutil.copy(tree / "System.map", directory / "System.map")
        if extras:
            build_module(make, scratch / "module", directory, log=log, env=env)
            (directory / WRAPPER).mkdir()
            build_wrapper(make, tree, scratch / "wrapper", directory / WRAPPER, log=log, env=env)


def build_module(
    make: list[Word], work: Path, directory: Path, *, log: Path, env: Mapping[str, str]
) -> None:
    """Builds the TPM driver as a module of the kernel that has just been built."""
    work.mkdir()
    for name in MODULE_FILES:
        shutil.copy(MODULES / name, work / name)
    # Without any module of its own the kernel still says which symbols it has.
    run("the kernel's symbols", [*make, "modules"], log=log, env=env)
    run("the TPM driver", [*make, f"M={work}", "modules"], log=log, env=env)
    strip: list[Word] = [f"{CROSS_COMPILE}strip", "-g", "-o", directory / TPM_MODULE]
    run("stripping the TPM driver", [*strip, work / TPM_MODULE], log=log)


def build_wrapper(
    make: list[Word],
    tree: Path,
    work: Path,
    directory: Path,
    *,
    log: Path,
    env: Mapping[str, str],
) -> None:
    """Builds what makes a zImage of the kernel, and keeps what of it makes one for pseries."""
    run(
        "the kernel's boot wrapper",
        [*make, f"DESTDIR={work}", "bootwrapper_install"],
        log=log,
        env=env,
    )
    for name, place in WRAPPER_FILES.items():
        shutil.copy(work / place, directory / name)
    (directory / WRAPPER_SCRIPT).parent.mkdir()
    shutil.copy(tree / WRAPPER_SCRIPT, directory / WRAPPER_SCRIPT)


@contextlib.contextmanager
def source_tarball(source: Fetched, scratch: Path) -> Iterator[Path]:
    """Gives the tarball in a package of the kernel's source, as long as it is wanted.

    Raises:
        ProvisionError: The package does not hold just one.
    """
    unpacked = scratch / "package"
    unpack(source.path, unpacked)
    tarballs = list((unpacked / "usr/src").glob("linux-source-*.tar.xz"))
    if len(tarballs) != 1:
        raise ProvisionError(
            f"{source.path.name} holds {len(tarballs)} files usr/src/linux-source-*.tar.xz; "
            "expected one"
        )
    yield tarballs[0]
    shutil.rmtree(unpacked)


def lost_options(fragment: str, config: str) -> list[str]:
    """Names the options that a fragment asks for and a configuration does not have.

    An option that is asked not to be set is as good as absent.
    """
    there = set(config.splitlines())
    return [
        line.partition("=")[0]
        for line in fragment.splitlines()
        if line.startswith("CONFIG_") and not line.endswith("=n") and line not in there
    ]


def unpack(package: Path, directory: Path) -> None:
    """Unpacks a Debian package without installing it."""
    output(["dpkg", "-x", package, directory])
