# SPDX-License-Identifier: Apache-2.0
"""The connection's fuzzing harness for a moment: seeds, mutations of them, and any bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fuzz import connection
from tests.property.wire_frames import any_frame

from hcallproto.wire.encode import encode

ROOT = Path(__file__).resolve().parents[2]
SEEDS = connection.seeds()
starts = st.integers(0, len(connection.STARTS) - 1)


@pytest.mark.parametrize("name", SEEDS)
def test_seed_when_fed_then_its_frames_are_given(name: str):
    seed = SEEDS[name]
    assert connection.check(seed[0], seed[1:])


@given(seed=st.sampled_from(sorted(SEEDS)), data=st.data())
def test_seed_when_bytes_are_changed_then_the_invariants_hold(seed: str, data: st.DataObject):
    mutated = bytearray(SEEDS[seed])
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        mutated[at] = data.draw(st.sampled_from([0, 1, 2, 3, 0x7F, 0x80, 0xFF]))
    cut = data.draw(st.integers(1, len(mutated)) | st.just(len(mutated)))
    connection.check(mutated[0], bytes(mutated[1:cut]))


@given(start=starts, frames=st.lists(any_frame, max_size=4), rest=st.binary(max_size=40))
def test_frames_when_of_any_type_and_values_then_the_invariants_hold(
    start: int, frames: list[object], rest: bytes
):
    connection.check(start, b"".join(map(encode, frames)) + rest)  # type: ignore[arg-type]


@given(start=starts, data=st.binary(max_size=200))
def test_bytes_when_they_are_any_at_all_then_the_invariants_hold(start: int, data: bytes):
    connection.check(start, data)


def test_program_when_a_seed_comes_on_standard_input_then_it_checks_it(tmp_path: Path):
    def run(*words: object, **options: Any) -> None:
        done = subprocess.run(
            [sys.executable, "tests/fuzz/connection.py", *map(str, words)],
            cwd=ROOT,
            env={"PYTHONPATH": f"{ROOT}/protocol:{ROOT}"},
            capture_output=True,
            check=False,
            **options,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")

    run("--seeds", tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == SEEDS
    run(input=SEEDS["ready"])
