"""Calibration: mean prediction over mean label; 1 = right on average, 1.1 = 10 % too high."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kunlun.metrics.score import Score, ScoreMetric

LOGIT_STEP, LOGIT_CAP = 0.5, 8.0  # cells of the reliability plot; even in the logit, so that
# rare events (p near 0) are resolved as well as common ones


class Calibration(ScoreMetric):
    """Weighted mean p / weighted mean y; detail: mean_p, base_rate.

    `bins()` gives the reliability plot: rows grouped by predicted logit in steps of 0.5.
    """

    cells: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        cells = torch.zeros(4, int(2 * LOGIT_CAP / LOGIT_STEP) + 2, dtype=torch.float64)
        self.add_state("cells", cells, dist_reduce_fx="sum")  # rows: weight, p, y, count

    def add(self, logits: Tensor, labels: Tensor, weights: Tensor, groups: Tensor | None) -> None:
        last = self.cells.shape[1] - 1
        place = torch.floor((logits.double().nan_to_num() + LOGIT_CAP) / LOGIT_STEP) + 1
        cell = place.clamp(0, last).long()
        w = weights.double()
        rows = torch.stack([w, w * logits.double().sigmoid(), w * labels, torch.ones_like(w)])
        self.cells.index_add_(1, cell, rows)

    def score(self) -> Score:
        weight, p, y, rows = self.cells.sum(1).tolist()
        if rows == 0:
            return Score(None, "no rows with a known label")
        detail = {"mean_p": p / weight, "base_rate": y / weight}
        if y == 0:
            return Score(None, "one class only (all negative)", detail)
        return Score(p / y, detail=detail)

    def bins(self) -> list[dict[str, float | None]]:
        """Non-empty cells, rising: mean p (None: of one that is not a number), mean y, weight, rows
        (of this rank, or of all ranks inside `sync_context()`)."""
        found: list[dict[str, float | None]] = []
        for weight, p, y, rows in self.cells.t().tolist():
            if rows:
                mean = p / weight if math.isfinite(p) else None
                found.append({"p": mean, "y": y / weight, "weight": weight, "rows": rows})
        return found
