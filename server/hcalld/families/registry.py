# SPDX-License-Identifier: Apache-2.0
"""The families that are served: their handlers and how their models are built.

This list is the registration. ``hcallproto`` declares the calls; a test holds the two
together: each call that is not ``decode_only`` has exactly one handler.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterable
from typing import Any, Generic

from hcalld.core.handlers import HandlerSet, Model, ModelT
from hcalld.core.records import Record
from hcalld.domain.attributes import PartitionAttributes
from hcalld.domain.keystore import Keystore
from hcalld.domain.pef.machine import PefMachine
from hcalld.domain.sev.vm import SevVm
from hcalld.domain.tpm import TpmModel
from hcalld.families.pks.handlers import HANDLERS as PKS
from hcalld.families.sev.handlers import HANDLERS as SEV
from hcalld.families.svm.handlers import HANDLERS as SVM
from hcalld.families.tpm.handlers import HANDLERS as TPM
from hcalld.families.uv.handlers import HANDLERS as UV
from hcallproto.wire.schema import Feature

__all__ = ["SERVED", "Kind", "Model", "Served"]


class Kind(enum.Enum):
    """Who a partition is for."""

    GUEST = "a pseries guest"
    CLIENT = "a program that uses SEV"

    @classmethod
    def of(cls, features: Feature) -> Kind:
        """By what a connection's HELLO offers, or its WELCOME takes."""
        return cls.CLIENT if Feature.COMMANDS in features else cls.GUEST

    @property
    def is_machine(self) -> bool:
        """It has a device tree, and its store has all that outlives its connection.

        A client has neither: nothing of it is anywhere but in the models.
        """
        return self is Kind.GUEST


@dataclasses.dataclass(frozen=True, slots=True)
class Served(Generic[ModelT]):
    """One family that is served."""

    handlers: HandlerSet[ModelT]
    build: Callable[[PartitionAttributes, Iterable[Record]], ModelT]
    """A partition's model from its attributes and all of its records.

    Raises StoreError for records that cannot be read, ConfigError for attributes that
    do not fit them.
    """
    needs_tpm: bool = False
    """Served only where the partition has a TPM; elsewhere the shim is told nothing of it."""
    needs_pef: bool = False
    """Served only where the partition may be a secure VM, and its QEMU can have one."""
    kind: Kind = Kind.GUEST
    """Of the partitions that it is served to."""
    shares: str | None = None
    """The family before it whose model it uses too, instead of building one."""
    held: Callable[[ModelT], str] = lambda _: ""
    """What a model has that no store holds, as a clause; "" if nothing."""


SERVED: tuple[Served[Any], ...] = (
    Served(PKS, Keystore),
    Served(TPM, TpmModel, needs_tpm=True),
    Served(UV, PefMachine.build, needs_pef=True, held=PefMachine.held),
    Served(SVM, PefMachine.build, needs_pef=True, shares=UV.family.name),
    Served(SEV, SevVm.build, kind=Kind.CLIENT, held=SevVm.held),
)
