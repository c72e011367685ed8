"""Honest tuning: of equally many trials of each variant the best on validation enters the table.

A trial is an ordinary cell with the first seed under OUT/trials; it never reads the test split.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kunlun.scaling.trials import Trial
from kunlun.training.scoring import mean_ne, tasks_with_ne


def valid_nes(lines: Sequence[dict[str, Any]]) -> list[float | None]:
    """Of each trial of a variant the NE of its best validation, mean over tasks; None: it diverged,
    or lacks the NE of a task that another trial has, and so cannot be held against that one."""
    metrics = [{} if "failed" in line else line["valid"] for line in lines]
    tasks = tasks_with_ne(*metrics)
    return [mean_ne(own, tasks) for own in metrics]


def best(lines: Sequence[dict[str, Any]]) -> int | None:
    """Place of the lowest validation NE, the earliest of equals; None: no trial has one."""
    known = [(ne, place) for place, ne in enumerate(valid_nes(lines)) if ne is not None]
    return min(known)[1] if known else None


def record(
    trials: Sequence[Trial], lines: Sequence[dict[str, Any]], chosen: Trial
) -> dict[str, Any]:
    """What the report says of one variant: the chosen trial, and every trial made."""
    return {
        "chosen": chosen.number,
        "trials": [
            {
                "number": trial.number,
                "changes": trial.changes(),
                "valid_ne": ne,
                "failed": line.get("failed"),
            }
            for trial, line, ne in zip(trials, lines, valid_nes(lines), strict=True)
        ],
    }
