# SPDX-License-Identifier: Apache-2.0
"""Secrets tell nothing by accident."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable

import pytest

from hcalld.core.secret import Secret


@dataclasses.dataclass
class Holder:
    password: Secret


@pytest.mark.parametrize("show", [repr, str, "{}".format, lambda s: f"{s!r:>5}"])
def test_secret_shown_any_way_hides_its_bytes(show: Callable[[object], str]):
    shown = show(Secret(b"hunter2"))

    assert "hunter2" not in shown
    assert "7" not in shown


def test_secret_inside_a_dataclass_stays_hidden():
    assert repr(Holder(Secret(b"hunter2"))) == "Holder(password=<secret>)"


def test_secret_is_not_pickled():
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(Secret(b"hunter2"))


def test_secret_is_not_a_dictionary_key():
    with pytest.raises(TypeError, match="unhashable"):
        hash(Secret(b"hunter2"))


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (b"hunter2", True),
        (b"hunter", False),
        (b"hunter3", False),
        (b"", False),
        (b"Hunter2", False),
    ],
)
def test_secret_matches_only_its_own_bytes(other: bytes, same: bool):
    assert Secret(b"hunter2").matches(other) is same
    assert (Secret(b"hunter2") == Secret(other)) is same


def test_secret_is_not_equal_to_bytes():
    assert Secret(b"x") != b"x"


def test_secret_keeps_a_copy_of_a_mutable_buffer():
    buffer = bytearray(b"hunter2")
    secret = Secret(buffer)  # type: ignore[arg-type]  # sloppy callers exist
    buffer[:] = b"0000000"

    assert secret.reveal() == b"hunter2"
    assert len(secret) == 7
