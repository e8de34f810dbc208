# SPDX-License-Identifier: Apache-2.0
"""A rule: which calls, when, and what goes wrong with them.

The same in a file of rules, on the control socket and on the command line::

    [[fault]]
    call = "H_PKS_WRAP_OBJECT"
    after = 3
    times = 5
    return = "H_LONG_BUSY_ORDER_10_MSEC"
"""

from __future__ import annotations

import enum
import re
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from hcalld.core.errors import ConfigError
from hcalld.families.uv.shim_table import FAMILY as SHIM_FAMILY
from hcallproto.abi.families import pks, sev, tpm, uv
from hcallproto.abi.registry import BY_NAME, CALLS, FAMILIES, FAMILY_OF
from hcallproto.abi.returns import CODE_SETS, Code, H, SevCode, U, code_name
from hcallproto.abi.spec import Arg, Direction, Hcall
from hcallproto.wire.schema import MAX_VCPUS

MAX_RULES: Final = 256
MAX_DELAY_MS: Final = 600_000
MAX_ARGUMENTS: Final = 16
MAX_NAME: Final = 256
"""Characters of a name in a rule."""

OF_SHIM: Final = {call.name: call for call in SHIM_FAMILY.calls}
"""QEMU's own calls. A rule is about one of them only if it names it."""

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Name = Annotated[str, msgspec.Meta(max_length=MAX_NAME)]


class Close(enum.Enum):
    """When a connection ends."""

    BEFORE = "before"
    """The call is not carried out."""
    AFTER = "after"
    """It is carried out and committed, and its reply is lost."""


class Gone(enum.Enum):
    """What a rule can take away for the time of a call."""

    TPM = "tpm"
    """The partition's TPM does not answer."""
    SPACE = "space"
    """The store is full: nothing can be committed, nor any key of a SEV platform be kept."""
    DISK = "disk"
    """What was committed cannot be flushed."""


class Corrupt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bits that are turned in a reply."""

    name: Name
    """An output register, or the address argument of a buffer that the call writes."""
    offset: Count = 0
    """Of the byte in a buffer; beyond what is written nothing is turned."""
    bits: Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)] = 1
    """Of the register, or (the lowest eight) of the byte."""


class Rule(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """One rule. Exactly one of the fields from ``returns`` on must be given, beside a delay."""

    call: Name = ""
    """A call's name, or a family's; "": every call that a guest makes."""
    guest: Name = ""
    """A partition's name; "": every guest."""
    vcpu: Annotated[int, msgspec.Meta(ge=0, lt=MAX_VCPUS)] | None = None
    arguments: Annotated[Mapping[Name, int | Name], msgspec.Meta(max_length=MAX_ARGUMENTS)] = {}
    """Arguments that must have these values; those with names by name as well, as ``A|B``."""
    after: Count = 0
    """So many calls that match are let pass first."""
    times: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """So many calls meet the rule, and no more; None: all."""
    probability: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1
    """Of each call that matches, drawn from ``seed``."""
    seed: Count = 0
    delay_ms: Annotated[int, msgspec.Meta(ge=1, le=MAX_DELAY_MS)] | None = None
    """Before the call is looked at."""
    returns: Name | int | None = msgspec.field(default=None, name="return")
    """The code that the guest gets instead; the call is not carried out."""
    drop_reply: bool = False
    """The call is carried out, and the guest's side never hears of it."""
    corrupt: Corrupt | None = None
    close: Close | None = None
    """The connection ends."""
    gone: Gone | None = None

    def __post_init__(self) -> None:
        """Refuse what could never do anything, or not only one thing."""
        actions = self._actions()
        if len(actions) > 1:
            raise ValueError(f"{' and '.join(actions)} contradict each other; give one")
        if not actions and self.delay_ms is None:
            raise ValueError(
                "nothing goes wrong; give one of return, drop_reply, corrupt, close, gone or a "
                "delay_ms"
            )
        calls = calls_of(self.call)
        if self.call in OF_SHIM and actions and actions[0] not in _FOR_SHIM:
            raise ValueError(
                f"{actions[0]}: QEMU makes {self.call} itself, and does not look at what it "
                f"returns; what can go wrong with it is {', '.join(_FOR_SHIM)} or a delay_ms"
            )
        if self.returns is not None:
            for hcall in calls:
                status_of(self.returns, hcall)
        for name, wanted in self.arguments.items():
            self._check_argument(name, wanted, calls)
        if self.corrupt is not None:
            self._check_corrupt(self.corrupt, calls)
        users = _USERS.get(self.gone)
        if users is not None and not any(hcall in users for hcall in calls):
            assert self.gone is not None
            raise ValueError(
                f"gone: {self.call} does not need the {self.gone.value}; expected "
                + " or ".join(hcall.name for hcall in users)
            )

    def _actions(self) -> list[str]:
        return [
            name
            for name, is_there in (
                ("return", self.returns is not None),
                ("drop_reply", self.drop_reply),
                ("corrupt", self.corrupt is not None),
                ("close", self.close is not None),
                ("gone", self.gone is not None),
            )
            if is_there
        ]

    def _check_argument(self, name: str, wanted: int | str, calls: tuple[Hcall, ...]) -> None:
        args = [arg for hcall in calls for arg in hcall.args if arg.name == name]
        if not args:
            known = sorted({arg.name for hcall in calls for arg in hcall.args})
            raise ValueError(
                f"arguments: no argument {name!r} in {self.call or 'any call'}; there are: "
                + (", ".join(known) or "none")
            )
        if isinstance(wanted, int):
            if not -(1 << 63) <= wanted < 1 << 64:
                raise ValueError(f"arguments: {name} {wanted} does not fit a register")
        elif all(value_of(arg, wanted) is None for arg in args):
            known = sorted({one for arg in args for one in _value_names(arg)})
            raise ValueError(
                f"arguments: {name} has no value {wanted!r}; expected a number"
                + (f", or of: {', '.join(known)}" if known else "")
            )

    def _check_corrupt(self, corrupt: Corrupt, calls: tuple[Hcall, ...]) -> None:
        known = sorted({one for hcall in calls for one in _result_names(hcall)})
        if corrupt.name not in known:
            raise ValueError(
                f"corrupt: no result {corrupt.name!r} in {self.call or 'any call'}; there are: "
                + (", ".join(known) or "none")
            )
        is_register = any(
            output.name == corrupt.name for hcall in calls for output in hcall.outputs
        )
        is_buffer = any(corrupt.name == name for hcall in calls for name in _written(hcall))
        if corrupt.offset and not is_buffer:
            raise ValueError(f"corrupt: {corrupt.name!r} is a register, and has no offset")
        if corrupt.bits > _BYTE and not is_register:
            raise ValueError(f"corrupt: bits {corrupt.bits:#x} are more than those of a byte")

    @property
    def is_endless(self) -> bool:
        """Every call that matches meets it."""
        return not self.after and self.times is None and self.probability == 1

    def summary(self) -> str:
        """All of it on a line: which calls, when, and what goes wrong."""
        calls = self.call or "every call"
        if self.guest:
            calls += f" of {self.guest!r}"
        if self.vcpu is not None:
            calls += f" by cpu{self.vcpu}"
        parts = [calls]
        if self.arguments:
            parts.append("with " + ", ".join(f"{n}={v}" for n, v in self.arguments.items()))
        if self.after:
            parts.append(f"after {self.after}")
        if self.times is not None:
            parts.append(f"{self.times} times" if self.times > 1 else "once")
        if self.probability < 1:
            parts.append(f"with probability {self.probability:g} (seed {self.seed})")
        return ", ".join(parts) + ": " + self.describe()

    def describe(self) -> str:
        """In a few words, for the trace and lists."""
        delay = f"{self.delay_ms} ms" if self.delay_ms is not None else ""
        if self.returns is not None:
            what = f"return {self.returns}"
        elif self.drop_reply:
            what = "no reply"
        elif self.corrupt is not None:
            what = f"corrupt {self.corrupt.name}"
        elif self.close is not None:
            what = f"close {self.close.value}"
        elif self.gone is not None:
            what = f"no {self.gone.value}"
        else:
            what = ""
        return ", ".join(filter(None, (delay and f"delay {delay}", what)))


def calls_of(name: str) -> tuple[Hcall, ...]:
    """The calls that a rule's ``call`` means.

    Raises:
        ValueError: there are none.
    """
    if not name:
        return CALLS
    if name in BY_NAME:
        return (BY_NAME[name],)
    if name in OF_SHIM:
        return (OF_SHIM[name],)
    found = tuple(call for call in CALLS if FAMILY_OF[call.name].name == name)
    if not found:
        families = ", ".join(family.name for family in FAMILIES)
        raise ValueError(
            f"call: no call {name!r}; expected a name that 'hcalld list' shows, or a "
            f"family: {families}"
        )
    return found


_CODES: Final = {code_name(code): code for codes in CODE_SETS for code in codes}
_SPELLINGS: Final[Mapping[type[Code], str]] = {
    H: "a code H_...",
    U: "a code U_...",
    SevCode: "a status SEV_RET_..., an errno such as EBUSY",
}


def status_of(returns: str | int, hcall: Hcall) -> int:
    """The value of r3 that a rule's ``return`` means for a call.

    Raises:
        ValueError: the call's kind has no such code.
    """
    if isinstance(returns, int):
        if not -(1 << 63) <= returns < 1 << 63:
            raise ValueError(f"return: {returns} does not fit a register")
        return returns
    code = _CODES.get(returns)
    if code is None:
        raise ValueError(
            f"return: no return code {returns!r}; expected one such as "
            + ("SEV_RET_HWERROR_PLATFORM" if hcall.return_codes is SevCode else "H_BUSY")
            + ", or a number"
        )
    if not isinstance(code, hcall.return_codes):
        raise ValueError(
            f"return: {hcall.name} does not return {returns}; expected "
            f"{_SPELLINGS[hcall.return_codes]}, or a number"
        )
    return int(code)


def value_of(arg: Arg, wanted: str) -> int | None:
    """The number that names, joined by ``|``, mean for an argument; None: it has none such."""
    names: Mapping[str, int] = arg.names.__members__ if arg.names is not None else {}
    values = [names.get(one.strip()) for one in wanted.split("|")]
    result = 0
    for value in values:
        if value is None:
            return None
        result |= int(value)
    return result


def _value_names(arg: Arg) -> list[str]:
    return list(arg.names.__members__) if arg.names is not None else []


def _written(hcall: Hcall) -> list[str]:
    return [one.address for one in hcall.buffers if one.direction is Direction.OUT]


def _result_names(hcall: Hcall) -> list[str]:
    return [output.name for output in hcall.outputs] + _written(hcall)


_BYTE: Final = 0xFF
_FOR_SHIM: Final = ("drop_reply", "close")
_USERS: Final[Mapping[Gone | None, tuple[Hcall, ...]]] = {
    Gone.TPM: (tpm.TPM_COMM, uv.ESM),
    Gone.DISK: (
        pks.CONFIRM_OBJECT_FLUSHED,
        sev.FACTORY_RESET,
        sev.PEK_GEN,
        sev.PDH_GEN,
        sev.PEK_CERT_IMPORT,
    ),
}
"""The calls that need what can be gone; any of them may need space."""


# -- files ------------------------------------------------------------------------------------


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    fault: list[Rule] = []


_PLACE: Final = re.compile(r" - at `\$(?:\.fault\[(\d+)\])?\.?([^`]*)`$")
"""Where in a file msgspec found something wrong: the rule from 0 on, and the field."""


def parse(text: str, source: str) -> list[Rule]:
    """The rules of a file.

    Args:
        text: TOML, with a table ``[[fault]]`` for each rule.
        source: its name, for messages.

    Raises:
        ConfigError: it is malformed; the text says which rule, which field and why.
    """
    try:
        raw: dict[str, Any] = tomllib.loads(text)
        return msgspec.convert(raw, _File).fault
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: {error}") from None
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigError(f"{source}: {placed(str(error))}") from None


def placed(why: str) -> str:
    """What msgspec says, with the rule's number and the field in front."""
    found = _PLACE.search(why)
    if found is None:
        return why
    place = f"rule {int(found[1]) + 1}: " if found[1] is not None else ""
    field = f"{found[2]}: " if found[2] else ""
    return f"{place}{field}{why[: found.start()]}"
