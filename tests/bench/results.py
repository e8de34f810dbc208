# SPDX-License-Identifier: Apache-2.0
"""What measurements came to, against their goals."""

from __future__ import annotations


class Results:
    """Lines with a goal each, printed at the end and kept in a file."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def ratio(self, what: str, value: float, floor: float, goal: float) -> None:
        """Keeps a figure that is as often a floor measured in the same run."""
        reached = value / floor
        self.rows.append({"what": what, "ratio": round(reached, 2), "goal": goal})

    def value(self, what: str, value: float, goal: float, unit: str) -> None:
        """Keeps a figure with a unit."""
        self.rows.append({"what": what, "value": round(value, 1), "goal": goal, "unit": unit})

    def lines(self) -> list[str]:
        """Gives one line for each figure."""
        lines = []
        for row in self.rows:
            number = row.get("ratio", row.get("value"))
            unit = row.get("unit", "x")
            assert isinstance(number, float | int)
            assert isinstance(row["goal"], float | int)
            verdict = "reached" if number <= row["goal"] else "MISSED"
            lines.append(
                f"{row['what']}: {number} {unit}, goal at most {row['goal']} {unit}: {verdict}"
            )
        return lines
