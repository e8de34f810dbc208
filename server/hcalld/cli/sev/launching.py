# SPDX-License-Identifier: Apache-2.0
"""Options that say what is launched, and its keys; the names of three tools' for each."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from typing import TYPE_CHECKING, Final

import click

from hcalld.cli.bundle import bundle
from hcalld.cli.files import read_whole
from hcalld.cli.sev.options import U32_MAX, about, number, path_type
from hcalld.domain.sev.settings import MAX_VCPUS

if TYPE_CHECKING:
    from hcalld.core.secret import Secret
    from hcalld.guestowner.launch import Launch, Processors

MAX_FIRMWARE_SIZE: Final = 64 << 20
MAX_IMAGE_SIZE: Final = 1 << 30
"""Bytes of a kernel or an initrd."""

_OPTIONS: Final = (
    click.option(
        "--firmware", "--ovmf", "-f", type=path_type, help="The image that QEMU's pflash has."
    ),
    click.option(
        "--kernel",
        "-k",
        type=path_type,
        help="The kernel that QEMU boots directly, with kernel-hashes=on.",
    ),
    click.option("--initrd", "-r", type=path_type, help="Its initrd."),
    click.option("--append", "--cmdline", "-e", "append", metavar="TEXT", help="Its command line."),
    click.option(
        "--vcpus",
        "--num-cpus",
        "-n",
        "vcpus",
        type=click.IntRange(1, MAX_VCPUS),
        help="How many processors a guest of SEV-ES has.",
    ),
    click.option(
        "--vcpu-type", metavar="NAME", help="Their QEMU type, such as EPYC or EPYC-Milan-v2."
    ),
    click.option("--vcpu-family", "--cpu-family", "vcpu_family", type=int, help="Their family,"),
    click.option("--vcpu-model", "--cpu-model", "vcpu_model", type=int, help="their model,"),
    click.option(
        "--vcpu-stepping",
        "--cpu-stepping",
        "vcpu_stepping",
        type=int,
        help="and their stepping, instead of a type.",
    ),
    click.option(
        "--vcpu-sig", metavar="NUMBER", help="Or all three, as CPUID 1 gives them in EAX."
    ),
    click.option(
        "--vmsa-cpu0",
        "-0",
        type=path_type,
        help="Or a dump of the first one's save area (VMSA), a page,",
    ),
    click.option(
        "--vmsa-cpu1", "-1", type=path_type, help="and one of that of each of the others."
    ),
    click.option(
        "--init",
        type=click.Choice(("es-init", "init2")),
        default="es-init",
        show_default=True,
        help="Which command makes the VM, hence who fills in the state of the FPU: QEMU up to 9.0 "
        "has es-init, newer ones have init2 where the kernel has it.",
    ),
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOptions:
    """What a user says is launched; nothing is read yet."""

    firmware: pathlib.Path | None
    kernel: pathlib.Path | None
    initrd: pathlib.Path | None
    append: str | None
    vcpus: int | None
    vcpu_type: str | None
    vcpu_family: int | None
    vcpu_model: int | None
    vcpu_stepping: int | None
    vcpu_sig: str | None
    vmsa_cpu0: pathlib.Path | None
    vmsa_cpu1: pathlib.Path | None
    init: str

    def read(self, policy: int | None) -> Launch:
        """What is in the files.

        Args:
            policy: the guest's, if it is known: it says whether this is SEV-ES.

        Raises:
            ConfigError: a file is not what it must be.
            click.UsageError: options contradict each other.
        """
        from hcalld.guestowner.launch import Kernel, Launch
        from hcallproto.payloads.sev.constants import Policy

        if self.firmware is None:
            raise click.UsageError("give --firmware: what a launch measures first")
        kernel = None
        if self.kernel is not None:
            cmdline = os.fsencode(self.append or "")
            initrd = b"" if self.initrd is None else read_whole(self.initrd, MAX_IMAGE_SIZE)
            kernel = Kernel(
                kernel=hashlib.sha256(read_whole(self.kernel, MAX_IMAGE_SIZE)).digest(),
                initrd=hashlib.sha256(initrd).digest(),
                cmdline=cmdline,
            )
        elif self.initrd is not None or self.append is not None:
            raise click.UsageError("--initrd and --append go with --kernel")
        is_es = self._is_es(None if policy is None else bool(policy & Policy.ES))
        image = read_whole(self.firmware, MAX_FIRMWARE_SIZE)
        with about(self.firmware):
            self._check_hashes_area(image)
            processors = self._processors(image) if is_es else None
        return Launch(image, kernel, processors)

    @property
    def has_secret_area(self) -> bool:
        """Whether the firmware says where secrets go; True if there is none to be looked at."""
        from hcalld.guestowner.launch import footer_of

        if self.firmware is None:
            return True
        image = read_whole(self.firmware, MAX_FIRMWARE_SIZE)
        with about(self.firmware):
            return footer_of(image).secret_area is not None

    def _is_es(self, by_policy: bool | None) -> bool:
        given = any(
            value is not None
            for value in (
                self.vcpus,
                self.vcpu_type,
                self.vcpu_family,
                self.vcpu_model,
                self.vcpu_stepping,
                self.vcpu_sig,
                self.vmsa_cpu0,
                self.vmsa_cpu1,
            )
        )
        if by_policy is False and given:
            raise click.UsageError(
                "the policy is one of SEV, which measures no processors; leave out the options "
                "about them, or add es to the policy"
            )
        if by_policy and not given:
            raise click.UsageError(
                "the policy is one of SEV-ES, which measures the processors; give --vcpus and "
                "--vcpu-type, or --vmsa-cpu0"
            )
        return given

    def _check_hashes_area(self, image: bytes) -> None:
        from hcalld.guestowner.errors import GuestOwnerError
        from hcalld.guestowner.launch import footer_of, hashes_area

        footer = footer_of(image)
        try:
            if self.kernel is not None:
                hashes_area(footer)
        except GuestOwnerError as error:
            # A guest that was launched by something else may have been measured so.
            click.echo(f"{self.firmware}: {error}", err=True)

    def _processors(self, image: bytes) -> Processors:
        from hcalld.guestowner.launch import DumpedProcessors, ResetProcessors, footer_of
        from hcalld.guestowner.vmsa import InitStyle
        from hcallproto.payloads.sev.constants import PAGE_SIZE

        if self.vcpus is None:
            raise click.UsageError("give --vcpus: each processor is measured")
        signature = self._signature()
        if (signature is None) == (self.vmsa_cpu0 is None):
            raise click.UsageError(
                "describe the processors in one way: --vcpu-type, or --vcpu-family, --vcpu-model "
                "and --vcpu-stepping, or --vcpu-sig, or --vmsa-cpu0"
            )
        if signature is not None:
            if self.vmsa_cpu1 is not None:
                raise click.UsageError("--vmsa-cpu1 goes with --vmsa-cpu0")
            return ResetProcessors(
                count=self.vcpus,
                signature=signature,
                style=InitStyle(self.init),
                reset_address=footer_of(image).reset_address,
            )
        assert self.vmsa_cpu0 is not None
        others = None if self.vmsa_cpu1 is None else read_whole(self.vmsa_cpu1, PAGE_SIZE)
        return DumpedProcessors(
            count=self.vcpus, first=read_whole(self.vmsa_cpu0, PAGE_SIZE), others=others
        )

    def _signature(self) -> int | None:
        from hcalld.guestowner.cputypes import CpuModel, named

        parts = (self.vcpu_family, self.vcpu_model, self.vcpu_stepping)
        given = [part for part in parts if part is not None]
        ways = (self.vcpu_type is not None, bool(given), self.vcpu_sig is not None)
        if sum(ways) > 1 or len(given) not in (0, len(parts)):
            raise click.UsageError(
                "give --vcpu-type, or --vcpu-sig, or --vcpu-family with --vcpu-model and "
                "--vcpu-stepping"
            )
        if self.vcpu_type is not None:
            return named(self.vcpu_type).signature
        if self.vcpu_sig is not None:
            return number(self.vcpu_sig, "signature", U32_MAX)
        return CpuModel(*given).signature if given else None


launch_options = bundle("files", LaunchOptions, _OPTIONS)
"""What is launched; the command gets ``files``."""


# -- keys -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Keys:
    """Transport keys, as far as they were given."""

    tik: Secret | None
    tek: Secret | None


def _read_keys(tik: pathlib.Path | None, tek: pathlib.Path | None, tk: pathlib.Path | None) -> Keys:
    from hcalld.crypto.sev.kdf import KEY_SIZE, TransportKeys

    if tk is None:
        return Keys(_read_key(tik, KEY_SIZE), _read_key(tek, KEY_SIZE))
    if tik is not None or tek is not None:
        raise click.UsageError("--tk has both keys; leave out --tik and --tek")
    both = _read_key(tk, TransportKeys.SIZE)
    assert both is not None
    found = TransportKeys.parse(both.reveal())
    return Keys(found.tik, found.tek)


def _read_key(path: pathlib.Path | None, size: int) -> Secret | None:
    from hcalld.core.errors import ConfigError
    from hcalld.core.secret import Secret

    if path is None:
        return None
    data = read_whole(path, size)
    if len(data) != size:
        raise ConfigError(f"{path}: {len(data)} bytes, expected a key of {size} bytes")
    return Secret(data)


key_options = bundle(
    "keys",
    _read_keys,
    (
        click.option("--tik", type=path_type, help="The transport integrity key, a file."),
        click.option("--tek", type=path_type, help="The transport encryption key, a file."),
        click.option("--tk", type=path_type, help="Or both, TEK first, in one file."),
    ),
)
"""``--tik``, ``--tek`` and ``--tk``; the command gets ``keys``."""
