# SPDX-License-Identifier: Apache-2.0
"""The table is consistent, and whatever could be inconsistent in it is found by name."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import pytest
from construct import Struct

from hcallproto.abi.families import pks, sev, svm, tpm, uv
from hcallproto.abi.registers import U64_MAX
from hcallproto.abi.registry import (
    BY_NAME,
    BY_NUMBER,
    CALLS,
    FAMILIES,
    FAMILY_OF,
    call_problems,
    find,
    may_be_invalid,
    problems,
)
from hcallproto.abi.returns import Code, H, SevCode, U
from hcallproto.abi.spec import (
    Arg,
    ArgKind,
    BufferShape,
    Caller,
    CodeWhen,
    Condition,
    Family,
    Hcall,
    Level,
    Limit,
    Milestone,
    Query,
    address,
    flags,
    opaque,
    size,
    value,
)
from hcallproto.payloads import sev_abi
from hcallproto.wire import schema

calls = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)


@calls
def test_declared_call_is_consistent(call: Hcall):
    assert list(call_problems(call)) == []


def test_table_is_consistent():
    assert problems() == []


@calls
def test_call_is_found(call: Hcall):
    assert find(call.number, call.level) is call
    assert find(call.number, int(call.level)) is call
    assert BY_NAME[call.name] is call
    assert BY_NUMBER[call.level, call.number] is call
    assert call in FAMILY_OF[call.name].calls


@pytest.mark.parametrize(
    ("number", "level"),
    [(0x41C, 2), (0xF110, 1), (0x41D, 1), (0, 1), (-1, 1), (1 << 64, 1), (0x41C, 9)],
)
def test_unknown_call_is_not_found(number: int, level: int):
    assert find(number, level) is None


def test_all_families_are_there():
    assert [family.name for family in FAMILIES] == ["pks", "tpm", "svm", "uv", "sev"]


# Linux asm/hvcall.h and asm/ultravisor-api.h, open-power/ultravisor uapi_uvcall.h, QEMU
# hw/ppc/spapr.h, Linux uapi asm/kvm.h, linux/kvm.h and psp-sev.h: written down again here, so
# that a slip in the table shows.
NUMBERS = {
    "H_PKS_GET_CONFIG": 0x41C,
    "H_PKS_SET_PASSWORD": 0x420,
    "H_PKS_GEN_PASSWORD": 0x424,
    "H_PKS_WRITE_OBJECT": 0x42C,
    "H_PKS_GEN_KEY": 0x430,
    "H_PKS_READ_OBJECT": 0x434,
    "H_PKS_REMOVE_OBJECT": 0x438,
    "H_PKS_CONFIRM_OBJECT_FLUSHED": 0x43C,
    "H_PKS_SIGNED_UPDATE": 0x454,
    "H_PKS_WRAP_OBJECT": 0x490,
    "H_PKS_UNWRAP_OBJECT": 0x494,
    "H_TPM_COMM": 0xEF10,
    "H_RANDOM": 0x300,
    "H_SVM_PAGE_IN": 0xEF00,
    "H_SVM_PAGE_OUT": 0xEF04,
    "H_SVM_INIT_START": 0xEF08,
    "H_SVM_INIT_DONE": 0xEF0C,
    "H_SVM_INIT_ABORT": 0xEF14,
    "UV_WRITE_PATE": 0xF104,
    "UV_RESTRICTED_SPR_WRITE": 0xF108,
    "UV_RESTRICTED_SPR_READ": 0xF10C,
    "UV_ESM": 0xF110,
    "UV_READ_SCOM": 0xF114,
    "UV_WRITE_SCOM": 0xF118,
    "UV_RETURN": 0xF11C,
    "UV_REGISTER_MEM_SLOT": 0xF120,
    "UV_UNREGISTER_MEM_SLOT": 0xF124,
    "UV_PAGE_IN": 0xF128,
    "UV_PAGE_OUT": 0xF12C,
    "UV_SHARE_PAGE": 0xF130,
    "UV_UNSHARE_PAGE": 0xF134,
    "UV_PAGE_INVAL": 0xF138,
    "UV_SVM_TERMINATE": 0xF13C,
    "UV_UNSHARE_ALL_PAGES": 0xF140,
    "UV_READ_MEM": 0xF144,
    "UV_WRITE_MEM": 0xF148,
    "UV_ESMB_GET_FILE": 0xF14C,
    "UV_SEND_SBE_COMMAND": 0xF150,
    **{
        f"KVM_SEV_{name}": 0xAEBA << 16 | number
        for name, number in {
            "INIT": 0,
            "ES_INIT": 1,
            "LAUNCH_START": 2,
            "LAUNCH_UPDATE_DATA": 3,
            "LAUNCH_UPDATE_VMSA": 4,
            "LAUNCH_SECRET": 5,
            "LAUNCH_MEASURE": 6,
            "LAUNCH_FINISH": 7,
            "SEND_START": 8,
            "SEND_UPDATE_DATA": 9,
            "SEND_UPDATE_VMSA": 10,
            "SEND_FINISH": 11,
            "RECEIVE_START": 12,
            "RECEIVE_UPDATE_DATA": 13,
            "RECEIVE_UPDATE_VMSA": 14,
            "RECEIVE_FINISH": 15,
            "GUEST_STATUS": 16,
            "DBG_DECRYPT": 17,
            "DBG_ENCRYPT": 18,
            "CERT_EXPORT": 19,
            "GET_ATTESTATION_REPORT": 20,
            "SEND_CANCEL": 21,
            "INIT2": 22,
        }.items()
    },
    "KVM_MEMORY_ENCRYPT_REG_REGION": 0xAEBB << 16,
    "KVM_MEMORY_ENCRYPT_UNREG_REGION": 0xAEBC << 16,
    **{
        f"SEV_{name}": 0x5300 << 16 | number
        for name, number in {
            "FACTORY_RESET": 0,
            "PLATFORM_STATUS": 1,
            "PEK_GEN": 2,
            "PEK_CSR": 3,
            "PDH_GEN": 4,
            "PDH_CERT_EXPORT": 5,
            "PEK_CERT_IMPORT": 6,
            "GET_ID": 7,
            "GET_ID2": 8,
        }.items()
    },
}


def test_numbers_are_the_published_ones():
    assert {call.name: call.number for call in CALLS} == NUMBERS


def test_ultracalls_and_only_they_are_of_level_2():
    assert {call for call in CALLS if call.level is Level.SC2} == set(uv.FAMILY.calls)


def test_commands_and_only_they_are_of_level_4():
    assert {call for call in CALLS if call.level is Level.COMMAND} == set(sev.FAMILY.calls)


def test_all_calls_are_served():
    assert not [call for call in CALLS if call.decode_only]


def test_only_the_file_reader_and_commands_are_called_from_problem_state():
    assert {call for call in CALLS if call.from_problem_state} == {
        uv.ESMB_GET_FILE,
        *sev.FAMILY.calls,
    }


@calls
def test_a_call_that_reads_leaves_no_effect(call: Hcall):
    reads = {
        *("H_PKS_GET_CONFIG", "H_PKS_READ_OBJECT", "H_PKS_CONFIRM_OBJECT_FLUSHED"),
        *("H_PKS_WRAP_OBJECT", "H_PKS_UNWRAP_OBJECT", "H_RANDOM"),
        *("UV_RESTRICTED_SPR_READ", "UV_READ_SCOM", "UV_READ_MEM"),
        *("KVM_SEV_GUEST_STATUS", "SEV_PLATFORM_STATUS"),
    }
    assert call.effect_may_remain is (call.name not in reads)


def test_what_guests_are_told_without_an_answer():
    """No code of success, none that makes Linux try again for ever."""
    for call in CALLS:
        for code in (call.timeout_code, call.lost_code):
            assert code < 0, call.name
    assert (tpm.TPM_COMM.timeout_code, tpm.TPM_COMM.lost_code) == (H.RESOURCE, H.RESOURCE)


SECRET_OF_COMMANDS = {
    "KVM_SEV_LAUNCH_UPDATE_DATA": {"uaddr"},
    "KVM_SEV_LAUNCH_UPDATE_VMSA": {"uaddr"},
    "KVM_SEV_LAUNCH_SECRET": {"guest_uaddr"},
    "KVM_SEV_SEND_UPDATE_DATA": {"guest_uaddr"},
    "KVM_SEV_RECEIVE_UPDATE_DATA": {"guest_uaddr"},
    "KVM_SEV_DBG_DECRYPT": {"src_uaddr", "dst_uaddr"},
    "KVM_SEV_DBG_ENCRYPT": {"src_uaddr", "dst_uaddr"},
}
"""Guest memory. All else is encrypted, or public: packets, certificates, sessions, reports."""


@calls
def test_password_like_things_are_secret(call: Hcall):
    names = {"auth", "password", "data", "out", "request", "response"}
    if call is pks.WRAP_OBJECT:
        # What comes out is encrypted, what goes in is not.
        names ^= {"out", "in"}
    if call.level is Level.COMMAND:
        names = SECRET_OF_COMMANDS.get(call.name, set())
        assert names == {buffer.address for buffer in call.buffers if buffer.secret}
    for buffer in call.buffers:
        if buffer.address in names:
            assert buffer.secret, buffer.address


# -- every check, by a table that breaks it ---------------------------------------------

GOOD = pks.READ_OBJECT


def broken(change: Callable[[Hcall], Hcall]) -> list[str]:
    return list(call_problems(change(GOOD)))


def with_arg(number: int, **changes: object) -> Callable[[Hcall], Hcall]:
    def change(call: Hcall) -> Hcall:
        args = list(call.args)
        args[number] = dataclasses.replace(args[number], **changes)  # type: ignore[arg-type]
        return dataclasses.replace(call, args=tuple(args))

    return change


def with_buffer(number: int, **changes: object) -> Callable[[Hcall], Hcall]:
    def change(call: Hcall) -> Hcall:
        buffers = list(call.buffers)
        buffers[number] = dataclasses.replace(buffers[number], **changes)  # type: ignore[arg-type]
        return dataclasses.replace(call, buffers=tuple(buffers))

    return change


def with_output(number: int, **changes: object) -> Callable[[Hcall], Hcall]:
    def change(call: Hcall) -> Hcall:
        outputs = list(call.outputs)
        outputs[number] = dataclasses.replace(outputs[number], **changes)  # type: ignore[arg-type]
        return dataclasses.replace(call, outputs=tuple(outputs))

    return change


def with_query(
    asks: tuple[str, ...], lengths: tuple[tuple[str, int], ...], code: Code = H.P3
) -> Callable[[Hcall], Hcall]:
    return with_fields(query=Query(asks, lengths, code))


def with_fields(**changes: object) -> Callable[[Hcall], Hcall]:
    return lambda call: dataclasses.replace(call, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_fields(number=0x435), "number 0x435 is not a multiple of 4"),
        (with_fields(number=0x498), "number 0x498 is not in a known range"),
        (with_fields(number=0xF110), "number 0xf110 is not in a known range (0x4 to 0x494, 0xef00"),
        (with_fields(name="UV_READ"), "name does not begin with H_"),
        (with_fields(doc=" "), "doc is empty"),
        (with_fields(source=""), "source is empty"),
        (with_fields(deadline_ms=0), "deadline of 0 ms"),
        (with_fields(deadline_ms=600_001), "deadline of 600001 ms"),
        (with_fields(caller=Caller.ANY), "is a hypercall from problem state"),
        (with_fields(timeout_code=H.BUSY), "timeout code H_BUSY is not listed"),
        (with_fields(lost_code=U.STATE), "lost code U_STATE is not listed"),
        (
            lambda call: dataclasses.replace(call, codes=(*call.codes, CodeWhen(U.RETRY, "x"))),
            "lists U_RETRY, expected a H_ code",
        ),
        (
            lambda call: dataclasses.replace(call, codes=(*call.codes, call.codes[0])),
            "lists H_SUCCESS twice",
        ),
        (
            lambda call: dataclasses.replace(call, codes=(*call.codes, CodeWhen(H.BUSY, " "))),
            "does not say when H_BUSY is returned",
        ),
        (
            lambda call: dataclasses.replace(
                call, codes=tuple(entry for entry in call.codes if entry.code is not H.P3)
            ),
            "argument label_size can give H_P3, which codes do not list",
        ),
        (with_arg(1, register=7), "arguments are in r[4, 7, 6, 7, 8], expected r4"),
        (with_arg(0, register=31), "arguments in r0, r2 and r31 must come last"),
        (with_arg(1, name="auth"), "two arguments are called auth"),
        (with_arg(1, name="a label"), "argument name 'a label' is not an identifier"),
        (with_arg(1, doc=""), "argument label has no doc"),
        (with_arg(2, minimum=300, maximum=255), "argument label_size has bounds 300 to 255"),
        (with_arg(2, minimum=-1, maximum=255), "argument label_size has bounds -1 to 255"),
        (with_arg(2, maximum=U64_MAX + 1), "argument label_size has bounds"),
        (
            with_arg(1, only_when=Condition("out", 1)),
            "argument label depends on out, which is no earlier",
        ),
        (with_arg(1, only_when=Condition("nothing", 1)), "argument label depends on nothing"),
        (with_arg(1, code=U.P2), "argument label can give U_P2"),
        (with_arg(1, kind=ArgKind.OPAQUE), "buffer label is not an ADDRESS argument"),
        (with_buffer(1, address="nothing"), "buffer nothing is not an ADDRESS argument"),
        (with_buffer(1, address="nothing"), "address label has no buffer, but the call is served"),
        (with_buffer(1, address="auth"), "argument auth has two buffers"),
        (with_buffer(1, size=None), "buffer label is SIZED but names no size argument"),
        (with_buffer(1, size="out"), "buffer label is sized by out, which is not a SIZE argument"),
        (with_buffer(1, size="nothing"), "buffer label is sized by nothing"),
        (
            with_buffer(1, shape=BufferShape.FIXED),
            "buffer label is FIXED but names the size argument label_size",
        ),
        (
            with_buffer(0, page_bounded=True),
            "buffer auth is PAGE_BOUNDED: page_bounded is for SIZED",
        ),
        (with_buffer(0, alignment=12), "buffer auth has alignment 12, which is no power of 2"),
        (with_buffer(0, alignment=0), "buffer auth has alignment 0"),
        (with_buffer(1, max_size=0), "buffer label has a greatest size of 0"),
        (with_output(1, register=4), "outputs are in r[4, 4], expected r4 to r12"),
        (with_output(0, register=6), "outputs are in r[6, 5], expected"),
        (with_output(0, register=3), "outputs are in r[3, 5], expected"),
        (with_output(1, register=13), "outputs are in r[4, 13], expected"),
        (with_output(0, name="policy"), "two outputs are called policy"),
        (with_output(0, doc=""), "output size has no doc"),
        (with_output(0, also_with=(H.BUSY,)), "output size is defined with H_BUSY, not listed"),
        (
            lambda call: dataclasses.replace(call, milestone=Milestone("read", ("size", "length"))),
            "milestone tells length, which is no argument or output",
        ),
        (with_query(("length",), (("size", 1),)), "asks by length, no argument"),
        (with_query((), (("auth", 1),)), "is asked for auth, which is no output"),
        (with_query((), (), H.BUSY), "a question's code H_BUSY is not listed"),
    ],
)
def test_inconsistent_call_is_named(change: Callable[[Hcall], Hcall], message: str):
    assert any(message in found for found in broken(change)), broken(change)


def test_context_registers_may_follow_the_ordinary_ones():
    assert broken(with_arg(4, register=31)) == []


def test_too_many_arguments():
    args = tuple(opaque(f"a{n}", 4 + n, "a") for n in range(10))
    found = list(call_problems(dataclasses.replace(GOOD, args=args, buffers=())))
    assert any("expected r4 to r12" in what for what in found)


def test_name_of_an_ultracall():
    found = list(call_problems(dataclasses.replace(uv.ESM, name="H_ESM")))
    assert found == ["name does not begin with UV_"]


def command_problems(**changes: object) -> list[str]:
    call = dataclasses.replace(sev.LAUNCH_MEASURE, **changes)  # type: ignore[arg-type]
    return list(call_problems(call))


def test_commands_have_names_and_numbers_of_their_own():
    assert command_problems(number=0xAEBA_0063, name="MADE_UP") == []
    (problem,) = command_problems(number=0xAEBD_0000)
    assert problem.startswith("number 0xaebd0000 is not in a known range (0xaeba0000 to 0xaebaffff")
    (problem,) = command_problems(foreign_code=SevCode.ASID_OWNED)
    assert problem == "foreign code SEV_RET_ASID_OWNED is not listed"
    (problem,) = command_problems(timeout_code=H.ABORTED)
    assert problem == "timeout code H_ABORTED is not listed"


def test_arguments_of_commands_are_fields_of_their_structure():
    assert command_problems(structure=sev_abi.CERT_EXPORT) == [
        "uaddr is no field of its structure",
        "len is no field of its structure",
        "len is no field of its structure",
    ]
    swapped = Struct(*reversed(sev_abi.LAUNCH_MEASURE.subcons))
    assert command_problems(structure=swapped) == [
        "uaddr is in r4, which is not its place in the structure",
        "len is in r5, which is not its place in the structure",
        "len is in r5, which is not its place in the structure",
    ]
    assert "has a structure, which is for commands" in broken(
        with_fields(structure=sev_abi.LAUNCH_MEASURE)
    )


@pytest.mark.parametrize(
    ("arg", "expected"),
    [
        (address("out", 4, "d"), True),
        (address("nothing", 4, "d"), False),
        (size("a", 4, "d"), True),
        (value("a", 4, "d"), False),
        (value("a", 4, "d", minimum=1), True),
        (opaque("a", 4, "d"), False),
        (Arg(name="a", register=4, kind=ArgKind.TEXT, doc="d"), False),
        (Arg(name="a", register=4, kind=ArgKind.TOKEN, doc="d"), True),
        (Arg(name="a", register=4, kind=ArgKind.ZERO, doc="d"), True),
        (flags("a", 4, "d", bits=1), True),
        (flags("a", 4, "d", bits=U64_MAX), False),
        (flags("a", 4, "d", bits=Limit.SUPPORTED_POLICIES), True),
    ],
)
def test_may_be_invalid(arg: Arg, expected: bool):
    assert may_be_invalid(GOOD, arg) is expected


def family(name: str, *members: Hcall, **more: object) -> Family:
    return Family(name=name, title="T", source="s", calls=members, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("families", "message"),
    [
        ((family("a"),), "a: has no calls"),
        ((dataclasses.replace(svm.FAMILY, title=""),), "svm: title is empty"),
        ((dataclasses.replace(svm.FAMILY, source=" "),), "svm: source is empty"),
        (
            (family("a", GOOD), family("b", GOOD)),
            "H_PKS_READ_OBJECT: declared in a and b",
        ),
        (
            (family("a", GOOD, dataclasses.replace(GOOD, name="H_OTHER")),),
            "H_OTHER: number 0x434 is H_PKS_READ_OBJECT's",
        ),
        (
            (family("a", GOOD, constants=(("X", 1),)), family("b", uv.ESM, constants=(("X", 2),))),
            "b: constant X is also in a",
        ),
        (
            (family("a", dataclasses.replace(GOOD, doc="")),),
            "H_PKS_READ_OBJECT: doc is empty",
        ),
    ],
)
def test_inconsistent_table_is_named(families: tuple[Family, ...], message: str):
    assert message in problems(families)


def test_same_number_at_another_level_is_no_problem():
    other = dataclasses.replace(uv.ESM, number=0xF110)
    assert problems((family("a", other), family("b", GOOD))) == []


@calls
def test_declared_call_fits_the_wire(call: Hcall):
    """What docs/wire.rst bounds: the shim would refuse the announcement."""
    assert len(call.buffers) <= schema.MAX_BUFFERS
    assert call.deadline_ms < 1 << 32
    for buffer in call.buffers:
        registers = [call.arg(buffer.address).register]
        if buffer.size is not None:
            registers.append(call.arg(buffer.size).register)
        assert set(registers) <= set(schema.REGISTERS)
        if isinstance(buffer.max_size, int):
            assert buffer.header_size + buffer.max_size < 1 << 32
    for output in call.outputs:
        assert output.register in schema.REGISTERS


def test_all_families_together_fit_one_announcement():
    assert len(CALLS) <= schema.MAX_CALLS
    strings = [string for family in FAMILIES for string in family.hypertas]
    assert len(strings) == len(set(strings)) <= schema.MAX_DT_STRINGS
    for string in strings:
        assert re.fullmatch(rf"[a-z0-9-]{{1,{schema.MAX_DT_STRING_SIZE}}}", string)
