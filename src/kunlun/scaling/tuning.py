"""Honest tuning: of equally many trials of each variant the best on validation enters the table.

A trial is an ordinary cell with the first seed under OUT/trials; it never reads the test split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from kunlun.scaling.trials import Trial
from kunlun.training.scoring import mean_ne


def valid_ne(line: dict[str, Any]) -> float | None:
    """Mean over tasks of the best validation's NE; None: the trial diverged."""
    return None if "failed" in line else mean_ne(line["valid"])


def best(lines: Sequence[dict[str, Any]]) -> int:
    """Place of the lowest validation NE, the earliest of equals; the first if all diverged."""
    values = [valid_ne(line) for line in lines]
    return min(range(len(values)), key=lambda i: math.inf if values[i] is None else values[i])  # type: ignore[arg-type, return-value]


def record(trials: Sequence[Trial], lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the report says of one variant: the chosen trial, and every trial made."""
    return {
        "chosen": trials[best(lines)].number,
        "trials": [
            {
                "number": trial.number,
                "changes": trial.changes(),
                "valid_ne": valid_ne(line),
                "failed": line.get("failed"),
            }
            for trial, line in zip(trials, lines, strict=True)
        ],
    }
