"""The same metrics on parts of the rows: where a model is good, and where it is not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from kunlun.training.scoring import Scored

HISTORY = ((0, 0), (1, 4), (5, 19), (20, 99), (100, 499), (500, None))  # events of a row
DAY = 86_400_000  # milliseconds
MAX_DAYS = 31  # more would be a table nobody reads
SHOWN = ("ne", "auc", "calibration", "base_rate", "rows")


def slices(scored: Scored, tasks: list[str]) -> list[dict[str, Any]]:
    """By history length, by UTC day of the request, by how often the group key occurs.

    Every entry: by, value, and per task ne, auc, calibration, base_rate, rows (None: undefined).
    """
    found = []
    for by, parts in (
        ("history events", _ranges(scored.history)),
        ("day", _days(scored.request_time)),
        ("rows of the group", _ranges(_sizes(scored.group))),
    ):
        for value, rows in parts:
            found.append({"by": by, "value": value, "tasks": _metrics(scored, rows, tasks)})
    return found


def _metrics(scored: Scored, rows: Tensor, tasks: list[str]) -> dict[str, Any]:
    part = Scored(**{name: values[rows] for name, values in vars(scored).items()})
    found = part.metrics(tasks, gauc=False).compute()
    return {task: {name: values[name] for name in SHOWN} for task, values in found.items()}


def _ranges(values: Tensor) -> list[tuple[str, Tensor]]:
    """Rows [n] bool per non-empty range of HISTORY."""
    parts = []
    for low, high in HISTORY:
        rows = values >= low if high is None else (values >= low) & (values <= high)
        name = f"{low}+" if high is None else str(low) if low == high else f"{low}-{high}"
        if bool(rows.any()):
            parts.append((name, rows))
    return parts


def _days(time: Tensor) -> list[tuple[str, Tensor]]:
    day = torch.div(time, DAY, rounding_mode="floor")
    days = day.unique().tolist()
    if len(days) > MAX_DAYS:
        return []
    return [
        (datetime.fromtimestamp(d * DAY / 1000, UTC).date().isoformat(), day == d) for d in days
    ]


def _sizes(group: Tensor) -> Tensor:
    """How many rows share each row's group."""
    _, place, counts = group.unique(return_inverse=True, return_counts=True)
    sizes: Tensor = counts[place]
    return sizes
