# SPDX-License-Identifier: Apache-2.0
"""A reader of the pages finds everything that the table says."""

from __future__ import annotations

import dataclasses

import pytest

from hcallproto.abi.families import pks, sev, svm, tpm, uv
from hcallproto.abi.registry import CALLS, FAMILIES
from hcallproto.abi.returns import CODE_SETS, code_name
from hcallproto.abi.spec import BufferShape, Caller, Family, Hcall, Level
from hcallproto.codegen.family_tables import INDEX_BLOCKS, blocks, call_block, summary

calls = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)


def unwrapped(text: str) -> str:
    return " ".join(text.split())


def made_by(call: Hcall) -> str:
    return "``ioctl``" if call.level is Level.COMMAND else f"``sc {call.level:d}``"


@calls
def test_block_says_everything(call: Hcall):
    text = unwrapped(call_block(call))
    assert f":number: 0x{call.number:x}, " in text
    assert (f":caller: {call.caller.value}" in text) is (call.level is not Level.COMMAND)
    assert call.doc in text
    assert call.source in text
    for arg in call.args:
        assert f"``r{arg.register}`` ``{arg.name}`` {arg.doc}" in text
    for output in call.outputs:
        assert f"``r{output.register}`` ``{output.name}`` {output.doc}" in text
    for entry in call.codes:
        is_status = call.level is Level.COMMAND and entry.code >= 0
        value = f"0x{entry.code:02x}" if is_status else f"{entry.code:d}"
        assert f"``{code_name(entry.code)}`` {value} {entry.when}" in text
    assert f"then ``{code_name(call.timeout_code)}``" in text


@calls
def test_block_says_when_the_answer_is_late(call: Hcall):
    late = [line for line in call_block(call).split("\n``") if "deadline passed" in unwrapped(line)]
    assert {line.split("``")[0] for line in late} == {
        code_name(call.timeout_code),
        code_name(call.lost_code),
    }


@calls
def test_block_fits_the_page(call: Hcall):
    for line in call_block(call).splitlines():
        assert len(line) <= 100 or line.startswith(":source:"), line


@pytest.mark.parametrize(
    ("call", "number"),
    [
        (pks.READ_OBJECT, "0x434, ``sc 1``"),
        (uv.ESM, "0xf110, ``sc 2``"),
        (sev.LAUNCH_START, "0xaeba0002, ``KVM_MEMORY_ENCRYPT_OP`` command 2"),
        (sev.GET_ID2, "0x53000008, ``SEV_ISSUE_CMD`` command 8"),
        (sev.REG_REGION, "0xaebb0000, ``KVM_MEMORY_ENCRYPT_REG_REGION``"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_block_says_how_a_call_is_made(call: Hcall, number: str):
    assert call_block(call).split("\n\n")[1].startswith(f":number: {number}\n:")


def test_block_of_a_command():
    text = unwrapped(call_block(sev.SEND_START))
    assert "Fields of its structure of 72 bytes:" in text
    assert "0 u32 ``r4`` ``policy`` guest policy (out)" in text
    assert "8 u64 ``r5`` ``pdh_cert_uaddr`` target platform's PDH certificate; address," in text
    fields, back = text.split("Fields that come back:")
    for part in (fields, back):
        assert "64 u32 ``r12`` ``session_len`` bytes there are" in part
    assert "also with ``SEV_RET_INVALID_LEN``" in back
    assert "``pdh_cert_uaddr``" not in back
    statuses, errors = back.split("Errors that the ioctl gives itself")
    assert "``SEV_RET_POLICY_FAILURE`` 0x07 the guest's policy forbids it" in statuses
    assert "``EFAULT`` -14 a pointer is bad" in errors
    assert "SEV_RET" not in errors
    assert "``E" not in statuses


def test_block_of_a_command_whose_fields_only_come_back():
    text = unwrapped(call_block(sev.GUEST_STATUS))
    assert text.count("Fields of its structure of 12 bytes:") == 1
    assert "8 u32 ``r6`` ``state`` guest state (out)" in text
    assert "come back" not in text


def test_block_of_a_command_without_a_structure():
    assert "``r4`` ``data`` where the ids go; address, written, 128 bytes" in unwrapped(
        call_block(sev.GET_ID)
    )
    text = call_block(sev.LAUNCH_FINISH)
    assert "structure" not in text
    assert "Arguments" not in text


def test_block_of_a_served_call():
    text = unwrapped(call_block(pks.WRITE_OBJECT))
    assert ":served: yes" in text
    assert ":deadline: 10 s, then ``H_ABORTED``; the change may have been made all the same" in text
    assert (
        "authorization structure; real address, read, at most 16 + the partition's "
        "``max_password_size`` bytes, 16-byte aligned, within a 4 KiB page, secret"
    ) in text
    assert "bytes of the label; 1 to the partition's ``max_label_size``" in text
    assert "only bits of the partition's ``supported_policies``: 0x40000000 OSSECBOOTAUDIT" in text
    assert "``H_PRIVILEGE`` -3 the caller is in problem state; QEMU answers" in text
    assert "Results" not in text


def test_block_of_a_call_that_only_reads():
    text = unwrapped(call_block(pks.GET_CONFIG))
    assert ":deadline: 10 s, then ``H_STATE``; nothing is changed" in text
    assert "written, ``buffer_size`` bytes" in text
    assert "32 to 65536" in text
    assert "the keystore is disabled for this partition; the deadline passed" in text


def test_block_of_a_call_with_results():
    text = unwrapped(call_block(pks.READ_OBJECT))
    assert "``r4`` ``size`` bytes of the object; also with ``H_TOO_BIG``" in text
    assert "the object's policy; also with ``H_AUTHORITY``: 0x40000000 OSSECBOOTAUDIT" in text
    text = unwrapped(call_block(pks.SIGNED_UPDATE))
    assert "also with ``H_BUSY``, any H_LONG_BUSY" in text
    assert "random 64 random bits (secret)" in unwrapped(call_block(svm.RANDOM)).replace("``", "")


def test_block_of_a_call_whose_code_counts():
    text = unwrapped(call_block(uv.ESMB_GET_FILE))
    assert "``r3`` result when positive, bytes" in text
    assert "H_PRIVILEGE" not in text


def test_block_of_conditional_arguments():
    text = unwrapped(call_block(tpm.TPM_COMM))
    assert "what to do: 1 EXECUTE, 2 CLOSE_SESSION" in text
    assert "10 to 4096; only if ``operation`` is EXECUTE" in text
    plain = dataclasses.replace(tpm.TPM_COMM.args[0], names=None)
    call = dataclasses.replace(tpm.TPM_COMM, args=(plain, *tpm.TPM_COMM.args[1:]))
    assert "only if ``operation`` is 1" in unwrapped(call_block(call))


def test_block_of_other_kinds():
    text = unwrapped(call_block(uv.ESM))
    assert "flattened device tree; real address, read, 40 bytes" in text
    assert "log2 of the page size; always 16" in unwrapped(call_block(uv.PAGE_IN))
    assert "only bits of 0x1" in unwrapped(call_block(pks.SIGNED_UPDATE))
    assert "0; no bit is defined" in unwrapped(call_block(pks.UNWRAP_OBJECT))
    assert "0x4000000000000000 OSSECBOOTAUDIT" in unwrapped(call_block(pks.WRAP_OBJECT))
    number = dataclasses.replace(uv.SHARE_PAGE.args[1], maximum=(1 << 64) - 1)
    share = dataclasses.replace(uv.SHARE_PAGE, args=(uv.SHARE_PAGE.args[0], number))
    assert "pages; 0 is success; number" in unwrapped(call_block(share))
    number = dataclasses.replace(number, minimum=1)
    share = dataclasses.replace(share, args=(uv.SHARE_PAGE.args[0], number))
    assert "pages; 0 is success; 1 or more" in unwrapped(call_block(share))


def test_block_of_a_call_that_does_not_wait():
    call = dataclasses.replace(pks.GET_CONFIG, waits_for_daemon=False)
    assert ":daemon gone: ``H_STATE`` at once" in call_block(call)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_summary_lists_every_call(family: Family):
    text = unwrapped(summary(family))
    for call in family.calls:
        served = "no" if call.decode_only else "yes"
        made = f"0x{call.number:x} ``{call.name}`` {made_by(call)} {served} {call.doc}"
        assert made in text


def test_blocks_of_a_family():
    names = set(blocks(pks.FAMILY))
    assert {"calls pks", "call H_PKS_GET_CONFIG", "layout CONFIG", "layout AUTH_HEADER"} <= names
    assert not any(name.startswith("layout") for name in blocks(uv.FAMILY))


def test_index_lists_families_and_codes():
    families = unwrapped(INDEX_BLOCKS["calls all"]())
    assert "`pks <pks.rst>`__ 11 11 ``hcall-pks`` Platform KeyStore" in families
    assert "`uv <uv.rst>`__ 20 20 none Ultracalls" in families
    codes = unwrapped(INDEX_BLOCKS["codes all"]())
    assert "-59 ``H_P6``, ``U_BAD_MODE``" in codes
    assert "4 ``SEV_RET_INVALID_LEN``" in codes
    for code in (code for codes_of_one in CODE_SETS for code in codes_of_one):
        assert f"``{code_name(code)}``" in codes


def test_everything_that_a_declaration_can_say_is_used():
    """The kinds that the pages spell out exist in the table, so the tests above saw them."""
    assert {buffer.shape for call in CALLS for buffer in call.buffers} == set(BufferShape)
    assert {call.caller for call in CALLS} == set(Caller)
