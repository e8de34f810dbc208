# SPDX-License-Identifier: Apache-2.0
"""H_PKS_*: the Platform KeyStore calls.

Source: Linux 7.2 ``arch/powerpc/platforms/pseries/plpks.c``,
``arch/powerpc/include/asm/hvcall.h`` and ``Documentation/arch/powerpc/papr_hcalls.rst``;
no public PAPR text covers these calls. Where Linux only lists a code, its condition is
our inference (``docs/hcalls/pks.rst`` says which).
"""

from __future__ import annotations

from hcallproto.abi.registers import U32_MAX
from hcallproto.abi.returns import H
from hcallproto.abi.spec import (
    Arg,
    ArgKind,
    Buffer,
    BufferShape,
    CodeWhen,
    Condition,
    Direction,
    Family,
    Hcall,
    Level,
    Limit,
    Output,
    address,
    flags,
    size,
    value,
)
from hcallproto.payloads.pks import (
    AUTH_ALIGNMENT,
    AUTH_HEADER,
    AUTH_HEADER_SIZE,
    CONFIG,
    CONFIG_FLAG_WRAP,
    CONFIG_MAX_SIZE,
    CONFIG_MIN_SIZE,
    SIGNED_UPDATE_MIN_SIZE,
    WRAP_ALGORITHM_MASK,
    WRAP_OVERHEAD,
    WRAPPING_KEY_SIZE,
    Consumer,
    Policy,
    WrapFlag,
    describe_auth,
    describe_label,
)

_PLPKS = "Linux 7.2 plpks.c"
_HCALLS = "Linux 7.2 papr_hcalls.rst"

_AUTH = address("auth", 4, "authorization structure")
_LABEL = address("label", 5, "object label")
_LABEL_SIZE = size("label_size", 6, "bytes of the label", minimum=1, maximum=Limit.MAX_LABEL_SIZE)
_POLICY = flags("policy", 7, "object policy bits", bits=Limit.SUPPORTED_POLICIES, names=Policy)

_AUTH_BUFFER = Buffer(
    address="auth",
    direction=Direction.IN,
    shape=BufferShape.PAGE_BOUNDED,
    max_size=Limit.MAX_PASSWORD_SIZE,
    header_size=AUTH_HEADER_SIZE,
    alignment=AUTH_ALIGNMENT,
    secret=True,
    open_size=AUTH_HEADER_SIZE,
    describe=describe_auth,
    layout=AUTH_HEADER,
)
_LABEL_BUFFER = Buffer(
    address="label",
    direction=Direction.IN,
    shape=BufferShape.SIZED,
    max_size=Limit.MAX_LABEL_SIZE,
    size="label_size",
    describe=describe_label,
)


def _in_buffer(max_size: Limit, *, secret: bool) -> Buffer:
    return Buffer(
        address="in",
        direction=Direction.IN,
        shape=BufferShape.SIZED,
        max_size=max_size,
        size="in_size",
        secret=secret,
    )


def _out_buffer(*, secret: bool, fresh: bool = False) -> Buffer:
    """One that may be larger than what is written to it."""
    return Buffer(
        address="out",
        direction=Direction.OUT,
        shape=BufferShape.SIZED,
        max_size=U32_MAX,
        size="out_size",
        secret=secret,
        fresh=fresh,
    )


_SUCCESS = CodeWhen(H.SUCCESS, "done")
_FUNCTION = CodeWhen(H.FUNCTION, "the keystore facility does not exist")
_STATE = CodeWhen(H.STATE, "the keystore is disabled for this partition")
_R_STATE = CodeWhen(H.R_STATE, "the partition's state blocks modification")
_AUTHORITY = CodeWhen(H.AUTHORITY, "wrong password, or the object's policy forbids it")
_NOT_FOUND = CodeWhen(H.NOT_FOUND, "no object has this label")
_RESOURCE = CodeWhen(H.RESOURCE, "an object with this label exists")
_NO_MEM = CodeWhen(H.NO_MEM, "the object does not fit in the space available")
_ABORTED = CodeWhen(H.ABORTED, "an error occurred while processing")
_BUSY = CodeWhen(H.BUSY, "cannot handle the request now")
_LONG_BUSY = tuple(
    CodeWhen(code, "in progress; call again with the token returned")
    for code in H
    if code.name.startswith("LONG_BUSY")
)
_TOKEN_OUT = Output(
    name="token",
    register=4,
    kind=ArgKind.TOKEN,
    doc="continue token; 0 when finished",
    also_with=tuple(entry.code for entry in (_BUSY, *_LONG_BUSY)),
    otherwise=0,
    fresh=True,
)
_BAD_AUTH = CodeWhen(H.PARAMETER, "authorization structure invalid")
_BAD_LABEL = CodeWhen(H.P2, "label buffer invalid")
_BAD_LABEL_SIZE = CodeWhen(H.P3, "label size 0 or above the greatest")
_COMMON = (_SUCCESS, _FUNCTION, _STATE)
_OBJECT = (*_COMMON, _BAD_AUTH, _BAD_LABEL, _BAD_LABEL_SIZE, _AUTHORITY, _ABORTED)

GET_CONFIG = Hcall(
    name="H_PKS_GET_CONFIG",
    number=0x41C,
    level=Level.SC1,
    doc="Read the keystore's configuration and space in use.",
    source=f"{_PLPKS} _plpks_get_config()",
    args=(
        address("buffer", 4, "configuration structure"),
        size(
            "buffer_size",
            5,
            "bytes of the buffer; the rest is zeroed",
            minimum=CONFIG_MIN_SIZE,
            maximum=CONFIG_MAX_SIZE,
        ),
    ),
    buffers=(
        Buffer(
            address="buffer",
            direction=Direction.OUT,
            shape=BufferShape.SIZED,
            max_size=CONFIG_MAX_SIZE,
            size="buffer_size",
            layout=CONFIG,
        ),
    ),
    codes=(
        *_COMMON,
        CodeWhen(H.PARAMETER, "buffer not in RAM"),
        CodeWhen(H.P2, f"buffer size not between {CONFIG_MIN_SIZE} and {CONFIG_MAX_SIZE}"),
    ),
    timeout_code=H.STATE,
    lost_code=H.STATE,
)


def _password_call(name: str, number: int, doc: str, source: str, direction: Direction) -> Hcall:
    return Hcall(
        name=name,
        number=number,
        level=Level.SC1,
        doc=doc,
        source=source,
        args=(
            value("consumer", 4, "whose password", names=Consumer),
            Arg(name="reserved", register=5, kind=ArgKind.ZERO, doc="0"),
            address("password", 6, "password buffer; must not cross a page"),
            size(
                "password_size",
                7,
                "bytes of the password",
                minimum=32,
                maximum=Limit.MAX_PASSWORD_SIZE,
            ),
        ),
        buffers=(
            Buffer(
                address="password",
                direction=direction,
                shape=BufferShape.SIZED,
                max_size=Limit.MAX_PASSWORD_SIZE,
                size="password_size",
                page_bounded=True,
                secret=True,
                fresh=direction is Direction.OUT,
            ),
        ),
        codes=(
            *_COMMON,
            CodeWhen(H.IN_USE, "the consumer has a password already; until the next reset"),
            CodeWhen(H.PARAMETER, "consumer not 1 to 3"),
            CodeWhen(H.P2, "reserved argument not 0"),
            CodeWhen(H.P3, "password buffer not in RAM or crosses a page"),
            CodeWhen(H.P4, "password size below 32 or above the greatest"),
            _ABORTED,
        ),
        effect_may_remain=True,
    )


SET_PASSWORD = _password_call(
    "H_PKS_SET_PASSWORD",
    0x420,
    "Set a consumer's password until the next reset (arguments inferred).",
    "Linux 7.2 hvcall.h (number only)",
    Direction.IN,
)
GEN_PASSWORD = _password_call(
    "H_PKS_GEN_PASSWORD",
    0x424,
    "Choose, set and return a consumer's password until the next reset.",
    f"{_PLPKS} plpks_gen_password()",
    Direction.OUT,
)

WRITE_OBJECT = Hcall(
    name="H_PKS_WRITE_OBJECT",
    number=0x42C,
    level=Level.SC1,
    doc="Create an object.",
    source=f"{_PLPKS} plpks_write_var()",
    args=(
        _AUTH,
        _LABEL,
        _LABEL_SIZE,
        _POLICY,
        address("data", 8, "object data; no alignment or page rule"),
        size("data_size", 9, "bytes of the data", minimum=1, maximum=Limit.MAX_OBJECT_SIZE),
    ),
    buffers=(
        _AUTH_BUFFER,
        _LABEL_BUFFER,
        Buffer(
            address="data",
            direction=Direction.IN,
            shape=BufferShape.SIZED,
            max_size=Limit.MAX_OBJECT_SIZE,
            size="data_size",
            secret=True,
        ),
    ),
    codes=(
        *_OBJECT,
        _R_STATE,
        CodeWhen(H.P4, "policy bits undefined, unsupported, or not for this call"),
        CodeWhen(H.P5, "data buffer not in RAM"),
        CodeWhen(H.P6, "data size 0 or above the greatest"),
        _RESOURCE,
        _NO_MEM,
    ),
    effect_may_remain=True,
)

GEN_KEY = Hcall(
    name="H_PKS_GEN_KEY",
    number=0x430,
    level=Level.SC1,
    doc="Create an object whose data are random, known to the hypervisor only if wrapping.",
    source=f"{_HCALLS} H_PKS_GEN_KEY",
    args=(
        _AUTH,
        _LABEL,
        _LABEL_SIZE,
        _POLICY,
        Arg(
            name="out",
            register=8,
            kind=ArgKind.ADDRESS,
            doc="where the key is written",
            only_when=Condition("policy", 0, mask=Policy.WRAPPINGKEY),
        ),
        size("out_size", 9, "bytes of the key", minimum=1, maximum=Limit.MAX_OBJECT_SIZE),
    ),
    buffers=(
        _AUTH_BUFFER,
        _LABEL_BUFFER,
        Buffer(
            address="out",
            direction=Direction.OUT,
            shape=BufferShape.SIZED,
            max_size=Limit.MAX_OBJECT_SIZE,
            size="out_size",
            secret=True,
            fresh=True,
        ),
    ),
    codes=(
        *_OBJECT,
        _R_STATE,
        CodeWhen(H.P4, "policy bits undefined, unsupported, or not for this call"),
        CodeWhen(H.P5, "output buffer not in RAM"),
        CodeWhen(
            H.P6, f"key size 0 or above the greatest; not {WRAPPING_KEY_SIZE} for a wrapping key"
        ),
        _NO_MEM,
        _BUSY,
        _RESOURCE,
    ),
    effect_may_remain=True,
)

READ_OBJECT = Hcall(
    name="H_PKS_READ_OBJECT",
    number=0x434,
    level=Level.SC1,
    doc="Read an object.",
    source=f"{_PLPKS} plpks_read_var()",
    args=(
        _AUTH,
        _LABEL,
        _LABEL_SIZE,
        address("out", 7, "where the data are written"),
        size("out_size", 8, "bytes of the buffer"),
    ),
    buffers=(
        _AUTH_BUFFER,
        _LABEL_BUFFER,
        _out_buffer(secret=True),
    ),
    outputs=(
        Output(
            name="size",
            register=4,
            kind=ArgKind.SIZE,
            doc="bytes of the object",
            also_with=(H.TOO_BIG,),
        ),
        Output(
            name="policy",
            register=5,
            kind=ArgKind.FLAGS,
            doc="the object's policy",
            names=Policy,
            also_with=(H.AUTHORITY,),
        ),
    ),
    codes=(
        *_OBJECT,
        CodeWhen(H.P4, "output buffer not in RAM"),
        CodeWhen(H.P5, "output size above 2^32 - 1"),
        _NOT_FOUND,
        CodeWhen(H.TOO_BIG, "the object does not fit the buffer; r4 tells its size"),
    ),
)

REMOVE_OBJECT = Hcall(
    name="H_PKS_REMOVE_OBJECT",
    number=0x438,
    level=Level.SC1,
    doc="Remove an object.",
    source=f"{_PLPKS} plpks_remove_var()",
    args=(_AUTH, _LABEL, _LABEL_SIZE),
    buffers=(_AUTH_BUFFER, _LABEL_BUFFER),
    codes=(*_OBJECT, _R_STATE, _NOT_FOUND),
    effect_may_remain=True,
)

CONFIRM_OBJECT_FLUSHED = Hcall(
    name="H_PKS_CONFIRM_OBJECT_FLUSHED",
    number=0x43C,
    level=Level.SC1,
    doc="Ask whether an object, or its removal, is on stable storage.",
    source=f"{_PLPKS} plpks_confirm_object_flushed()",
    args=(_AUTH, _LABEL, _LABEL_SIZE),
    buffers=(_AUTH_BUFFER, _LABEL_BUFFER),
    outputs=(
        Output(
            name="flushed",
            register=4,
            kind=ArgKind.VALUE,
            doc="1 flushed, 0 not yet",
            also_with=(H.NOT_FOUND,),
            otherwise=0,
        ),
    ),
    codes=(*_OBJECT, CodeWhen(H.NOT_FOUND, "no such object; with r4 = 1 its removal is flushed")),
)

SIGNED_UPDATE = Hcall(
    name="H_PKS_SIGNED_UPDATE",
    number=0x454,
    level=Level.SC1,
    doc="Create, change or delete an object by a signed message.",
    source=f"{_PLPKS} plpks_signed_update_var()",
    args=(
        _AUTH,
        _LABEL,
        _LABEL_SIZE,
        _POLICY,
        flags("flags", 8, "0 replace, 1 append", bits=1),
        address("in", 9, "authenticated variable update; unaligned"),
        size(
            "in_size",
            10,
            "bytes of the update",
            minimum=SIGNED_UPDATE_MIN_SIZE,
            maximum=Limit.MAX_OBJECT_SIZE,
        ),
        Arg(name="token", register=11, kind=ArgKind.TOKEN, doc="continue token, 0 at first"),
    ),
    buffers=(_AUTH_BUFFER, _LABEL_BUFFER, _in_buffer(Limit.MAX_OBJECT_SIZE, secret=False)),
    outputs=(_TOKEN_OUT,),
    codes=(
        *_OBJECT,
        _R_STATE,
        CodeWhen(H.P4, "policy without SIGNEDUPDATE, unlike the stored one, or unsupported"),
        CodeWhen(H.P5, "unknown flags, or an append to PK"),
        CodeWhen(H.P6, "update not in RAM, malformed, or not what the variable may hold"),
        CodeWhen(H.P7, "update size invalid"),
        CodeWhen(H.P8, "token invalid"),
        _NO_MEM,
        _BUSY,
        *_LONG_BUSY,
    ),
    effect_may_remain=True,
)

_WRAP_CONDITIONS = WrapFlag.OSSECBOOTAUDIT | WrapFlag.OSSECBOOTENFORCE | WrapFlag.PASSWORD

WRAP_OBJECT = Hcall(
    name="H_PKS_WRAP_OBJECT",
    number=0x490,
    level=Level.SC1,
    doc="Encrypt data under a wrapping key that never leaves the hypervisor.",
    source=f"{_HCALLS} H_PKS_WRAP_OBJECT",
    args=(
        _AUTH,
        _LABEL,
        _LABEL_SIZE,
        flags(
            "flags",
            7,
            "conditions of unwrapping, and the algorithm",
            bits=_WRAP_CONDITIONS | WRAP_ALGORITHM_MASK,
            names=WrapFlag,
        ),
        address("in", 8, "data to wrap"),
        size("in_size", 9, "bytes of the data", minimum=1, maximum=Limit.MAX_OBJECT_SIZE),
        address("out", 10, "wrapped data"),
        size("out_size", 11, f"bytes of the buffer, at least in_size + {WRAP_OVERHEAD}"),
        Arg(name="token", register=12, kind=ArgKind.TOKEN, doc="continue token, 0 at first"),
    ),
    buffers=(
        _AUTH_BUFFER,
        _LABEL_BUFFER,
        _in_buffer(Limit.MAX_OBJECT_SIZE, secret=True),
        _out_buffer(secret=False, fresh=True),
    ),
    outputs=(
        _TOKEN_OUT,
        Output(name="wrapped_size", register=5, kind=ArgKind.SIZE, doc="bytes written"),
    ),
    codes=(
        *_OBJECT,
        _R_STATE,
        CodeWhen(
            H.P4,
            "flags undefined, no known algorithm, both secure-boot conditions, or no password",
        ),
        CodeWhen(H.P5, "input buffer not in RAM"),
        CodeWhen(H.P6, "input size 0 or above the greatest"),
        CodeWhen(H.P7, "output buffer not in RAM"),
        CodeWhen(H.P8, f"output size below in_size + {WRAP_OVERHEAD}"),
        CodeWhen(H.P9, "token invalid"),
        _NOT_FOUND,
        _BUSY,
        *_LONG_BUSY,
    ),
)

UNWRAP_OBJECT = Hcall(
    name="H_PKS_UNWRAP_OBJECT",
    number=0x494,
    level=Level.SC1,
    doc="Decrypt what H_PKS_WRAP_OBJECT made.",
    source=f"{_HCALLS} H_PKS_UNWRAP_OBJECT",
    args=(
        _AUTH,
        flags("flags", 5, "0", bits=0),
        address("in", 6, "wrapped data"),
        size(
            "in_size",
            7,
            "bytes of the wrapped data",
            minimum=WRAP_OVERHEAD,
            maximum=Limit.MAX_WRAPPED_SIZE,
        ),
        address("out", 8, "where the data are written"),
        size("out_size", 9, "bytes of the buffer"),
        Arg(name="token", register=10, kind=ArgKind.TOKEN, doc="continue token, 0 at first"),
    ),
    buffers=(
        _AUTH_BUFFER,
        _in_buffer(Limit.MAX_WRAPPED_SIZE, secret=False),
        _out_buffer(secret=True),
    ),
    outputs=(
        _TOKEN_OUT,
        Output(name="unwrapped_size", register=5, kind=ArgKind.SIZE, doc="bytes written"),
    ),
    codes=(
        *_COMMON,
        _R_STATE,
        _BAD_AUTH,
        CodeWhen(H.P2, "flags invalid"),
        CodeWhen(H.P3, "input buffer not in RAM"),
        CodeWhen(H.P4, f"input size below {WRAP_OVERHEAD} or above the greatest"),
        CodeWhen(H.P5, "output buffer not in RAM"),
        CodeWhen(H.P6, "output size below that of the data"),
        CodeWhen(H.P7, "token invalid"),
        _AUTHORITY,
        CodeWhen(H.UNSUPPORTED, "blob format not supported"),
        CodeWhen(H.BAD_DATA, "blob invalid"),
        CodeWhen(H.NOT_FOUND, "the wrapping key that the blob names is not there"),
        _BUSY,
        *_LONG_BUSY,
        _ABORTED,
    ),
)

FAMILY = Family(
    name="pks",
    title="Platform KeyStore",
    source=_PLPKS,
    hypertas=("hcall-pks",),
    calls=(
        GET_CONFIG,
        SET_PASSWORD,
        GEN_PASSWORD,
        WRITE_OBJECT,
        GEN_KEY,
        READ_OBJECT,
        REMOVE_OBJECT,
        CONFIRM_OBJECT_FLUSHED,
        SIGNED_UPDATE,
        WRAP_OBJECT,
        UNWRAP_OBJECT,
    ),
    constants=(
        *((f"PKS_CONSUMER_{c.name}", c) for c in Consumer),
        *((f"PKS_POLICY_{p.name}", p) for p in Policy),
        ("PKS_CONFIG_FLAG_WRAP", CONFIG_FLAG_WRAP),
        ("PKS_CONFIG_MIN_SIZE", CONFIG_MIN_SIZE),
        ("PKS_CONFIG_MAX_SIZE", CONFIG_MAX_SIZE),
        ("PKS_AUTH_HEADER_SIZE", AUTH_HEADER_SIZE),
        ("PKS_AUTH_ALIGNMENT", AUTH_ALIGNMENT),
        ("PKS_WRAP_OVERHEAD", WRAP_OVERHEAD),
        ("PKS_WRAPPING_KEY_SIZE", WRAPPING_KEY_SIZE),
        ("PKS_SIGNED_UPDATE_MIN_SIZE", SIGNED_UPDATE_MIN_SIZE),
        *((f"PKS_WRAP_FLAG_{flag.name}", flag) for flag in WrapFlag),
    ),
)
