# SPDX-License-Identifier: Apache-2.0
"""What a launch must have measured: the launch digest, computed from files.

SHA-256 over the plaintext in QEMU's order: the firmware's image, the table of hashes if the guest
has ``kernel-hashes=on``, and the save area of each processor if it is one of SEV-ES. Where in
memory they are, and in which pieces, does not enter (AMD 55766, LAUNCH_UPDATE_DATA).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Final

from hcalld.guestowner import vmsa
from hcalld.guestowner.cputypes import MODELS
from hcalld.guestowner.errors import GuestOwnerError
from hcalld.guestowner.vmsa import InitStyle
from hcallproto.payloads.sev.errors import SevFormatError
from hcallproto.payloads.sev.footer import Area, Footer, parse_footer
from hcallproto.payloads.sev.tables import HASHES_TABLE_SIZE, HashesTable

_EMPTY: Final = hashlib.sha256().digest()
_MORE_CPUS: Final = 16
"""How many processors a diagnosis tries."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """What QEMU's -kernel, -initrd and -append name.

    Attributes:
        kernel: SHA-256 of the file, which QEMU hands over as it is.
        initrd: SHA-256 of the file; of nothing if there is none.
        cmdline: the text.
    """

    kernel: bytes
    initrd: bytes = _EMPTY
    cmdline: bytes = b""

    @property
    def table(self) -> bytes:
        """The hashes, as QEMU puts them into memory; a NUL ends the text."""
        cmdline = hashlib.sha256(self.cmdline + b"\0").digest()
        return HashesTable(kernel=self.kernel, initrd=self.initrd, cmdline=cmdline).build()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResetProcessors:
    """Processors of SEV-ES as a reset leaves them.

    Attributes:
        count: how many.
        signature: family, model and stepping, as CPUID 1 gives them in EAX.
        style: which command makes the VM.
        reset_address: where those other than the first begin; the firmware says so.
    """

    count: int
    signature: int
    style: InitStyle
    reset_address: int | None

    @property
    def pages(self) -> tuple[bytes, ...]:
        """Their save areas.

        Raises:
            GuestOwnerError: the firmware does not say where the others begin.
        """
        return vmsa.pages(self.count, self.reset_address, self.signature, self.style)

    def suspects(self) -> Iterator[tuple[str, ResetProcessors]]:
        """Others that it may have been, each with what would have been the mistake."""
        models = {"": self.signature} | {
            f"the processors are {name}": model.signature
            for name, model in MODELS.items()
            if model.signature != self.signature
        }
        styles = {"": self.style} | {
            f"the VM was made by {style.command}, not {self.style.command}": style
            for style in InitStyle
            if style is not self.style
        }
        for of_style, style in styles.items():
            for of_model, signature in models.items():
                what = ", and ".join(filter(None, (of_style, of_model)))
                if what:
                    yield what, dataclasses.replace(self, style=style, signature=signature)
        most = _MORE_CPUS if self.reset_address is not None else 1
        for count in range(1, most + 1):
            if count != self.count:
                yield f"there are {count} processors", dataclasses.replace(self, count=count)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DumpedProcessors:
    """Processors of SEV-ES, by dumps of their save areas.

    Attributes:
        count: how many.
        first: a page.
        others: a page, of each but the first.
    """

    count: int
    first: bytes
    others: bytes | None

    @property
    def pages(self) -> tuple[bytes, ...]:
        """Their save areas.

        Raises:
            GuestOwnerError: a dump is missing, or is no page.
        """
        return vmsa.from_files(self.count, self.first, self.others)

    def suspects(self) -> Iterator[tuple[str, DumpedProcessors]]:
        """Others that it may have been."""
        most = _MORE_CPUS if self.others is not None else 1
        for count in range(1, most + 1):
            if count != self.count:
                yield f"there are {count} processors", dataclasses.replace(self, count=count)


Processors = ResetProcessors | DumpedProcessors


class Launch:
    """A launch as its owner wants it.

    Args:
        firmware: the image.
        kernel: what is booted directly; None: nothing is, or it is not measured.
        processors: of a guest of SEV-ES; None: of one of SEV.
    """

    def __init__(
        self,
        firmware: bytes,
        kernel: Kernel | None = None,
        processors: Processors | None = None,
    ) -> None:
        self.kernel = kernel
        self.processors = processors
        self._firmware = hashlib.sha256(firmware)

    @property
    def digest(self) -> bytes:
        """The launch digest.

        Raises:
            GuestOwnerError: the processors' state cannot be known.
        """
        return self._digest_with(self.kernel, self.processors)

    def _digest_with(self, kernel: Kernel | None, processors: Processors | None) -> bytes:
        digest = self._firmware.copy()
        if kernel is not None:
            digest.update(kernel.table)
        for page in processors.pages if processors is not None else ():
            digest.update(page)
        return digest.digest()

    def suspects(self) -> Iterator[tuple[str, bytes]]:
        """Digests of launches that differ from this one by a usual mistake, which comes first."""
        for what, kernel in _kernel_suspects(self.kernel):
            yield what, self._digest_with(kernel, self.processors)
        for what, others in _processor_suspects(self.processors):
            yield what, self._digest_with(self.kernel, others)

    def double_suspects(self) -> Iterator[tuple[str, bytes]]:
        """And of those that differ by two."""
        processors = list(_processor_suspects(self.processors))
        for what, kernel in _kernel_suspects(self.kernel):
            for also, others in processors:
                yield f"{what}, and {also}", self._digest_with(kernel, others)


def _kernel_suspects(kernel: Kernel | None) -> Iterator[tuple[str, Kernel | None]]:
    if kernel is None:
        return
    yield "the kernel was not measured (kernel-hashes=on is missing from sev-guest)", None
    if kernel.initrd != _EMPTY:
        yield "there was no initrd", dataclasses.replace(kernel, initrd=_EMPTY)
    text = kernel.cmdline
    others = {
        "the command line was empty": b"",
        "the command line has no white space around it": text.strip(),
        "the command line ends with a newline": text + b"\n",
        "the command line ends with a space": text + b" ",
    }
    for what, other in others.items():
        if other != text:
            yield what, dataclasses.replace(kernel, cmdline=other)


def _processor_suspects(
    processors: Processors | None,
) -> Iterator[tuple[str, Processors | None]]:
    if processors is None:
        return
    yield "no processor's state was measured (a guest of SEV, not SEV-ES)", None
    yield from processors.suspects()


def footer_of(firmware: bytes) -> Footer:
    """The footer table of an image; empty if it has none.

    Raises:
        GuestOwnerError: the table is damaged.
    """
    try:
        return parse_footer(firmware) or Footer({})
    except SevFormatError as error:
        raise GuestOwnerError(f"the image is cut or damaged: {error}") from None


def hashes_area(footer: Footer) -> Area:
    """Where an image wants the hashes of a kernel.

    Raises:
        GuestOwnerError: it has no room for them, and QEMU ends at its start.
    """
    area = footer.hashes_area
    if area is None or area.size < HASHES_TABLE_SIZE:
        raise GuestOwnerError(
            "the firmware has no place for the hashes of a kernel, so QEMU refuses "
            "kernel-hashes=on with it; expected one that has, such as OVMF's AmdSev or "
            "guest_stub/x86/build/firmware.bin, or no --kernel"
        )
    return area
