"""Is run B better than run A? Paired bootstrap on the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kunlun.errors import RunError
from kunlun.metrics.ne import entropy
from kunlun.training import predictions

F64 = NDArray[np.float64]
METRICS = ("logloss", "ne", "auc")
COLUMNS = ("a", "b", "difference", "low", "high", "better")


def compare(
    run_a: Path | str,
    run_b: Path | str,
    split: str = "test",
    *,
    by: str = "group",
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Differences B - A of log-loss, NE and AUC per task, with 95 % intervals.

    Both runs must have predicted the same rows (predictions/SPLIT.parquet). by: what is drawn with
    replacement, "group" (rows of one user move together: honest if they are alike) or "row".
    Returns tasks -> metric -> {a, b, difference, low, high, better}; better is "a", "b" or None if
    the interval holds 0. All are None where a metric is not defined, and the task's `undefined`
    gives the reason. Memory 8 bytes x groups a draw; time O(draws x rows).
    Raises RunError if predictions are missing or of other rows.
    """
    a, b = (_by_row(Path(run) / "predictions" / f"{split}.parquet") for run in (run_a, run_b))
    tasks = _shared_tasks(a, b, run_a, run_b)
    found: dict[str, Any] = {}
    for task in tasks:
        y = a[f"label.{task}"].astype(np.float64)
        known = ~np.isnan(y) & (a["weight"] != 0)
        units = a["group"][known] if by == "group" else np.arange(int(known.sum()))
        pair = [x[f"p.{task}"][known] for x in (a, b)]
        found[task] = _bootstrap(pair, y[known], a["weight"][known], units, draws, seed)
    return {
        "a": str(run_a),
        "b": str(run_b),
        "split": split,
        "by": by,
        "draws": draws,
        "tasks": found,
    }


def _by_row(file: Path) -> dict[str, NDArray[Any]]:
    """The predictions in order of their rows in the logs."""
    found = predictions.read(file)
    order = np.argsort(found["row"], kind="stable")
    ordered = {name: values[order] for name, values in found.items()}
    if len(order) and not (np.diff(ordered["row"]) > 0).all():
        raise RunError(f"{file}: predictions hold a row twice; evaluate again")
    return ordered


def _shared_tasks(a: dict[str, Any], b: dict[str, Any], run_a: Any, run_b: Any) -> list[str]:
    tasks = [n[2:] for n in a if n.startswith("p.") and n in b]
    if not tasks:
        raise RunError(f"{run_a} and {run_b} have no task in common")
    for name in ("row", "group", "weight", *(f"label.{t}" for t in tasks)):
        if not np.array_equal(a[name], b[name], equal_nan=a[name].dtype.kind == "f"):
            raise RunError(
                f"{run_a} and {run_b} were evaluated on different rows ('{name}' differs); "
                "evaluate both on the same data first"
            )
    return tasks


def _bootstrap(
    pair: list[F64], y: F64, weight: F64, units: NDArray[Any], draws: int, seed: int
) -> dict[str, Any]:
    values, unit = np.unique(units, return_inverse=True)
    w = weight.astype(np.float64)
    if not len(y):
        nothing = {name: dict.fromkeys(COLUMNS) for name in METRICS}
        why = dict.fromkeys(METRICS, "no rows with a known label")
        return {**nothing, "rows": 0, "units": 0, "undefined": why}
    point = _measure(pair, y, w)
    rng = np.random.default_rng(seed)
    drawn = np.empty((draws, *point.shape))
    prepared = [_Ranks(p) for p in pair]
    losses = [_loss(p, y) for p in pair]
    for i in range(draws):
        count = np.bincount(rng.integers(0, len(values), len(values)), minlength=len(values))
        drawn[i] = _of(losses, prepared, y, w * count[unit])
    found: dict[str, Any] = {}
    undefined = {}
    for m, name in enumerate(METRICS):
        difference = drawn[:, 1, m] - drawn[:, 0, m]
        if not np.isfinite(point[:, m]).all():
            found[name] = dict.fromkeys(COLUMNS)
            undefined[name] = _why(y, pair)
            continue
        low, high = np.nanquantile(difference, [0.025, 0.975]).tolist()
        winner = None
        if low > 0 or high < 0:
            winner = "b" if (low > 0) == (name == "auc") else "a"
        found[name] = {
            "a": float(point[0, m]),
            "b": float(point[1, m]),
            "difference": float(point[1, m] - point[0, m]),
            "low": low,
            "high": high,
            "better": winner,
        }
    found |= {"rows": len(y), "units": len(values)}
    return {**found, "undefined": undefined} if undefined else found


def _why(y: F64, pair: list[F64]) -> str:
    """Why a metric of these rows, which are some, has no value."""
    if np.isnan(pair).any():
        return "predictions are NaN"
    if y.min() == y.max():
        return f"one class only (all {'positive' if y[0] else 'negative'})"
    return "an infinitely confident prediction was wrong"


class _Ranks:
    """Rows of one prediction in rising order, sorted once for all draws."""

    def __init__(self, p: F64) -> None:
        self.order = np.argsort(p, kind="stable")
        ranked = p[self.order]
        self.first = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])  # of equal scores

    def auc(self, y: F64, w: F64) -> float:
        """Weighted AUC, ties half; NaN with one class."""
        positive = np.add.reduceat((w * y)[self.order], self.first)
        negative = np.add.reduceat((w * (1 - y))[self.order], self.first)
        pairs = positive.sum() * negative.sum()
        below = np.cumsum(negative) - 0.5 * negative
        return float((positive * below).sum() / pairs) if pairs else float("nan")


def _loss(p: F64, y: F64) -> F64:
    """Per row; a probability that has saturated counts as one step of float64 away from 0 or 1,
    or one wrong row would make every mean infinite and a draw without it undefined."""
    return -np.log(np.maximum(np.where(y > 0.5, p, 1 - p), np.finfo(np.float64).epsneg))


def _measure(pair: list[F64], y: F64, w: F64) -> F64:
    return _of([_loss(p, y) for p in pair], [_Ranks(p) for p in pair], y, w)


def _of(losses: list[F64], ranks: list[_Ranks], y: F64, w: F64) -> F64:
    """[2 runs, (logloss, ne, auc)] under row weights w."""
    total = w.sum()
    rate = (w * y).sum() / total if total else float("nan")
    base = entropy(rate) or float("nan")
    rows = []
    for loss, rank in zip(losses, ranks, strict=True):
        mean = (w * loss).sum() / total if total else float("nan")
        rows.append((mean, mean / base, rank.auc(y, w)))
    return np.array(rows)
