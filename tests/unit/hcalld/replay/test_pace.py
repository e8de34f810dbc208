# SPDX-License-Identifier: Apache-2.0
"""How fast a capture is played."""

from __future__ import annotations

import math

import pytest
import trio
import trio.testing

from hcalld.replay.pace import Pace, PaceError, parse_pace

SECOND = 1_000_000_000


@pytest.mark.parametrize(
    ("word", "factor"), [("real", 1.0), ("fast", math.inf), ("2", 2.0), ("0.5", 0.5)]
)
def test_words(word: str, factor: float) -> None:
    assert parse_pace(word) == factor


@pytest.mark.parametrize("word", ["", "slow", "0", "-1", "inf", "nan", "2x", "1e999"])
def test_what_is_no_pace_is_refused(word: str) -> None:
    with pytest.raises(PaceError, match="expected real, fast"):
        parse_pace(word)


@pytest.mark.parametrize(("factor", "seconds"), [(1.0, 10.0), (4.0, 2.5), (math.inf, 0.0)])
async def test_moments_are_as_far_apart(
    factor: float, seconds: float, autojump_clock: trio.testing.MockClock
) -> None:
    del autojump_clock
    pace = Pace(factor)
    begin = trio.current_time()
    await pace.until(7 * SECOND)
    assert trio.current_time() == begin
    await pace.until(12 * SECOND)
    await pace.until(9 * SECOND)  # no way back
    await pace.until(17 * SECOND)
    assert trio.current_time() - begin == pytest.approx(seconds)
    await pace.between(3 * SECOND, 13 * SECOND)
    assert trio.current_time() - begin == pytest.approx(2 * seconds)
    await pace.between(3 * SECOND, 2 * SECOND)
    assert trio.current_time() - begin == pytest.approx(2 * seconds)
