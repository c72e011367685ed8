"""Cells of one variant as one row: mean, deviation, and the difference from the first variant."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

QUALITY = ("ne", "auc", "gauc", "logloss", "calibration", "expected_ne", "floor_ne")
COSTS = ("samples_per_s", "mfu", "peak_memory", "seconds")
METRICS = ("ne", "auc", "logloss")  # with a bootstrap
# Two-sided 95 % quantiles of Student's t by degrees of freedom; beyond, an expansion in 1/df.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
NORMAL = 1.96


def summarise(
    lines: Sequence[dict[str, Any] | None], differences: Sequence[dict[str, Any] | None]
) -> dict[str, Any]:
    """Mean and deviation over the seeds of one variant, and its differences from the first."""
    done = [line for line in lines if line is not None and "failed" not in line]
    tasks = done[0]["test"] if done else {}
    found = [d for d in differences if d is not None]
    return {
        **{
            split: {
                task: {
                    name: spread([line[split].get(task, {}).get(name) for line in done])
                    for name in QUALITY
                }
                for task in tasks
            }
            for split in ("test", "valid")
        },
        **{name: spread([line[name] for line in done]) for name in COSTS},
        "against_first": {
            task: {name: combine([d[task][name] for d in found]) for name in METRICS}
            for task in (found[0] if found else {})
        },
        "curves": [{"seed": line["seed"], "points": line["curve"]} for line in done],
        "failed": [line["failed"] for line in lines if line is not None and "failed" in line],
    }  # fmt: skip


def _student(df: int) -> float:
    return STUDENT[df - 1] if df <= len(STUDENT) else NORMAL + 2.372 / df + 2.82 / df**2


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """mean, sd (sample deviation; None below two values), n; undefined values are left out."""
    known = [float(v) for v in values if v is not None]
    return {
        "mean": statistics.fmean(known) if known else None,
        "sd": statistics.stdev(known) if len(known) > 1 else None,
        "n": len(known),
    }


def combine(differences: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """One difference with a 95 % interval from the bootstraps of several seeds.

    Two sources of chance, independent of each other: which rows were drawn for the test split (the
    bootstrap's interval of each seed; the same rows for all seeds, so it does not shrink with their
    number) and which seeds (Student's t of the differences). With one seed the second is unknown
    and left out. None: undefined for every seed.
    """
    known = [d for d in differences if d["difference"] is not None]
    if not known:
        return None
    if len(known) == 1:
        return {**{name: known[0][name] for name in ("difference", "low", "high")}, "seeds": 1}
    values = [d["difference"] for d in known]
    mean, n = statistics.fmean(values), len(values)
    rows = statistics.fmean([((d["high"] - d["low"]) / 2) ** 2 for d in known])
    seeds = _student(n - 1) ** 2 * statistics.variance(values) / n
    half = math.sqrt(rows + seeds)
    return {"difference": mean, "low": mean - half, "high": mean + half, "seeds": n}
