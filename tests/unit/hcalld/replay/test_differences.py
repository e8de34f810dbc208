# SPDX-License-Identifier: Apache-2.0
"""Two frames side by side: what differs is named, what is secret is never shown."""

from __future__ import annotations

import pytest

from hcalld.replay.differences import Comparer, Difference
from hcalld.replay.ignoring import parse_ignored
from hcallproto.abi.families import pks, svm, tpm, uv
from hcallproto.abi.returns import H
from hcallproto.abi.spec import Hcall
from hcallproto.payloads.pks import Config
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

SECRET = b"\x5a" * 32


def call(hcall: Hcall, **args: int) -> f.Call:
    values = {arg.register: args.get(arg.name, 0) for arg in hcall.args} | {3: hcall.number}
    gpr = tuple(values.get(register, 0) for register in s.REGISTERS)
    return f.Call(3, 1, 12, False, hcall.level, gpr, 0, 0, 0, 0)


def reply(
    status: int = 0,
    registers: tuple[tuple[int, int], ...] = (),
    writes: tuple[f.WriteSegment, ...] = (),
    **others: object,
) -> f.Reply:
    frame = f.Reply(3, 1, 12, status, registers, writes)
    return frame._replace(**others)  # type: ignore[arg-type]


def written(gpa: int, data: bytes) -> f.WriteSegment:
    return f.WriteSegment(gpa, len(data), data)


def zeroed(gpa: int, size: int) -> f.WriteSegment:
    return f.WriteSegment(gpa, size, None)


def differences(
    a_call: f.Call | None, expected: f.Frame, got: f.Frame, comparer: Comparer | None = None
) -> list[str]:
    found = (comparer or Comparer()).compare(a_call, expected, got)
    return [str(one) for one in found]


READ = call(pks.READ_OBJECT, out=0x4000, out_size=0x100)
CONFIG = Config(
    flags=0,
    objoverhead=1,
    maxpwsize=32,
    maxobjlabelsize=255,
    maxobjsize=4000,
    totalsize=65536,
    usedspace=0,
    supportedpolicies=0,
    maxlargeobjectsize=0,
    signedupdatealgorithms=0,
    wrappingfeatures=0,
)
GET_CONFIG = call(pks.GET_CONFIG, buffer=0x1000, buffer_size=520)


def config(**changed: int) -> f.Reply:
    import dataclasses

    data = dataclasses.replace(CONFIG, **changed).build()
    return reply(writes=(written(0x1000, data), zeroed(0x1000 + len(data), 520 - len(data))))


def test_what_is_equal_differs_in_nothing() -> None:
    assert differences(GET_CONFIG, config(), config()) == []


def test_another_status_is_named() -> None:
    assert differences(READ, reply(H.BUSY), reply()) == [
        "H_PKS_READ_OBJECT: status: H_SUCCESS, expected H_BUSY"
    ]


def test_a_status_of_an_ultracall_is_named_from_its_own_set() -> None:
    (found,) = differences(call(uv.ESM), reply(-55), reply(-5))
    assert found == "UV_ESM: status: U_RETRY, expected U_P2"


def test_registers_have_the_tables_names() -> None:
    assert differences(
        READ, reply(registers=((4, 64), (5, 0x2000))), reply(registers=((4, 65), (6, 1)))
    ) == [
        "H_PKS_READ_OBJECT: r4 (size): 65, expected 64",
        "H_PKS_READ_OBJECT: r5 (policy): not set, expected 0x2000",
        "H_PKS_READ_OBJECT: r6: 0x1, expected not set",
    ]


def test_a_structures_field_is_named() -> None:
    assert differences(GET_CONFIG, config(), config(usedspace=0x120, flags=0x10)) == [
        "H_PKS_GET_CONFIG: flags: 10, expected 00",
        "H_PKS_GET_CONFIG: usedspace: 00000120, expected 00000000",
    ]


def test_a_buffer_has_an_offset_and_16_bytes_of_each_side() -> None:
    wrap = call(pks.WRAP_OBJECT, out=0x8000, out_size=0x800)
    mine, its = bytes(64), bytes(40) + bytes(range(24))
    assert differences(
        wrap, reply(writes=(written(0x8000, mine),)), reply(writes=(written(0x8000, its),))
    ) == [f"H_PKS_WRAP_OBJECT: out+0x29: {bytes(range(1, 17)).hex()}, expected {bytes(16).hex()}"]


def test_secret_buffers_say_only_where() -> None:
    other = SECRET[:8] + b"\xa5" * 24
    (found,) = differences(
        READ, reply(writes=(written(0x4000, SECRET),)), reply(writes=(written(0x4000, other),))
    )
    assert found == (
        "H_PKS_READ_OBJECT: out+0x8: 32 bytes that are secret, expected 32 bytes that are secret"
    )


def test_a_secret_that_is_longer_is_named_by_its_size() -> None:
    (found,) = differences(
        READ, reply(writes=(written(0x4000, SECRET),)), reply(writes=(written(0x4000, SECRET * 2),))
    )
    assert found == "H_PKS_READ_OBJECT: out+0x20: 32 bytes written, expected nothing written"


def test_secret_registers_are_not_shown() -> None:
    (found,) = differences(
        call(svm.RANDOM), reply(registers=((4, 0x1234),)), reply(registers=((4, 0x5678),))
    )
    assert found == "H_RANDOM: r4 (random): a secret, expected a secret"


def test_open_bytes_of_a_secret_buffer_are_shown_up_to_the_secret_ones() -> None:
    comm = call(tpm.TPM_COMM, operation=1, response=0x9000, response_size=4096)
    mine = bytes.fromhex("80010000000c00000000") + b"\x01\x02"
    its = bytes.fromhex("80010000000c00000101") + b"\x01\x02"
    assert differences(
        comm, reply(writes=(written(0x9000, mine),)), reply(writes=(written(0x9000, its),))
    ) == ["H_TPM_COMM: response+0x8: 0101, expected 0000"]


def test_memory_that_is_no_buffer_of_the_call_is_secret() -> None:
    (found,) = differences(
        READ,
        reply(writes=(written(0x70000, SECRET),)),
        reply(writes=(written(0x70000, b"x" * 32),)),
    )
    assert found.startswith("H_PKS_READ_OBJECT: memory at 0x70000: 32 bytes that are secret")


def test_zeros_are_zeros_however_they_are_written() -> None:
    assert (
        differences(
            READ,
            reply(writes=(zeroed(0x4000, 64),)),
            reply(writes=(written(0x4000, bytes(32)), written(0x4020, bytes(32)))),
        )
        == []
    )


def test_a_later_segment_is_written_over_an_earlier_one() -> None:
    wrap = call(pks.WRAP_OBJECT, out=0x8000, out_size=0x800)
    assert (
        differences(
            wrap,
            reply(writes=(zeroed(0x8000, 64), written(0x8010, SECRET))),
            reply(
                writes=(zeroed(0x8000, 16), written(0x8010, SECRET), zeroed(0x8030, 16)),
            ),
        )
        == []
    )


def test_a_range_that_is_not_written_is_said() -> None:
    assert differences(READ, reply(writes=(zeroed(0x4000, 64),)), reply()) == [
        "H_PKS_READ_OBJECT: out+0x0: nothing written, expected 64 bytes zeroed"
    ]


def test_much_zeroed_memory_costs_nothing() -> None:
    esm = call(uv.ESM)
    assert (
        differences(
            esm,
            reply(writes=(zeroed(0, 1 << 32), written(5, b"x"))),
            reply(writes=(zeroed(0, 5), written(5, b"x"), zeroed(6, (1 << 32) - 6))),
        )
        == []
    )


def test_context_and_pages_are_compared() -> None:
    esm = call(uv.ESM)
    mine = reply(context=1, nip=0x100, pages=(f.PageRange(0, 0x1000, s.PageState.UNSHARED),))
    its = reply(context=3, nip=0x200, msr=1 << 22, msr_mask=1 << 22)
    assert differences(esm, mine, its) == [
        "UV_ESM: nip: 0x200, expected 0x100",
        "UV_ESM: msr: 0x400000 under 0x400000, expected not set",
        "UV_ESM: pages: none, expected 0x0+0x1000 UNSHARED",
    ]


def test_another_frame_is_said() -> None:
    cancelled = f.Cancelled(3, 1, 12, s.Effect.NONE)
    assert differences(READ, reply(), cancelled) == [
        "H_PKS_READ_OBJECT: frame: CANCELLED, expected REPLY"
    ]


def test_an_unknown_call_goes_by_its_number() -> None:
    unknown = f.Call(0, 0, 1, False, 1, (0, 0, 0xF000, *([0] * 10)), 0, 0, 0, 0)
    assert differences(unknown, reply(), reply(-2)) == [
        "hcall 0xf000: status: H_FUNCTION, expected H_SUCCESS"
    ]


def test_frames_that_belong_to_no_call_are_compared_by_field() -> None:
    mine = f.Control(s.ControlAction.TERMINATE, "bad page", 0)
    its = f.Control(s.ControlAction.RESET, "bad page", 4)
    assert differences(None, mine, its) == ["CONTROL: action: RESET, expected TERMINATE"]


def test_announcements_name_the_calls() -> None:
    spec = f.CallSpec(0x41C, 1, s.Disposition.FORWARD, 0, 1000, -2, -2)
    mine = f.Announce(f.Announcement((spec,), ("hcall-pks",), ()), 1, 0)
    its = f.Announce(
        f.Announcement((spec._replace(deadline_ms=2), spec._replace(number=0x434)), (), ()), 2, 0
    )
    assert sorted(differences(None, mine, its)) == [
        "ANNOUNCE: announcement of H_PKS_GET_CONFIG: another, expected another",
        "ANNOUNCE: announcement of H_PKS_READ_OBJECT: present, expected absent",
        "ANNOUNCE: announcement's strings: (), expected ('hcall-pks',)",
    ]


# -- blanked captures -----------------------------------------------------------------------


def test_what_is_blanked_is_left_out_and_listed() -> None:
    comparer = Comparer(is_blanked=True)
    found = differences(
        READ,
        reply(registers=((4, 32),), writes=(written(0x4000, bytes(32)),)),
        reply(registers=((4, 33),), writes=(written(0x4000, SECRET),)),
        comparer,
    )
    assert found == ["H_PKS_READ_OBJECT: r4 (size): 33, expected 32"]
    assert comparer.left_out == {"H_PKS_READ_OBJECT.out": 1}


def test_blanked_registers_are_left_out() -> None:
    comparer = Comparer(is_blanked=True)
    random = call(svm.RANDOM)
    assert not differences(
        random, reply(registers=((4, 0),)), reply(registers=((4, 77),)), comparer
    )
    assert comparer.left_out == {"H_RANDOM.random": 1}


def test_the_open_bytes_of_a_blanked_buffer_are_compared() -> None:
    comparer = Comparer(is_blanked=True)
    comm = call(tpm.TPM_COMM, operation=1, response=0x9000, response_size=4096)
    mine = bytes.fromhex("80010000000e00000000") + bytes(4)
    its = bytes.fromhex("80010000000e00000101") + SECRET[:4]
    assert differences(
        comm,
        reply(writes=(written(0x9000, mine),)),
        reply(writes=(written(0x9000, its),)),
        comparer,
    ) == ["H_TPM_COMM: response+0x8: 0101, expected 0000"]


# -- live daemons ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a_call", "mine", "its"),
    [
        (
            call(pks.WRAP_OBJECT, out=0x8000, out_size=0x800),
            reply(writes=(written(0x8000, b"a" * 64),)),
            reply(writes=(written(0x8000, b"b" * 64),)),
        ),
        (
            call(pks.SIGNED_UPDATE),
            reply(H.LONG_BUSY_ORDER_1_MSEC, ((4, 7),)),
            reply(H.LONG_BUSY_ORDER_1_MSEC, ((4, 8),)),
        ),
        (
            call(tpm.TPM_COMM, operation=1, response=0x9000, response_size=4096),
            reply(writes=(written(0x9000, bytes(10) + b"a" * 4),)),
            reply(writes=(written(0x9000, bytes(10) + b"b" * 4),)),
        ),
    ],
)
def test_what_is_made_anew_differs_by_nature(a_call: f.Call, mine: f.Reply, its: f.Reply) -> None:
    def natures(comparer: Comparer) -> list[bool]:
        return [one.by_nature for one in comparer.compare(a_call, mine, its)]

    assert natures(Comparer(is_live=True)) == [True]
    assert natures(Comparer()) == [False]


def test_a_tpms_response_code_is_no_matter_of_nature() -> None:
    comm = call(tpm.TPM_COMM, operation=1, response=0x9000, response_size=4096)
    mine = reply(writes=(written(0x9000, bytes(10) + b"a" * 4),))
    its = reply(writes=(written(0x9000, bytes(9) + b"\x01" + b"b" * 4),))
    found = Comparer(is_live=True).compare(comm, mine, its)
    assert [one.by_nature for one in found] == [False]


# -- what is ignored ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word",
    [
        "usedspace",
        "H_PKS_GET_CONFIG.usedspace",
        "h_pks_get_config.UsedSpace",
        "buffer",
        "H_PKS_GET_CONFIG.buffer",
    ],
)
def test_a_field_can_be_ignored_by_its_names(word: str) -> None:
    comparer = Comparer(parse_ignored([word]))
    assert differences(GET_CONFIG, config(), config(usedspace=0x120), comparer) == []


@pytest.mark.parametrize("word", ["status", "H_PKS_READ_OBJECT.status"])
def test_the_status_can_be_ignored(word: str) -> None:
    comparer = Comparer(parse_ignored([word]))
    assert differences(READ, reply(H.BUSY), reply(), comparer) == []


@pytest.mark.parametrize("word", ["r4", "size", "H_PKS_READ_OBJECT.r4"])
def test_a_register_can_be_ignored_by_either_name(word: str) -> None:
    comparer = Comparer(parse_ignored([word]))
    mine, its = reply(registers=((4, 1),)), reply(registers=((4, 2),))
    assert differences(READ, mine, its, comparer) == []


def test_another_calls_field_is_not_ignored() -> None:
    comparer = Comparer(parse_ignored(["H_PKS_WRAP_OBJECT.status"]))
    assert len(differences(READ, reply(H.BUSY), reply(), comparer)) == 1


def test_a_difference_says_which_call() -> None:
    one = Difference("H_X", "status", "A", "B")
    assert str(one) == "H_X: status: B, expected A"
