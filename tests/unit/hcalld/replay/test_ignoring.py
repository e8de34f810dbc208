# SPDX-License-Identifier: Apache-2.0
"""Words of ``--ignore`` name fields of the table, or are refused."""

from __future__ import annotations

import pytest

from hcalld.replay.ignoring import Ignored, IgnoreError, parse_ignored


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("H_PKS_GET_CONFIG.used", "H_PKS_GET_CONFIG has no result 'used'"),
        ("H_PKS_GETCONFIG.usedspace", "no call or frame is called H_PKS_GETCONFIG"),
        ("timestamps", "'timestamps' is no field"),
        ("label", "'label' is no field"),
        ("", "'' is no field"),
        (".status", "no call or frame is called"),
        ("H_PKS_GET_CONFIG.", "has no result ''"),
        ("r3", "'r3' is no field"),
        ("r13", "'r13' is no field"),
    ],
)
def test_a_word_that_names_nothing_is_refused(word: str, text: str) -> None:
    with pytest.raises(IgnoreError) as refused:
        parse_ignored([word])
    assert text in str(refused.value)


def test_a_refusal_says_what_there_is() -> None:
    with pytest.raises(IgnoreError, match=r"maxpwsize.*usedspace"):
        parse_ignored(["H_PKS_GET_CONFIG.nothing"])


def test_frames_fields_are_known() -> None:
    ignored = parse_ignored(["WELCOME.features", "CONTROL.text", "memory"])
    assert ignored.covers("WELCOME", "features")
    assert not ignored.covers("CONTROL", "features")
    assert ignored.covers("UV_ESM", "memory")


def test_nothing_is_ignored_unless_said() -> None:
    assert not Ignored().covers("H_PKS_GET_CONFIG", "status")
