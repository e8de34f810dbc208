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
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from hcalld.core.errors import ConfigError
from hcallproto.abi.registry import BY_NAME, CALLS, FAMILIES, FAMILY_OF
from hcallproto.abi.returns import H, U, code_name
from hcallproto.abi.spec import Direction, Hcall

MAX_RULES: Final = 256
MAX_DELAY_MS: Final = 600_000

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Gone(enum.Enum):
    """What a rule can take away for the time of a call."""

    TPM = "tpm"
    """The partition's TPM does not answer."""
    SPACE = "space"
    """The store is full: nothing can be committed."""
    DISK = "disk"
    """What was committed cannot be flushed."""


class Corrupt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bits that are turned in a reply."""

    name: str
    """An output register, or the address argument of a buffer that the call writes."""
    offset: Count = 0
    """Of the byte in a buffer; beyond what is written nothing is turned."""
    bits: Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)] = 1
    """Of the register, or (the lowest eight) of the byte."""


class Rule(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """One rule. Exactly one of the fields from ``returns`` on must be given, beside a delay."""

    call: str = ""
    """A call's name, or a family's; "": every call."""
    guest: str = ""
    """A partition's name; "": every guest."""
    vcpu: Count | None = None
    arguments: Mapping[str, int | str] = {}
    """Arguments that must have these values; those with names by name as well."""
    after: Count = 0
    """So many calls that match are let pass first."""
    times: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """So many calls meet the rule, and no more; None: all."""
    probability: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1
    """Of each call that matches, drawn from ``seed``."""
    seed: Count = 0
    delay_ms: Annotated[int, msgspec.Meta(ge=1, le=MAX_DELAY_MS)] | None = None
    """Before the call is looked at."""
    returns: str | int | None = msgspec.field(default=None, name="return")
    """The code that the guest gets instead; the call is not carried out."""
    drop_reply: bool = False
    """The call is carried out, and the guest's side never hears of it."""
    corrupt: Corrupt | None = None
    close: bool = False
    """The connection ends before the call is carried out."""
    gone: Gone | None = None

    def __post_init__(self) -> None:
        """Refuse what could never do anything, or not only one thing."""
        actions = [
            name
            for name, is_there in (
                ("return", self.returns is not None),
                ("drop_reply", self.drop_reply),
                ("corrupt", self.corrupt is not None),
                ("close", self.close),
                ("gone", self.gone is not None),
            )
            if is_there
        ]
        if len(actions) > 1:
            raise ValueError(f"{' and '.join(actions)} contradict each other; give one")
        if not actions and self.delay_ms is None:
            raise ValueError(
                "nothing goes wrong; give one of return, drop_reply, corrupt, close, gone or a "
                "delay_ms"
            )
        calls = calls_of(self.call)
        if self.returns is not None:
            for hcall in calls:
                status_of(self.returns, hcall)
        for name in self.arguments:
            if not any(name in _argument_names(hcall) for hcall in calls):
                raise ValueError(
                    f"no argument {name!r} in {self.call or 'any call'}; there are: "
                    + ", ".join(sorted({one for hcall in calls for one in _argument_names(hcall)}))
                )
        if self.corrupt is not None:
            known = sorted({one for hcall in calls for one in _result_names(hcall)})
            if self.corrupt.name not in known:
                raise ValueError(
                    f"no result {self.corrupt.name!r} in {self.call or 'any call'}; there are: "
                    + (", ".join(known) or "none")
                )

    @property
    def is_endless(self) -> bool:
        """Every call that matches meets it."""
        return not self.after and self.times is None and self.probability == 1

    def describe(self) -> str:
        """In a few words, for the trace and lists."""
        delay = f"{self.delay_ms} ms" if self.delay_ms is not None else ""
        if self.returns is not None:
            what = f"return {self.returns}"
        elif self.drop_reply:
            what = "no reply"
        elif self.corrupt is not None:
            what = f"corrupt {self.corrupt.name}"
        elif self.close:
            what = "close"
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
    found = tuple(call for call in CALLS if FAMILY_OF[call.name].name == name)
    if not found:
        families = ", ".join(family.name for family in FAMILIES)
        raise ValueError(
            f"no call {name!r}; expected a name that 'hcalld list' shows, or a family: {families}"
        )
    return found


_CODES: Final = {code_name(code): code for codes in (H, U) for code in codes}


def status_of(returns: str | int, hcall: Hcall) -> int:
    """The value of r3 that a rule's ``return`` means for a call.

    Raises:
        ValueError: the call's kind has no such code.
    """
    if isinstance(returns, int):
        if not -(1 << 63) <= returns < 1 << 63:
            raise ValueError(f"return {returns} does not fit a register")
        return returns
    code = _CODES.get(returns)
    if code is None:
        raise ValueError(f"no return code {returns!r}; expected one such as H_BUSY, or a number")
    if not isinstance(code, hcall.return_codes):
        raise ValueError(f"{hcall.name} does not return {returns}: expected a code of its kind")
    return int(code)


def _argument_names(hcall: Hcall) -> list[str]:
    return [arg.name for arg in hcall.args]


def _result_names(hcall: Hcall) -> list[str]:
    buffers = [one.address for one in hcall.buffers if one.direction is Direction.OUT]
    return [output.name for output in hcall.outputs] + buffers


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    fault: list[Rule] = []


def parse(text: str, source: str) -> list[Rule]:
    """The rules of a file.

    Args:
        text: TOML, with a table ``[[fault]]`` for each rule.
        source: its name, for messages.

    Raises:
        ConfigError: it is malformed; the text says which rule and why.
    """
    try:
        raw: dict[str, Any] = tomllib.loads(text)
        return msgspec.convert(raw, _File).fault
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: {error}") from None
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigError(f"{source}: {error}") from None
